#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y[..] = x[..], words of 32 bits, both views strided; with FILL y[..] = one word.
layout(constant_id = 3) const bool FILL = false;
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 0) readonly buffer X4 { uvec4 x4[]; };
layout(std430, binding = 1) writeonly buffer Y { uint y[]; };
layout(std430, binding = 1) writeonly buffer Y4 { uvec4 y4[]; };
layout(push_constant) uniform Push {
    uint n, x_at, y_at, rank;
    uint dims[6];
    int xs[6], ys[6];
    uint word;
} push;
#include "inc/each.glsl"
#include "inc/place.glsl"

void main() {
    EACH(first, push.n) {
        uvec4 v[PER];
        OF_EACH(k, i, first, push.n) {
            v[k] = uvec4(push.word);
            if (!FILL) {
                PLACE(i, push.xs, from)
                v[k] = READ(x, x4, int(push.x_at) + from);
            }
        }
        OF_EACH(k, i, first, push.n) {
            PLACE(i, push.ys, to)
            WRITE(y, y4, int(push.y_at) + to, v[k])
        }
    }
}
