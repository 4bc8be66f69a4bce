#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = (x - mean) rstd w + b for rows [rows, n]; mean and rstd of each row are kept.
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) readonly buffer W { float w[]; };
layout(std430, binding = 1) readonly buffer W4 { vec4 w4[]; };
layout(std430, binding = 2) readonly buffer B { float b[]; };
layout(std430, binding = 2) readonly buffer B4 { vec4 b4[]; };
layout(std430, binding = 3) writeonly buffer Y { float y[]; };
layout(std430, binding = 3) writeonly buffer Y4 { vec4 y4[]; };
layout(std430, binding = 4) writeonly buffer Mean { float mean[]; };
layout(std430, binding = 5) writeonly buffer Rstd { float rstd[]; };
layout(push_constant) uniform Push { uint rows, n, x_at, w_at, b_at, y_at; float eps; } push;
#include "inc/row.glsl"

#define READ_X(first) FOURS(k) { READ_FOUR(v[k], x, x4, push.x_at + at, first, push.n, k) }
// Beyond the row's end nothing differs from the mean.
#define CENTRE(first) FOURS(k) ELEMENTS(c) v[k][c] = first + place(k, c) < push.n ? v[k][c] - m : 0.0;

void main() {
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = row * push.n;
        vec4 v[PER], sums = vec4(0.0), squares = vec4(0.0);
        STRETCHES(first, 0u, push.n) {
            READ_X(first)
            FOURS(k) sums += v[k];
        }
        float m = tree_sum(sum_of(sums)) / float(push.n);
        STRETCHES(first, 0u, push.n) {
            if (!KEPT) { READ_X(first) }
            CENTRE(first)
            FOURS(k) squares += v[k] * v[k];
        }
        float r = 1.0 / sqrt(tree_sum(sum_of(squares)) / float(push.n) + push.eps);
        STRETCHES(first, 0u, push.n) {
            if (!KEPT) {
                READ_X(first)
                CENTRE(first)
            }
            FOURS(k) {
                vec4 a, s;
                READ_FOUR(a, w, w4, push.w_at, first, push.n, k)
                READ_FOUR(s, b, b4, push.b_at, first, push.n, k)
                v[k] = v[k] * r * a + s;
                WRITE_FOUR(v[k], y, y4, push.y_at + at, first, push.n, k)
            }
        }
        if (gl_LocalInvocationID.x == 0u) {
            mean[row] = m;
            rstd[row] = r;
        }
    }
}
