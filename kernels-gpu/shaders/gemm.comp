#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// C[z] = act(alpha A[z] B[z] + bias + residual) for matrices [m, k] and [k, n] in any layout; z runs over two dimensions of the batch.
// What is stored in half is widened on its way into shared memory. Four elements that lie together are read at once (QUADS) where all of
// them begin at multiples of four. Sums over a long k may be parted: the sums over `chunk` terms are then matrices of their own, `c_part` apart.
#include "inc/product.glsl"
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
layout(std430, binding = 0) readonly buffer A { uint a[]; };
layout(std430, binding = 0) readonly buffer A2 { uvec2 a2[]; };
layout(std430, binding = 0) readonly buffer A4 { uvec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B2 { uvec2 b2[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
#include "inc/gemm.glsl"

vec4 read_a(int at, uint i, uint l, uint end) {
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

vec4 read_b(int at, uint j, uint l, uint end) {
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
    const uint row0 = gl_WorkGroupID.y * BM, col0 = gl_WorkGroupID.x * BN;
    for (uint z = gl_WorkGroupID.z; z < push.batch * push.parts; z += gl_NumWorkGroups.z) {
        const uint part = z % push.parts, matrix = z / push.parts;
        const int z0 = int(matrix / push.inner), z1 = int(matrix % push.inner);
        const int at_a = int(push.a_at) + z0 * push.a_0 + z1 * push.a_1;
        const int at_b = int(push.b_at) + z0 * push.b_0 + z1 * push.b_1;
        const uint start = part * push.chunk, end = min(start + push.chunk, push.k);
        clear();
        for (uint k = start, half_ = 0u; k < end + BK; k += BK, half_ ^= 1u) {
            // The slice that begins at k is brought while the one before it is multiplied.
            if (k < end) {
                [[unroll]] for (uint e = 0u; e < OF_A; e++) {
                    next_a[e] = A_ALONG_K ? read_a(at_a, row0 + along_row() + e / EIGHTS * (THREADS / 2u), k + along_k() + e % EIGHTS * 8u, end)
                                          : read_a(at_a, row0 + across_row(BM), k + across_k(BM) + e * ACROSS_A, end);
                }
                [[unroll]] for (uint e = 0u; e < OF_B; e++) {
                    next_b[e] = B_ALONG_K ? read_b(at_b, col0 + along_row() + e / EIGHTS * (THREADS / 2u), k + along_k() + e % EIGHTS * 8u, end)
                                          : read_b(at_b, col0 + across_row(BN), k + across_k(BN) + e * ACROSS_B, end);
                }
            }
            if (k > start) multiply(half_ ^ 1u);
            if (k < end) {
                if (A_ALONG_K) put_a_along(half_); else put_a_across(half_);
                if (B_ALONG_K) put_b_along(half_); else put_b_across(half_);
            }
            barrier();
        }
        const int at_c = z0 * push.c_0 + z1 * push.c_1;
        [[unroll]] for (uint i = 0u; i < TM; i++)
            [[unroll]] for (uint j = 0u; j < TN / 4u; j++)
                finish(row0 + sum_row(i), col0 + sum_col(j), at_c, part, sums[i * (TN / 4u) + j]);
    }
}
