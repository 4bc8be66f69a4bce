// The bits of element `at`, an f32, of what is stored as `kind`: 0 f32, 1 bf16, 2 f16, two of the latter to a word of the array `words`.
#define STORED(words, kind, at) widened(kind, words[(kind) == 0u ? (at) : (at) / 2u], at)

uint widened(uint kind, uint word, uint at) {
    uint half_ = word >> (16u * (at % 2u)) & 0xffffu;
    return kind == 0u ? word : kind == 1u ? half_ << 16 : floatBitsToUint(unpackHalf2x16(half_).x);
}

// Four of what is stored in half.
vec4 widened4(uint kind, uvec2 w) {
    return uintBitsToFloat(uvec4(widened(kind, w.x, 0u), widened(kind, w.x, 1u), widened(kind, w.y, 0u), widened(kind, w.y, 1u)));
}
