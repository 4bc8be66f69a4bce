#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// A step of an optimiser in place, by the formulas of kernels-cpu/src/optim.rs: 0 Adam and AdamW, 1 stochastic gradient descent with
// momentum (m); or 2 a step of an average p towards g.
layout(constant_id = 3) const uint RULE = 0u;
layout(std430, binding = 0) readonly buffer G { float g[]; };
layout(std430, binding = 0) readonly buffer G4 { vec4 g4[]; };
layout(std430, binding = 1) buffer P { float p[]; };
layout(std430, binding = 1) buffer P4 { vec4 p4[]; };
layout(std430, binding = 2) buffer M { float m[]; };
layout(std430, binding = 2) buffer M4 { vec4 m4[]; };
layout(std430, binding = 3) buffer V { float v[]; };
layout(std430, binding = 3) buffer V4 { vec4 v4[]; };
layout(push_constant) uniform Push { uint n, g_at, p_at, m_at, v_at; float c[8]; } push;
#include "inc/each.glsl"

// Below this a second moment is 0.
const float SMALLEST = 1e-37;

void main() {
    EACH(first, push.n) {
        vec4 held[3][PER], gs[PER];
        OF_EACH(k, i, first, push.n) {
            gs[k] = READ(g, g4, push.g_at + i);
            held[0][k] = READ(p, p4, push.p_at + i);
            if (RULE < 2u) held[1][k] = READ(m, m4, push.m_at + i);
            if (RULE == 0u) held[2][k] = READ(v, v4, push.v_at + i);
        }
        OF_EACH(k, i, first, push.n) {
            precise vec4 gi = gs[k], pi = held[0][k];
            if (RULE == 0u) {
                gi = gi + push.c[5] * pi;
                precise vec4 mi = push.c[0] * held[1][k] + push.c[1] * gi;
                precise vec4 vi = push.c[2] * held[2][k] + push.c[3] * gi * gi;
                vi = mix(vi, vec4(0.0), lessThan(vi, vec4(SMALLEST)));
                WRITE(m, m4, push.m_at + i, mi)
                WRITE(v, v4, push.v_at + i, vi)
                pi = push.c[4] * pi - push.c[6] * mi / (sqrt(vi) + push.c[7]);
            } else if (RULE == 1u) {
                precise vec4 mi = push.c[1] * held[1][k] + (gi + push.c[2] * pi);
                WRITE(m, m4, push.m_at + i, mi)
                pi = pi - push.c[0] * mi;
            } else {
                pi = pi + push.c[0] * (gi - pi);
            }
            WRITE(p, p4, push.p_at + i, pi)
        }
    }
}
