// Attention by the device's cooperative matrices, of NUMBER with sums of f32; operands of f32 are rounded to it as they are brought. A workgroup has a block of
// rows, a subgroup LANES of them, a lane one. How a matrix lies over the threads is the device's own: what a subgroup's matrices make of its rows goes through
// shared memory, where each lane finds its row whole; no other subgroup sees it. Barriers are the workgroup's all the same: what looks for races knows no others.
#include "inc/attention.glsl"
// Threads of a subgroup.
layout(constant_id = 10) const uint LANES = 32u;
// A matrix of the device: [TM, TK] times [TK, TN].
layout(constant_id = 11) const uint TM = 16u;
layout(constant_id = 12) const uint TN = 16u;
layout(constant_id = 13) const uint TK = 16u;
layout(constant_id = 14) const uint COLS = 32u;

const uint ROWS = gl_WorkGroupSize.x;
const uint RM = LANES / TM;
// A row of whole matrices, in eights: 16 bytes of shared memory. Rows are an eight longer, so that they fall into other banks.
const uint WHOLE = TN > TK ? TN : TK;
const uint EIGHTS = (WIDTH + WHOLE - 1u) / WHOLE * WHOLE / 8u;
const uint CK = EIGHTS * 8u / TK, CN = EIGHTS * 8u / TN;
const uint LD = EIGHTS + 1u;
// And a row of products with columns, in fours of f32; or of the same rounded to NUMBER, and TN numbers of f32 behind.
const uint LS = (COLS > 2u * TN ? COLS / 4u : COLS / 8u + TN / 4u) + 1u;

#define SUMS coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>
#define LEFT coopmat<NUMBER, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA>
#define RIGHT coopmat<NUMBER, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB>

uvec4 eight(vec4 x, vec4 y) { return uvec4(narrow(x.x, x.y), narrow(x.z, x.w), narrow(y.x, y.y), narrow(y.z, y.w)); }

// Eights that a thread brings of `n` rows.
#define OF(n) (((n) * EIGHTS + ROWS - 1u) / ROWS)

// Reads a thread's part of `n` rows of an item's `from`, from `first` on, into `next`; 0 beyond `all` rows and WIDTH.
#define BRING(next, from, kind, item, first, n, all)                                                                             \
    {                                                                                                           \
        [[unroll]] for (uint q_ = 0u; q_ < OF(n); q_++) {                                                                         \
            const uint e_ = gl_LocalInvocationID.x + q_ * ROWS, row_ = e_ / EIGHTS, c_ = e_ % EIGHTS * 8u;                        \
            next[q_] = uvec4(0u);                                                                                                 \
            if (row_ >= (n) || (first) + row_ >= (all) || c_ >= WIDTH) continue;                                                  \
            const int at_ = begin(push.from, item) + int((first) + row_) * push.from.row;                                               \
            if (VECTORS) {                                                                                                        \
                const uint w_ = (uint(at_) + c_) / 8u;                                                                         \
                next[q_] = kind == 0u ? eight(uintBitsToFloat(from##v[2u * w_]), uintBitsToFloat(from##v[2u * w_ + 1u])) : from##v[w_]; \
            } else {                                                                                                              \
                [[unroll]] for (uint k_ = 0u; k_ < 8u; k_++) {                                                                    \
                    if (c_ + k_ >= WIDTH) break;                                                                                  \
                    const uint w_ = uint(at_ + int(c_ + k_) * push.from.one);                                                     \
                    const uint bits_ = kind == 0u ? narrow(uintBitsToFloat(from[w_]), 0.0) : from[w_ / 2u] >> (16u * (w_ % 2u)) & 0xffffu; \
                    next[q_][k_ / 2u] |= bits_ << (16u * (k_ % 2u));                                                              \
                }                                                                                                                 \
            }                                                                                                                     \
        } \
    }

// Puts it where the tile begins in shared memory.
#define PUT(next, begin_, n)                                                                   \
    {                                                                                                           \
        [[unroll]] for (uint q_ = 0u; q_ < OF(n); q_++) {                                          \
            const uint e_ = gl_LocalInvocationID.x + q_ * ROWS;                                    \
            if (e_ < (n) * EIGHTS) held[(begin_) + e_ / EIGHTS * LD + e_ % EIGHTS] = next[q_];     \
        } \
    }

// Products of a subgroup's rows, matrix by matrix brought to l_[i_] by `load` (rows i_ of matrices, depth c_), with the columns of the tile at `right`, to its
// rows of products from `to` on.
#define SCORES(to, load, right)                                                                                  \
    {                                                                                                            \
        SUMS s_[RM * (COLS / TN)];                                                                               \
        [[unroll]] for (uint i_ = 0u; i_ < RM * (COLS / TN); i_++) s_[i_] = SUMS(0.0);                           \
        [[unroll]] for (uint c_ = 0u; c_ < CK; c_++) {                                                           \
            LEFT l_[RM];                                                                                         \
            [[unroll]] for (uint i_ = 0u; i_ < RM; i_++) load;                                                   \
            [[unroll]] for (uint j_ = 0u; j_ < COLS / TN; j_++) {                                                \
                RIGHT r_;                                                                                        \
                coopMatLoad(r_, held, (right) + j_ * TN * LD + c_ * TK / 8u, LD, gl_CooperativeMatrixLayoutColumnMajor); \
                [[unroll]] for (uint i_ = 0u; i_ < RM; i_++)                                                     \
                    s_[i_ * (COLS / TN) + j_] = coopMatMulAdd(l_[i_], r_, s_[i_ * (COLS / TN) + j_]);            \
            }                                                                                                    \
        }                                                                                                        \
        [[unroll]] for (uint j_ = 0u; j_ < COLS / TN; j_++) {                                                    \
            [[unroll]] for (uint i_ = 0u; i_ < RM; i_++)                                                         \
                coopMatStore(s_[i_ * (COLS / TN) + j_], held, (to) + i_ * TM * LS + j_ * TN / 4u, LS, gl_CooperativeMatrixLayoutRowMajor); \
        }                                                                                                        \
    }

// sums[i * CN + c] += a subgroup's rows of weights, from `weights` on, times the rows of the tile at `right`.
#define MEANS(sums, weights, right)                                                                              \
    {                                                                                                           \
        for (uint j_ = 0u; j_ < COLS / TK; j_++) {                                                        \
            LEFT l_[RM];                                                                                             \
            [[unroll]] for (uint i_ = 0u; i_ < RM; i_++)                                                             \
                coopMatLoad(l_[i_], held, (weights) + i_ * TM * LS + j_ * TK / 8u, LS, gl_CooperativeMatrixLayoutRowMajor); \
            [[unroll]] for (uint c_ = 0u; c_ < CN; c_++) {                                                           \
                RIGHT r_;                                                                                            \
                coopMatLoad(r_, held, (right) + j_ * TK * LD + c_ * TN / 8u, LD, gl_CooperativeMatrixLayoutRowMajor);   \
                [[unroll]] for (uint i_ = 0u; i_ < RM; i_++) sums[i_ * CN + c_] = coopMatMulAdd(l_[i_], r_, sums[i_ * CN + c_]); \
            }                                                                                                        \
        } \
    }

// Writes a subgroup's sums[i * CN + c], rows from `first` on, row r times `factor(r)`, to y, through its rows of products from `rows` on.
#define WRITE(y_, item, first, all, sums, through, factor)                                                       \
    {                                                                                                           \
        [[unroll]] for (uint c0_ = 0u; c0_ < CN; c0_ += COLS / TN) {                                                 \
            barrier();                                                                                       \
            [[unroll]] for (uint c_ = c0_; c_ < min(c0_ + COLS / TN, CN); c_++) {                                    \
                [[unroll]] for (uint i_ = 0u; i_ < RM; i_++)                                                         \
                    coopMatStore(sums[i_ * CN + c_], held, (through) + i_ * TM * LS + (c_ - c0_) * TN / 4u, LS, gl_CooperativeMatrixLayoutRowMajor); \
            }                                                                                                        \
            barrier();                                                                                       \
            for (uint e_ = gl_SubgroupInvocationID; e_ < LANES * (COLS / 4u); e_ += LANES) {                         \
                const uint r_ = e_ / (COLS / 4u), at_c_ = c0_ * TN + e_ % (COLS / 4u) * 4u, row_ = (first) + r_;     \
                if (row_ >= (all) || at_c_ >= WIDTH) continue;                                                       \
                const uint at_ = push.y_##_at + ((item / push.heads * (all) + row_) * push.heads + item % push.heads) * WIDTH + at_c_; \
                const vec4 w_ = uintBitsToFloat(held[(through) + r_ * LS + e_ % (COLS / 4u)]) * factor(r_);          \
                if (VECTORS) y_##v[at_ / 4u] = w_;                                                                   \
                else [[unroll]] for (uint k_ = 0u; k_ < 4u; k_++) if (at_c_ + k_ < WIDTH) y_[at_ + k_] = w_[k_];     \
            }                                                                                                        \
        } \
    }
