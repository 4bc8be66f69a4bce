#version 450
#extension GL_GOOGLE_include_directive : require
// The elements under each window of maps x [n, h, w, groups c], 0 beside the map: y [groups, n rows cols, kernel rows, kernel cols, c].
layout(local_size_x_id = 0) in;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
#include "inc/window.glsl"
layout(push_constant) uniform Push { uint all, groups, x_at, y_at; Window of; } push;

void main() {
    const Window of = push.of;
    const uint c = of.channels / push.groups, positions = of.n * of.grid_rows * of.grid_cols;
    for (uint i = gl_GlobalInvocationID.x; i < push.all; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint k = i % c, rest = i / c;
        uint b = rest % of.kernel_cols;
        rest /= of.kernel_cols;
        uint a = rest % of.kernel_rows;
        rest /= of.kernel_rows;
        uint position = rest % positions, group = rest / positions;
        uint map_ = position / of.grid_cols / of.grid_rows;
        int row = int(position / of.grid_cols % of.grid_rows * of.stride_rows + a * of.dilation_rows) - int(of.padding_rows);
        int col = int(position % of.grid_cols * of.stride_cols + b * of.dilation_cols) - int(of.padding_cols);
        bool inside = row >= 0 && row < int(of.rows) && col >= 0 && col < int(of.cols);
        uint at = ((map_ * of.rows + uint(row)) * of.cols + uint(col)) * of.channels + group * c + k;
        y[push.y_at + i] = inside ? x[push.x_at + at] : 0.0;
    }
}
