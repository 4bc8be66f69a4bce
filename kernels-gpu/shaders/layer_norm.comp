#version 450
#extension GL_GOOGLE_include_directive : require
// y = (x - mean) rstd w + b for rows [rows, n]; mean and rstd of each row are kept.
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer W { float w[]; };
layout(std430, binding = 2) readonly buffer B { float b[]; };
layout(std430, binding = 3) writeonly buffer Y { float y[]; };
layout(std430, binding = 4) writeonly buffer Mean { float mean[]; };
layout(std430, binding = 5) writeonly buffer Rstd { float rstd[]; };
layout(push_constant) uniform Push { uint rows, n, x_at, w_at, b_at, y_at; float eps; } push;
#include "inc/tree.glsl"

void main() {
    uint t = gl_LocalInvocationID.x;
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = push.x_at + row * push.n;
        float sum = 0.0;
        for (uint j = t; j < push.n; j += THREADS) sum += x[at + j];
        float m = tree_sum(sum) / float(push.n);
        float squares = 0.0;
        for (uint j = t; j < push.n; j += THREADS) {
            float d = x[at + j] - m;
            squares += d * d;
        }
        float r = 1.0 / sqrt(tree_sum(squares) / float(push.n) + push.eps);
        for (uint j = t; j < push.n; j += THREADS) {
            y[push.y_at + row * push.n + j] = (x[at + j] - m) * r * w[push.w_at + j] + b[push.b_at + j];
        }
        if (t == 0u) {
            mean[row] = m;
            rstd[row] = r;
        }
    }
}
