#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// dx[i] = f'(kept[i]) dy[i], contiguous; what is kept is x or f(x), as the function says.
layout(constant_id = 3) const uint F = 0u;
layout(std430, binding = 0) readonly buffer Kept { float kept[]; };
layout(std430, binding = 0) readonly buffer Kept4 { vec4 kept4[]; };
layout(std430, binding = 1) readonly buffer Dy { float dy[]; };
layout(std430, binding = 1) readonly buffer Dy4 { vec4 dy4[]; };
layout(std430, binding = 2) writeonly buffer Dx { float dx[]; };
layout(std430, binding = 2) writeonly buffer Dx4 { vec4 dx4[]; };
layout(push_constant) uniform Push { uint n, kept_at, dy_at, dx_at; float a, b; } push;
#include "inc/each.glsl"
#include "inc/functions.glsl"

// Beyond those of Unary, as in map.comp.
const uint AFFINE = 100u, CLAMP = 101u;

float f(float v, float d) {
    precise float r;
    if (F == AFFINE) {
        r = push.a * d;
    } else if (F == CLAMP) {
        r = v >= push.a && v <= push.b ? d : 0.0;
    } else {
        r = slope(F, v) * d;
    }
    return r;
}

void main() {
    EACH(first, push.n) {
        vec4 v[PER], d[PER];
        OF_EACH(k, i, first, push.n) {
            v[k] = READ(kept, kept4, push.kept_at + i);
            d[k] = READ(dy, dy4, push.dy_at + i);
        }
        OF_EACH(k, i, first, push.n) {
            vec4 r = vec4(f(v[k].x, d[k].x));
            if (WIDE) r.yzw = vec3(f(v[k].y, d[k].y), f(v[k].z, d[k].z), f(v[k].w, d[k].w));
            WRITE(dx, dx4, push.dx_at + i, r)
        }
    }
}
