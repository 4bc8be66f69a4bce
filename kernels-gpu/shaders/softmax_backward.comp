#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// dx = scale y (dy - sum y dy) for rows y = softmax(scale x), or with LOG dx = scale (dy - e^y sum dy) for its logarithm. dy and dx may be
// the same memory.
layout(constant_id = 4) const bool LOG = false;
layout(std430, binding = 0) readonly buffer Y { float y[]; };
layout(std430, binding = 0) readonly buffer Y4 { vec4 y4[]; };
layout(std430, binding = 1) readonly buffer Dy { float dy[]; };
layout(std430, binding = 1) readonly buffer Dy4 { vec4 dy4[]; };
layout(std430, binding = 2) writeonly buffer Dx { float dx[]; };
layout(std430, binding = 2) writeonly buffer Dx4 { vec4 dx4[]; };
layout(push_constant) uniform Push { uint rows, n, y_at, dy_at, dx_at; float scale; } push;
#include "inc/functions.glsl"
#include "inc/row.glsl"

#define READ_BOTH(first)                                              \
    FOURS(k) {                                                        \
        READ_FOUR(v[k], y, y4, push.y_at + at, first, push.n, k)      \
        READ_FOUR(d[k], dy, dy4, push.dy_at + at, first, push.n, k)   \
    }

void main() {
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = row * push.n;
        vec4 v[PER], d[PER], sums = vec4(0.0);
        STRETCHES(first, 0u, push.n) {
            READ_BOTH(first)
            FOURS(k) sums += LOG ? d[k] : d[k] * v[k];
        }
        float sum = tree_sum(sum_of(sums));
        STRETCHES(first, 0u, push.n) {
            if (!KEPT) { READ_BOTH(first) }
            FOURS(k) {
                if (LOG) {
                    ELEMENTS(c) d[k][c] -= exp_(v[k][c]) * sum;
                } else {
                    d[k] = v[k] * (d[k] - sum);
                }
                d[k] *= push.scale;
                WRITE_FOUR(d[k], dx, dx4, push.dx_at + at, first, push.n, k)
            }
        }
    }
}
