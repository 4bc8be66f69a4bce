// Rows over a workgroup, each thread of which holds PER fours of a stretch of the row. With WIDE the elements of a four lie side by side, from
// a multiple of four on, and are read and written at once; else they are THREADS apart. KEPT: a row is one stretch, so that what was read or
// made of it stays in registers from one pass over it to the next.
#include "inc/tree.glsl"
layout(constant_id = 1) const bool WIDE = false;
layout(constant_id = 2) const uint PER = 1u;
layout(constant_id = 3) const bool KEPT = false;

// Element c of this thread's k-th four.
uint place(uint k, uint c) {
    uint t = gl_LocalInvocationID.x;
    return WIDE ? 4u * (k * THREADS + t) + c : (4u * k + c) * THREADS + t;
}

#define STRETCHES(first, start, end) for (uint first = start; first < (KEPT ? (start) + 1u : (end)); first += 4u * PER * THREADS)
#define FOURS(k) [[unroll]] for (uint k = 0u; k < PER; k++)
#define ELEMENTS(c) [[unroll]] for (uint c = 0u; c < 4u; c++)

// The k-th four of the stretch at `first` of a row that begins at `at` and ends before `end`; 0 beyond.
#define READ_FOUR(to, x, x4, at, first, end, k)                       \
    to = vec4(0.0);                                                   \
    if (WIDE) {                                                       \
        uint j_ = (first) + place(k, 0u);                             \
        if (j_ < (end)) to = x4[((at) + j_) / 4u];                    \
    } else {                                                          \
        ELEMENTS(c_) {                                                \
            uint j_ = (first) + place(k, c_);                         \
            if (j_ < (end)) to[c_] = x[(at) + j_];                    \
        }                                                             \
    }
#define WRITE_FOUR(from, y, y4, at, first, end, k)                    \
    if (WIDE) {                                                       \
        uint j_ = (first) + place(k, 0u);                             \
        if (j_ < (end)) y4[((at) + j_) / 4u] = from;                  \
    } else {                                                          \
        ELEMENTS(c_) {                                                \
            uint j_ = (first) + place(k, c_);                         \
            if (j_ < (end)) y[(at) + j_] = (from)[c_];                \
        }                                                             \
    }

float sum_of(vec4 v) { return (v.x + v.y) + (v.z + v.w); }
