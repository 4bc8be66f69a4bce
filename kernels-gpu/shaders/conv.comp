#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = x * weight + bias for maps x [n, rows, cols, channels], y [n, grid rows, grid cols, output] and a weight [output, kernel rows, kernel cols,
// channels / groups], stored in half or not; or with INPUT, x's gradient from y's, which is then the map that is read.
#include "inc/product.glsl"
layout(constant_id = 6) const bool INPUT = false;
layout(constant_id = 7) const bool BIAS = false;
// Fours of channels are read, or written, at once.
layout(constant_id = 8) const bool A_FOURS = false;
layout(constant_id = 9) const bool B_FOURS = false;
layout(constant_id = 10) const bool C_FOURS = false;
layout(constant_id = 11) const uint B_STORED = 0u;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 0) readonly buffer A4 { vec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B2 { uvec2 b2[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 2) writeonly buffer C4 { vec4 c4[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };
#include "inc/stored.glsl"
#include "inc/job.glsl"
#include "inc/conv.glsl"

// Elements of the weight, widened.
float weight(uint at) {
    return uintBitsToFloat(STORED(b, B_STORED, at));
}

vec4 weights(uint at) {
    return B_STORED == 0u ? uintBitsToFloat(b4[at / 4u]) : widened4(B_STORED, b2[at / 4u]);
}

void main() {
    const Window of = push.of;
    const uint inputs = of.channels / push.groups, outputs = push.output_ / push.groups, taps = of.kernel_rows * of.kernel_cols;
    for (uint id = gl_WorkGroupID.x; id < push.jobs; id += gl_NumWorkGroups.x) {
        const Job job = job_of(id);
        const Product product = product_of(job);
        const uint m = product.m, n = product.n, from = product.from;
        if (job.row0 >= m) continue;
        [[unroll]] for (uint r = 0u; r < ROWS_A; r++) {
            const uint row = job.row0 + along_row() + r * (THREADS / 2u);
            look_from(r, row, row < m, job);
        }
        Depth ka = depth_at(from + along_k()), kb = depth_at(from + across_k(BN));
        clear();
        for (uint k = from, half_ = 0u; k < end + BK; k += BK, half_ ^= 1u) {
            // The slice that begins at k is brought while the one before it is multiplied.
            if (k < end) {
                [[unroll]] for (uint u = 0u; u < EIGHTS; u++) {
                    const uint k_row = ka.k;
                    uint at;
                    if (A_FOURS) {
                        [[unroll]] for (uint r = 0u; r < ROWS_A; r++)
                            next_a[r * EIGHTS + u] = seen(ka, r, at) ? a4[at / 4u] : vec4(0.0);
                        advance(ka, 8u);
                    } else {
                        [[unroll]] for (uint q = 0u; q < 4u; q++) {
                            [[unroll]] for (uint r = 0u; r < ROWS_A; r++)
                                next_a[r * EIGHTS + u][q] = seen(ka, r, at) ? a[at] : 0.0;
                            advance(ka, 1u);
                        }
                        advance(ka, 4u);
                    }
                    if (!INPUT) [[unroll]] for (uint r = 0u; r < ROWS_B; r++) {
                        const uint col = job.col0 + along_row() + r * (THREADS / 2u);
                        at = push.b_at + (job.group * n + col) * (taps * inputs) + k_row;
                        if (B_FOURS) next_b[r * EIGHTS + u] = col < n && k_row < end ? weights(at) : vec4(0.0);
                        else [[unroll]] for (uint q = 0u; q < 4u; q++)
                            next_b[r * EIGHTS + u][q] = col < n && k_row + q < end ? weight(at + q) : 0.0;
                    }
                }
                if (INPUT) [[unroll]] for (uint v = 0u; v < OF_B; v++) {
                    const uint col = job.col0 + across_row(BN);
                    const uint tap = (rows.tap + kb.row * rows.every) * of.kernel_cols + cols.tap + kb.col * cols.every;
                    const uint at = push.b_at + ((job.group * outputs + kb.channel) * taps + tap) * inputs + col;
                    if (B_FOURS) next_b[v] = col < n && kb.k < end ? weights(at) : vec4(0.0);
                    else [[unroll]] for (uint q = 0u; q < 4u; q++) next_b[v][q] = col + q < n && kb.k < end ? weight(at + q) : 0.0;
                    advance(kb, ACROSS_B);
                }
            }
            if (k > from) multiply(half_ ^ 1u);
            if (k < end) {
                put_a_along(half_);
                if (INPUT) put_b_across(half_); else put_b_along(half_);
            }
            barrier();
        }
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            const uint row = job.row0 + sum_row(i);
            if (row >= m) continue;
            const uint at = written_at(row, job, n);
            [[unroll]] for (uint j = 0u; j < TN / 4u; j++) {
                const uint col = job.col0 + sum_col(j);
                vec4 v = sums[i * (TN / 4u) + j];
                [[unroll]] for (uint q = 0u; q < 4u; q++) {
                    if (BIAS && job.part == 0u && col + q < n) v[q] += bias[push.bias_at + job.group * n + col + q];
                    if (!C_FOURS && col + q < n) c[at + col + q] = v[q];
                }
                if (C_FOURS && col < n) c4[(at + col) / 4u] = v;
            }
        }
    }
}
