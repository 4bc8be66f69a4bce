// Sums of columns: of a workgroup COLS threads take places side by side, and its lanes of so many threads rows in turn. A place is a column, or
// with WIDE four, read at once: offsets, strides and counts are then in fours. A thread has PER rows under way.
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64u;
layout(constant_id = 1) const bool WIDE = false;
layout(constant_id = 2) const uint COLS = 16u;
const uint PER = 4u;
const uint LANES = THREADS / COLS;
shared vec4 lanes_[THREADS];

// This thread's PER rows from `first` on, of those before `end`.
#define ROWS(first, start, end) for (uint first = (start) + gl_LocalInvocationID.x / COLS; first < (end); first += LANES * PER)
#define OF_ROWS(k, row, first) [[unroll]] for (uint k = 0u, row = first; k < PER; k++, row += LANES)

#define READ(x, x4, at) (WIDE ? x4[at] : vec4(x[at]))
#define WRITE(y, y4, at, v)     \
    if (WIDE) y4[at] = v;       \
    else y[at] = (v).x;

// The sum over lanes, in a fixed tree, to the first of them.
vec4 over_lanes(vec4 v) {
    uint t = gl_LocalInvocationID.x;
    lanes_[t] = v;
    barrier();
    for (uint half_ = LANES / 2u; half_ > 0u; half_ /= 2u) {
        if (t < half_ * COLS) lanes_[t] += lanes_[t + half_ * COLS];
        barrier();
    }
    v = lanes_[t % COLS];
    barrier();
    return v;
}
