// Windows over maps [n, h, w, channels], as kernels-cpu/src/conv.rs has them; pairs are (along rows, along columns).
struct Window {
    uint n, rows, cols, channels;
    uint grid_rows, grid_cols;
    uint kernel_rows, kernel_cols, stride_rows, stride_cols, padding_rows, padding_cols, dilation_rows, dilation_cols;
};

// Which window along one axis sees place `at` as its element `tap`; false: none does.
bool window_of(uint at, uint tap, uint padding, uint dilation, uint stride, uint grid, out uint window) {
    int first = int(at + padding) - int(tap * dilation);
    window = uint(first) / stride;
    return first >= 0 && uint(first) % stride == 0u && window < grid;
}
