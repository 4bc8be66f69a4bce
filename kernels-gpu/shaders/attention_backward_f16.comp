#version 460
#extension GL_GOOGLE_include_directive : require
// Gradients of attention in f16.
#include "inc/f16.glsl"
#include "inc/attention_slopes.glsl"
