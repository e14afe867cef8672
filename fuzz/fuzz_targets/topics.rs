#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dunlin_fuzz::bounded(
    256 << 10,
    data,
    dunlin_broker::fuzzing::topics
));
