#version 450
#extension GL_GOOGLE_include_directive : require
// C[z] = act(alpha A[z] B[z] + bias + residual) for matrices [m, k] and [k, n] in any layout; z runs over two dimensions of the batch.
// B may be stored in half; it is widened on its way into shared memory.
// A workgroup of GX x GY threads makes a tile of GY TM rows by GX TN columns, from tiles of A and B in shared memory.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint GX = 16u;
layout(constant_id = 2) const uint GY = 16u;
layout(constant_id = 3) const uint TM = 4u;
layout(constant_id = 4) const uint TN = 4u;
layout(constant_id = 5) const uint BK = 16u;
layout(constant_id = 6) const uint ACT = 255u;
layout(constant_id = 7) const bool BIAS = false;
layout(constant_id = 8) const bool RESIDUAL = false;
// Which way neighbouring threads read: along k where that is how the operand lies.
layout(constant_id = 9) const bool A_ALONG_K = true;
layout(constant_id = 10) const bool B_ALONG_K = false;
layout(constant_id = 11) const uint B_STORED = 0u;
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

const uint BM = GY * TM;
const uint BN = GX * TN;
// A column more, so that neither way of filling a tile meets one bank alone.
shared float ta[BK * (BM + 1u)];
shared float tb[BK * (BN + 1u)];

void main() {
    const uint t = gl_LocalInvocationID.x, tx = t % GX, ty = t / GX;
    const uint threads = GX * GY;
    const uint row0 = gl_WorkGroupID.y * BM, col0 = gl_WorkGroupID.x * BN;
    for (uint z = gl_WorkGroupID.z; z < push.batch; z += gl_NumWorkGroups.z) {
        const int z0 = int(z / push.inner), z1 = int(z % push.inner);
        const int at_a = int(push.a_at) + z0 * push.a_0 + z1 * push.a_1;
        const int at_b = int(push.b_at) + z0 * push.b_0 + z1 * push.b_1;
        float acc[TM * TN];
        for (uint i = 0u; i < TM * TN; i++) acc[i] = 0.0;
        for (uint k0 = 0u; k0 < push.k; k0 += BK) {
            for (uint e = t; e < BM * BK; e += threads) {
                uint i = A_ALONG_K ? e / BK : e % BM, l = A_ALONG_K ? e % BK : e / BM;
                bool inside = row0 + i < push.m && k0 + l < push.k;
                ta[l * (BM + 1u) + i] = inside ? a[at_a + int(row0 + i) * push.a_m + int(k0 + l) * push.a_k] : 0.0;
            }
            for (uint e = t; e < BN * BK; e += threads) {
                uint j = B_ALONG_K ? e / BK : e % BN, l = B_ALONG_K ? e % BK : e / BN;
                bool inside = col0 + j < push.n && k0 + l < push.k;
                uint at = uint(at_b + int(col0 + j) * push.b_n + int(k0 + l) * push.b_k);
                tb[l * (BN + 1u) + j] = inside ? uintBitsToFloat(STORED(b, B_STORED, at)) : 0.0;
            }
            barrier();
            for (uint l = 0u; l < BK; l++) {
                float av[TM];
                for (uint i = 0u; i < TM; i++) av[i] = ta[l * (BM + 1u) + ty + i * GY];
                for (uint j = 0u; j < TN; j++) {
                    float bv = tb[l * (BN + 1u) + tx + j * GX];
                    for (uint i = 0u; i < TM; i++) acc[i * TN + j] = fma(av[i], bv, acc[i * TN + j]);
                }
            }
            barrier();
        }
        const int at_c = z0 * push.c_0 + z1 * push.c_1;
        for (uint i = 0u; i < TM; i++) {
            uint row = row0 + ty + i * GY;
            for (uint j = 0u; j < TN; j++) {
                uint col = col0 + tx + j * GX;
                if (row >= push.m || col >= push.n) continue;
                int at = at_c + int(row) * push.c_m + int(col);
                float v = push.alpha * acc[i * TN + j];
                if (BIAS) v += bias[push.bias_at + col];
                if (RESIDUAL) v += residual[int(push.residual_at) + at];
                c[int(push.c_at) + at] = apply(ACT, v);
            }
        }
    }
}
