// Kernels that take places one by one. A place is an element, or with WIDE four side by side, read and written at once: offsets, strides and
// counts are then in fours. A thread has PER places under way, neighbouring threads are at neighbouring places.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool WIDE = false;
layout(constant_id = 2) const uint PER = 1u;

// A thread's first place of PER, which are a workgroup's threads apart.
#define EACH(first, places)                                                                                            \
    for (uint first = gl_WorkGroupID.x * gl_WorkGroupSize.x * PER + gl_LocalInvocationID.x; first < (places);          \
         first += gl_NumWorkGroups.x * gl_WorkGroupSize.x * PER)
#define OF_EACH(k, i, first, places)                                                                                   \
    [[unroll]] for (uint k = 0u, i = first; k < PER; k++, i += gl_WorkGroupSize.x) if (i < (places))

// Of a buffer that is seen as elements and as fours; beside the place itself nothing is read, and what is read of it fills the four.
#define READ(x, x4, at) (WIDE ? x4[at] : filled(x[at]))
#define WRITE(y, y4, at, v)     \
    if (WIDE) y4[at] = v;       \
    else y[at] = (v).x;

vec4 filled(float v) { return vec4(v); }
uvec4 filled(uint v) { return uvec4(v); }
