#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y[o, b, i] = sum of block b, of `each` elements along j, of x[o, j, i] for x [outer, n, inner] contiguous; with SQUARED of
// (x[o, j, i] - mean[i])^2. A workgroup takes COLS places along i of a block.
layout(constant_id = 3) const bool SQUARED = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 1) writeonly buffer Y4 { vec4 y4[]; };
layout(std430, binding = 2) readonly buffer Mean { float mean[]; };
layout(std430, binding = 2) readonly buffer Mean4 { vec4 mean4[]; };
layout(push_constant) uniform Push { uint outer, n, inner, blocks, each, x_at, y_at, mean_at; } push;
#include "inc/cols.glsl"

void main() {
    uint across = (push.inner + COLS - 1u) / COLS;
    for (uint g = gl_WorkGroupID.x; g < push.outer * push.blocks * across; g += gl_NumWorkGroups.x) {
        uint block = g / across, i = g % across * COLS + gl_LocalInvocationID.x % COLS;
        uint start = block % push.blocks * push.each, end = i < push.inner ? min(start + push.each, push.n) : 0u;
        uint at = push.x_at + block / push.blocks * push.n * push.inner + i;
        vec4 sum = vec4(0.0), centre = vec4(0.0);
        if (SQUARED && i < push.inner) centre = READ(mean, mean4, push.mean_at + i);
        ROWS(first, start, end) {
            vec4 v[PER];
            OF_ROWS(k, row, first) {
                v[k] = centre;
                if (row < end) v[k] = READ(x, x4, at + row * push.inner);
            }
            OF_ROWS(k, row, first) {
                v[k] -= centre;
                sum += SQUARED ? v[k] * v[k] : v[k];
            }
        }
        sum = over_lanes(sum);
        if (gl_LocalInvocationID.x < COLS && i < push.inner) { WRITE(y, y4, push.y_at + block * push.inner + i, sum) }
    }
}
