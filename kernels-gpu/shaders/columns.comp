#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = s (x - m) + t for each column of x [rows, n], and with MORE + r u for u of the dims of x: a norm by column, and its derivative.
layout(constant_id = 3) const bool MORE = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) readonly buffer M { float m[]; };
layout(std430, binding = 1) readonly buffer M4 { vec4 m4[]; };
layout(std430, binding = 2) readonly buffer S { float s[]; };
layout(std430, binding = 2) readonly buffer S4 { vec4 s4[]; };
layout(std430, binding = 3) readonly buffer T { float t[]; };
layout(std430, binding = 3) readonly buffer T4 { vec4 t4[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
layout(std430, binding = 4) writeonly buffer Y4 { vec4 y4[]; };
layout(std430, binding = 5) readonly buffer U { float u[]; };
layout(std430, binding = 5) readonly buffer U4 { vec4 u4[]; };
layout(std430, binding = 6) readonly buffer R { float r[]; };
layout(std430, binding = 6) readonly buffer R4 { vec4 r4[]; };
layout(push_constant) uniform Push { uint all, n, x_at, m_at, s_at, t_at, y_at, u_at, r_at; } push;
#include "inc/each.glsl"

void main() {
    EACH(first, push.all) {
        vec4 v[PER], w[PER];
        OF_EACH(k, i, first, push.all) {
            v[k] = READ(x, x4, push.x_at + i);
            if (MORE) w[k] = READ(u, u4, push.u_at + i);
        }
        OF_EACH(k, i, first, push.all) {
            uint j = i % push.n;
            v[k] = READ(s, s4, push.s_at + j) * (v[k] - READ(m, m4, push.m_at + j)) + READ(t, t4, push.t_at + j);
            if (MORE) v[k] += READ(r, r4, push.r_at + j) * w[k];
            WRITE(y, y4, push.y_at + i, v[k])
        }
    }
}
