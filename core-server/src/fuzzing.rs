//! Doors for the targets in `fuzz/`: from bytes to what the core makes of them. Whatever the bytes are,
//! nothing here may panic.

use crate::types::{Cause, Pattern, PluginName, ServiceName, Topic};

/// A frame of the plugin channel.
pub fn channel_frame(bytes: &[u8]) {
    crate::grpc::fuzz_channel_frame(bytes);
}

/// The meter of HTTP/2 frames.
pub fn http2_frames(bytes: &[u8]) {
    crate::transport::fuzz_frames(bytes);
}

/// The texts of requests.
///
/// # Panics
/// When a topic is not matched by itself as a pattern.
pub fn request(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    crate::grpc::fuzz_metadata(text);
    let names = [
        ServiceName::parse(text).is_ok(),
        PluginName::parse(text).is_ok(),
        text.parse::<Cause>().is_ok(),
    ];
    if let (Ok(topic), Ok(pattern)) = (Topic::parse(text), Pattern::parse(text)) {
        assert!(pattern.matches(topic.as_str()), "{text:?} {names:?}");
    }
}
