// As gemm.comp, of matrices that are multiplied in NUMBER (what of A and B is f32 is rounded to it) by the device's cooperative matrices,
// with sums of f32. Everything goes by eights of elements: 16 bytes of
// shared memory, which are read at once (WIDE) where all of them begin at multiples of eight.
#include "inc/matrices.glsl"
layout(constant_id = 9) const uint ACT = 255u;
layout(constant_id = 10) const bool BIAS = false;
layout(constant_id = 11) const bool RESIDUAL = false;
// Eights lie along k, or along rows and columns.
layout(constant_id = 12) const bool A_ALONG_K = true;
layout(constant_id = 13) const bool B_ALONG_K = true;
layout(constant_id = 14) const bool A_WIDE = false;
layout(constant_id = 15) const bool B_WIDE = false;
layout(constant_id = 16) const bool C_QUADS = false;
// 0, or what NUMBER is.
layout(constant_id = 17) const uint A_STORED = 0u;
layout(constant_id = 18) const uint B_STORED = 0u;
layout(std430, binding = 0) readonly buffer A { uint a[]; };
layout(std430, binding = 0) readonly buffer A4 { uvec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
#include "inc/gemm.glsl"

const uint BM = SM * RM * TM;
const uint BN = SN * RN * TN;
// Eights of a row of either tile, which runs as the operand does, and eight elements more, so that rows fall into other banks.
const uint LA = (A_ALONG_K ? BK : BM) / 8u + 1u;
const uint LB = (B_ALONG_K ? BK : BN) / 8u + 1u;
const uint OF_A = (A_ALONG_K ? BM : BK) * LA;
const uint OF_B = (B_ALONG_K ? BN : BK) * LB;
// Fours of a row of sums that a subgroup stores, and one more.
const uint LC = RN * TN / 4u + 1u;
const uint OF_C = SM * SN * TM * LC;
// Both tiles, and after the last product the sums.
shared uvec4 held[OF_A + OF_B > OF_C ? OF_A + OF_B : OF_C];
const uint THREADS = gl_WorkGroupSize.x;
// Eights of a tile that a thread brings, and the reads of 16 bytes that one takes.
const uint QA = (BM * BK / 8u + THREADS - 1u) / THREADS;
const uint QB = (BN * BK / 8u + THREADS - 1u) / THREADS;
const uint WA = A_STORED == 0u ? 2u : 1u;
const uint WB = B_STORED == 0u ? 2u : 1u;

// Where eight e of a tile of `rows` rows is: its row and its l.
uvec2 place(uint e, uint rows, bool along_k) {
    return along_k ? uvec2(e / (BK / 8u), e % (BK / 8u) * 8u) : uvec2(e % (rows / 8u) * 8u, e / (rows / 8u));
}

// Eight of f32 as NUMBER.
uvec4 narrowed(uvec4 low, uvec4 high) {
    const vec4 x = uintBitsToFloat(low), y = uintBitsToFloat(high);
    return uvec4(narrow(x.x, x.y), narrow(x.z, x.w), narrow(y.x, y.y), narrow(y.z, y.w));
}

// Puts element e of an eight, widened or not, where it is read from memory.
#define PUT(to, stored, e, bits) if (stored == 0u) to[e / 4u][e % 4u] = bits; else to[0][e / 2u] |= bits << (16u * (e % 2u))

// Reads what a thread brings of an operand's tile, from row or column `first` of `all` and k0 on, into `next`; 0 beyond the edges.
#define READ(next, from_, from4, begin, eights, reads, side, first, all, by_row, by_k, along_k, wide, stored)               \
    [[unroll]] for (uint q = 0u; q < eights; q++) {                                                                         \
        const uint e = t + q * THREADS;                                                                                     \
        const uvec2 p = place(e, side, along_k);                                                                            \
        const uint i = first + p.x, l = k0 + p.y, at = uint(begin + int(i) * by_row + int(l) * by_k);                       \
        uvec4 read[2] = uvec4[2](uvec4(0u), uvec4(0u));                                                                     \
        if (e < side * BK / 8u && i < all && l < end) {                                                                     \
            if (wide) {                                                                                                     \
                [[unroll]] for (uint w = 0u; w < reads; w++) read[w] = from4[at * reads / 8u + w];                          \
            } else {                                                                                                        \
                [[unroll]] for (uint c = 0u; c < 8u; c++) {                                                                 \
                    if (along_k ? l + c >= end : i + c >= all) break;                                                       \
                    const uint from = at + c * uint(along_k ? by_k : by_row);                                               \
                    const uint bits = stored == 0u ? from_[from] : from_[from / 2u] >> (16u * (from % 2u)) & 0xffffu;       \
                    PUT(read, stored, c, bits);                                                                             \
                }                                                                                                           \
            }                                                                                                               \
        }                                                                                                                   \
        [[unroll]] for (uint w = 0u; w < reads; w++) next[q * reads + w] = read[w];                                         \
    }

// Puts it, narrowed, where the tile begins in shared memory.
#define STORE(next, begin, eights, reads, side, row, along_k)                                                               \
    [[unroll]] for (uint q = 0u; q < eights; q++) {                                                                         \
        const uint e = t + q * THREADS;                                                                                     \
        const uvec2 p = place(e, side, along_k);                                                                            \
        if (e < side * BK / 8u) held[begin + (along_k ? p.x * row + p.y / 8u : p.y * row + p.x / 8u)] = reads == 1u ? next[q] : narrowed(next[q * reads], next[q * reads + reads - 1u]); \
    }

void main() {
    const uint t = gl_LocalInvocationID.x;
    const uint s = gl_SubgroupID, srow = s / SN * RM * TM, scol = s % SN * RN * TN;
    const uint row0 = gl_WorkGroupID.y * BM, col0 = gl_WorkGroupID.x * BN;
    for (uint z = gl_WorkGroupID.z; z < push.batch * push.parts; z += gl_NumWorkGroups.z) {
        const uint part = z % push.parts, matrix = z / push.parts;
        const int z0 = int(matrix / push.inner), z1 = int(matrix % push.inner);
        const int at_a = int(push.a_at) + z0 * push.a_0 + z1 * push.a_1;
        const int at_b = int(push.b_at) + z0 * push.b_0 + z1 * push.b_1;
        const uint start = part * push.chunk, end = min(start + push.chunk, push.k);
        coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> acc[RM * RN];
        [[unroll]] for (uint i = 0u; i < RM * RN; i++) acc[i] = coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);
        uvec4 next_a[QA * WA], next_b[QB * WB];
        // The first round brings the first tiles alone.
        for (uint k0 = start; k0 < end + BK; k0 += BK) {
            if (k0 > start) {
                barrier();
                STORE(next_a, 0u, QA, WA, BM, LA, A_ALONG_K)
                STORE(next_b, OF_A, QB, WB, BN, LB, B_ALONG_K)
                barrier();
            }
            if (k0 < end) {
                READ(next_a, a, a4, at_a, QA, WA, BM, row0, push.m, push.a_m, push.a_k, A_ALONG_K, A_WIDE, A_STORED)
                READ(next_b, b, b4, at_b, QB, WB, BN, col0, push.n, push.b_n, push.b_k, B_ALONG_K, B_WIDE, B_STORED)
            }
            if (k0 > start) {
                [[unroll]] for (uint l = 0u; l < BK; l += TK) {
                    coopmat<NUMBER, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> left[RM];
                    [[unroll]] for (uint i = 0u; i < RM; i++) {
                        const uint row = srow + i * TM;
                        if (A_ALONG_K) coopMatLoad(left[i], held, row * LA + l / 8u, LA, gl_CooperativeMatrixLayoutRowMajor);
                        else coopMatLoad(left[i], held, l * LA + row / 8u, LA, gl_CooperativeMatrixLayoutColumnMajor);
                    }
                    [[unroll]] for (uint j = 0u; j < RN; j++) {
                        const uint col = scol + j * TN;
                        coopmat<NUMBER, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> right;
                        if (B_ALONG_K) coopMatLoad(right, held, OF_A + col * LB + l / 8u, LB, gl_CooperativeMatrixLayoutColumnMajor);
                        else coopMatLoad(right, held, OF_A + l * LB + col / 8u, LB, gl_CooperativeMatrixLayoutRowMajor);
                        [[unroll]] for (uint i = 0u; i < RM; i++) acc[i * RN + j] = coopMatMulAdd(left[i], right, acc[i * RN + j]);
                    }
                }
            }
        }
        // How a matrix lies over the threads is the device's own: through shared memory, a row of matrices after the other.
        const int at_c = z0 * push.c_0 + z1 * push.c_1;
        [[unroll]] for (uint i = 0u; i < RM; i++) {
            barrier();
            [[unroll]] for (uint j = 0u; j < RN; j++)
                coopMatStore(acc[i * RN + j], held, s * TM * LC + j * TN / 4u, LC, gl_CooperativeMatrixLayoutRowMajor);
            barrier();
            for (uint e = gl_SubgroupInvocationID; e < TM * RN * TN / 4u; e += gl_SubgroupSize) {
                const uint row = e / (RN * TN / 4u), col = e % (RN * TN / 4u);
                const vec4 sums = uintBitsToFloat(held[s * TM * LC + row * LC + col]);
                finish(row0 + srow + i * TM + row, col0 + scol + col * 4u, at_c, part, sums);
            }
        }
        barrier();
    }
}
