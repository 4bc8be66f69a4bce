#version 450
#extension GL_GOOGLE_include_directive : require
// y = softmax(scale x) over the places of each row that may be seen, or its logarithm; elsewhere 0. x and y may be the same memory.
// Rows are [item, group, query] with `queries` of the last and `group` of the two last: the mask has a row of bytes for each item, and
// where causal, query q sees keys below q + 1 + n - queries.
layout(constant_id = 1) const bool LOG = false;
layout(constant_id = 2) const bool MASKED = false;
layout(constant_id = 3) const bool CAUSAL = false;
layout(constant_id = 4) const bool LSE = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 2) readonly buffer Mask { uint mask[]; };
layout(std430, binding = 3) writeonly buffer Lse { float lse[]; };
layout(push_constant) uniform Push {
    uint rows, n, x_at, y_at;
    float scale;
    uint queries, group, mask_at, lse_at;
} push;
#include "inc/functions.glsl"
#include "inc/tree.glsl"

bool seen(uint row, uint j) {
    if (CAUSAL && int(j) > int(row % push.queries) + int(push.n) - int(push.queries)) return false;
    if (MASKED) {
        uint byte_ = push.mask_at + row / push.group * push.n + j;
        return (mask[byte_ / 4u] >> (8u * (byte_ % 4u)) & 255u) != 0u;
    }
    return true;
}

void main() {
    uint t = gl_LocalInvocationID.x;
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = push.x_at + row * push.n;
        float most = NEG_INFINITY;
        for (uint j = t; j < push.n; j += THREADS) {
            if (seen(row, j)) {
                float v = push.scale * x[at + j];
                most = most < v ? v : most;
            }
        }
        most = tree_max(most);
        // A row of -infinity alone, or without any place.
        float base = most == NEG_INFINITY ? 0.0 : most;
        float sum = 0.0;
        for (uint j = t; j < push.n; j += THREADS) {
            if (seen(row, j)) sum += exp_(push.scale * x[at + j] - base);
        }
        sum = tree_sum(sum);
        float total = base + log_(sum);
        for (uint j = t; j < push.n; j += THREADS) {
            float v = push.scale * x[at + j], r = 0.0;
            if (LOG) {
                r = v - total;
            } else if (seen(row, j) && sum != 0.0) {
                r = exp_(v - base) / sum;
            }
            y[push.y_at + row * push.n + j] = r;
        }
        if (LSE && t == 0u) lse[push.lse_at + row] = total;
    }
}
