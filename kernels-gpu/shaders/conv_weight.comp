#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// The gradient of a convolution's weight [output, kernel rows, kernel cols, channels / groups], from x [n, rows, cols, channels] and y's
// gradient [n, grid rows, grid cols, output]: a product over all windows. Each of `parts` parts of them writes a gradient of its own.
#include "inc/product.glsl"
// Fours of channels are read, or written, at once.
layout(constant_id = 6) const bool A_FOURS = false;
layout(constant_id = 7) const bool B_FOURS = false;
layout(constant_id = 8) const bool C_FOURS = false;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 0) readonly buffer A4 { vec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { float b[]; };
layout(std430, binding = 1) readonly buffer B4 { vec4 b4[]; };
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 2) writeonly buffer C4 { vec4 c4[]; };
const uint TAPS = B_FOURS ? 1u : 4u;
#include "inc/job.glsl"
#include "inc/conv_weight.glsl"

void main() {
    for (uint id = gl_WorkGroupID.x; id < push.jobs; id += gl_NumWorkGroups.x) {
        const Job job = job_of(id);
        const Product product = product_over_windows(job);
        const uint m = product.m, n = product.n, from = product.from;
        const uint out_row = job.row0 + across_row(BM);
        look_through(job.col0 + across_row(BN), n, job);
        uint ka = from + across_k(BM);
        Place kb = window_at(from + across_k(BN));
        clear();
        for (uint k = from, half_ = 0u; k < end + BK; k += BK, half_ ^= 1u) {
            // The slice that begins at k is brought while the one before it is multiplied.
            if (k < end) {
                [[unroll]] for (uint v = 0u; v < OF_A; v++) {
                    const uint at = push.a_at + ka * push.output_ + job.group * m + out_row;
                    if (A_FOURS) next_a[v] = out_row < m && ka < end ? a4[at / 4u] : vec4(0.0);
                    else [[unroll]] for (uint q = 0u; q < 4u; q++) next_a[v][q] = out_row + q < m && ka < end ? a[at + q] : 0.0;
                    ka += ACROSS_A;
                }
                [[unroll]] for (uint v = 0u; v < OF_B; v++) {
                    uint at;
                    if (B_FOURS) next_b[v] = sees(kb, 0u, at) ? b4[at / 4u] : vec4(0.0);
                    else [[unroll]] for (uint q = 0u; q < TAPS; q++) next_b[v][q] = sees(kb, q, at) ? b[at] : 0.0;
                    advance(kb, ACROSS_B);
                }
            }
            if (k > from) multiply(half_ ^ 1u);
            if (k < end) {
                put_a_across(half_);
                put_b_across(half_);
            }
            barrier();
        }
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            const uint row_ = job.row0 + sum_row(i);
            if (row_ >= m) continue;
            const uint at = push.c_at + ((job.part * push.groups + job.group) * m + row_) * n;
            [[unroll]] for (uint j = 0u; j < TN / 4u; j++) {
                const uint col_ = job.col0 + sum_col(j);
                const vec4 v = sums[i * (TN / 4u) + j];
                if (C_FOURS && col_ < n) c4[(at + col_) / 4u] = v;
                if (!C_FOURS) [[unroll]] for (uint q = 0u; q < 4u; q++) if (col_ + q < n) c[at + col_ + q] = v[q];
            }
        }
    }
}
