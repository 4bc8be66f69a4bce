#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// Gradients of y = w v with w = softmax(scale q k^T), whose weights are computed again from their log-sum-exp: ds = w (dy v^T - sum dy y), dq = scale ds k,
// dk = scale ds^T q, dv = w^T dy. Rows are queries: a1 = q, a2 = dy, b1 = k, b2 = v, y1 = dq; or, with OF_KEYS, keys: a1 = k, a2 = v, b1 = q, b2 = dy,
// y1 = dk, y2 = dv. So each gradient is summed by whoever has its row.
#include "inc/attention_tile.glsl"
layout(constant_id = 15) const bool OF_KEYS = false;
// Of each query [item, query]: the logarithm to base 2 of its sum of weights, and sum dy y.
layout(std430, binding = 4) readonly buffer Sums { vec2 sums[]; };

// Of a query that there is not, and whose weights are 0.
const vec2 NONE = vec2(uintBitsToFloat(0x7f800000u), 0.0);

shared vec4 left1[ROWS * LD];
shared vec4 left2[ROWS * LD];
shared vec4 right1[COLS * LD + GX];
shared vec4 right2[COLS * LD + GX];
shared vec4 slopes[ROWS * LP / 4u];
shared vec4 weights[OF_KEYS ? ROWS * LP / 4u : 1u];

void main() {
    const uint x = gl_LocalInvocationID.x % GX, y = gl_LocalInvocationID.x / GX;
    const uint rows = OF_KEYS ? push.keys : push.queries, cols = OF_KEYS ? push.queries : push.keys;
    const uint tiles = (rows + ROWS - 1u) / ROWS;
    for (uint block = gl_WorkGroupID.x; block < push.items * tiles; block += gl_NumWorkGroups.x) {
        const uint item = block / tiles, row0 = block % tiles * ROWS;
        FILL(left1, a1, A1_STORED, item, row0, ROWS, rows, push.scale * LOG2_E)
        FILL(left2, a2, A2_STORED, item, row0, ROWS, rows, 1.0)
        vec4 d1[TM * TD], d2[OF_KEYS ? TM * TD : 1u];
        for (uint i = 0u; i < TM * TD; i++) {
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
        uint begin_ = 0u, end = cols;
        if (CAUSAL && OF_KEYS) begin_ = uint(clamp(int(row0) - LATEST, 0, int(cols)));
        if (CAUSAL && !OF_KEYS) end = uint(clamp(int(row0 + ROWS) + LATEST, 0, int(cols)));
        for (uint col0 = begin_; col0 < end; col0 += COLS) {
            FILL(right1, b1, B1_STORED, item, col0, COLS, cols, 1.0)
            FILL(right2, b2, B2_STORED, item, col0, COLS, cols, 1.0)
            barrier();
            float s[TM * TN], d[TM * TN];
            for (uint i = 0u; i < TM * TN; i++) {
                s[i] = 0.0;
                d[i] = 0.0;
            }
            PRODUCTS(s, left1, right1)
            PRODUCTS(d, left2, right2)
            [[unroll]] for (uint j = 0u; j < TN; j++) {
                const uint col = col0 + x + GX * j;
                if (OF_KEYS) of[j] = col < cols ? sums[item * push.queries + col] : NONE;
                else there[j] = col < cols && unmasked(item, col);
                [[unroll]] for (uint i = 0u; i < TM; i++) {
                    const uint row = row0 + y + GY * i;
                    const uint query = OF_KEYS ? col : row, key = OF_KEYS ? row : col;
                    const vec2 of_ = of[OF_KEYS ? j : i];
                    const bool seen = there[OF_KEYS ? i : j] && !(CAUSAL && int(key) > int(query) + LATEST);
                    const float kept = dropped(item, query, key);
                    const float p = seen ? exp2(s[i * TN + j] - of_.x) : 0.0;
                    const uint at = (y + GY * i) * (LP / 4u) + x / 4u + GX / 4u * j;
                    slopes[at][x % 4u] = seen ? p * (kept * d[i * TN + j] - of_.y) : 0.0;
                    if (OF_KEYS) weights[at][x % 4u] = kept * p;
                }
            }
            barrier();
            const uint n = min(COLS, end - col0);
            MEANS(d1, slopes, right1, n)
            if (OF_KEYS) MEANS(d2, weights, right2, n)
            barrier();
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
