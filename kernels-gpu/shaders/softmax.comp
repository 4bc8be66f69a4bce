#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = softmax(scale x) over the places of each row that may be seen, elsewhere 0; or its logarithm. x and y may be the same memory.
// Rows are [item, group, query] with `queries` of the last and `group` of the two last: the mask has a row of bytes for each item, and
// where causal, query q sees keys below q + 1 + n - queries.
layout(constant_id = 4) const bool LOG = false;
layout(constant_id = 5) const bool MASKED = false;
layout(constant_id = 6) const bool CAUSAL = false;
layout(constant_id = 7) const bool LSE = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 1) writeonly buffer Y4 { vec4 y4[]; };
layout(std430, binding = 2) readonly buffer Mask { uint mask[]; };
layout(std430, binding = 3) writeonly buffer Lse { float lse[]; };
layout(push_constant) uniform Push {
    uint rows, n, x_at, y_at;
    float scale;
    uint queries, group, mask_at, lse_at;
} push;
#include "inc/functions.glsl"
#include "inc/row.glsl"

// Whether a place may be seen, of a row of which those before `end` may that the mask's bytes from `bytes` on allow.
bool seen(uint j, int end, uint bytes) {
    return int(j) < end && (!MASKED || (mask[(bytes + j) / 4u] >> (8u * ((bytes + j) % 4u)) & 255u) != 0u);
}

// Scores of a stretch; of what is not seen -infinity.
#define SCORES(v, first)                                                                            \
    FOURS(k) { READ_FOUR(v[k], x, x4, push.x_at + at, first, push.n, k) }                           \
    FOURS(k) ELEMENTS(c)                                                                            \
        v[k][c] = seen(first + place(k, c), end, bytes) ? push.scale * v[k][c] : NEG_INFINITY;

#define EXPONENTIALS(v) FOURS(k) ELEMENTS(c) v[k][c] = exp_(v[k][c] - base);

void main() {
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = row * push.n, bytes = MASKED ? push.mask_at + row / push.group * push.n : 0u;
        int end = int(push.n) - (CAUSAL ? int(push.queries) - 1 - int(row % push.queries) : 0);
        vec4 v[PER];
        float most = NEG_INFINITY;
        STRETCHES(first, 0u, push.n) {
            SCORES(v, first)
            FOURS(k) ELEMENTS(c) most = LARGER_OF(most, v[k][c]);
        }
        most = tree_max(most);
        // A row of -infinity alone, or without any place.
        float base = most == NEG_INFINITY ? 0.0 : most;
        vec4 sums = vec4(0.0);
        STRETCHES(first, 0u, push.n) {
            if (!KEPT) { SCORES(v, first) }
            if (LOG) {
                FOURS(k) ELEMENTS(c) sums[c] += exp_(v[k][c] - base);
            } else {
                EXPONENTIALS(v)
                FOURS(k) sums += v[k];
            }
        }
        float sum = tree_sum(sum_of(sums));
        float total = base + log_(sum), share = sum == 0.0 ? 0.0 : 1.0 / sum;
        STRETCHES(first, 0u, push.n) {
            if (!KEPT) {
                SCORES(v, first)
                if (!LOG) { EXPONENTIALS(v) }
            }
            FOURS(k) {
                v[k] = LOG ? v[k] - total : share * v[k];
                // Where a sum is NaN too.
                if (MASKED || CAUSAL) ELEMENTS(c) v[k][c] = seen(first + place(k, c), end, bytes) ? v[k][c] : 0.0;
                WRITE_FOUR(v[k], y, y4, push.y_at + at, first, push.n, k)
            }
        }
        if (LSE && gl_LocalInvocationID.x == 0u) lse[push.lse_at + row] = total;
    }
}
