#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// C[z] = act(alpha A[z] B[z] + bias + residual) for matrices [m, k] and [k, n] in any layout; z runs over two dimensions of the batch.
// What is stored in half is widened on its way into shared memory.
// A workgroup of GX x GY threads makes a tile of GY TM rows by GX TN columns, from tiles of A and B in shared memory, of which there are
// two: what comes next is read into registers before this one is multiplied, and stored after it. Everything goes by quads of elements:
// those that lie together are read at once (QUADS) where all of them begin at multiples of four.
// Sums over a long k may be parted: the sums over `chunk` terms are then matrices of their own, `c_part` apart.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint GX = 16u;
layout(constant_id = 2) const uint GY = 16u;
layout(constant_id = 3) const uint TM = 8u;
layout(constant_id = 4) const uint TN = 8u;
layout(constant_id = 5) const uint BK = 8u;
layout(constant_id = 6) const uint ACT = 255u;
layout(constant_id = 7) const bool BIAS = false;
layout(constant_id = 8) const bool RESIDUAL = false;
// Quads lie along k, or along rows and columns.
layout(constant_id = 9) const bool A_ALONG_K = true;
layout(constant_id = 10) const bool B_ALONG_K = false;
layout(constant_id = 11) const bool A_QUADS = false;
layout(constant_id = 12) const bool B_QUADS = false;
layout(constant_id = 13) const bool C_QUADS = false;
layout(constant_id = 14) const uint A_STORED = 0u;
layout(constant_id = 15) const uint B_STORED = 0u;
// Steps of k that are written out one after the other, at most: all of a tile's where the driver compiles for a GPU (a fifth quicker).
layout(constant_id = 16) const uint UNROLLED = 8u;
layout(std430, binding = 0) readonly buffer A { uint a[]; };
layout(std430, binding = 0) readonly buffer A2 { uvec2 a2[]; };
layout(std430, binding = 0) readonly buffer A4 { uvec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B2 { uvec2 b2[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
#include "inc/gemm.glsl"

const uint STEPS = UNROLLED < BK ? UNROLLED : BK;
const uint THREADS = GX * GY;
const uint BM = GY * TM;
const uint BN = GX * TN;
const uint RM = TM / 4u;
const uint RN = TN / 4u;
// A row of quads for each l, and a quad more, so that the rows of quads that were turned fall into other banks.
const uint LA = BM / 4u + 1u;
const uint LB = BN / 4u + 1u;
shared vec4 ta[2u * BK * LA];
shared vec4 tb[2u * BK * LB];
// Quads of a tile that a thread brings.
const uint QA = (BM * BK / 4u + THREADS - 1u) / THREADS;
const uint QB = (BN * BK / 4u + THREADS - 1u) / THREADS;

// Where quad e of a tile of `rows` rows is: its row and its l. Along k two quads are neighbours, so that 32 bytes are read together, and
// rows after them, so that turned quads fall into other banks.
uvec2 place(uint e, uint rows, bool along_k) {
    return along_k ? uvec2(e / 2u % rows, (e % 2u + e / (2u * rows) * 2u) * 4u) : uvec2(e % (rows / 4u) * 4u, e / (rows / 4u));
}

// Of what is stored in half.
vec4 widened4(uint kind, uvec2 w) {
    return uintBitsToFloat(uvec4(widened(kind, w.x, 0u), widened(kind, w.x, 1u), widened(kind, w.y, 0u), widened(kind, w.y, 1u)));
}

vec4 read_a(int at, uvec2 p, uint row0, uint k0, uint end) {
    const uint i = row0 + p.x, l = k0 + p.y;
    const int from = at + int(i) * push.a_m + int(l) * push.a_k;
    vec4 v = vec4(0.0);
    if (i >= push.m || l >= end) return v;
    if (A_QUADS) return A_STORED == 0u ? uintBitsToFloat(a4[uint(from) / 4u]) : widened4(A_STORED, a2[uint(from) / 4u]);
    [[unroll]] for (uint e = 0u; e < 4u; e++) {
        if (A_ALONG_K ? l + e >= end : i + e >= push.m) break;
        v[e] = uintBitsToFloat(STORED(a, A_STORED, uint(from + int(e) * (A_ALONG_K ? push.a_k : push.a_m))));
    }
    return v;
}

vec4 read_b(int at, uvec2 p, uint col0, uint k0, uint end) {
    const uint j = col0 + p.x, l = k0 + p.y;
    const int from = at + int(j) * push.b_n + int(l) * push.b_k;
    vec4 v = vec4(0.0);
    if (j >= push.n || l >= end) return v;
    if (B_QUADS) return B_STORED == 0u ? uintBitsToFloat(b4[uint(from) / 4u]) : widened4(B_STORED, b2[uint(from) / 4u]);
    [[unroll]] for (uint e = 0u; e < 4u; e++) {
        if (B_ALONG_K ? l + e >= end : j + e >= push.n) break;
        v[e] = uintBitsToFloat(STORED(b, B_STORED, uint(from + int(e) * (B_ALONG_K ? push.b_k : push.b_n))));
    }
    return v;
}

void main() {
    // Neighbours in blocks of 8 by 4: together they read the fewest quads of both tiles.
    const uint t = gl_LocalInvocationID.x, block = t / 32u;
    const uint tx = t % 8u + block % (GX / 8u) * 8u, ty = t / 8u % 4u + block / (GX / 8u) * 4u;
    const uint row0 = gl_WorkGroupID.y * BM, col0 = gl_WorkGroupID.x * BN;
    for (uint z = gl_WorkGroupID.z; z < push.batch * push.parts; z += gl_NumWorkGroups.z) {
        const uint part = z % push.parts, matrix = z / push.parts;
        const int z0 = int(matrix / push.inner), z1 = int(matrix % push.inner);
        const int at_a = int(push.a_at) + z0 * push.a_0 + z1 * push.a_1;
        const int at_b = int(push.b_at) + z0 * push.b_0 + z1 * push.b_1;
        const uint start = part * push.chunk, end = min(start + push.chunk, push.k);
        vec4 acc[TM * RN];
        [[unroll]] for (uint i = 0u; i < TM * RN; i++) acc[i] = vec4(0.0);
        vec4 next_a[QA], next_b[QB];
        // The first round brings the first tiles alone.
        uint now = 0u;
        for (uint k0 = start; k0 < end + BK; k0 += BK) {
            const bool more = k0 < end;
            if (more) {
                [[unroll]] for (uint q = 0u; q < QA; q++) {
                    const uint e = t + q * THREADS;
                    if (e < BM * BK / 4u) next_a[q] = read_a(at_a, place(e, BM, A_ALONG_K), row0, k0, end);
                }
                [[unroll]] for (uint q = 0u; q < QB; q++) {
                    const uint e = t + q * THREADS;
                    if (e < BN * BK / 4u) next_b[q] = read_b(at_b, place(e, BN, B_ALONG_K), col0, k0, end);
                }
            }
            if (k0 > start) {
                for (uint l0 = 0u; l0 < BK; l0 += STEPS) {
                    [[unroll]] for (uint l = l0; l < l0 + STEPS; l++) {
                        vec4 av[RM], bv[RN];
                        [[unroll]] for (uint r = 0u; r < RM; r++) av[r] = ta[(now * BK + l) * LA + r * GY + ty];
                        [[unroll]] for (uint r = 0u; r < RN; r++) bv[r] = tb[(now * BK + l) * LB + r * GX + tx];
                        [[unroll]] for (uint i = 0u; i < TM; i++)
                            [[unroll]] for (uint r = 0u; r < RN; r++) acc[i * RN + r] = fma(vec4(av[i / 4u][i % 4u]), bv[r], acc[i * RN + r]);
                    }
                }
            }
            now ^= 1u;
            if (more) {
                [[unroll]] for (uint q = 0u; q < QA; q++) {
                    const uint e = t + q * THREADS;
                    const uvec2 p = place(e, BM, A_ALONG_K);
                    if (e >= BM * BK / 4u) continue;
                    const uint at = (now * BK + p.y) * LA + p.x / 4u;
                    if (!A_ALONG_K) ta[at] = next_a[q];
                    else [[unroll]] for (uint c = 0u; c < 4u; c++) ta[at + c * LA][p.x % 4u] = next_a[q][c];
                }
                [[unroll]] for (uint q = 0u; q < QB; q++) {
                    const uint e = t + q * THREADS;
                    const uvec2 p = place(e, BN, B_ALONG_K);
                    if (e >= BN * BK / 4u) continue;
                    const uint at = (now * BK + p.y) * LB + p.x / 4u;
                    if (!B_ALONG_K) tb[at] = next_b[q];
                    else [[unroll]] for (uint c = 0u; c < 4u; c++) tb[at + c * LB][p.x % 4u] = next_b[q][c];
                }
            }
            barrier();
        }
        const int at_c = z0 * push.c_0 + z1 * push.c_1;
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            const uint row = row0 + (i / 4u * GY + ty) * 4u + i % 4u;
            [[unroll]] for (uint r = 0u; r < RN; r++) finish(row, col0 + (r * GX + tx) * 4u, at_c, part, acc[i * RN + r]);
        }
    }
}
