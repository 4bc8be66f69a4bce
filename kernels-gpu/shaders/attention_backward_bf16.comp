#version 460
#extension GL_GOOGLE_include_directive : require
// Gradients of attention in bf16.
#include "inc/bf16.glsl"
#include "inc/attention_slopes.glsl"
