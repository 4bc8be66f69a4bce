#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y[o, b] = sum of block b, of `each` elements, of x[o, ..] for rows [outer, n]; of their squares with SQUARED. A workgroup takes a block.
layout(constant_id = 4) const bool SQUARED = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint outer, n, inner, blocks, each, x_at, y_at; } push;
#include "inc/row.glsl"

void main() {
    for (uint g = gl_WorkGroupID.x; g < push.outer * push.blocks; g += gl_NumWorkGroups.x) {
        uint at = push.x_at + g / push.blocks * push.n, start = g % push.blocks * push.each;
        uint end = min(start + push.each, push.n);
        vec4 v[PER], sums = vec4(0.0);
        STRETCHES(first, start, end) {
            FOURS(k) { READ_FOUR(v[k], x, x4, at, first, end, k) }
            FOURS(k) sums += SQUARED ? v[k] * v[k] : v[k];
        }
        float sum = tree_sum(sum_of(sums));
        if (gl_LocalInvocationID.x == 0u) y[push.y_at + g] = sum;
    }
}
