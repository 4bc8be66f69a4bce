// Cooperative matrices of bf16.
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_bfloat16 : require
#define NUMBER bfloat16_t
#include "nearest.glsl"

uint narrow(float x, float y) {
    return nearest_bf16(floatBitsToUint(x)) | nearest_bf16(floatBitsToUint(y)) << 16;
}
