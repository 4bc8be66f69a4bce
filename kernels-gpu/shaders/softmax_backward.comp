#version 450
#extension GL_GOOGLE_include_directive : require
// dx = scale y (dy - sum y dy) for rows y = softmax(scale x), or with LOG dx = scale (dy - e^y sum dy) for its logarithm. dy and dx may be
// the same memory.
layout(constant_id = 1) const bool LOG = false;
layout(std430, binding = 0) readonly buffer Y { float y[]; };
layout(std430, binding = 1) readonly buffer Dy { float dy[]; };
layout(std430, binding = 2) writeonly buffer Dx { float dx[]; };
layout(push_constant) uniform Push { uint rows, n, y_at, dy_at, dx_at; float scale; } push;
#include "inc/functions.glsl"
#include "inc/tree.glsl"

void main() {
    uint t = gl_LocalInvocationID.x;
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = row * push.n;
        float sum = 0.0;
        for (uint j = t; j < push.n; j += THREADS) {
            float d = dy[push.dy_at + at + j];
            sum += LOG ? d : d * y[push.y_at + at + j];
        }
        sum = tree_sum(sum);
        for (uint j = t; j < push.n; j += THREADS) {
            float v = y[push.y_at + at + j], d = dy[push.dy_at + at + j];
            dx[push.dx_at + at + j] = push.scale * (LOG ? d - exp_(v) * sum : v * (d - sum));
        }
    }
}
