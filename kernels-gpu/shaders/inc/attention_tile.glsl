// Attention in f32, by tiles of a workgroup of GX x GY threads: thread (x, y) has rows y + GY i for i < TM of a block of rows, and columns x + GX j for j < TN
// of a block of columns. Of a row's WIDTH numbers the thread has vectors x + GX c for c < TD of four each.
#include "inc/attention.glsl"
layout(constant_id = 10) const uint GX = 8u;
layout(constant_id = 11) const uint GY = 8u;
layout(constant_id = 12) const uint TM = 4u;
layout(constant_id = 13) const uint TN = 4u;

const uint THREADS = GX * GY;
const uint ROWS = GY * TM;
const uint COLS = GX * TN;
// Vectors of a row, and of a thread.
const uint VW = (WIDTH + 3u) / 4u;
const uint TD = (VW + GX - 1u) / GX;
// Where a thread is: blocks of 32, 8 across where there are as many, read few different words at once.
const uint BX = GX < 8u ? GX : 8u, BY = 32u / BX;
uint thread_x() { return gl_LocalInvocationID.x % BX + gl_LocalInvocationID.x / 32u % (GX / BX) * BX; }
uint thread_y() { return gl_LocalInvocationID.x / BX % BY + gl_LocalInvocationID.x / 32u / (GX / BX) * BY; }

// Vector `c` of the row of x at `at`; beyond WIDTH 0. Functions, so that a shader's accesses are few: what looks for those beside what is bound wants it.
#define NUMBER_OF(x, KIND, at, n) ((n) < WIDTH ? uintBitsToFloat(STORED(x, KIND, uint((at) + int(n) * push.x.one))) : 0.0)
#define FETCHED(x, KIND)                                                                                     \
    vec4 fetch_##x(int at, uint c) {                                                                         \
        if (VECTORS) return KIND == 0u ? uintBitsToFloat(x##v[uint(at) / 4u + c]) : widened4(KIND, x##h[uint(at) / 4u + c]); \
        vec4 w = vec4(0.0);                                                                                  \
        [[unroll]] for (uint k = 0u; k < 4u; k++) w[k] = NUMBER_OF(x, KIND, at, 4u * c + k);                 \
        return w;                                                                                            \
    }
FETCHED(a1, A1_STORED)
FETCHED(a2, A2_STORED)
FETCHED(b1, B1_STORED)
FETCHED(b2, B2_STORED)

// Writes `values` (of this thread's vectors of `row`), times `factor`, to y.
#define WRITE(y_, item, row, rows, values, i, factor)                                                             \
    {                                                                                                            \
        const uint at_ = push.y_##_at + (((item) / push.heads * (rows) + (row)) * push.heads + (item) % push.heads) * WIDTH; \
        [[unroll]] for (uint c_ = 0u; c_ < TD; c_++) {                                                           \
            const uint first_ = 4u * (x + GX * c_);                                                              \
            const vec4 w_ = values[(i) * TD + c_] * (factor);                                                    \
            if (VECTORS) {                                                                                       \
                if (first_ < WIDTH) y_##v[(at_ + first_) / 4u] = w_;                                             \
            } else {                                                                                             \
                [[unroll]] for (uint k_ = 0u; k_ < 4u; k_++)                                                     \
                    if (first_ + k_ < WIDTH) y_[at_ + first_ + k_] = w_[k_];                                     \
            }                                                                                                    \
        }                                                                                                        \
    }
