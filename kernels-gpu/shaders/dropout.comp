#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = x / (1 - p) where the draw keeps the element, else 0; contiguous, and they may be the same memory. The draw is of a key and the element's
// number.
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 1) writeonly buffer Y4 { vec4 y4[]; };
layout(push_constant) uniform Push { uint n, x_at, y_at, key_low, key_high, least; float scale; } push;
#include "inc/each.glsl"

#include "inc/philox.glsl"

void main() {
    EACH(first, push.n) {
        vec4 v[PER];
        OF_EACH(k, i, first, push.n) v[k] = READ(x, x4, push.x_at + i);
        OF_EACH(k, i, first, push.n) {
            [[unroll]] for (uint c = 0u; c < (WIDE ? 4u : 1u); c++) {
                v[k][c] = philox(uvec2(push.key_low, push.key_high), WIDE ? 4u * i + c : i, 0u) >= push.least ? push.scale * v[k][c] : 0.0;
            }
            WRITE(y, y4, push.y_at + i, v[k])
        }
    }
}
