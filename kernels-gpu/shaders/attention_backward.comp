#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// Gradients of y = w v with w = softmax(scale q k^T), whose weights are computed again from their log-sum-exp: ds = w (dy v^T - sum dy y), dq = scale ds k,
// dk = scale ds^T q, dv = w^T dy. Rows are queries: a1 = q, a2 = dy, b1 = k, b2 = v, y1 = dq; or, with OF_KEYS, keys: a1 = k, a2 = v, b1 = q, b2 = dy,
// y1 = dk, y2 = dv. So each gradient is summed by whoever has its row.
#include "inc/attention_slices.glsl"
layout(constant_id = 15) const bool OF_KEYS = false;
// Of each query [item, query]: the logarithm to base 2 of its sum of weights, and sum dy y.
layout(std430, binding = 4) readonly buffer Sums { vec2 sums[]; };

// Of a query that there is not, and whose weights are 0.
const vec2 NONE = vec2(uintBitsToFloat(0x7f800000u), 0.0);

void main() {
    const uint x = thread_x(), y = thread_y();
    const uint rows = OF_KEYS ? push.keys : push.queries, cols = OF_KEYS ? push.queries : push.keys;
    const uint tiles = (rows + ROWS - 1u) / ROWS;
    for (uint block = gl_WorkGroupID.x; block < push.items * tiles; block += gl_NumWorkGroups.x) {
        const uint item = block / tiles, row0 = block % tiles * ROWS;
        const int a1_begin = begin(push.a1, item), a2_begin = begin(push.a2, item);
        const int b1_begin = begin(push.b1, item), b2_begin = begin(push.b2, item);
        vec4 d1[TM * TD], d2[OF_KEYS ? TM * TD : 1u];
        [[unroll]] for (uint i = 0u; i < TM * TD; i++) {
            d1[i] = vec4(0.0);
            if (OF_KEYS) d2[i] = vec4(0.0);
        }
        // Of this thread's queries the sums, of its keys whether they may be seen at all: of rows once, of columns in each block.
        vec2 of[OF_KEYS ? TN : TM];
        bool there[OF_KEYS ? TM : TN];
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            const uint row = row0 + y + GY * i;
            if (OF_KEYS) there[i] = row < rows && unmasked(item, row);
            else of[i] = row < rows ? sums[item * push.queries + row] : NONE;
        }
        uint col0 = 0u, end = cols;
        if (CAUSAL && OF_KEYS) col0 = uint(clamp(int(row0) - LATEST, 0, int(cols)));
        if (CAUSAL && !OF_KEYS) end = uint(clamp(int(row0 + ROWS) + LATEST, 0, int(cols)));
        BRING_SLICE(0u, a1, b1, rows, cols)
        while (col0 < end) {
            [[unroll]] for (uint j = 0u; j < TN; j++) {
                const uint col = col0 + x + GX * j;
                if (OF_KEYS) of[j] = col < cols ? sums[item * push.queries + col] : NONE;
                else there[j] = col < cols && unmasked(item, col);
            }
            const uint n = min(COLS, end - col0), wide = (n + GX - 1u) / GX;
            float s[TM * TN], d[TM * TN];
            SCORES(s, wide, a1, b1, rows, cols, BRING_SLICE(0u, a2, b2, rows, cols))
            SCORES(d, wide, a2, b2, rows, cols, BRING_ROWS(0u, b1, cols))
            // Weights and their slopes.
            [[unroll]] for (uint j = 0u; j < TN; j++) {
                [[unroll]] for (uint i = 0u; i < TM; i++) {
                    const uint row = row0 + y + GY * i, col = col0 + x + GX * j, e = i * TN + j;
                    const uint query = OF_KEYS ? col : row, key = OF_KEYS ? row : col;
                    const vec2 of_ = of[OF_KEYS ? j : i];
                    const bool seen = there[OF_KEYS ? i : j] && !(CAUSAL && int(key) > int(query) + LATEST);
                    const float kept = dropped(item, query, key);
                    const float p = seen ? exp2(push.scale * LOG2_E * s[e] - of_.x) : 0.0;
                    d[e] = seen ? p * (kept * d[e] - of_.y) : 0.0;
                    s[e] = kept * p;
                }
            }
            PUT_WEIGHTS(d)
            if (OF_KEYS) {
                MEANS(d1, n, b1, cols, BRING_ROWS(0u, b2, cols))
                barrier();
                PUT_WEIGHTS(s)
                MEANS(d2, n, b2, cols, { col0 += COLS; BRING_SLICE(0u, a1, b1, rows, cols) })
            } else {
                MEANS(d1, n, b1, cols, { col0 += COLS; BRING_SLICE(0u, a1, b1, rows, cols) })
            }
        }
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            const uint row = row0 + y + GY * i;
            if (row < rows) {
                WRITE(y1, item, row, rows, d1, i, push.scale)
                if (OF_KEYS) WRITE(y2, item, row, rows, d2, i, 1.0)
            }
        }
    }
}
