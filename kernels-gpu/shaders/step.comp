#version 450
// A step of an optimiser in place, by the formulas of kernels-cpu/src/optim.rs: 0 Adam and AdamW, 1 stochastic gradient descent with
// momentum (m); or 2 a step of an average p towards g.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RULE = 0u;
layout(std430, binding = 0) readonly buffer G { float g[]; };
layout(std430, binding = 1) buffer P { float p[]; };
layout(std430, binding = 2) buffer M { float m[]; };
layout(std430, binding = 3) buffer V { float v[]; };
layout(push_constant) uniform Push { uint n, g_at, p_at, m_at, v_at; float c[8]; } push;

// Below this a second moment is 0.
const float SMALLEST = 1e-37;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        precise float gi = g[push.g_at + i], pi = p[push.p_at + i];
        if (RULE == 0u) {
            gi = gi + push.c[5] * pi;
            precise float mi = push.c[0] * m[push.m_at + i] + push.c[1] * gi;
            precise float vi = push.c[2] * v[push.v_at + i] + push.c[3] * gi * gi;
            vi = vi < SMALLEST ? 0.0 : vi;
            m[push.m_at + i] = mi;
            v[push.v_at + i] = vi;
            pi = push.c[4] * pi - push.c[6] * mi / (sqrt(vi) + push.c[7]);
        } else if (RULE == 1u) {
            precise float mi = push.c[1] * m[push.m_at + i] + (gi + push.c[2] * pi);
            m[push.m_at + i] = mi;
            pi = pi - push.c[0] * mi;
        } else {
            pi = pi + push.c[0] * (gi - pi);
        }
        p[push.p_at + i] = pi;
    }
}
