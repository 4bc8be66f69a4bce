#version 450
// y[o, i] = sum over j of x[o, j, i] for x [outer, n, inner] contiguous. A thread takes an element of y.
layout(local_size_x_id = 0) in;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint outer, n, inner, x_at, y_at; } push;

void main() {
    uint all = push.outer * push.inner;
    for (uint i = gl_GlobalInvocationID.x; i < all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint at = push.x_at + i / push.inner * push.n * push.inner + i % push.inner;
        // Blocks of 64, so that long sums lose less.
        float sum = 0.0;
        for (uint j = 0u; j < push.n; j += 64u) {
            float part = 0.0;
            for (uint k = j; k < min(j + 64u, push.n); k++) part += x[at + k * push.inner];
            sum += part;
        }
        y[push.y_at + i] = sum;
    }
}
