#version 450
#extension GL_GOOGLE_include_directive : require
// y[i] = f(a[..], b[..]) with a and b strided (0 where they are stretched) and y contiguous. The functions of kernels_cpu::zip::Binary in
// their order, without the power.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint F = 0u;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 1) readonly buffer B { float b[]; };
layout(std430, binding = 2) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push {
    uint n, a_at, b_at, y_at, rank;
    uint dims[6];
    int sa[6], sb[6];
} push;
#include "inc/functions.glsl"
#include "inc/place.glsl"

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        PLACE(i, push.sa, from_a)
        PLACE(i, push.sb, from_b)
        float u = a[int(push.a_at) + from_a], v = b[int(push.b_at) + from_b];
        precise float r;
        switch (F) {
        case 0u: r = u + v; break;
        case 1u: r = u - v; break;
        case 2u: r = u * v; break;
        case 3u: r = u / v; break;
        case 4u: r = is_nan(u) ? u : (is_nan(v) || v < u) ? v : u; break;
        default: r = is_nan(u) ? u : (is_nan(v) || v > u) ? v : u; break;
        }
        y[push.y_at + i] = r;
    }
}
