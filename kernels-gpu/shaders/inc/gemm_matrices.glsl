// As gemm.comp, of matrices that are multiplied in NUMBER (what of A and B is f32 is rounded to it) by the device's cooperative matrices,
// with sums of f32. A subgroup makes RM by RN of them, a workgroup SM by SN subgroups. Everything goes by eights of elements: 16 bytes of
// shared memory, which are read at once (WIDE) where all of them begin at multiples of eight.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SM = 2u;
layout(constant_id = 2) const uint SN = 2u;
layout(constant_id = 3) const uint RM = 4u;
layout(constant_id = 4) const uint RN = 4u;
// A matrix of the device: [TM, TK] times [TK, TN].
layout(constant_id = 5) const uint TM = 16u;
layout(constant_id = 6) const uint TN = 16u;
layout(constant_id = 7) const uint TK = 16u;
layout(constant_id = 8) const uint BK = 32u;
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
                [[unroll]] for (uint q = 0u; q < QA; q++) {
                    const uint e = t + q * THREADS;
                    const uvec2 p = place(e, BM, A_ALONG_K);
                    if (e < BM * BK / 8u) held[A_ALONG_K ? p.x * LA + p.y / 8u : p.y * LA + p.x / 8u] = WA == 1u ? next_a[q] : narrowed(next_a[q * WA], next_a[q * WA + WA - 1u]);
                }
                [[unroll]] for (uint q = 0u; q < QB; q++) {
                    const uint e = t + q * THREADS;
                    const uvec2 p = place(e, BN, B_ALONG_K);
                    if (e < BN * BK / 8u) held[OF_A + (B_ALONG_K ? p.x * LB + p.y / 8u : p.y * LB + p.x / 8u)] = WB == 1u ? next_b[q] : narrowed(next_b[q * WB], next_b[q * WB + WB - 1u]);
                }
                barrier();
            }
            if (k0 < end) {
                [[unroll]] for (uint q = 0u; q < QA; q++) {
                    const uint e = t + q * THREADS;
                    const uvec2 p = place(e, BM, A_ALONG_K);
                    const uint i = row0 + p.x, l = k0 + p.y, at = uint(at_a + int(i) * push.a_m + int(l) * push.a_k);
                    uvec4 read[2] = uvec4[2](uvec4(0u), uvec4(0u));
                    if (e < BM * BK / 8u && i < push.m && l < end) {
                        if (A_WIDE) {
                            [[unroll]] for (uint w = 0u; w < WA; w++) read[w] = a4[at * WA / 8u + w];
                        } else {
                            [[unroll]] for (uint c = 0u; c < 8u; c++) {
                                if (A_ALONG_K ? l + c >= end : i + c >= push.m) break;
                                const uint from = at + c * uint(A_ALONG_K ? push.a_k : push.a_m);
                                const uint bits = A_STORED == 0u ? a[from] : a[from / 2u] >> (16u * (from % 2u)) & 0xffffu;
                                PUT(read, A_STORED, c, bits);
                            }
                        }
                    }
                    [[unroll]] for (uint w = 0u; w < WA; w++) next_a[q * WA + w] = read[w];
                }
                [[unroll]] for (uint q = 0u; q < QB; q++) {
                    const uint e = t + q * THREADS;
                    const uvec2 p = place(e, BN, B_ALONG_K);
                    const uint j = col0 + p.x, l = k0 + p.y, at = uint(at_b + int(j) * push.b_n + int(l) * push.b_k);
                    uvec4 read[2] = uvec4[2](uvec4(0u), uvec4(0u));
                    if (e < BN * BK / 8u && j < push.n && l < end) {
                        if (B_WIDE) {
                            [[unroll]] for (uint w = 0u; w < WB; w++) read[w] = b4[at * WB / 8u + w];
                        } else {
                            [[unroll]] for (uint c = 0u; c < 8u; c++) {
                                if (B_ALONG_K ? l + c >= end : j + c >= push.n) break;
                                const uint from = at + c * uint(B_ALONG_K ? push.b_k : push.b_n);
                                const uint bits = B_STORED == 0u ? b[from] : b[from / 2u] >> (16u * (from % 2u)) & 0xffffu;
                                PUT(read, B_STORED, c, bits);
                            }
                        }
                    }
                    [[unroll]] for (uint w = 0u; w < WB; w++) next_b[q * WB + w] = read[w];
                }
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
