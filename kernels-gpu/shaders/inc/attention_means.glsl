// As attention.comp, of q, k and v stored in NUMBER, by cooperative matrices: weights are rounded to it where they are multiplied. Those of a row are powers of
// 2 less a score that no later one exceeds by more than RISE, so that what was summed seldom has to be multiplied by a distance.
#include "inc/attention_matrices.glsl"
layout(std430, binding = 4) writeonly buffer Lse { float lse[]; };
#include "inc/functions.glsl"

const float RISE = 8.0;
// Keys, values, and of each lane a row: of queries, then of scores, weights and means.
const uint LR = LD > LS ? LD : LS;
shared uvec4 held[2u * COLS * LD + ROWS * LR];
shared bool seen[COLS];
shared float shares[ROWS];
const uint AT_VALUES = COLS * LD, AT_ROWS = 2u * COLS * LD;

void main() {
    const uint lane = gl_SubgroupID * LANES + gl_SubgroupInvocationID;
    // The subgroup's rows of scores, and the lane's.
    const uint own = AT_ROWS + gl_SubgroupID * LANES * LR, mine = own + gl_SubgroupInvocationID * LS;
    const uint tiles = (push.queries + ROWS - 1u) / ROWS;
    for (uint block = gl_WorkGroupID.x; block < push.items * tiles; block += gl_NumWorkGroups.x) {
        const uint item = block / tiles, row0 = block % tiles * ROWS, row = row0 + lane;
        uvec4 next_a[OF(ROWS)], next_k[OF(COLS)], next_v[OF(COLS)];
        BRING(next_a, a1, A1_STORED, item, row0, ROWS, push.queries)
        PUT(next_a, AT_ROWS, ROWS)
        barrier();
        LEFT query[RM * CK];
        [[unroll]] for (uint i = 0u; i < RM; i++) {
            [[unroll]] for (uint c = 0u; c < CK; c++)
                coopMatLoad(query[i * CK + c], held, AT_ROWS + (gl_SubgroupID * LANES + i * TM) * LD + c * TK / 8u, LD, gl_CooperativeMatrixLayoutRowMajor);
        }
        SUMS mean[RM * CN];
        [[unroll]] for (uint i = 0u; i < RM * CN; i++) mean[i] = SUMS(0.0);
        float base = NEG_INFINITY, sum = 0.0;
        const uint end = CAUSAL ? uint(clamp(int(row0 + ROWS) + LATEST, 0, int(push.keys))) : push.keys;
        // The first round brings the first block alone.
        for (uint next = 0u; next < end + COLS; next += COLS) {
            const uint col0 = next - COLS;
            const bool edge = MASKED || next > push.keys || CAUSAL && int(next) > int(row0) + LATEST;
            if (next > 0u) {
                barrier();
                PUT(next_k, 0u, COLS)
                PUT(next_v, AT_VALUES, COLS)
                if (edge) {
                    for (uint k = gl_LocalInvocationID.x; k < COLS; k += ROWS) seen[k] = col0 + k < push.keys && unmasked(item, col0 + k);
                }
                barrier();
            }
            if (next < end) {
                BRING(next_k, b1, B1_STORED, item, next, COLS, push.keys)
                BRING(next_v, b2, B2_STORED, item, next, COLS, push.keys)
            }
            if (next == 0u) continue;
            SCORES(own, l_[i_] = query[i_ * CK + c_], 0u)
            barrier();
            vec4 p[COLS / 4u];
            float most = base;
            [[unroll]] for (uint g = 0u; g < COLS / 4u; g++) {
                p[g] = uintBitsToFloat(held[mine + g]) * (push.scale * LOG2_E);
                [[unroll]] for (uint k = 0u; k < 4u; k++) {
                    const uint key = 4u * g + k;
                    if (edge && !(seen[key] && !(CAUSAL && int(col0 + key) > int(row) + LATEST))) p[g][k] = NEG_INFINITY;
                    most = most < p[g][k] ? p[g][k] : most;
                }
            }
            float factor = 1.0;
            if (most > base + RISE) {
                // Of nothing, any multiple will do.
                if (base != NEG_INFINITY) factor = exp2(base - most);
                base = most;
                sum *= factor;
            }
            const bool grown = subgroupAny(factor != 1.0);
            [[unroll]] for (uint g = 0u; g < COLS / 4u; g++) {
                [[unroll]] for (uint k = 0u; k < 4u; k++) {
                    const float w = p[g][k] == NEG_INFINITY ? 0.0 : exp2(p[g][k] - base);
                    sum += w;
                    p[g][k] = DROPOUT ? w * dropped(item, row, col0 + 4u * g + k) : w;
                }
            }
            // A lane has read its own row, and writes no other.
            [[unroll]] for (uint g = 0u; g < COLS / 8u; g++) held[mine + g] = eight(p[2u * g], p[2u * g + 1u]);
            if (grown) {
                [[unroll]] for (uint g = 0u; g < TN / 4u; g++) held[mine + COLS / 8u + g] = floatBitsToUint(vec4(factor));
            }
            barrier();
            // Without a barrier, which not every subgroup would come to.
            if (grown) {
                [[unroll]] for (uint i = 0u; i < RM; i++) {
                    SUMS factors;
                    coopMatLoad(factors, held, own + i * TM * LS + COLS / 8u, LS, gl_CooperativeMatrixLayoutRowMajor);
                    [[unroll]] for (uint c = 0u; c < CN; c++) mean[i * CN + c] = mean[i * CN + c] * factors;
                }
            }
            MEANS(mean, own, AT_VALUES)
        }
        if (row < push.queries) lse[item * push.queries + row] = sum == 0.0 ? NEG_INFINITY : base / LOG2_E + log_(sum);
        shares[lane] = sum == 0.0 ? 0.0 : 1.0 / sum;
#define SHARE(r) shares[gl_SubgroupID * LANES + r]
        WRITE(y1, item, row0 + gl_SubgroupID * LANES, push.queries, mean, own, SHARE)
        barrier();
    }
}
