// As conv.comp, forward, of what is multiplied in NUMBER (the weight is stored as such, the map is rounded to it) by the device's cooperative matrices,
// with sums of f32. Everything goes by eights of the depth: 16 bytes of
// shared memory, read at once (EIGHTS) where channels are multiples of eight.
#include "inc/matrices.glsl"
layout(constant_id = 9) const bool BIAS = false;
layout(constant_id = 10) const bool A_EIGHTS = false;
layout(constant_id = 11) const bool B_EIGHTS = false;
layout(constant_id = 12) const bool C_FOURS = false;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 0) readonly buffer A4 { vec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 2) writeonly buffer C4 { vec4 c4[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };

const bool INPUT = false;
const uint THREADS = gl_WorkGroupSize.x;
const uint BM = SM * RM * TM, BN = SN * RN * TN;
// Neighbours bring the eights of a row, so that each of them stays at one place of the depth.
const uint EIGHTS = BK / 8u, STEP = THREADS / EIGHTS;
const uint ROWS_A = (BM + STEP - 1u) / STEP, ROWS_B = (BN + STEP - 1u) / STEP;
// Eights of a row of either tile and one more, so that rows fall into other banks.
const uint LD = EIGHTS + 1u;
const uint AT_B = BM * LD;
// Fours of a row of sums that a subgroup stores, and one more.
const uint LC = RN * TN / 4u + 1u;
const uint OF_C = SM * SN * TM * LC;
// Both tiles, and after the last product the sums.
shared uvec4 held[(BM + BN) * LD > OF_C ? (BM + BN) * LD : OF_C];
#include "inc/conv.glsl"

void main() {
    const uint t = gl_LocalInvocationID.x, own_row = t / EIGHTS, own_eight = t % EIGHTS;
    const uint s = gl_SubgroupID, srow = s / SN * RM * TM, scol = s % SN * RN * TN;
    for (uint id = gl_WorkGroupID.x; id < push.jobs; id += gl_NumWorkGroups.x) {
        const Job job = job_of(id, push.across, push.down, push.parts, push.groups);
        const Product product = product_of(job);
        const uint m = product.m, n = product.n, from = product.from, depth = rows.taps * cols.taps * channels;
        [[unroll]] for (uint r = 0u; r < ROWS_A; r++) {
            const uint row = own_row + r * STEP;
            look_from(r, job.row0 + row, row < BM && job.row0 + row < m, job);
        }
        Depth k = depth_at(from + own_eight * 8u);
        coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> sums[RM * RN];
        [[unroll]] for (uint i = 0u; i < RM * RN; i++) sums[i] = coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);
        vec4 next_a[2u * ROWS_A];
        uvec4 next_b[ROWS_B];
        // The first round brings the first slices alone.
        for (uint k0 = from; k0 < end + BK; k0 += BK) {
            barrier();
            if (k0 > from) {
                [[unroll]] for (uint r = 0u; r < ROWS_A; r++) {
                    const vec4 x = next_a[2u * r], y = next_a[2u * r + 1u];
                    const uvec4 eight = uvec4(narrow(x.x, x.y), narrow(x.z, x.w), narrow(y.x, y.y), narrow(y.z, y.w));
                    if (own_row + r * STEP < BM) held[(own_row + r * STEP) * LD + own_eight] = eight;
                }
                [[unroll]] for (uint r = 0u; r < ROWS_B; r++)
                    if (own_row + r * STEP < BN) held[AT_B + (own_row + r * STEP) * LD + own_eight] = next_b[r];
                barrier();
            }
            if (k0 < end) {
                [[unroll]] for (uint r = 0u; r < ROWS_B; r++) {
                    const uint col = job.col0 + own_row + r * STEP, at = push.b_at + (job.group * n + col) * depth + k.k;
                    next_b[r] = uvec4(0u);
                    if (own_row + r * STEP >= BN || col >= n) continue;
                    if (B_EIGHTS) {
                        if (k.k < end) next_b[r] = b4[at / 8u];
                    } else {
                        [[unroll]] for (uint e = 0u; e < 8u; e++)
                            if (k.k + e < end) next_b[r][e / 2u] |= (b[(at + e) / 2u] >> (16u * ((at + e) % 2u)) & 0xffffu) << (16u * (e % 2u));
                    }
                }
                uint at;
                if (A_EIGHTS) {
                    [[unroll]] for (uint r = 0u; r < ROWS_A; r++) {
                        const bool inside = seen(k, r, at);
                        next_a[2u * r] = inside ? a4[at / 4u] : vec4(0.0);
                        next_a[2u * r + 1u] = inside ? a4[at / 4u + 1u] : vec4(0.0);
                    }
                    advance(k, BK);
                } else {
                    [[unroll]] for (uint e = 0u; e < 8u; e++) {
                        [[unroll]] for (uint r = 0u; r < ROWS_A; r++) next_a[2u * r + e / 4u][e % 4u] = seen(k, r, at) ? a[at] : 0.0;
                        advance(k, 1u);
                    }
                    advance(k, BK - 8u);
                }
            }
            if (k0 > from) {
                [[unroll]] for (uint l = 0u; l < BK; l += TK) {
                    coopmat<NUMBER, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> left[RM];
                    [[unroll]] for (uint i = 0u; i < RM; i++)
                        coopMatLoad(left[i], held, (srow + i * TM) * LD + l / 8u, LD, gl_CooperativeMatrixLayoutRowMajor);
                    [[unroll]] for (uint j = 0u; j < RN; j++) {
                        coopmat<NUMBER, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> right;
                        coopMatLoad(right, held, AT_B + (scol + j * TN) * LD + l / 8u, LD, gl_CooperativeMatrixLayoutColumnMajor);
                        [[unroll]] for (uint i = 0u; i < RM; i++) sums[i * RN + j] = coopMatMulAdd(left[i], right, sums[i * RN + j]);
                    }
                }
            }
        }
        // How a matrix lies over the threads is the device's own: through shared memory, a row of matrices after the other.
        [[unroll]] for (uint i = 0u; i < RM; i++) {
            barrier();
            [[unroll]] for (uint j = 0u; j < RN; j++)
                coopMatStore(sums[i * RN + j], held, s * TM * LC + j * TN / 4u, LC, gl_CooperativeMatrixLayoutRowMajor);
            barrier();
            for (uint e = gl_SubgroupInvocationID; e < TM * RN * TN / 4u; e += gl_SubgroupSize) {
                const uint in_row = e / (RN * TN / 4u), in_col = e % (RN * TN / 4u);
                const uint row = job.row0 + srow + i * TM + in_row, col = job.col0 + scol + in_col * 4u;
                if (row >= m) continue;
                const uint at = written_at(row, job, n);
                vec4 v = uintBitsToFloat(held[s * TM * LC + in_row * LC + in_col]);
                [[unroll]] for (uint q = 0u; q < 4u; q++) {
                    if (BIAS && job.part == 0u && col + q < n) v[q] += bias[push.bias_at + job.group * n + col + q];
                    if (!C_FOURS && col + q < n) c[at + col + q] = v[q];
                }
                if (C_FOURS && col < n) c4[(at + col) / 4u] = v;
            }
        }
    }
}
