#version 450
#extension GL_GOOGLE_include_directive : require
// dx[i] = f'(kept[i]) dy[i], contiguous; what is kept is x or f(x), as the function says.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint F = 0u;
layout(std430, binding = 0) readonly buffer Kept { float kept[]; };
layout(std430, binding = 1) readonly buffer Dy { float dy[]; };
layout(std430, binding = 2) writeonly buffer Dx { float dx[]; };
layout(push_constant) uniform Push { uint n, kept_at, dy_at, dx_at; float a, b; } push;
#include "inc/functions.glsl"

// Beyond those of Unary, as in map.comp.
const uint AFFINE = 100u, CLAMP = 101u;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        float v = kept[push.kept_at + i], d = dy[push.dy_at + i];
        precise float r;
        if (F == AFFINE) {
            r = push.a * d;
        } else if (F == CLAMP) {
            r = v >= push.a && v <= push.b ? d : 0.0;
        } else {
            r = slope(F, v) * d;
        }
        dx[push.dx_at + i] = r;
    }
}
