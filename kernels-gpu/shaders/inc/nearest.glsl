// The bits of an f32 as those of a half type: to the nearest, ties to even; NaN stays NaN. By integers, since how a device's own conversions
// round is its own.
uint nearest_bf16(uint bits) {
    return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

uint nearest_f16(uint bits) {
    const uint sign_ = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return sign_ | 0x7e00u | size >> 13 & 0x3ffu;
    // Half way from the largest number to the next, which is not there.
    if (size >= 0x477ff000u) return sign_ | 0x7c00u;
    // Normal: another bias of the exponent.
    if (size >= 0x38800000u) return sign_ | (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
    // Multiples of 2^-24; less than half of it is 0.
    if (size < 0x33000000u) return sign_;
    const uint fraction = size & 0x7fffffu | 0x800000u, by = 126u - (size >> 23);
    return sign_ | (fraction + (1u << by - 1u) - 1u + (fraction >> by & 1u)) >> by;
}
