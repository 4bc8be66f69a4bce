// As gemm.comp, of matrices that are multiplied in NUMBER (B is stored as such, B_STORED says which; A is rounded to it) by the device's
// cooperative matrices, with sums of f32. A subgroup makes RM by RN of them, a workgroup SM by SN subgroups; the rest of B's tile and
// A's beyond the edges is 0.
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
layout(constant_id = 12) const bool A_ALONG_K = true;
layout(constant_id = 13) const bool B_ALONG_K = true;
// B lies along k, and words begin at even elements: a thread reads both of a word.
layout(constant_id = 14) const bool B_WORDS = false;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };
layout(std430, binding = 4) readonly buffer Residual { float residual[]; };
layout(push_constant) uniform Push {
    uint m, n, k, batch, inner;
    uint a_at;
    int a_m, a_k, a_0, a_1;
    uint b_at;
    int b_k, b_n, b_0, b_1;
    uint c_at;
    int c_m, c_0, c_1;
    uint bias_at, residual_at;
    float alpha;
} push;
#include "inc/functions.glsl"
#include "inc/stored.glsl"

const uint BM = SM * RM * TM;
const uint BN = SN * RN * TN;
// Rows of both tiles run along k. 16 bytes more: what the device reads begins at multiples of 16, and rows fall into other banks.
const uint LD = BK + 8u;
shared NUMBER ta[BM * LD];
shared NUMBER tb[BN * LD];
shared float tc[SM * SN * TM * TN];

void fill_b(uint l, uint j, uint bits, bool inside) {
    tb[j * LD + l] = NUMBER(inside ? uintBitsToFloat(bits) : 0.0);
}

void main() {
    const uint t = gl_LocalInvocationID.x, threads = gl_WorkGroupSize.x;
    const uint s = gl_SubgroupID, srow = s / SN * RM * TM, scol = s % SN * RN * TN;
    const uint row0 = gl_WorkGroupID.y * BM, col0 = gl_WorkGroupID.x * BN;
    for (uint z = gl_WorkGroupID.z; z < push.batch; z += gl_NumWorkGroups.z) {
        const int z0 = int(z / push.inner), z1 = int(z % push.inner);
        const int at_a = int(push.a_at) + z0 * push.a_0 + z1 * push.a_1;
        const int at_b = int(push.b_at) + z0 * push.b_0 + z1 * push.b_1;
        coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> acc[RM * RN];
        for (uint i = 0u; i < RM * RN; i++) acc[i] = coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);
        for (uint k0 = 0u; k0 < push.k; k0 += BK) {
            for (uint e = t; e < BM * BK; e += threads) {
                uint i = A_ALONG_K ? e / BK : e % BM, l = A_ALONG_K ? e % BK : e / BM;
                bool inside = row0 + i < push.m && k0 + l < push.k;
                float v = inside ? a[at_a + int(row0 + i) * push.a_m + int(k0 + l) * push.a_k] : 0.0;
                ta[i * LD + l] = NUMBER(v);
            }
            if (B_WORDS) {
                for (uint e = t; e < BN * BK / 2u; e += threads) {
                    uint j = e / (BK / 2u), l = e % (BK / 2u) * 2u;
                    bool inside = col0 + j < push.n && k0 + l < push.k;
                    uint word = inside ? b[uint(at_b + int(col0 + j) * push.b_n + int(k0 + l)) / 2u] : 0u;
                    fill_b(l, j, widened(B_STORED, word, 0u), inside);
                    fill_b(l + 1u, j, widened(B_STORED, word, 1u), inside && k0 + l + 1u < push.k);
                }
            } else {
                for (uint e = t; e < BN * BK; e += threads) {
                    uint j = B_ALONG_K ? e / BK : e % BN, l = B_ALONG_K ? e % BK : e / BN;
                    bool inside = col0 + j < push.n && k0 + l < push.k;
                    uint at = uint(at_b + int(col0 + j) * push.b_n + int(k0 + l) * push.b_k);
                    fill_b(l, j, inside ? STORED(b, B_STORED, at) : 0u, inside);
                }
            }
            barrier();
            for (uint l = 0u; l < BK; l += TK) {
                coopmat<NUMBER, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> left[RM];
                for (uint i = 0u; i < RM; i++)
                    coopMatLoad(left[i], ta, (srow + i * TM) * LD + l, LD, gl_CooperativeMatrixLayoutRowMajor);
                for (uint j = 0u; j < RN; j++) {
                    coopmat<NUMBER, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> right;
                    coopMatLoad(right, tb, (scol + j * TN) * LD + l, LD, gl_CooperativeMatrixLayoutColumnMajor);
                    for (uint i = 0u; i < RM; i++) acc[i * RN + j] = coopMatMulAdd(left[i], right, acc[i * RN + j]);
                }
            }
            barrier();
        }
        // How a matrix lies over the threads is the device's own: through shared memory, one after another.
        const int at_c = z0 * push.c_0 + z1 * push.c_1;
        for (uint i = 0u; i < RM; i++) {
            for (uint j = 0u; j < RN; j++) {
                coopMatStore(acc[i * RN + j], tc, s * TM * TN, TN, gl_CooperativeMatrixLayoutRowMajor);
                barrier();
                for (uint e = gl_SubgroupInvocationID; e < TM * TN; e += gl_SubgroupSize) {
                    uint row = row0 + srow + i * TM + e / TN, col = col0 + scol + j * TN + e % TN;
                    if (row >= push.m || col >= push.n) continue;
                    int at = at_c + int(row) * push.c_m + int(col);
                    float v = push.alpha * tc[s * TM * TN + e];
                    if (BIAS) v += bias[push.bias_at + col];
                    if (RESIDUAL) v += residual[int(push.residual_at) + at];
                    c[int(push.c_at) + at] = apply(ACT, v);
                }
                barrier();
            }
        }
    }
}
