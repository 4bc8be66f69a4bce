// What convolutions have in common: a product whose left operand is windows over a map, read where they lie. Its rows are places of what is written,
// its depth goes over the window's elements, then channels. Includes define INPUT, and how many rows ROWS_A a thread brings.
// Places whose coordinates leave the same rest by the stride are seen by the same elements of the kernel: a phase, in which x's gradient is a
// convolution of stride 1. Each of `parts` parts of the depth writes maps of its own.

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
// Channels of a group of the map, and of all.
uint channels, all_channels;
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
bool seen(Depth d, uint r, out uint at) {
    int row = int(d.row) * rows.reach, col = int(d.col) * cols.reach;
    at = uint(place[r] + (row * int(cols.source) + col) * int(all_channels) + int(d.channel));
    return d.k < end && uint(place_row[r] + row) < rows.source && uint(place_col[r] + col) < cols.source;
}

Product product_of(Job job) {
    const Window of = push.of;
    const uint phase_row = job.phase / of.stride_cols, phase_col = job.phase % of.stride_cols;
    const uint inputs = of.channels / push.groups, outputs = push.output_ / push.groups;
    rows = axis(phase_row, of.rows, of.grid_rows, of.kernel_rows, of.stride_rows, of.padding_rows, of.dilation_rows);
    cols = axis(phase_col, of.cols, of.grid_cols, of.kernel_cols, of.stride_cols, of.padding_cols, of.dilation_cols);
    channels = INPUT ? outputs : inputs;
    all_channels = INPUT ? push.output_ : of.channels;
    const uint from = job.part * push.depth;
    end = min(rows.taps * cols.taps * channels, from + push.depth);
    return Product(of.n * rows.count * cols.count, INPUT ? inputs : outputs, from);
}

// Takes up row `row` of the product as this thread's row `r`; one beside it sees nothing.
void look_from(uint r, uint row, bool inside, Job job) {
    const uint each = rows.count * cols.count;
    place_row[r] = inside ? int(row % each / cols.count) * rows.step_ + rows.base : -(1 << 30);
    place_col[r] = int(row % cols.count) * cols.step_ + cols.base;
    place[r] = int(push.a_at) + int(job.group * channels)
        + ((int(row / each * rows.source) + place_row[r]) * int(cols.source) + place_col[r]) * int(all_channels);
}

// Where the first column of row `row` is written.
uint written_at(uint row, Job job, uint n) {
    const Window of = push.of;
    const uint each = rows.count * cols.count;
    uint at = row;
    if (INPUT) {
        const uint in_map = rows.first + row % each / cols.count * rows.apart;
        at = (row / each * of.rows + in_map) * of.cols + cols.first + row % cols.count * cols.apart;
    }
    const uint of_part = of.n * (INPUT ? of.rows * of.cols : of.grid_rows * of.grid_cols);
    return push.c_at + ((job.part * of_part + at) * push.groups + job.group) * n;
}
