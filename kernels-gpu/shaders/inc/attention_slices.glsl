// What attention in f32 multiplies by: products of rows with columns of operands, and of what these make with rows. Operands pass through shared memory in
// slices, of which two are there: one is multiplied while the next is on its way, with one barrier for both. So a block needs little shared memory, and a
// workgroup may have as many threads as hide each other's waiting.
#include "attention_tile.glsl"
// Vectors of a row in a slice; a divisor of COLS / 4. A slice of whole rows has four times as many rows. With one, for who compiles slowly, there is no second
// form of products for a last block with fewer columns.
layout(constant_id = 14) const uint DEPTH = 1u;

// Slices of a row.
const uint STEPS = (VW + DEPTH - 1u) / DEPTH;
// A row of a slice in vectors: odd, so that neighbours begin in other banks. And of one of whole rows.
const uint LS = DEPTH | 1u;
const uint LR = GX * TD;
#define MORE(a, b) ((a) > (b) ? (a) : (b))
const uint SLICE = MORE((ROWS + COLS) * LS, 4u * DEPTH * LR);
// A row of weights in vectors: neighbours begin eight banks apart, so that those of four rows and eight columns are written at once.
const uint LW = (COLS / 4u + 1u) / 4u * 4u + 2u;
shared vec4 slices[2u * SLICE];
shared vec4 weights[ROWS * LW];

// What a thread brings of `rows` rows of `n` vectors, and of a slice.
#define OF(rows, n) (((rows) * (n) + THREADS - 1u) / THREADS)
const uint OF_LEFT = OF(ROWS, DEPTH);
vec4 next[MORE(OF_LEFT + OF(COLS, DEPTH), OF(4u * DEPTH, VW))];
// The half of `slices` that is written next.
uint half_ = 0u;

// Asks for this thread's part, from next[k] on, of `n` vectors from `c` on of `rows` rows of `from` from `first` on; 0 beyond `all` rows and VW vectors.
#define BRING(k, from, at, first, rows, all, c, n)                                                             \
    [[unroll]] for (uint q_ = 0u; q_ < OF(rows, n); q_++) {                                                          \
        const uint e_ = gl_LocalInvocationID.x + q_ * THREADS, row_ = (first) + e_ / (n), c_ = (c) + e_ % (n);       \
        next[(k) + q_] = vec4(0.0);                                                                                  \
        if (e_ < (rows) * (n) && row_ < (all) && c_ < VW)                                                            \
            next[(k) + q_] = fetch_##from((at) + int(row_) * push.from.row, c_);                                      \
    }

// Puts it where `at` is in the half, rows `ld` apart.
#define PUT(k, at, rows, n, ld)                                                                                      \
    [[unroll]] for (uint q_ = 0u; q_ < OF(rows, n); q_++) {                                                          \
        const uint e_ = gl_LocalInvocationID.x + q_ * THREADS;                                                       \
        if (e_ < (rows) * (n)) slices[half_ * SLICE + (at) + e_ / (n) * (ld) + e_ % (n)] = next[(k) + q_];           \
    }

// Slice `s` of a block of rows from row0 on and of columns from col0 on.
#define BRING_SLICE(s, left, right, rows, cols)                                           \
    {                                                                                                                \
        BRING(0u, left, left##_begin, row0, ROWS, rows, (s) * DEPTH, DEPTH)                             \
        BRING(OF_LEFT, right, right##_begin, col0, COLS, cols, (s) * DEPTH, DEPTH)                     \
    }
// And of whole rows of `from`, from col0 on.
#define BRING_ROWS(s, from, cols) { BRING(0u, from, from##_begin, col0 + 4u * DEPTH * (s), 4u * DEPTH, cols, 0u, VW) }

// to[i, j] += products of this thread's rows and first `many` columns of a slice, number by number.
#define SCORE(to, many)                                                                                              \
    [[unroll]] for (uint c_ = 0u; c_ < DEPTH; c_++) {                                                                \
        vec4 l_[TM];                                                                                                 \
        [[unroll]] for (uint i_ = 0u; i_ < TM; i_++) l_[i_] = slices[half_ * SLICE + (y + GY * i_) * LS + c_];       \
        [[unroll]] for (uint j_ = 0u; j_ < TN; j_++) {                                                               \
            if (j_ >= (many)) break;                                                                                 \
            const vec4 r_ = slices[half_ * SLICE + (ROWS + x + GX * j_) * LS + c_];                                  \
            [[unroll]] for (uint i_ = 0u; i_ < TM; i_++) {                                                           \
                float v_ = to[i_ * TN + j_];                                                                         \
                v_ = fma(l_[i_].x, r_.x, v_);                                                                        \
                v_ = fma(l_[i_].y, r_.y, v_);                                                                        \
                v_ = fma(l_[i_].z, r_.z, v_);                                                                        \
                to[i_ * TN + j_] = fma(l_[i_].w, r_.w, v_);                                                          \
            }                                                                                                        \
        }                                                                                                            \
    }

// to[i, j] = the products of this thread's rows and first `wide` columns, whose first slice is on its way; `then` asks for what comes after the last.
#define SCORES(to, wide, left, right, rows, cols, then)                                   \
    {                                                                                                                \
        [[unroll]] for (uint i_ = 0u; i_ < TM * TN; i_++) to[i_] = 0.0;                                              \
        for (uint s_ = 0u; s_ < STEPS; s_++) {                                                                       \
            PUT(0u, 0u, ROWS, DEPTH, LS)                                                                             \
            PUT(OF_LEFT, ROWS * LS, COLS, DEPTH, LS)                                                                 \
            barrier();                                                                                               \
            if (s_ + 1u < STEPS) BRING_SLICE(s_ + 1u, left, right, rows, cols)            \
            else then                                                                                                \
            if (DEPTH == 1u || (wide) == TN) { SCORE(to, TN) } else { SCORE(to, wide) }                                           \
            half_ ^= 1u;                                                                                             \
        }                                                                                                            \
    }

// to[i, c] += the first `n` columns of this thread's rows of weights times rows of `from` from col0 on, likewise.
#define MEANS(to, n, from, cols, then)                                                                         \
    for (uint s_ = 0u; s_ * 4u * DEPTH < (n); s_++) {                                                                \
        PUT(0u, 0u, 4u * DEPTH, VW, LR)                                                                              \
        barrier();                                                                                                   \
        if ((s_ + 1u) * 4u * DEPTH < (n)) BRING_ROWS(s_ + 1u, from, cols)                                      \
        else then                                                                                                    \
        [[unroll]] for (uint q_ = 0u; q_ < DEPTH; q_++) {                                                            \
            vec4 l_[TM];                                                                                             \
            [[unroll]] for (uint i_ = 0u; i_ < TM; i_++) l_[i_] = weights[(y + GY * i_) * LW + s_ * DEPTH + q_];     \
            [[unroll]] for (uint k_ = 0u; k_ < 4u; k_++) {                                                           \
                [[unroll]] for (uint c_ = 0u; c_ < TD; c_++) {                                                       \
                    const vec4 r_ = slices[half_ * SLICE + (4u * q_ + k_) * LR + x + GX * c_];                       \
                    [[unroll]] for (uint i_ = 0u; i_ < TM; i_++)                                                     \
                        to[i_ * TD + c_] = fma(vec4(l_[i_][k_]), r_, to[i_ * TD + c_]);                              \
                }                                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
        half_ ^= 1u;                                                                                                 \
    }

// Puts numbers [i, j] of this thread's rows and columns among the weights.
#define PUT_WEIGHTS(from)                                                                                            \
    [[unroll]] for (uint i_ = 0u; i_ < TM; i_++)                                                                     \
        [[unroll]] for (uint j_ = 0u; j_ < TN; j_++)                                                                 \
            weights[(y + GY * i_) * LW + x / 4u + GX / 4u * j_][x % 4u] = from[i_ * TN + j_];
