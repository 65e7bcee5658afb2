//! The meter of HTTP/2 frames: however the bytes are cut, it says the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| core_server::fuzzing::http2_frames(bytes));
