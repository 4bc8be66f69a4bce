#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = x in another type, both contiguous. To half: a place is a word of two elements, or with WIDE two of those; the last is written whole. From half: an
// element or four.
layout(constant_id = 3) const bool TO_HALF = false;
// As STORED has them: 1 bf16, 2 f16.
layout(constant_id = 4) const uint KIND = 1u;
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 0) readonly buffer X2 { uvec2 x2[]; };
layout(std430, binding = 0) readonly buffer X4 { uvec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { uint y[]; };
layout(std430, binding = 1) writeonly buffer Y2 { uvec2 y2[]; };
layout(std430, binding = 1) writeonly buffer Y4 { uvec4 y4[]; };
layout(push_constant) uniform Push {
    // x_at counts elements, or fours, and y_at places.
    uint places, n, x_at, y_at;
} push;
#include "inc/each.glsl"
#include "inc/nearest.glsl"
#include "inc/stored.glsl"

uint narrowed(uint low, uint high) {
    return KIND == 1u ? nearest_bf16(low) | nearest_bf16(high) << 16 : nearest_f16(low) | nearest_f16(high) << 16;
}

void main() {
    EACH(first, push.places) {
        uvec4 v[PER];
        OF_EACH(k, i, first, push.places) {
            v[k] = uvec4(0u);
            if (TO_HALF) {
                if (WIDE) {
                    v[k] = x4[push.x_at + i];
                } else {
                    v[k].x = x[push.x_at + 2u * i];
                    if (2u * i + 1u < push.n) v[k].y = x[push.x_at + 2u * i + 1u];
                }
            } else if (WIDE) {
                const uvec2 words = x2[push.x_at + i];
                v[k] = uvec4(widened(KIND, words.x, 0u), widened(KIND, words.x, 1u), widened(KIND, words.y, 0u), widened(KIND, words.y, 1u));
            } else {
                v[k].x = STORED(x, KIND, push.x_at + i);
            }
        }
        OF_EACH(k, i, first, push.places) {
            if (TO_HALF) {
                if (WIDE) y2[push.y_at + i] = uvec2(narrowed(v[k].x, v[k].y), narrowed(v[k].z, v[k].w));
                else y[push.y_at + i] = narrowed(v[k].x, v[k].y);
            } else if (WIDE) {
                y4[push.y_at + i] = v[k];
            } else {
                y[push.y_at + i] = v[k].x;
            }
        }
    }
}
