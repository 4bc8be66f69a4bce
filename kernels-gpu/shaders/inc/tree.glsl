// Reduction over a workgroup of a power of two threads, in a fixed tree: the same bits on every run.
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64u;
shared float tree_[THREADS];

float tree_sum(float v) {
    uint t = gl_LocalInvocationID.x;
    tree_[t] = v;
    barrier();
    for (uint half_ = THREADS / 2u; half_ > 0u; half_ /= 2u) {
        if (t < half_) tree_[t] += tree_[t + half_];
        barrier();
    }
    float all = tree_[0];
    barrier();
    return all;
}

float tree_max(float v) {
    uint t = gl_LocalInvocationID.x;
    tree_[t] = v;
    barrier();
    for (uint half_ = THREADS / 2u; half_ > 0u; half_ /= 2u) {
        if (t < half_) tree_[t] = tree_[t] < tree_[t + half_] ? tree_[t + half_] : tree_[t];
        barrier();
    }
    float all = tree_[0];
    barrier();
    return all;
}
