// What gradients of a convolution's weight have in common: a product over all windows, whose right operand is what they see. Includes define TAPS, of
// how many elements of a window beside each other a thread looks up each: 1 where they are channels of one place.
int tap_row[TAPS], tap_col[TAPS], tap_at[TAPS];

Product product_over_windows(Job job) {
    const Window of = push.of;
    const uint from = job.part * push.depth;
    end = min(of.n * of.grid_rows * of.grid_cols, from + push.depth);
    return Product(push.output_ / push.groups, of.kernel_rows * of.kernel_cols * (of.channels / push.groups), from);
}

// Takes up the window's elements from `col` of n on; one beside the window sees nothing.
void look_through(uint col, uint n, Job job) {
    const Window of = push.of;
    const uint channels = max(of.channels / push.groups, 1u);
    [[unroll]] for (uint q = 0u; q < TAPS; q++) {
        const uint tap = (col + q) / channels;
        tap_row[q] = int(tap / of.kernel_cols * of.dilation_rows) - int(of.padding_rows);
        tap_col[q] = int(tap % of.kernel_cols * of.dilation_cols) - int(of.padding_cols);
        tap_at[q] = int(push.b_at) + (tap_row[q] * int(of.cols) + tap_col[q]) * int(of.channels)
            + int(job.group * channels + (col + q) % channels);
        if (col + q >= n) tap_row[q] = -(1 << 30);
    }
}

// A window: its number, and where it begins.
struct Place {
    uint k, map_, row, col;
};

Place window_at(uint k) {
    const uint row = k / push.of.grid_cols;
    return Place(k, row / push.of.grid_rows, row % push.of.grid_rows, k % push.of.grid_cols);
}

void advance(inout Place w, uint by) {
    w.k += by;
    w.col += by;
    while (w.col >= push.of.grid_cols) {
        w.col -= push.of.grid_cols;
        if (++w.row == push.of.grid_rows) {
            w.row = 0u;
            w.map_++;
        }
    }
}

// Whether a window sees element `q` of this thread's, and where that lies.
bool sees(Place w, uint q, out uint at) {
    const Window of = push.of;
    const int row = int(w.row * of.stride_rows), col = int(w.col * of.stride_cols);
    at = uint(((int(w.map_ * of.rows) + row) * int(of.cols) + col) * int(of.channels) + tap_at[q]);
    return w.k < end && uint(row + tap_row[q]) < of.rows && uint(col + tap_col[q]) < of.cols;
}
