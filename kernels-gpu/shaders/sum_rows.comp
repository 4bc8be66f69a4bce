#version 450
#extension GL_GOOGLE_include_directive : require
// y[r] = sum of x[r, ..] for rows [rows, n] one after the other. A workgroup takes a row.
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint rows, n, x_at, y_at; } push;
#include "inc/tree.glsl"

void main() {
    for (uint row = gl_WorkGroupID.x; row < push.rows; row += gl_NumWorkGroups.x) {
        uint at = push.x_at + row * push.n;
        float sum = 0.0;
        for (uint j = gl_LocalInvocationID.x; j < push.n; j += THREADS) sum += x[at + j];
        sum = tree_sum(sum);
        if (gl_LocalInvocationID.x == 0u) y[push.y_at + row] = sum;
    }
}
