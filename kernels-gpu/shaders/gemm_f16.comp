#version 460
#extension GL_GOOGLE_include_directive : require
// Products in f16.
#include "inc/f16.glsl"
#include "inc/gemm_matrices.glsl"
