// What convolutions are told, and what a workgroup does of one: a tile, of a part of the depth, of a group, of a phase. Tiles beside each other come
// first, so that workgroups that run together read the same rows of maps. Includes define BM and BN, the sides of a tile.
#include "window.glsl"
layout(push_constant) uniform Push {
    uint jobs, across, down, parts, depth, groups, output_;
    uint a_at, b_at, c_at, bias_at;
    Window of;
} push;

struct Job {
    uint col0, row0, part, group, phase;
};

Job job_of(uint job) {
    Job out_;
    out_.col0 = job % push.across * BN;
    job /= push.across;
    out_.row0 = job % push.down * BM;
    job /= push.down;
    out_.part = job % push.parts;
    job /= push.parts;
    out_.group = job % push.groups;
    out_.phase = job / push.groups;
    return out_;
}

// The product that a job is of: rows, columns, and where its part of the depth begins. That ends before `end`.
struct Product {
    uint m, n, from;
};
uint end;
