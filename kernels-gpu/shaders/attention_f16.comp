#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_vote : require
// Attention in f16.
#include "inc/f16.glsl"
#include "inc/attention_means.glsl"
