#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// A step of an optimiser in place, by the formulas of kernels-cpu/src/optim.rs: 0 Adam and AdamW, 1 stochastic gradient descent with
// momentum (m); or 2 a step of an average p towards g. What changes from step to step (constants, the gradient's norm) is read from memory, so
// that the commands of a step are those of the step before.
layout(constant_id = 3) const uint RULE = 0u;
layout(std430, binding = 0) readonly buffer G { float g[]; };
layout(std430, binding = 0) readonly buffer G4 { vec4 g4[]; };
layout(std430, binding = 1) buffer P { float p[]; };
layout(std430, binding = 1) buffer P4 { vec4 p4[]; };
layout(std430, binding = 2) buffer M { float m[]; };
layout(std430, binding = 2) buffer M4 { vec4 m4[]; };
layout(std430, binding = 3) buffer V { float v[]; };
layout(std430, binding = 3) buffer V4 { vec4 v4[]; };
layout(std430, binding = 4) readonly buffer C { float c[]; };
layout(std430, binding = 5) readonly buffer S { float squares[]; };
layout(push_constant) uniform Push { uint n, g_at, p_at, m_at, v_at, c_at, squares_at; float most; } push;
#include "inc/each.glsl"

#define CONSTANT(k) c[push.c_at + k]

// Below this a second moment is 0.
const float SMALLEST = 1e-37;

void main() {
    float factor = 1.0;
    if (RULE < 2u) {
        // What a gradient of which the squares have no finite sum would do is not done. By bits: comparisons need not know NaN.
        float sum = squares[push.squares_at];
        if ((floatBitsToUint(sum) & 0x7f800000u) == 0x7f800000u) return;
        float norm = sqrt(sum);
        if (push.most > 0.0 && norm > push.most) factor = push.most / norm;
    }
    EACH(first, push.n) {
        vec4 held[3][PER], gs[PER];
        OF_EACH(k, i, first, push.n) {
            gs[k] = READ(g, g4, push.g_at + i);
            held[0][k] = READ(p, p4, push.p_at + i);
            if (RULE < 2u) held[1][k] = READ(m, m4, push.m_at + i);
            if (RULE == 0u) held[2][k] = READ(v, v4, push.v_at + i);
        }
        OF_EACH(k, i, first, push.n) {
            precise vec4 gi = factor * gs[k], pi = held[0][k];
            if (RULE == 0u) {
                gi = gi + CONSTANT(5u) * pi;
                precise vec4 mi = CONSTANT(0u) * held[1][k] + CONSTANT(1u) * gi;
                precise vec4 vi = CONSTANT(2u) * held[2][k] + CONSTANT(3u) * gi * gi;
                vi = mix(vi, vec4(0.0), lessThan(vi, vec4(SMALLEST)));
                WRITE(m, m4, push.m_at + i, mi)
                WRITE(v, v4, push.v_at + i, vi)
                pi = CONSTANT(4u) * pi - CONSTANT(6u) * mi / (sqrt(vi) + CONSTANT(7u));
            } else if (RULE == 1u) {
                precise vec4 mi = CONSTANT(1u) * held[1][k] + (gi + CONSTANT(2u) * pi);
                WRITE(m, m4, push.m_at + i, mi)
                pi = pi - CONSTANT(0u) * mi;
            } else {
                pi = pi + CONSTANT(0u) * (gi - pi);
            }
            WRITE(p, p4, push.p_at + i, pi)
        }
    }
}
