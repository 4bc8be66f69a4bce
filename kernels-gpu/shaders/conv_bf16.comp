#version 460
#extension GL_GOOGLE_include_directive : require
// Convolutions in bf16.
#include "inc/bf16.glsl"
#include "inc/conv_matrices.glsl"
