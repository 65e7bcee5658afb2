//! What a plugin sends on its channel: decoded, and made into what the core works with.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| core_server::fuzzing::channel_frame(bytes));
