#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y[i] = f(a[..], b[..]) with a and b strided (0 where they are stretched) and y contiguous. The functions of kernels_cpu::zip::Binary in
// their order, without the power. Where places are fours, all of one may be an element of a, or of b.
layout(constant_id = 3) const uint F = 0u;
layout(constant_id = 4) const bool ONE_A = false;
layout(constant_id = 5) const bool ONE_B = false;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 0) readonly buffer A4 { vec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { float b[]; };
layout(std430, binding = 1) readonly buffer B4 { vec4 b4[]; };
layout(std430, binding = 2) writeonly buffer Y { float y[]; };
layout(std430, binding = 2) writeonly buffer Y4 { vec4 y4[]; };
layout(push_constant) uniform Push {
    uint n, a_at, b_at, y_at, rank;
    uint dims[6];
    int sa[6], sb[6];
} push;
#include "inc/each.glsl"
#include "inc/functions.glsl"
#include "inc/place.glsl"

float f(float u, float v) {
    precise float r;
    switch (F) {
    case 0u: r = u + v; break;
    case 1u: r = u - v; break;
    case 2u: r = u * v; break;
    case 3u: r = u / v; break;
    case 4u: r = is_nan(u) ? u : (is_nan(v) || v < u) ? v : u; break;
    default: r = is_nan(u) ? u : (is_nan(v) || v > u) ? v : u; break;
    }
    return r;
}

void main() {
    EACH(first, push.n) {
        vec4 u[PER], v[PER];
        OF_EACH(k, i, first, push.n) {
            PLACE(i, push.sa, from_a)
            PLACE(i, push.sb, from_b)
            from_a += int(push.a_at);
            from_b += int(push.b_at);
            if (ONE_A) u[k] = vec4(a[from_a]); else u[k] = READ(a, a4, from_a);
            if (ONE_B) v[k] = vec4(b[from_b]); else v[k] = READ(b, b4, from_b);
        }
        OF_EACH(k, i, first, push.n) {
            vec4 r = vec4(f(u[k].x, v[k].x));
            if (WIDE) r.yzw = vec3(f(u[k].y, v[k].y), f(u[k].z, v[k].z), f(u[k].w, v[k].w));
            WRITE(y, y4, push.y_at + i, r)
        }
    }
}
