#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y = x * weight + bias for maps x [n, rows, cols, channels], y [n, grid rows, grid cols, output] and a weight [output, kernel rows, kernel cols,
// channels / groups]; or with INPUT, x's gradient from y's, which is then the map that is read. A product whose left operand is the windows, read
// where they lie: its rows are places of what is written, its depth goes over the window's elements, then channels.
// Places whose coordinates leave the same rest by the stride are seen by the same elements of the kernel: a phase, in which x's gradient is a
// convolution of stride 1. Each of `parts` parts of the depth writes maps of its own.
#include "inc/product.glsl"
#include "inc/job.glsl"
#include "inc/window.glsl"
layout(constant_id = 6) const bool INPUT = false;
layout(constant_id = 7) const bool BIAS = false;
// Fours of channels are read, or written, at once.
layout(constant_id = 8) const bool A_FOURS = false;
layout(constant_id = 9) const bool B_FOURS = false;
layout(constant_id = 10) const bool C_FOURS = false;
layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 0) readonly buffer A4 { vec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { float b[]; };
layout(std430, binding = 1) readonly buffer B4 { vec4 b4[]; };
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 2) writeonly buffer C4 { vec4 c4[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };
layout(push_constant) uniform Push {
    uint jobs, across, down, parts, depth, groups, output_;
    uint a_at, b_at, c_at, bias_at;
    Window of;
} push;

// One axis: output i lies at first + i apart, and sees through element tap + j every of the kernel the place base + i step + j reach.
struct Axis {
    uint count, first, apart, source, taps, tap, every;
    int base, step_, reach;
};

Axis axis(uint phase, uint size, uint grid, uint kernel, uint stride, uint padding, uint dilation) {
    if (!INPUT) return Axis(grid, 0u, 1u, size, kernel, 0u, 1u, -int(padding), int(stride), int(dilation));
    uint tap = 0u, every = 1u;
    while (tap < kernel && tap * dilation % stride != (phase + padding) % stride) tap++;
    while (every * dilation % stride != 0u) every++;
    return Axis(
        phase < size ? (size - phase - 1u) / stride + 1u : 0u, phase, stride, grid, (kernel - tap + every - 1u) / every, tap, every,
        (int(phase + padding) - int(tap * dilation)) / int(stride), 1, -int(every * dilation / stride)
    );
}

// An element of the depth.
struct Depth {
    uint k, row, col, channel;
};

Axis rows, cols;
uint channels, end;
// Of the rows that this thread brings: the place that the window's first element sees, and where that lies.
int place_row[ROWS_A], place_col[ROWS_A], place[ROWS_A];

Depth depth_at(uint k) {
    uint tap = k / max(channels, 1u);
    return Depth(k, tap / max(cols.taps, 1u), tap % max(cols.taps, 1u), k % max(channels, 1u));
}

void advance(inout Depth d, uint by) {
    d.k += by;
    d.channel += by;
    while (d.channel >= channels) {
        d.channel -= channels;
        if (++d.col == cols.taps) {
            d.col = 0u;
            d.row++;
        }
    }
}

// Whether row `r` of this thread sees a place there, and where that lies.
bool seen(Depth d, uint r, uint all_channels, out uint at) {
    int row = int(d.row) * rows.reach, col = int(d.col) * cols.reach;
    at = uint(place[r] + (row * int(cols.source) + col) * int(all_channels) + int(d.channel));
    return d.k < end && uint(place_row[r] + row) < rows.source && uint(place_col[r] + col) < cols.source;
}

void main() {
    const Window of = push.of;
    const uint inputs = of.channels / push.groups, outputs = push.output_ / push.groups, taps = of.kernel_rows * of.kernel_cols;
    const uint all_channels = INPUT ? push.output_ : of.channels, n = INPUT ? inputs : outputs;
    channels = INPUT ? outputs : inputs;
    for (uint id = gl_WorkGroupID.x; id < push.jobs; id += gl_NumWorkGroups.x) {
        const Job job = job_of(id, push.across, push.down, push.parts, push.groups);
        const uint phase_row = job.phase / of.stride_cols, phase_col = job.phase % of.stride_cols;
        rows = axis(phase_row, of.rows, of.grid_rows, of.kernel_rows, of.stride_rows, of.padding_rows, of.dilation_rows);
        cols = axis(phase_col, of.cols, of.grid_cols, of.kernel_cols, of.stride_cols, of.padding_cols, of.dilation_cols);
        const uint each = rows.count * cols.count, m = of.n * each;
        if (job.row0 >= m) continue;
        const uint from = job.part * push.depth;
        end = min(rows.taps * cols.taps * channels, from + push.depth);
        [[unroll]] for (uint r = 0u; r < ROWS_A; r++) {
            const uint row = job.row0 + along_row() + r * (THREADS / 2u), map_ = row / each;
            place_row[r] = int(row % each / cols.count) * rows.step_ + rows.base;
            place_col[r] = int(row % cols.count) * cols.step_ + cols.base;
            place[r] = int(push.a_at) + int(job.group * channels)
                + ((int(map_ * rows.source) + place_row[r]) * int(cols.source) + place_col[r]) * int(all_channels);
            // A row beside the product sees nothing.
            if (row >= m) place_row[r] = -(1 << 30);
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
                            next_a[r * EIGHTS + u] = seen(ka, r, all_channels, at) ? a4[at / 4u] : vec4(0.0);
                        advance(ka, 8u);
                    } else {
                        [[unroll]] for (uint q = 0u; q < 4u; q++) {
                            [[unroll]] for (uint r = 0u; r < ROWS_A; r++)
                                next_a[r * EIGHTS + u][q] = seen(ka, r, all_channels, at) ? a[at] : 0.0;
                            advance(ka, 1u);
                        }
                        advance(ka, 4u);
                    }
                    if (!INPUT) [[unroll]] for (uint r = 0u; r < ROWS_B; r++) {
                        const uint col = job.col0 + along_row() + r * (THREADS / 2u);
                        at = push.b_at + (job.group * n + col) * (taps * inputs) + k_row;
                        if (B_FOURS) next_b[r * EIGHTS + u] = col < n && k_row < end ? b4[at / 4u] : vec4(0.0);
                        else [[unroll]] for (uint q = 0u; q < 4u; q++)
                            next_b[r * EIGHTS + u][q] = col < n && k_row + q < end ? b[at + q] : 0.0;
                    }
                }
                if (INPUT) [[unroll]] for (uint v = 0u; v < OF_B; v++) {
                    const uint col = job.col0 + across_row(BN);
                    const uint tap = (rows.tap + kb.row * rows.every) * of.kernel_cols + cols.tap + kb.col * cols.every;
                    const uint at = push.b_at + ((job.group * outputs + kb.channel) * taps + tap) * inputs + col;
                    if (B_FOURS) next_b[v] = col < n && kb.k < end ? b4[at / 4u] : vec4(0.0);
                    else [[unroll]] for (uint q = 0u; q < 4u; q++) next_b[v][q] = col + q < n && kb.k < end ? b[at + q] : 0.0;
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
            uint at = row;
            if (INPUT) {
                const uint place_ = (row / each * of.rows + rows.first + row % each / cols.count * rows.apart) * of.cols;
                at = place_ + cols.first + row % cols.count * cols.apart;
            }
            const uint written = of.n * (INPUT ? of.rows * of.cols : of.grid_rows * of.grid_cols) * push.groups * n;
            at = push.c_at + job.part * written + at * push.groups * n + job.group * n;
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
