#version 450
// For x and dy [rows, n] the sums over blocks of `each` rows of dy z and of dy, with z = (x - mean) rstd: y[b, 0, j] and y[b, 1, j].
// Mean and rstd are of each row, or with COLUMNS of each column. A thread takes a column of a block.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool COLUMNS = false;
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Dy { float dy[]; };
layout(std430, binding = 2) readonly buffer Mean { float mean[]; };
layout(std430, binding = 3) readonly buffer Rstd { float rstd[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
layout(push_constant) uniform Push { uint rows, n, each, x_at, dy_at, mean_at, rstd_at, y_at; } push;

void main() {
    uint blocks = (push.rows + push.each - 1u) / push.each;
    for (uint i = gl_GlobalInvocationID.x; i < blocks * push.n; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint j = i % push.n, block = i / push.n, first = block * push.each;
        float products = 0.0, sum = 0.0;
        for (uint row = first; row < min(first + push.each, push.rows); row++) {
            uint of = COLUMNS ? j : row;
            float d = dy[push.dy_at + row * push.n + j];
            products += d * ((x[push.x_at + row * push.n + j] - mean[push.mean_at + of]) * rstd[push.rstd_at + of]);
            sum += d;
        }
        uint at = push.y_at + 2u * block * push.n + j;
        y[at] = products;
        y[at + push.n] = sum;
    }
}
