// Cooperative matrices of f16.
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#define NUMBER float16_t

uint narrow(float x, float y) {
    return packFloat2x16(f16vec2(x, y));
}
