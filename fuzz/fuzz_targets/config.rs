//! Configurations of model folders, and the networks that they describe.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergrad::pipeline::Pipeline;

/// A safetensors file of one number, so that what is missing is found missing.
const WEIGHTS: &[u8] = b"\x38\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}    \0\0\0\0";

fuzz_target!(init: fuzz::start(), |data: &[u8]| {
    fuzz::file("model.safetensors", WEIGHTS);
    fuzz::file("config.json", data);
    fuzz::bounded(fuzz::of_file(data), || drop(Pipeline::open(fuzz::folder(), true)));
});
