#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// The gradient of a convolution's weight [output, kernel rows, kernel cols, channels / groups], from x [n, rows, cols, channels] and y's
// gradient [n, grid rows, grid cols, output]: a product over all windows. Each of `parts` parts of them writes a gradient of its own.
#include "inc/product.glsl"
#include "inc/job.glsl"
#include "inc/window.glsl"
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
layout(push_constant) uniform Push {
    uint jobs, across, down, parts, depth, groups, output_;
    uint a_at, b_at, c_at, bias_at;
    Window of;
} push;

void main() {
    const Window of = push.of;
    const uint channels = of.channels / push.groups, m = push.output_ / push.groups;
    const uint n = of.kernel_rows * of.kernel_cols * channels, windows = of.n * of.grid_rows * of.grid_cols;
    // Elements of the window that this thread brings four at once, or one by one.
    const uint ONES = B_FOURS ? 1u : 4u;
    for (uint id = gl_WorkGroupID.x; id < push.jobs; id += gl_NumWorkGroups.x) {
        const Job job = job_of(id, push.across, push.down, push.parts, push.groups);
        const uint from = job.part * push.depth, end = min(windows, from + push.depth);
        const uint out_row = job.row0 + across_row(BM), out_col = job.col0 + across_row(BN);
        int tap_row[ONES], tap_col[ONES], tap_at[ONES];
        [[unroll]] for (uint q = 0u; q < ONES; q++) {
            const uint tap = (out_col + q) / channels;
            tap_row[q] = int(tap / of.kernel_cols * of.dilation_rows) - int(of.padding_rows);
            tap_col[q] = int(tap % of.kernel_cols * of.dilation_cols) - int(of.padding_cols);
            tap_at[q] = int(push.b_at) + (tap_row[q] * int(of.cols) + tap_col[q]) * int(of.channels)
                + int(job.group * channels + (out_col + q) % channels);
            // An element beside the window sees nothing.
            if (out_col + q >= n) tap_row[q] = -(1 << 30);
        }
        uint ka = from + across_k(BM), kb = from + across_k(BN);
        uint map_ = kb / of.grid_cols / of.grid_rows, row = kb / of.grid_cols % of.grid_rows, col = kb % of.grid_cols;
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
                    const int place_row = int(row * of.stride_rows), place_col = int(col * of.stride_cols);
                    const int place = ((int(map_ * of.rows) + place_row) * int(of.cols) + place_col) * int(of.channels);
                    [[unroll]] for (uint q = 0u; q < ONES; q++) {
                        const bool inside = kb < end && uint(place_row + tap_row[q]) < of.rows && uint(place_col + tap_col[q]) < of.cols;
                        const uint at = uint(place + tap_at[q]);
                        if (B_FOURS) next_b[v] = inside ? b4[at / 4u] : vec4(0.0);
                        else next_b[v][q] = inside ? b[at] : 0.0;
                    }
                    kb += ACROSS_B;
                    col += ACROSS_B;
                    while (col >= of.grid_cols) {
                        col -= of.grid_cols;
                        if (++row == of.grid_rows) {
                            row = 0u;
                            map_++;
                        }
                    }
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
