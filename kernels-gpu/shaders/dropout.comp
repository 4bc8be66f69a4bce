#version 450
#extension GL_GOOGLE_include_directive : require
// y = x / (1 - p) where the draw keeps the element, else 0; contiguous, and they may be the same memory. The draw is of a key and the element's
// number.
layout(local_size_x_id = 0) in;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint n, x_at, y_at, key_low, key_high, least; float scale; } push;

#include "inc/philox.glsl"

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        y[push.y_at + i] = philox(uvec2(push.key_low, push.key_high), i, 0u) >= push.least ? push.scale * x[push.x_at + i] : 0.0;
    }
}
