#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// Of each query what its gradients need: the logarithm to base 2 of its sum of weights, infinite where there are none, so that they are 0 again; and
// sum a1 a2 for a1 = y and a2 = dy.
#include "inc/attention_tile.glsl"
layout(std430, binding = 4) readonly buffer Lse { float lse[]; };
layout(std430, binding = 6) writeonly buffer Sums { vec2 sums[]; };
#include "inc/functions.glsl"

shared float each[GX * GY];

void main() {
    const uint x = gl_LocalInvocationID.x % GX, y = gl_LocalInvocationID.x / GX;
    const uint all = push.items * push.queries;
    for (uint row0 = gl_WorkGroupID.x * GY; row0 < all; row0 += gl_NumWorkGroups.x * GY) {
        const uint row = row0 + y, item = row / push.queries, query = row % push.queries;
        float sum = 0.0;
        if (row < all) {
            const int left = begin(push.a1, item) + int(query) * push.a1.row, right = begin(push.a2, item) + int(query) * push.a2.row;
            for (uint c = x; c < VW; c += GX)
                sum += dot(fetch_a1(left, c), fetch_a2(right, c));
        }
        each[GX * y + x] = sum;
        barrier();
        if (x == 0u && row < all) {
            sum = 0.0;
            for (uint k = 0u; k < GX; k++) sum += each[GX * y + k];
            const float of = lse[row];
            sums[row] = vec2(of == NEG_INFINITY ? INFINITY : of * LOG2_E, sum);
        }
        barrier();
    }
}
