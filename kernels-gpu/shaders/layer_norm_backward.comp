#version 450
#extension GL_GOOGLE_include_directive : require
// dx = rstd (g - mean g - z mean g z) with g = w dy and z = (x - mean) rstd, for rows [rows, n].
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer W { float w[]; };
layout(std430, binding = 2) readonly buffer Mean { float mean[]; };
layout(std430, binding = 3) readonly buffer Rstd { float rstd[]; };
layout(std430, binding = 4) readonly buffer Dy { float dy[]; };
layout(std430, binding = 5) writeonly buffer Dx { float dx[]; };
layout(push_constant) uniform Push { uint rows, n, x_at, w_at, mean_at, rstd_at, dy_at, dx_at; } push;
#include "inc/tree.glsl"

void main() {
    uint t = gl_LocalInvocationID.x;
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = row * push.n;
        float m = mean[push.mean_at + row], r = rstd[push.rstd_at + row];
        float sum = 0.0, dot_ = 0.0;
        for (uint j = t; j < push.n; j += THREADS) {
            float g = w[push.w_at + j] * dy[push.dy_at + at + j];
            sum += g;
            dot_ += g * ((x[push.x_at + at + j] - m) * r);
        }
        sum = tree_sum(sum) / float(push.n);
        dot_ = tree_sum(dot_) / float(push.n);
        for (uint j = t; j < push.n; j += THREADS) {
            float g = w[push.w_at + j] * dy[push.dy_at + at + j];
            dx[push.dx_at + at + j] = r * (g - sum - (x[push.x_at + at + j] - m) * r * dot_);
        }
    }
}
