#version 450
#extension GL_GOOGLE_include_directive : require
// y[..] = x[..], words of 32 bits, both views strided; with FILL y[..] = one word.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool FILL = false;
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 1) writeonly buffer Y { uint y[]; };
layout(push_constant) uniform Push {
    uint n, x_at, y_at, rank;
    uint dims[6];
    int xs[6], ys[6];
    uint word;
} push;
#include "inc/place.glsl"

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        PLACE(i, push.ys, to)
        if (FILL) {
            y[int(push.y_at) + to] = push.word;
        } else {
            PLACE(i, push.xs, from)
            y[int(push.y_at) + to] = x[int(push.x_at) + from];
        }
    }
}
