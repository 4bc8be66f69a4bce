#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_vote : require
// Attention in bf16.
#include "inc/bf16.glsl"
#include "inc/attention_means.glsl"
