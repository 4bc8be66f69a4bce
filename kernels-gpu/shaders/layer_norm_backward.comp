#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// dx = rstd (g - mean g - z mean g z) with g = w dy and z = (x - mean) rstd, for rows [rows, n].
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) readonly buffer W { float w[]; };
layout(std430, binding = 1) readonly buffer W4 { vec4 w4[]; };
layout(std430, binding = 2) readonly buffer Mean { float mean[]; };
layout(std430, binding = 3) readonly buffer Rstd { float rstd[]; };
layout(std430, binding = 4) readonly buffer Dy { float dy[]; };
layout(std430, binding = 4) readonly buffer Dy4 { vec4 dy4[]; };
layout(std430, binding = 5) writeonly buffer Dx { float dx[]; };
layout(std430, binding = 5) writeonly buffer Dx4 { vec4 dx4[]; };
layout(push_constant) uniform Push { uint rows, n, x_at, w_at, mean_at, rstd_at, dy_at, dx_at; } push;
#include "inc/row.glsl"

// g, which is 0 beyond the row's end, and z.
#define TERMS(first)                                                      \
    FOURS(k) {                                                            \
        READ_FOUR(z[k], x, x4, push.x_at + at, first, push.n, k)          \
        READ_FOUR(g[k], dy, dy4, push.dy_at + at, first, push.n, k)       \
    }                                                                     \
    FOURS(k) {                                                            \
        vec4 a;                                                           \
        READ_FOUR(a, w, w4, push.w_at, first, push.n, k)                  \
        g[k] = a * g[k];                                                  \
        z[k] = (z[k] - m) * r;                                            \
    }

void main() {
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = row * push.n;
        float m = mean[push.mean_at + row], r = rstd[push.rstd_at + row];
        vec4 g[PER], z[PER], sums = vec4(0.0), dots = vec4(0.0);
        STRETCHES(first, 0u, push.n) {
            TERMS(first)
            FOURS(k) {
                sums += g[k];
                dots += g[k] * z[k];
            }
        }
        float sum = tree_sum(sum_of(sums)) / float(push.n), dot_ = tree_sum(sum_of(dots)) / float(push.n);
        STRETCHES(first, 0u, push.n) {
            if (!KEPT) { TERMS(first) }
            FOURS(k) {
                g[k] = r * (g[k] - sum - z[k] * dot_);
                WRITE_FOUR(g[k], dx, dx4, push.dx_at + at, first, push.n, k)
            }
        }
    }
}
