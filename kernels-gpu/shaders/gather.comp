#version 450
#extension GL_GOOGLE_include_directive : require
// y[o, j, i] = x[o, index, i] for x [outer, n, inner] and y [outer, k, inner], contiguous; the index is index[j], or with FULL
// index[o, j, i]. Indices are below n: the caller has seen to it. What x stores in half is f32 in y.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool FULL = false;
layout(constant_id = 2) const uint X_STORED = 0u;
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 1) readonly buffer Index { uint index[]; };
layout(std430, binding = 2) writeonly buffer Y { uint y[]; };
layout(push_constant) uniform Push { uint all, n, k, inner, x_at, y_at; } push;
#include "inc/stored.glsl"

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint row = i / push.inner;
        uint from = index[FULL ? i : row % push.k];
        uint at = push.x_at + (row / push.k * push.n + from) * push.inner + i % push.inner;
        y[push.y_at + i] = STORED(x, X_STORED, at);
    }
}
