#version 460
#extension GL_GOOGLE_include_directive : require
// Products in bf16.
#include "inc/bf16.glsl"
#include "inc/gemm_matrices.glsl"
