#version 450
#extension GL_GOOGLE_include_directive : require
// What max_pool.comp found, sent its gradient: y[place] = the sum, over all windows that see the place, tap by tap, of x
// [n, grid rows, grid cols, channels] where the window's largest element was found there. A thread takes a place: no two write to one.
layout(local_size_x_id = 0) in;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 2) readonly buffer Found { int found[]; };
#include "inc/window.glsl"
layout(push_constant) uniform Push { uint all, x_at, y_at; Window of; } push;

void main() {
    const Window of = push.of;
    const uint taps = of.kernel_rows * of.kernel_cols;
    for (uint i = gl_GlobalInvocationID.x; i < push.all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint channel = i % of.channels, place = i / of.channels;
        uint col = place % of.cols, row = place / of.cols % of.rows, map_ = place / of.cols / of.rows;
        float sum = 0.0;
        for (uint tap = 0u; tap < taps; tap++) {
            uint window_row, window_col;
            if (!window_of(row, tap / of.kernel_cols, of.padding_rows, of.dilation_rows, of.stride_rows, of.grid_rows, window_row)) continue;
            if (!window_of(col, tap % of.kernel_cols, of.padding_cols, of.dilation_cols, of.stride_cols, of.grid_cols, window_col)) continue;
            uint at = ((map_ * of.grid_rows + window_row) * of.grid_cols + window_col) * of.channels + channel;
            if (found[at] == int(row * of.cols + col)) sum += x[push.x_at + at];
        }
        y[push.y_at + i] = sum;
    }
}
