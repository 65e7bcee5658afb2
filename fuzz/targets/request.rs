//! Texts that come with requests: topics, patterns, causes, timeouts, names.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| core_server::fuzzing::request(bytes));
