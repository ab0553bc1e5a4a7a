//! `resp` of `tests/fuzz/targets.rs`, driven by libFuzzer.
#![no_main]
#![allow(dead_code)]

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::resp(input));
