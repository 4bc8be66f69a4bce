// Reduction over a workgroup of a power of two threads, in a fixed tree of two levels: the same bits on every run.
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64u;
const uint PARTS = THREADS < 16u ? THREADS : 16u;
shared float tree_[THREADS];
shared float parts_[PARTS];

// Each of the first PARTS threads joins its share, then everyone joins theirs. One barrier stands between the last look at either array and
// the next reduction's writes.
#define TREE(name, JOIN)                                                                        \
    float name(float v) {                                                                       \
        uint t = gl_LocalInvocationID.x;                                                        \
        tree_[t] = v;                                                                           \
        barrier();                                                                              \
        if (t < PARTS) {                                                                        \
            [[unroll]] for (uint i = PARTS; i < THREADS; i += PARTS) v = JOIN(v, tree_[t + i]); \
            parts_[t] = v;                                                                      \
        }                                                                                       \
        barrier();                                                                              \
        v = parts_[0];                                                                          \
        [[unroll]] for (uint i = 1u; i < PARTS; i++) v = JOIN(v, parts_[i]);                    \
        return v;                                                                               \
    }
#define SUM_OF(a, b) ((a) + (b))
#define LARGER_OF(a, b) ((a) < (b) ? (b) : (a))
TREE(tree_sum, SUM_OF)
TREE(tree_max, LARGER_OF)
