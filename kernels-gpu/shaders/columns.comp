#version 450
// y = s (x - m) + t for each column of x [rows, n], and with MORE + r u for u of the dims of x: a norm by column, and its derivative.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool MORE = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer M { float m[]; };
layout(std430, binding = 2) readonly buffer S { float s[]; };
layout(std430, binding = 3) readonly buffer T { float t[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
layout(std430, binding = 5) readonly buffer U { float u[]; };
layout(std430, binding = 6) readonly buffer R { float r[]; };
layout(push_constant) uniform Push { uint all, n, x_at, m_at, s_at, t_at, y_at, u_at, r_at; } push;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint j = i % push.n;
        float v = s[push.s_at + j] * (x[push.x_at + i] - m[push.m_at + j]) + t[push.t_at + j];
        if (MORE) v += r[push.r_at + j] * u[push.u_at + i];
        y[push.y_at + i] = v;
    }
}
