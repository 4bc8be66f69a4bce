#version 460
#extension GL_GOOGLE_include_directive : require
// Convolutions in f16.
#include "inc/f16.glsl"
#include "inc/conv_matrices.glsl"
