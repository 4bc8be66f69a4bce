#version 450
// y[o, b, i] = sum of block b, of `each` elements along j, of x[o, j, i] for x [outer, n, inner] contiguous; with SQUARED of
// (x[o, j, i] - mean[i])^2. A thread takes an element of y.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool SQUARED = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 2) readonly buffer Mean { float mean[]; };
layout(push_constant) uniform Push { uint outer, n, inner, blocks, each, x_at, y_at, mean_at; } push;

void main() {
    uint all = push.outer * push.blocks * push.inner;
    for (uint i = gl_GlobalInvocationID.x; i < all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint row = i / push.inner, first = row % push.blocks * push.each;
        uint at = push.x_at + row / push.blocks * push.n * push.inner + i % push.inner;
        float sum = 0.0, centre = SQUARED ? mean[push.mean_at + i % push.inner] : 0.0;
        for (uint j = first; j < min(first + push.each, push.n); j++) {
            float v = x[at + j * push.inner] - centre;
            sum += SQUARED ? v * v : v;
        }
        y[push.y_at + i] = sum;
    }
}
