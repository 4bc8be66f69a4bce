#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_bfloat16 : require
// Products in bf16.
#define NUMBER bfloat16_t
#define B_STORED 1u
#include "inc/gemm_matrices.glsl"
