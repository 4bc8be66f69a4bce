#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// For x and dy [rows, n] the sums over blocks of `each` rows of dy z and of dy, with z = (x - mean) rstd: y[b, 0, j] and y[b, 1, j].
// Mean and rstd are of each row, or with COLUMNS of each column. A workgroup takes COLS places along j of a block.
layout(constant_id = 3) const bool COLUMNS = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
layout(std430, binding = 1) readonly buffer Dy { float dy[]; };
layout(std430, binding = 1) readonly buffer Dy4 { vec4 dy4[]; };
layout(std430, binding = 2) readonly buffer Mean { float mean[]; };
layout(std430, binding = 2) readonly buffer Mean4 { vec4 mean4[]; };
layout(std430, binding = 3) readonly buffer Rstd { float rstd[]; };
layout(std430, binding = 3) readonly buffer Rstd4 { vec4 rstd4[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
layout(std430, binding = 4) writeonly buffer Y4 { vec4 y4[]; };
layout(push_constant) uniform Push { uint rows, n, each, x_at, dy_at, mean_at, rstd_at, y_at; } push;
#include "inc/cols.glsl"

void main() {
    uint across = (push.n + COLS - 1u) / COLS, blocks = (push.rows + push.each - 1u) / push.each;
    for (uint g = gl_WorkGroupID.x; g < blocks * across; g += gl_NumWorkGroups.x) {
        uint block = g / across, j = g % across * COLS + gl_LocalInvocationID.x % COLS;
        uint start = block * push.each, end = j < push.n ? min(start + push.each, push.rows) : 0u;
        vec4 products = vec4(0.0), sum = vec4(0.0), m = vec4(0.0), r = vec4(0.0);
        if (COLUMNS && j < push.n) {
            m = READ(mean, mean4, push.mean_at + j);
            r = READ(rstd, rstd4, push.rstd_at + j);
        }
        ROWS(first, start, end) {
            vec4 z[PER], d[PER];
            OF_ROWS(k, row, first) {
                z[k] = d[k] = vec4(0.0);
                if (row < end) {
                    z[k] = READ(x, x4, push.x_at + row * push.n + j);
                    d[k] = READ(dy, dy4, push.dy_at + row * push.n + j);
                }
            }
            OF_ROWS(k, row, first) {
                if (row < end) {
                    if (!COLUMNS) {
                        m = vec4(mean[push.mean_at + row]);
                        r = vec4(rstd[push.rstd_at + row]);
                    }
                    products += d[k] * ((z[k] - m) * r);
                    sum += d[k];
                }
            }
        }
        products = over_lanes(products);
        sum = over_lanes(sum);
        if (gl_LocalInvocationID.x < COLS && j < push.n) {
            uint at = push.y_at + 2u * block * push.n + j;
            WRITE(y, y4, at, products)
            WRITE(y, y4, at + push.n, sum)
        }
    }
}
