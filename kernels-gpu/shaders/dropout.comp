#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = x / (1 - p) where the draw keeps the element, else 0; contiguous, and they may be the same memory. The draw is kernels-cpu's: Philox
// 4x32-10 (Salmon et al. 2011) of a key and the element's number.
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 1) writeonly buffer Y4 { vec4 y4[]; };
layout(push_constant) uniform Push { uint n, x_at, y_at, key_low, key_high, least; float scale; } push;
#include "inc/each.glsl"

uint philox(uint index) {
    uvec2 k = uvec2(push.key_low, push.key_high);
    uvec4 c = uvec4(index, 0u, 0u, 0x64726f70u);
    for (int round_ = 0; round_ < 10; round_++) {
        uint high0, low0, high1, low1;
        umulExtended(0xD2511F53u, c.x, high0, low0);
        umulExtended(0xCD9E8D57u, c.z, high1, low1);
        c = uvec4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
        k += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return c.x;
}

void main() {
    EACH(first, push.n) {
        vec4 v[PER];
        OF_EACH(k, i, first, push.n) v[k] = READ(x, x4, push.x_at + i);
        OF_EACH(k, i, first, push.n) {
            [[unroll]] for (uint c = 0u; c < (WIDE ? 4u : 1u); c++) {
                v[k][c] = philox(WIDE ? 4u * i + c : i) >= push.least ? push.scale * v[k][c] : 0.0;
            }
            WRITE(y, y4, push.y_at + i, v[k])
        }
    }
}
