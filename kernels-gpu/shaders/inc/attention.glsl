// What all kernels of attention have in common: rows of operands in any layout, contiguous results, and which key a query sees. A block of rows of an item (a
// head of one of the batch) goes over blocks of columns; rows are queries and columns keys, or the other way round.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint WIDTH = 64u;
// Rows of everything that is read and written are whole, aligned vectors: of four, or of eight where matrices read them.
layout(constant_id = 2) const bool VECTORS = false;
layout(constant_id = 3) const bool CAUSAL = false;
layout(constant_id = 4) const bool MASKED = false;
layout(constant_id = 5) const bool DROPOUT = false;

// What a row's operands and a column's are stored as.
layout(constant_id = 6) const uint A1_STORED = 0u;
layout(constant_id = 7) const uint A2_STORED = 0u;
layout(constant_id = 8) const uint B1_STORED = 0u;
layout(constant_id = 9) const uint B2_STORED = 0u;

// Each as words, and as vectors of f32 (or of eight in half) and of four in half.
#define OPERAND(number, NAME, name)                                         \
    layout(std430, binding = number) readonly buffer NAME { uint name[]; }; \
    layout(std430, binding = number) readonly buffer NAME##V { uvec4 name##v[]; }; \
    layout(std430, binding = number) readonly buffer NAME##H { uvec2 name##h[]; };
OPERAND(0, A1, a1)
OPERAND(1, A2, a2)
OPERAND(2, B1, b1)
OPERAND(3, B2, b2)
// Bytes [items / heads, keys], not 0 where a key may be seen.
layout(std430, binding = 5) readonly buffer Mask { uint mask[]; };
// Contiguous [items / heads, rows, heads, WIDTH].
layout(std430, binding = 6) writeonly buffer Y1 { float y1[]; };
layout(std430, binding = 6) writeonly buffer Y1V { vec4 y1v[]; };
layout(std430, binding = 7) writeonly buffer Y2 { float y2[]; };
layout(std430, binding = 7) writeonly buffer Y2V { vec4 y2v[]; };
// Where [items / heads, heads, rows, WIDTH] lie.
struct Strided { uint at; int outer, head, row, one; };
layout(push_constant) uniform Push {
    uint items, heads, queries, keys;
    float scale;
    uint key_low, key_high, least;
    float grown;
    uint y1_at, y2_at;
    Strided a1, a2, b1, b2;
} push;
#include "philox.glsl"
#include "stored.glsl"

const float LOG2_E = 1.44269504;

int begin(Strided s, uint item) {
    return int(s.at) + int(item / push.heads) * s.outer + int(item % push.heads) * s.head;
}

bool unmasked(uint item, uint key) {
    if (!MASKED) return true;
    const uint byte_ = item / push.heads * push.keys + key;
    return (mask[byte_ / 4u] >> (8u * (byte_ % 4u)) & 255u) != 0u;
}

// Where causal, query i sees keys up to i + LATEST.
#define LATEST (int(push.keys) - int(push.queries))

// What dropout makes of a weight of 1.
float dropped(uint item, uint query, uint key) {
    if (!DROPOUT) return 1.0;
    uint high, low, carry;
    umulExtended(item * push.queries + query, push.keys, high, low);
    low = uaddCarry(low, key, carry);
    return philox(uvec2(push.key_low, push.key_high), low, high + carry) >= push.least ? push.grown : 0.0;
}
