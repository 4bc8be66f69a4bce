// A tile of a product by cooperative matrices: a subgroup makes RM by RN matrices, a workgroup SM by SN subgroups. Operands are multiplied in NUMBER (what
// of them is f32 is rounded to it), with sums of f32. Everything goes by eights of elements: 16 bytes of shared memory.
// Includes define whether the eights of A and B lie along k, or along rows and columns (A_ALONG_K, B_ALONG_K), and how they are stored (A_STORED, B_STORED:
// 0, or what NUMBER is).
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SM = 2u;
layout(constant_id = 2) const uint SN = 2u;
layout(constant_id = 3) const uint RM = 4u;
layout(constant_id = 4) const uint RN = 4u;
// A matrix of the device: [TM, TK] times [TK, TN].
layout(constant_id = 5) const uint TM = 16u;
layout(constant_id = 6) const uint TN = 16u;
layout(constant_id = 7) const uint TK = 16u;
layout(constant_id = 8) const uint BK = 32u;

const uint BM = SM * RM * TM;
const uint BN = SN * RN * TN;
// Eights of a row of either tile, which runs as the operand does, and eight elements more, so that rows fall into other banks.
const uint LA = (A_ALONG_K ? BK : BM) / 8u + 1u;
const uint LB = (B_ALONG_K ? BK : BN) / 8u + 1u;
const uint OF_A = (A_ALONG_K ? BM : BK) * LA;
const uint OF_B = (B_ALONG_K ? BN : BK) * LB;
// Fours of a row of sums that a subgroup stores, and one more.
const uint LC = RN * TN / 4u + 1u;
const uint OF_C = SM * SN * TM * LC;
// Both tiles, and after the last product the sums.
shared uvec4 held[OF_A + OF_B > OF_C ? OF_A + OF_B : OF_C];
const uint THREADS = gl_WorkGroupSize.x;
// Eights of a tile that a thread brings, and the reads of 16 bytes that one takes.
const uint QA = (BM * BK / 8u + THREADS - 1u) / THREADS;
const uint QB = (BN * BK / 8u + THREADS - 1u) / THREADS;
const uint WA = A_STORED == 0u ? 2u : 1u;
const uint WB = B_STORED == 0u ? 2u : 1u;

// Where eight e of a tile of `rows` rows is: its row and its l.
uvec2 eight_at(uint e, uint rows, bool along_k) {
    return along_k ? uvec2(e / (BK / 8u), e % (BK / 8u) * 8u) : uvec2(e % (rows / 8u) * 8u, e / (rows / 8u));
}

// Eight of f32 as NUMBER.
uvec4 narrowed(uvec4 low, uvec4 high) {
    const vec4 x = uintBitsToFloat(low), y = uintBitsToFloat(high);
    return uvec4(narrow(x.x, x.y), narrow(x.z, x.w), narrow(y.x, y.y), narrow(y.z, y.w));
}

// The bits of element `at` of words, and where they go in an eight as it is read from memory, which begins as 0.
#define BITS(words, stored, at) (stored == 0u ? words[at] : words[(at) / 2u] >> (16u * ((at) % 2u)) & 0xffffu)
#define PUT(to, first, stored, e, bits) if (stored == 0u) to[first + e / 4u][e % 4u] = bits; else to[first][e / 2u] |= bits << (16u * (e % 2u))

// Puts what this thread, t, read of a tile, narrowed, where that begins in shared memory.
#define HOLD(next, begin, eights, reads, side, row, along_k)                                                                \
    [[unroll]] for (uint q = 0u; q < eights; q++) {                                                                         \
        const uint e = t + q * THREADS;                                                                                     \
        const uvec2 p = eight_at(e, side, along_k);                                                                            \
        if (e < side * BK / 8u) held[begin + (along_k ? p.x * row + p.y / 8u : p.y * row + p.x / 8u)] = reads == 1u ? next[q] : narrowed(next[q * reads], next[q * reads + reads - 1u]); \
    }

#define SUMS(sums)                                                                                                          \
    coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> sums[RM * RN];                                        \
    [[unroll]] for (uint i = 0u; i < RM * RN; i++) sums[i] = coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);

// Adds the products of what is held to the sums of a subgroup, whose tile begins at row srow and column scol.
#define MULTIPLY(sums)                                                                                                      \
    [[unroll]] for (uint l = 0u; l < BK; l += TK) {                                                                         \
        coopmat<NUMBER, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> left[RM];                                                  \
        [[unroll]] for (uint i = 0u; i < RM; i++) {                                                                         \
            const uint row = srow + i * TM;                                                                                 \
            if (A_ALONG_K) coopMatLoad(left[i], held, row * LA + l / 8u, LA, gl_CooperativeMatrixLayoutRowMajor);           \
            else coopMatLoad(left[i], held, l * LA + row / 8u, LA, gl_CooperativeMatrixLayoutColumnMajor);                  \
        }                                                                                                                   \
        [[unroll]] for (uint j = 0u; j < RN; j++) {                                                                         \
            const uint col = scol + j * TN;                                                                                 \
            coopmat<NUMBER, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> right;                                                 \
            if (B_ALONG_K) coopMatLoad(right, held, OF_A + col * LB + l / 8u, LB, gl_CooperativeMatrixLayoutColumnMajor);   \
            else coopMatLoad(right, held, OF_A + l * LB + col / 8u, LB, gl_CooperativeMatrixLayoutRowMajor);                \
            [[unroll]] for (uint i = 0u; i < RM; i++) sums[i * RN + j] = coopMatMulAdd(left[i], right, sums[i * RN + j]);   \
        }                                                                                                                   \
    }

// Hands each four of the sums, with row and column in the tile, to FINISH(row, col, four). How a matrix lies over the threads is the device's own: through
// shared memory, a row of matrices after the other.
#define EACH_FOUR(sums, FINISH)                                                                                             \
    [[unroll]] for (uint i = 0u; i < RM; i++) {                                                                             \
        barrier();                                                                                                          \
        [[unroll]] for (uint j = 0u; j < RN; j++)                                                                           \
            coopMatStore(sums[i * RN + j], held, s * TM * LC + j * TN / 4u, LC, gl_CooperativeMatrixLayoutRowMajor);        \
        barrier();                                                                                                          \
        for (uint e = gl_SubgroupInvocationID; e < TM * RN * TN / 4u; e += gl_SubgroupSize) {                               \
            const uint row = e / (RN * TN / 4u), col = e % (RN * TN / 4u);                                                  \
            const vec4 four = uintBitsToFloat(held[s * TM * LC + row * LC + col]);                                          \
            FINISH(srow + i * TM + row, scol + col * 4u, four);                                                             \
        }                                                                                                                   \
    }                                                                                                                       \
    barrier();
