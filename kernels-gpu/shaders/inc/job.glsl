// What a workgroup does of a convolution: a tile, of a part of the depth, of a group, of a phase. Tiles beside each other come first, so that
// workgroups that run together read the same rows of maps.
struct Job {
    uint col0, row0, part, group, phase;
};

Job job_of(uint job, uint across, uint down, uint parts, uint groups) {
    Job out_;
    out_.col0 = job % across * BN;
    job /= across;
    out_.row0 = job % down * BM;
    job /= down;
    out_.part = job % parts;
    job /= parts;
    out_.group = job % groups;
    out_.phase = job / groups;
    return out_;
}
