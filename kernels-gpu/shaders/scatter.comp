#version 450
// y[o, r, i] = base[o, r, i] + the sum of x[o, j, i] over the j that belong to row r, in order, for x [outer, k, inner] and y
// [outer, n, inner], contiguous. `index` has where the j of each row begin, n + 1 numbers, and then the j, row by row. A thread takes an
// element of y: no two write to one, so nothing depends on their order.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool BASE = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Index { uint index[]; };
layout(std430, binding = 2) readonly buffer Base { float base[]; };
layout(std430, binding = 3) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint all, n, k, inner, x_at, base_at, y_at; } push;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint row = i / push.inner, r = row % push.n, at = row / push.n * push.k;
        float sum = BASE ? base[push.base_at + i] : 0.0;
        for (uint t = index[r]; t < index[r + 1u]; t++) {
            sum += x[push.x_at + (at + index[push.n + 1u + t]) * push.inner + i % push.inner];
        }
        y[push.y_at + i] = sum;
    }
}
