#version 450
#extension GL_GOOGLE_include_directive : require
// y[i] = f(x[..]) with x strided and y contiguous.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint F = 0u;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push {
    uint n, x_at, y_at, rank;
    uint dims[6];
    int xs[6];
    float a, b;
} push;
#include "inc/functions.glsl"
#include "inc/place.glsl"

// Beyond those of Unary.
const uint AFFINE = 100u, CLAMP = 101u;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        PLACE(i, push.xs, from)
        float v = x[int(push.x_at) + from];
        precise float r;
        if (F == AFFINE) {
            r = push.a * v + push.b;
        } else if (F == CLAMP) {
            // By bits: drivers make min and max of comparisons, which drop NaN.
            r = is_nan(v) ? v : v < push.a ? push.a : v > push.b ? push.b : v;
        } else {
            r = apply(F, v);
        }
        y[push.y_at + i] = r;
    }
}
