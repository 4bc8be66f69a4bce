// Cooperative matrices of bf16.
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_bfloat16 : require
#define NUMBER bfloat16_t

// To the nearest, ties to even; NaN stays NaN.
uint nearest(float x) {
    const uint bits = floatBitsToUint(x);
    return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

uint narrow(float x, float y) {
    return nearest(x) | nearest(y) << 16;
}
