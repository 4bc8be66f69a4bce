#![no_main]

libfuzzer_sys::fuzz_target!(init: targets::quiet(), |data: &[u8]| targets::end_if_wrong(targets::torch_pickle, data));
