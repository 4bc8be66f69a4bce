#version 450
#extension GL_GOOGLE_include_directive : require
// y[o, b] = sum of block b, of `each` elements, of x[o, ..] for rows [outer, n]; of their squares with SQUARED. A workgroup takes a block.
layout(constant_id = 1) const bool SQUARED = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint outer, n, inner, blocks, each, x_at, y_at; } push;
#include "inc/tree.glsl"

void main() {
    for (uint g = gl_WorkGroupID.x; g < push.outer * push.blocks; g += gl_NumWorkGroups.x) {
        uint row = push.x_at + g / push.blocks * push.n, first = g % push.blocks * push.each;
        uint end = min(first + push.each, push.n);
        float sum = 0.0;
        for (uint j = first + gl_LocalInvocationID.x; j < end; j += THREADS) {
            float v = x[row + j];
            sum += SQUARED ? v * v : v;
        }
        sum = tree_sum(sum);
        if (gl_LocalInvocationID.x == 0u) y[push.y_at + g] = sum;
    }
}
