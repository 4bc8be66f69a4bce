#version 450
#extension GL_GOOGLE_include_directive : require
// y = the largest element under each window of maps x [n, h, w, channels], and where in the map it is: row w + column, or -1 where a window
// lies in padding alone. The first of equals; NaN if there is one.
layout(local_size_x_id = 0) in;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 2) writeonly buffer Found { int found[]; };
#include "inc/functions.glsl"
#include "inc/window.glsl"
layout(push_constant) uniform Push { uint all, x_at, y_at; Window of; } push;

void main() {
    const Window of = push.of;
    for (uint i = gl_GlobalInvocationID.x; i < push.all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint channel = i % of.channels, position = i / of.channels;
        uint map_ = position / of.grid_cols / of.grid_rows;
        int first_row = int(position / of.grid_cols % of.grid_rows * of.stride_rows) - int(of.padding_rows);
        int first_col = int(position % of.grid_cols * of.stride_cols) - int(of.padding_cols);
        float most = NEG_INFINITY;
        int place = -1;
        for (uint a = 0u; a < of.kernel_rows; a++) {
            int row = first_row + int(a * of.dilation_rows);
            for (uint b = 0u; b < of.kernel_cols; b++) {
                int col = first_col + int(b * of.dilation_cols);
                if (row < 0 || row >= int(of.rows) || col < 0 || col >= int(of.cols)) continue;
                int at = row * int(of.cols) + col;
                float v = x[push.x_at + (map_ * of.rows * of.cols + uint(at)) * of.channels + channel];
                if (place < 0 || v > most || (is_nan(v) && !is_nan(most))) {
                    most = v;
                    place = at;
                }
            }
        }
        y[push.y_at + i] = most;
        found[i] = place;
    }
}
