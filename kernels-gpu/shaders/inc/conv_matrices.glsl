// Convolutions, and their gradients, of what is multiplied by the device's cooperative matrices: OF is 0 for y, as conv.comp, 1 for x's gradient, as conv.comp
// with INPUT, 2 for the weight's, as conv_weight.comp. Eights of channels are read at once (EIGHTS) where all of them begin at multiples of eight.
layout(constant_id = 9) const uint OF = 0u;
layout(constant_id = 10) const bool BIAS = false;
layout(constant_id = 11) const uint A_STORED = 0u;
layout(constant_id = 12) const uint B_STORED = 0u;
layout(constant_id = 13) const bool A_EIGHTS = false;
layout(constant_id = 14) const bool B_EIGHTS = false;
layout(constant_id = 15) const bool C_FOURS = false;
// Channels lie beside each other: they are the depth of windows over maps, and of the weight where that makes y.
const bool INPUT = OF == 1u, WEIGHT = OF == 2u;
const bool A_ALONG_K = !WEIGHT, B_ALONG_K = OF == 0u;
#include "inc/matrices.glsl"
layout(std430, binding = 0) readonly buffer A { uint a[]; };
layout(std430, binding = 0) readonly buffer A4 { uvec4 a4[]; };
layout(std430, binding = 1) readonly buffer B { uint b[]; };
layout(std430, binding = 1) readonly buffer B4 { uvec4 b4[]; };
layout(std430, binding = 2) writeonly buffer C { float c[]; };
layout(std430, binding = 2) writeonly buffer C4 { vec4 c4[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };

// Eights of a row of either tile as it is held. A thread stays at one of them, of every STEPth row: workgroups have whole rows of threads.
const uint EA = LA - 1u, EB = LB - 1u;
const uint STEP_A = THREADS / EA, STEP_B = THREADS / EB;
const uint ROWS_A = QA;
const uint TAPS = B_EIGHTS ? 1u : 8u;
#include "inc/job.glsl"
#include "inc/conv.glsl"
#include "inc/conv_weight.glsl"

// Reads eight neighbours, of which `left` are there, into `next` from `first` on; 0 beyond.
#define READ(next, first, from, from4, at, left, eights, reads, stored)                                                     \
    {                                                                                                                       \
        [[unroll]] for (uint w = 0u; w < reads; w++) next[first + w] = uvec4(0u);                                           \
        if (left > 0) {                                                                                                     \
            if (eights) {                                                                                                   \
                [[unroll]] for (uint w = 0u; w < reads; w++) next[first + w] = from4[at * reads / 8u + w];                  \
            } else {                                                                                                        \
                [[unroll]] for (uint e = 0u; e < 8u; e++)                                                                   \
                    if (int(e) < left) PUT(next, first, stored, e, BITS(from, stored, at + e));                             \
            }                                                                                                               \
        }                                                                                                                   \
    }

// Stores four neighbours of a row.
void finish(Job job, Product product, uint row, uint col, vec4 v) {
    const uint n = product.n;
    if (row >= product.m || col >= n) return;
    const uint of_part = push.c_at + ((job.part * push.groups + job.group) * product.m + row) * n;
    const uint at = (WEIGHT ? of_part : written_at(row, job, n)) + col;
    [[unroll]] for (uint q = 0u; q < 4u; q++) {
        if (BIAS && job.part == 0u && col + q < n) v[q] += bias[push.bias_at + job.group * n + col + q];
        if (!C_FOURS && col + q < n) c[at + q] = v[q];
    }
    if (C_FOURS) c4[at / 4u] = v;
}

void main() {
    const uint t = gl_LocalInvocationID.x, row_a = t / EA, eight_a = t % EA * 8u, row_b = t / EB, eight_b = t % EB * 8u;
    const uint s = gl_SubgroupID, srow = s / SN * RM * TM, scol = s % SN * RN * TN;
    const uint taps = push.of.kernel_rows * push.of.kernel_cols, outputs = push.output_ / push.groups;
    for (uint id = gl_WorkGroupID.x; id < push.jobs; id += gl_NumWorkGroups.x) {
        const Job job = job_of(id);
        Product product;
        if (WEIGHT) product = product_over_windows(job); else product = product_of(job);
        const uint m = product.m, n = product.n, from = product.from, col = job.col0 + eight_b;
        // Phases have as many places, or some fewer.
        if (job.row0 >= m) continue;
        // Where this thread is: along the depth of either operand, or at a window.
        Depth ka, kb;
        Place window;
        if (WEIGHT) {
            look_through(col, n, job);
            window = window_at(from + row_b);
        } else {
            [[unroll]] for (uint q = 0u; q < QA; q++) {
                const uint row = row_a + q * STEP_A;
                look_from(q, job.row0 + row, row < BM && job.row0 + row < m, job);
            }
            ka = depth_at(from + eight_a);
            kb = depth_at(from + row_b);
        }
        SUMS(sums)
        uvec4 next_a[QA * WA], next_b[QB * WB];
        // The first round brings the first tiles alone.
        for (uint k0 = from; k0 < end + BK; k0 += BK) {
            if (k0 > from) {
                barrier();
                HOLD(next_a, 0u, QA, WA, BM, LA, A_ALONG_K)
                HOLD(next_b, OF_A, QB, WB, BN, LB, B_ALONG_K)
                barrier();
            }
            if (k0 < end) {
                uint at;
                if (WEIGHT) {
                    [[unroll]] for (uint q = 0u; q < QA; q++) {
                        const uint k = row_a + q * STEP_A, row = job.row0 + eight_a;
                        const int left = k < BK && k0 + k < end ? int(m) - int(row) : 0;
                        at = push.a_at + (k0 + k) * push.output_ + job.group * m + row;
                        READ(next_a, q * WA, a, a4, at, left, A_EIGHTS, WA, A_STORED)
                    }
                } else if (A_EIGHTS) {
                    [[unroll]] for (uint q = 0u; q < QA; q++) {
                        const bool inside = seen(ka, q, at);
                        [[unroll]] for (uint w = 0u; w < WA; w++) next_a[q * WA + w] = inside ? a4[at * WA / 8u + w] : uvec4(0u);
                    }
                    advance(ka, BK);
                } else {
                    [[unroll]] for (uint r = 0u; r < QA * WA; r++) next_a[r] = uvec4(0u);
                    [[unroll]] for (uint e = 0u; e < 8u; e++) {
                        [[unroll]] for (uint q = 0u; q < QA; q++)
                            if (seen(ka, q, at)) PUT(next_a, q * WA, A_STORED, e, BITS(a, A_STORED, at));
                        advance(ka, 1u);
                    }
                    advance(ka, BK - 8u);
                }
                [[unroll]] for (uint q = 0u; q < QB; q++) {
                    const uint row = row_b + q * STEP_B;
                    // The last step ends at the next slice.
                    const uint by = q + 1u < QB ? STEP_B : BK - q * STEP_B;
                    if (WEIGHT && B_EIGHTS) {
                        const int left = row < BK && sees(window, 0u, at) ? 8 : 0;
                        READ(next_b, q * WB, b, b4, at, left, true, WB, B_STORED)
                        advance(window, by);
                    } else if (WEIGHT) {
                        [[unroll]] for (uint w = 0u; w < WB; w++) next_b[q * WB + w] = uvec4(0u);
                        [[unroll]] for (uint e = 0u; e < TAPS; e++)
                            if (row < BK && sees(window, e, at)) PUT(next_b, q * WB, B_STORED, e, BITS(b, B_STORED, at));
                        advance(window, by);
                    } else if (INPUT) {
                        const int left = row < BK && kb.k < end ? int(n) - int(col) : 0;
                        const uint tap = (rows.tap + kb.row * rows.every) * push.of.kernel_cols + cols.tap + kb.col * cols.every;
                        at = push.b_at + ((job.group * outputs + kb.channel) * taps + tap) * n + col;
                        READ(next_b, q * WB, b, b4, at, left, B_EIGHTS, WB, B_STORED)
                        advance(kb, by);
                    } else {
                        const uint k = k0 + eight_b, column = job.col0 + row;
                        const int left = row < BN && column < n ? int(end) - int(k) : 0;
                        at = push.b_at + (job.group * n + column) * (taps * channels) + k;
                        READ(next_b, q * WB, b, b4, at, left, B_EIGHTS, WB, B_STORED)
                    }
                }
            }
            if (k0 > from) MULTIPLY(sums)
        }
#define FINISH(row, col, four) finish(job, product, job.row0 + (row), job.col0 + (col), four)
        EACH_FOUR(sums, FINISH)
    }
}
