// A tile of BM rows by BN columns of a product by a workgroup of GX by GY threads, each of which sums TM by TN elements, four neighbours by four
// (GX is a multiple of 8, GY, TM and TN of 4, BK of 8; at most two threads to a row or column). Of the slices of both operands, BK deep, two
// are in shared memory: one is multiplied while the next is on its way to the other, with one barrier for both.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint GX = 16u;
layout(constant_id = 2) const uint GY = 16u;
layout(constant_id = 3) const uint TM = 8u;
layout(constant_id = 4) const uint TN = 8u;
layout(constant_id = 5) const uint BK = 8u;

const uint THREADS = GX * GY;
const uint BM = GY * TM, BN = GX * TN;
// Words of four rows, or columns, of an element of the depth. One more, so that 16 rows of two fours of the depth fall into different banks.
const uint LA = BM / 4u + 1u, LB = BN / 4u + 1u;
shared vec4 tile[2u * BK * (LA + LB)];
// Where the slices of B begin.
const uint AT_B = 2u * BK * LA;
// What a thread brings of a slice, four elements at once.
const uint OF_A = BM * BK / 4u / THREADS, OF_B = BN * BK / 4u / THREADS;
vec4 next_a[OF_A], next_b[OF_B];
vec4 sums[TM * TN / 4u];

// Blocks of 8 by 4 threads read few different words at once.
uint thread_col() { return gl_LocalInvocationID.x % 8u + gl_LocalInvocationID.x / 32u % (GX / 8u) * 8u; }
uint thread_row() { return gl_LocalInvocationID.x / 8u % 4u + gl_LocalInvocationID.x / 32u / (GX / 8u) * 4u; }

// What a thread brings where the operand lies along the depth: rows `along_row() + r * THREADS / 2`, from `along_k() + 8 u` on.
const uint ROWS_A = 2u * BM / THREADS, ROWS_B = 2u * BN / THREADS, EIGHTS = BK / 8u;
uint along_row() { return gl_LocalInvocationID.x / 2u; }
uint along_k() { return gl_LocalInvocationID.x % 2u * 4u; }

// And where it lies across: of elements `across_k() + v * ACROSS` of the depth, four rows from `across_row()` on.
const uint ACROSS_A = THREADS / (BM / 4u), ACROSS_B = THREADS / (BN / 4u);
uint across_row(uint rows) { return gl_LocalInvocationID.x % (rows / 4u) * 4u; }
uint across_k(uint rows) { return gl_LocalInvocationID.x / (rows / 4u); }

// Four elements of a row, from `k` on, to the slice that begins at `at`.
void put_along(uint at, uint words, uint k, uint row, vec4 v) {
    [[unroll]] for (uint q = 0u; q < 4u; q++) tile[at + (k + q) * words + row / 4u][row % 4u] = v[q];
}

void put_a_along(uint half_) {
    [[unroll]] for (uint e = 0u; e < OF_A; e++)
        put_along(half_ * BK * LA, LA, along_k() + e % EIGHTS * 8u, along_row() + e / EIGHTS * (THREADS / 2u), next_a[e]);
}

void put_b_along(uint half_) {
    [[unroll]] for (uint e = 0u; e < OF_B; e++)
        put_along(AT_B + half_ * BK * LB, LB, along_k() + e % EIGHTS * 8u, along_row() + e / EIGHTS * (THREADS / 2u), next_b[e]);
}

void put_a_across(uint half_) {
    [[unroll]] for (uint e = 0u; e < OF_A; e++)
        tile[(half_ * BK + across_k(BM) + e * ACROSS_A) * LA + across_row(BM) / 4u] = next_a[e];
}

void put_b_across(uint half_) {
    [[unroll]] for (uint e = 0u; e < OF_B; e++)
        tile[AT_B + (half_ * BK + across_k(BN) + e * ACROSS_B) * LB + across_row(BN) / 4u] = next_b[e];
}

void clear() {
    [[unroll]] for (uint e = 0u; e < TM * TN / 4u; e++) sums[e] = vec4(0.0);
}

void multiply(uint half_) {
    const uint a0 = half_ * BK * LA + thread_row(), b0 = AT_B + half_ * BK * LB + thread_col();
    [[unroll]] for (uint l = 0u; l < BK; l++) {
        vec4 a[TM / 4u], b[TN / 4u];
        [[unroll]] for (uint i = 0u; i < TM / 4u; i++) a[i] = tile[a0 + l * LA + i * GY];
        [[unroll]] for (uint j = 0u; j < TN / 4u; j++) b[j] = tile[b0 + l * LB + j * GX];
        [[unroll]] for (uint i = 0u; i < TM; i++) {
            [[unroll]] for (uint j = 0u; j < TN / 4u; j++) {
                const uint e = i * (TN / 4u) + j;
                sums[e] = fma(vec4(a[i / 4u][i % 4u]), b[j], sums[e]);
            }
        }
    }
}

// Where a thread's sums lie in the tile: row of sums [i, ..], first column of sums [.., j].
uint sum_row(uint i) { return i / 4u * (GY * 4u) + thread_row() * 4u + i % 4u; }
uint sum_col(uint j) { return j * (GX * 4u) + thread_col() * 4u; }
