#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y[i] = f(x[..]) with x strided and y contiguous.
layout(constant_id = 3) const uint F = 0u;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 1) writeonly buffer Y4 { vec4 y4[]; };
layout(push_constant) uniform Push {
    uint n, x_at, y_at, rank;
    uint dims[6];
    int xs[6];
    float a, b;
} push;
#include "inc/each.glsl"
#include "inc/functions.glsl"
#include "inc/place.glsl"

// Beyond those of Unary.
const uint AFFINE = 100u, CLAMP = 101u;

float f(float v) {
    precise float r;
    if (F == AFFINE) {
        r = push.a * v + push.b;
    } else if (F == CLAMP) {
        // By bits: drivers make min and max of comparisons, which drop NaN.
        r = is_nan(v) ? v : v < push.a ? push.a : v > push.b ? push.b : v;
    } else {
        r = apply(F, v);
    }
    return r;
}

void main() {
    EACH(first, push.n) {
        vec4 v[PER];
        OF_EACH(k, i, first, push.n) {
            PLACE(i, push.xs, from)
            v[k] = READ(x, x4, int(push.x_at) + from);
        }
        OF_EACH(k, i, first, push.n) {
            vec4 r = vec4(f(v[k].x));
            if (WIDE) r.yzw = vec3(f(v[k].y), f(v[k].z), f(v[k].w));
            WRITE(y, y4, push.y_at + i, r)
        }
    }
}
