#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dunlin_fuzz::bounded(
    64 << 10,
    data,
    dunlin_gateway::fuzzing::wrapping
));
