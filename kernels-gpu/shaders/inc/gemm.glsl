// What matrix products share: where C is, and what becomes of a sum before it is stored there.
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 2) writeonly buffer C4 { vec4 c4[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };
layout(std430, binding = 4) readonly buffer Residual { float residual[]; };
layout(std430, binding = 4) readonly buffer Residual4 { vec4 residual4[]; };
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
    uint parts, chunk, c_part;
} push;
#include "inc/functions.glsl"
#include "inc/stored.glsl"

// Stores four neighbours of a row: act(alpha sums + bias + residual). `at_c` is where the matrix lies behind the first one.
void finish(uint row, uint col, int at_c, uint part, vec4 sums) {
    if (row >= push.m || col >= push.n) return;
    const int at = at_c + int(row) * push.c_m + int(col);
    const uint to = uint(int(push.c_at) + at) + part * push.c_part, from = uint(int(push.residual_at) + at);
    const uint many = C_QUADS ? 4u : min(push.n - col, 4u);
    vec4 v = push.alpha * sums;
    if (BIAS) [[unroll]] for (uint e = 0u; e < 4u; e++) v[e] += e < many ? bias[push.bias_at + col + e] : 0.0;
    if (RESIDUAL && C_QUADS) v += residual4[from / 4u];
    if (RESIDUAL && !C_QUADS) [[unroll]] for (uint e = 0u; e < 4u; e++) v[e] += e < many ? residual[from + e] : 0.0;
    // Written once: all functions are looked at wherever this is.
    [[dont_unroll]] for (uint e = 0u; e < 4u && ACT != 255u; e++) v[e] = apply(ACT, v[e]);
    if (C_QUADS) c4[to / 4u] = v;
    else [[unroll]] for (uint e = 0u; e < 4u; e++) if (e < many) c[to + e] = v[e];
}
