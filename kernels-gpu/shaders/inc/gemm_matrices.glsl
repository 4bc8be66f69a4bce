// As gemm.comp, of matrices that are multiplied by the device's cooperative matrices. Eights are read at once (WIDE) where all of them begin at
// multiples of eight.
layout(constant_id = 9) const uint ACT = 255u;
layout(constant_id = 10) const bool BIAS = false;
layout(constant_id = 11) const bool RESIDUAL = false;
layout(constant_id = 12) const bool A_ALONG_K = true;
layout(constant_id = 13) const bool B_ALONG_K = true;
layout(constant_id = 14) const bool A_WIDE = false;
layout(constant_id = 15) const bool B_WIDE = false;
layout(constant_id = 16) const bool C_QUADS = false;
layout(constant_id = 17) const uint A_STORED = 0u;
layout(constant_id = 18) const uint B_STORED = 0u;
#include "inc/matrices.glsl"
layout(std430, binding = 0) readonly buffer A { uint a[]; };
layout(std430, binding = 0) readonly buffer A4 { uvec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
#include "inc/gemm.glsl"

// Reads what a thread brings of an operand's tile, from row or column `first` of `all` and k0 on, into `next`; 0 beyond the edges.
#define READ(next, from_, from4, begin, eights, reads, side, first, all, by_row, by_k, along_k, wide, stored)               \
    [[unroll]] for (uint q = 0u; q < eights; q++) {                                                                         \
        const uint e = t + q * THREADS;                                                                                     \
        const uvec2 p = eight_at(e, side, along_k);                                                                            \
        const uint i = first + p.x, l = k0 + p.y, at = uint(begin + int(i) * by_row + int(l) * by_k);                       \
        uvec4 read[2] = uvec4[2](uvec4(0u), uvec4(0u));                                                                     \
        if (e < side * BK / 8u && i < all && l < end) {                                                                     \
            if (wide) {                                                                                                     \
                [[unroll]] for (uint w = 0u; w < reads; w++) read[w] = from4[at * reads / 8u + w];                          \
            } else {                                                                                                        \
                [[unroll]] for (uint c = 0u; c < 8u; c++) {                                                                 \
                    if (along_k ? l + c >= end : i + c >= all) break;                                                       \
                    const uint from = at + c * uint(along_k ? by_k : by_row), bits = BITS(from_, stored, from);             \
                    PUT(read, 0u, stored, c, bits);                                                                         \
                }                                                                                                           \
            }                                                                                                               \
        }                                                                                                                   \
        [[unroll]] for (uint w = 0u; w < reads; w++) next[q * reads + w] = read[w];                                         \
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
        SUMS(sums)
        uvec4 next_a[QA * WA], next_b[QB * WB];
        // The first round brings the first tiles alone.
        for (uint k0 = start; k0 < end + BK; k0 += BK) {
            if (k0 > start) {
                barrier();
                HOLD(next_a, 0u, QA, WA, BM, LA, A_ALONG_K)
                HOLD(next_b, OF_A, QB, WB, BN, LB, B_ALONG_K)
                barrier();
            }
            if (k0 < end) {
                READ(next_a, a, a4, at_a, QA, WA, BM, row0, push.m, push.a_m, push.a_k, A_ALONG_K, A_WIDE, A_STORED)
                READ(next_b, b, b4, at_b, QB, WB, BN, col0, push.n, push.b_n, push.b_k, B_ALONG_K, B_WIDE, B_STORED)
            }
            if (k0 > start) MULTIPLY(sums)
        }
        const int at_c = z0 * push.c_0 + z1 * push.c_1;
#define FINISH(row, col, four) finish(row0 + row, col0 + col, at_c, part, four)
        EACH_FOUR(sums, FINISH)
    }
}
