#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y1 = softmax(scale a1 b1^T) b2, block by block (Dao 2023): weights are in shared memory alone. Rows are queries, columns keys. Weights are powers of
// 2 less the largest score so far; what was summed by another is multiplied by their distance.
#include "inc/attention_slices.glsl"
layout(std430, binding = 4) writeonly buffer Lse { float lse[]; };
#include "inc/functions.glsl"

// Tells a number of this thread to the others of its row, by memory that has no weights at the time.
#define TELL(i, number) weights[(y + GY * (i)) * LW + x / 4u][x % 4u] = number;

void main() {
    const uint x = thread_x(), y = thread_y();
    const uint tiles = (push.queries + ROWS - 1u) / ROWS;
    for (uint block = gl_WorkGroupID.x; block < push.items * tiles; block += gl_NumWorkGroups.x) {
        const uint item = block / tiles, row0 = block % tiles * ROWS;
        const int a1_begin = begin(push.a1, item), b1_begin = begin(push.b1, item), b2_begin = begin(push.b2, item);
        float most[TM], sum[TM];
        vec4 mean[TM * TD];
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            most[i] = NEG_INFINITY;
            sum[i] = 0.0;
        }
        [[unroll]] for (uint i = 0u; i < TM * TD; i++) mean[i] = vec4(0.0);
        uint col0 = 0u;
        const uint end = CAUSAL ? uint(clamp(int(row0 + ROWS) + LATEST, 0, int(push.keys))) : push.keys;
        BRING_SLICE(0u, a1, b1, push.queries, push.keys)
        while (col0 < end) {
            const uint n = min(COLS, end - col0), wide = (n + GX - 1u) / GX;
            float s[TM * TN];
            SCORES(s, wide, a1, b1, push.queries, push.keys, BRING_ROWS(0u, b2, push.keys))
            [[unroll]] for (uint e = 0u; e < TM * TN; e++) s[e] *= push.scale * LOG2_E;
            if (MASKED || col0 + COLS > push.keys || CAUSAL && int(col0 + COLS) > int(row0) + LATEST) {
                [[unroll]] for (uint j = 0u; j < TN; j++) {
                    const uint key = col0 + x + GX * j;
                    const bool there = key < push.keys && unmasked(item, key);
                    [[unroll]] for (uint i = 0u; i < TM; i++) {
                        const bool seen = there && !(CAUSAL && int(key) > int(row0 + y + GY * i) + LATEST);
                        if (!seen) s[i * TN + j] = NEG_INFINITY;
                    }
                }
            }
            [[unroll]] for (uint i = 0u; i < TM; i++) {
                float m = NEG_INFINITY;
                [[unroll]] for (uint j = 0u; j < TN; j++) m = m < s[i * TN + j] ? s[i * TN + j] : m;
                TELL(i, m)
            }
            barrier();
            [[unroll]] for (uint i = 0u; i < TM; i++) {
                float m = most[i];
                [[unroll]] for (uint g = 0u; g < GX / 4u; g++) {
                    const vec4 w = weights[(y + GY * i) * LW + g];
                    [[unroll]] for (uint k = 0u; k < 4u; k++) m = m < w[k] ? w[k] : m;
                }
                // Nothing seen so far: any other base will do.
                const float base = m == NEG_INFINITY ? 0.0 : m;
                const float factor = exp2(most[i] - base);
                most[i] = m;
                sum[i] *= factor;
                [[unroll]] for (uint c = 0u; c < TD; c++) mean[i * TD + c] *= factor;
                [[unroll]] for (uint j = 0u; j < TN; j++) {
                    float p = s[i * TN + j] == NEG_INFINITY ? 0.0 : exp2(s[i * TN + j] - base);
                    sum[i] += p;
                    if (DROPOUT) p *= dropped(item, row0 + y + GY * i, col0 + x + GX * j);
                    s[i * TN + j] = p;
                }
            }
            barrier();
            PUT_WEIGHTS(s)
            MEANS(mean, n, b2, push.keys, { col0 += COLS; BRING_SLICE(0u, a1, b1, push.queries, push.keys) })
        }
        barrier();
        [[unroll]] for (uint i = 0u; i < TM; i++) TELL(i, sum[i])
        barrier();
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            const uint row = row0 + y + GY * i;
            float all = 0.0;
            [[unroll]] for (uint g = 0u; g < GX / 4u; g++) {
                const vec4 w = weights[(y + GY * i) * LW + g];
                [[unroll]] for (uint k = 0u; k < 4u; k++) all += w[k];
            }
            if (row < push.queries) {
                WRITE(y1, item, row, push.queries, mean, i, all == 0.0 ? 0.0 : 1.0 / all)
                if (x == 0u) lse[item * push.queries + row] = all == 0.0 ? NEG_INFINITY : most[i] / LOG2_E + log_(all);
            }
        }
    }
}
