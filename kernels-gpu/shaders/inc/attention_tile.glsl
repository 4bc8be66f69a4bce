// Attention in f32, by tiles of a workgroup of GX x GY threads: thread (x, y) has rows y + GY i for i < TM of a block of rows, and columns x + GX j for j < TN
// of a block of columns. Of a row's WIDTH numbers the thread has vectors x + GX c for c < TD of four each.
#include "inc/attention.glsl"
layout(constant_id = 10) const uint GX = 8u;
layout(constant_id = 11) const uint GY = 8u;
layout(constant_id = 12) const uint TM = 4u;
layout(constant_id = 13) const uint TN = 4u;
layout(constant_id = 14) const uint AHEAD = 1u;

const uint THREADS = GX * GY;
const uint ROWS = GY * TM;
const uint COLS = GX * TN;
// Vectors of a row, and of a thread.
const uint VW = (WIDTH + 3u) / 4u;
const uint TD = (VW + GX - 1u) / GX;
// A row of a tile in vectors: odd, so that neighbours begin in other banks.
const uint LD = VW | 1u;
// Of a tile [ROWS, COLS] in numbers: neighbouring rows begin GX banks apart, each thread of a row in its own.
const uint LP = GX * (TN | 1u);

// Vector `c` of the row of x at `at`, stored as `kind`; beyond WIDTH 0.
#define NUMBER_OF(x, kind, at, one, n) ((n) < WIDTH ? uintBitsToFloat(STORED(x, kind, uint((at) + int(n) * (one)))) : 0.0)
#define FETCH(x, kind, at, one, c)                                                                     \
    (VECTORS ? kind == 0u ? uintBitsToFloat(x##v[uint(at) / 4u + (c)]) : widened4(kind, x##h[uint(at) / 4u + (c)]) \
             : vec4(NUMBER_OF(x, kind, at, one, 4u * (c)), NUMBER_OF(x, kind, at, one, 4u * (c) + 1u), \
                    NUMBER_OF(x, kind, at, one, 4u * (c) + 2u), NUMBER_OF(x, kind, at, one, 4u * (c) + 3u)))

// Fills `tile` with `n` rows of an item's x from `first` on, times `factor`; those beyond `all` are 0. A thread asks for AHEAD vectors before it
// waits for any.
#define FILL(tile, from, kind, item, first, n, all, factor)                                                          \
    {                                                                                                                \
        const int at_ = begin(push.from, item);                                                                      \
        for (uint next_ = gl_LocalInvocationID.x; next_ < (n) * VW; next_ += AHEAD * THREADS) {                      \
            vec4 w_[AHEAD];                                                                                          \
            [[unroll]] for (uint k_ = 0u; k_ < AHEAD; k_++) {                                                        \
                const uint e_ = next_ + k_ * THREADS, row_ = e_ / VW, c_ = e_ % VW;                                  \
                w_[k_] = vec4(0.0);                                                                                  \
                if (row_ < (n) && (first) + row_ < (all))                                                            \
                    w_[k_] = FETCH(from, kind, at_ + int((first) + row_) * push.from.row, push.from.one, c_);        \
            }                                                                                                        \
            [[unroll]] for (uint k_ = 0u; k_ < AHEAD; k_++) {                                                        \
                const uint e_ = next_ + k_ * THREADS, row_ = e_ / VW, c_ = e_ % VW;                                  \
                if (row_ < (n)) tile[row_ * LD + c_] = w_[k_] * (factor);                                            \
            }                                                                                                        \
        }                                                                                                            \
    }

// to[i, j] += the products of this thread's rows of `left` and columns of `right`, number by number.
#define PRODUCTS(to, left, right)                                                            \
    for (uint c_ = 0u; c_ < VW; c_++) {                                                      \
        vec4 l_[TM];                                                                         \
        [[unroll]] for (uint i_ = 0u; i_ < TM; i_++) l_[i_] = left[(y + GY * i_) * LD + c_]; \
        [[unroll]] for (uint j_ = 0u; j_ < TN; j_++) {                                       \
            const vec4 r_ = right[(x + GX * j_) * LD + c_];                                  \
            [[unroll]] for (uint i_ = 0u; i_ < TM; i_++) {                                   \
                float v_ = to[i_ * TN + j_];                                                 \
                v_ = fma(l_[i_].x, r_.x, v_);                                                \
                v_ = fma(l_[i_].y, r_.y, v_);                                                \
                v_ = fma(l_[i_].z, r_.z, v_);                                                \
                to[i_ * TN + j_] = fma(l_[i_].w, r_.w, v_);                                  \
            }                                                                                \
        }                                                                                    \
    }

// to[i, c] += the first `n` columns of this thread's rows of `weights` times the rows of `right`, column by column.
#define MEANS(to, weights, right, n)                                                                       \
    for (uint j_ = 0u; j_ < ((n) + 3u) / 4u; j_++) {                                                       \
        vec4 l_[TM];                                                                                       \
        [[unroll]] for (uint i_ = 0u; i_ < TM; i_++) l_[i_] = weights[(y + GY * i_) * (LP / 4u) + j_];     \
        [[unroll]] for (uint k_ = 0u; k_ < 4u; k_++) {                                                     \
            [[unroll]] for (uint c_ = 0u; c_ < TD; c_++) {                                                 \
                const vec4 r_ = right[(4u * j_ + k_) * LD + x + GX * c_];                                  \
                [[unroll]] for (uint i_ = 0u; i_ < TM; i_++)                                               \
                    to[i_ * TD + c_] = fma(vec4(l_[i_][k_]), r_, to[i_ * TD + c_]);                        \
            }                                                                                              \
        }                                                                                                  \
    }

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
