#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// y[.., i, j] = x[.., i, j], words of 32 bits, of which j are side by side in y and i in x: by squares through shared memory, so that both sides
// are read and written side by side. `dims` and strides are of what lies around, which has `around` elements.
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64u;
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 1) writeonly buffer Y { uint y[]; };
layout(push_constant) uniform Push {
    uint around, x_at, y_at, rank;
    uint dims[4];
    int xs[4], ys[4];
    uint rows, columns;
    int x_step, y_step;
} push;
#include "inc/place.glsl"

const uint SIDE = 32u;
// Rows fall into other banks.
shared uint square[SIDE][SIDE + 1u];

void main() {
    uint down = (push.rows + SIDE - 1u) / SIDE, across = (push.columns + SIDE - 1u) / SIDE;
    for (uint g = gl_WorkGroupID.x; g < push.around * down * across; g += gl_NumWorkGroups.x) {
        uint row0 = g / across % down * SIDE, col0 = g % across * SIDE;
        PLACE(g / across / down, push.xs, from)
        PLACE(g / across / down, push.ys, to)
        // x_step apart are columns of x, y_step rows of y.
        [[unroll]] for (uint e = gl_LocalInvocationID.x; e < SIDE * SIDE; e += THREADS) {
            uint i = e % SIDE, j = e / SIDE;
            if (row0 + i < push.rows && col0 + j < push.columns)
                square[j][i] = x[int(push.x_at) + from + int(row0 + i) + int(col0 + j) * push.x_step];
        }
        barrier();
        [[unroll]] for (uint e = gl_LocalInvocationID.x; e < SIDE * SIDE; e += THREADS) {
            uint i = e / SIDE, j = e % SIDE;
            if (row0 + i < push.rows && col0 + j < push.columns)
                y[int(push.y_at) + to + int(row0 + i) * push.y_step + int(col0 + j)] = square[j][i];
        }
        barrier();
    }
}
