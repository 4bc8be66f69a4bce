// As attention_backward.comp, of q, k and v stored in NUMBER, by cooperative matrices: gradients, and weights with theirs, are rounded to it where they are
// multiplied.
#include "inc/attention_matrices.glsl"
layout(constant_id = 15) const bool OF_KEYS = false;
// Of each query [item, query]: the logarithm to base 2 of its sum of weights, and sum dy y.
layout(std430, binding = 4) readonly buffer Sums { vec2 sums[]; };

// Of a query that there is not, and whose weights are 0.
const vec2 NONE = vec2(uintBitsToFloat(0x7f800000u), 0.0);

// Operands of columns, those of rows, and of each lane a row: of products, then of slopes, and of weights behind them.
const uint AT_RIGHT = COLS * LD, AT_LEFT = 2u * COLS * LD, AT_ROWS = AT_LEFT + 2u * ROWS * LD;
shared uvec4 held[2u * COLS * LD + ROWS * (2u * LD + LS)];
// Of columns: their sums, or whether they may be seen.
shared vec2 of[COLS];

void main() {
    const uint lane = gl_SubgroupID * LANES + gl_SubgroupInvocationID;
    const uint left1 = AT_LEFT + gl_SubgroupID * LANES * LD, left2 = left1 + ROWS * LD;
    const uint own = AT_ROWS + gl_SubgroupID * LANES * LS, mine = own + gl_SubgroupInvocationID * LS;
    const uint rows = OF_KEYS ? push.keys : push.queries, cols = OF_KEYS ? push.queries : push.keys;
    const uint tiles = (rows + ROWS - 1u) / ROWS;
    for (uint block = gl_WorkGroupID.x; block < push.items * tiles; block += gl_NumWorkGroups.x) {
        const uint item = block / tiles, row0 = block % tiles * ROWS, row = row0 + lane;
        uvec4 next_a[OF(ROWS)];
        BRING(next_a, a1, A1_STORED, item, row0, ROWS, rows)
        PUT(next_a, AT_LEFT, ROWS)
        BRING(next_a, a2, A2_STORED, item, row0, ROWS, rows)
        PUT(next_a, AT_LEFT + ROWS * LD, ROWS)
        SUMS d1[RM * CN], d2[OF_KEYS ? RM * CN : 1u];
        [[unroll]] for (uint i = 0u; i < RM * CN; i++) {
            d1[i] = SUMS(0.0);
            if (OF_KEYS) d2[i] = SUMS(0.0);
        }
        const vec2 of_row = !OF_KEYS && row < rows ? sums[item * push.queries + row] : NONE;
        const bool row_seen = OF_KEYS && row < rows && unmasked(item, row);
        uint begin_ = 0u, end = cols;
        if (CAUSAL && OF_KEYS) begin_ = uint(clamp(int(row0) - LATEST, 0, int(cols)));
        if (CAUSAL && !OF_KEYS) end = uint(clamp(int(row0 + ROWS) + LATEST, 0, int(cols)));
        for (uint col0 = begin_; col0 < end; col0 += COLS) {
            // What comes next has no room in registers beside the sums.
            uvec4 next_b[OF(COLS)];
            barrier();
            BRING(next_b, b1, B1_STORED, item, col0, COLS, cols)
            PUT(next_b, 0u, COLS)
            BRING(next_b, b2, B2_STORED, item, col0, COLS, cols)
            PUT(next_b, AT_RIGHT, COLS)
            for (uint k = gl_LocalInvocationID.x; k < COLS; k += ROWS) {
                const uint col = col0 + k;
                if (OF_KEYS) of[k] = col < cols ? sums[item * push.queries + col] : NONE;
                else of[k].x = col < cols && unmasked(item, col) ? 1.0 : 0.0;
            }
            barrier();
            SCORES(own, coopMatLoad(l_[i_], held, left1 + i_ * TM * LD + c_ * TK / 8u, LD, gl_CooperativeMatrixLayoutRowMajor), 0u)
            barrier();
            vec4 p[COLS / 4u];
            [[unroll]] for (uint g = 0u; g < COLS / 4u; g++) {
                p[g] = uintBitsToFloat(held[mine + g]) * (push.scale * LOG2_E);
                [[unroll]] for (uint k = 0u; k < 4u; k++) {
                    const uint col = col0 + 4u * g + k;
                    const vec2 of_col = of[4u * g + k];
                    const uint query = OF_KEYS ? col : row, key = OF_KEYS ? row : col;
                    const bool seen = (OF_KEYS ? row_seen : of_col.x != 0.0) && !(CAUSAL && int(key) > int(query) + LATEST);
                    p[g][k] = seen ? exp2(p[g][k] - (OF_KEYS ? of_col.x : of_row.x)) : 0.0;
                }
            }
            barrier();
            SCORES(own, coopMatLoad(l_[i_], held, left2 + i_ * TM * LD + c_ * TK / 8u, LD, gl_CooperativeMatrixLayoutRowMajor), AT_RIGHT)
            barrier();
            uvec4 weights[OF_KEYS ? COLS / 8u : 1u];
            [[unroll]] for (uint g = 0u; g < COLS / 4u; g += 2u) {
                vec4 slopes[2];
                [[unroll]] for (uint h = 0u; h < 2u; h++) {
                    const vec4 d = uintBitsToFloat(held[mine + g + h]);
                    [[unroll]] for (uint k = 0u; k < 4u; k++) {
                        const uint col = col0 + 4u * (g + h) + k;
                        const float kept = dropped(item, OF_KEYS ? col : row, OF_KEYS ? row : col);
                        const float w = p[g + h][k];
                        slopes[h][k] = w == 0.0 ? 0.0 : w * (kept * d[k] - (OF_KEYS ? of[4u * (g + h) + k].y : of_row.y));
                        p[g + h][k] = kept * w;
                    }
                }
                // What a lane writes of its own row it has read.
                held[mine + g / 2u] = eight(slopes[0], slopes[1]);
                if (OF_KEYS) weights[g / 2u] = eight(p[g], p[g + 1u]);
            }
            if (OF_KEYS) {
                [[unroll]] for (uint g = 0u; g < COLS / 8u; g++) held[mine + COLS / 8u + g] = weights[g];
            }
            barrier();
            MEANS(d1, own, 0u)
            if (OF_KEYS) MEANS(d2, own + COLS / 8u, AT_RIGHT)
        }
#define SCALE(r) push.scale
        WRITE(y1, item, row0 + gl_SubgroupID * LANES, rows, d1, own, SCALE)
#define ONE(r) 1.0
        if (OF_KEYS) WRITE(y2, item, row0 + gl_SubgroupID * LANES, rows, d2, own, ONE)
        barrier();
    }
}
