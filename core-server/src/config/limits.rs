//! Every bound of the core, with its unit and what happens at it. `docs/reference/limits.md` shows the
//! same table, and a test keeps the two in step.

use std::time::Duration;

use super::shape::{Field, Shape};
use super::tree::{Data, View};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A bound in force, for `Introspection`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name in `[limits]`; of a fixed one only a name.
    pub name: &'static str,
    /// How much.
    pub value: u64,
    /// Of what: "bytes", "calls", "milliseconds".
    pub unit: &'static str,
    /// What happens at the bound.
    pub at_limit: &'static str,
}

/// How each kind of bound is written, read and counted.
macro_rules! kind {
    (type bytes) => {
        usize
    };
    (type time) => {
        Duration
    };
    (type $unit:ident) => {
        usize
    };
    (shape bytes $low:expr, $high:expr) => {
        Shape::Size($low as u64..=$high as u64)
    };
    (shape time $low:expr, $high:expr) => {
        Shape::Time($low..=$high)
    };
    (shape $unit:ident $low:expr, $high:expr) => {
        Shape::Integer($low as u64..=$high as u64)
    };
    (data bytes $value:expr) => {
        Data::Size($value as u64)
    };
    (data time $value:expr) => {
        Data::Time($value)
    };
    (data $unit:ident $value:expr) => {
        Data::Integer($value as i64)
    };
    (read time $view:expr, $key:expr) => {
        $view.time($key)
    };
    (read $unit:ident $view:expr, $key:expr) => {
        $view.number($key)
    };
    (value time $value:expr) => {
        u64::try_from($value.as_millis()).unwrap_or(u64::MAX)
    };
    (value $unit:ident $value:expr) => {
        $value as u64
    };
    (unit time) => {
        "milliseconds"
    };
    (unit $unit:ident) => {
        stringify!($unit)
    };
}

macro_rules! limits {
    ($(
        #[doc = $about:literal]
        $name:ident: $unit:ident = $default:expr, within $low:expr, $high:expr, at $at_limit:literal;
    )+) => {
        /// The bounds that can be configured; the defaults are the contract's.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $(#[doc = $about] pub $name: kind!(type $unit),)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        /// `[limits]`.
        pub(super) const FIELDS: &[Field] = &[$(
            Field::new(
                stringify!($name),
                kind!(shape $unit $low, $high),
                $about,
            )
            .preset(|| kind!(data $unit $default)),
        )+];

        impl Limits {
            /// From a checked `[limits]`.
            pub(super) fn read(section: View<'_>) -> Self {
                let default = Self::default();
                Self {
                    $($name: kind!(read $unit section, stringify!($name)).unwrap_or(default.$name),)+
                }
            }

            /// Every bound in force, fixed ones too, in order of name.
            #[must_use]
            pub fn describe(&self) -> Vec<Limit> {
                let mut list = vec![$(
                    Limit {
                        name: stringify!($name),
                        value: kind!(value $unit self.$name),
                        unit: kind!(unit $unit),
                        at_limit: $at_limit,
                    },
                )+];
                list.extend_from_slice(FIXED);
                list.sort_by_key(|limit| limit.name);
                list
            }
        }
    };
}

limits! {
    /// Largest gRPC message, either way.
    message_bytes: bytes = core_proto::contract::MAX_MESSAGE_BYTES, within 2 * MIB, core_proto::contract::MAX_MESSAGE_BYTES,
        at "OUT_OF_RANGE; on a channel it ends the channel, so SDKs check before sending";
    /// Largest event data, call payload and result, each.
    payload_bytes: bytes = 256 * KIB, within KIB, MIB,
        at "INVALID_ARGUMENT TOO_LARGE";
    /// Concurrent HTTP/2 streams of one connection.
    streams_per_connection: streams = 1_024, within 16, 65_536,
        at "the client's HTTP/2 stack queues; an abuser's connection ends";
    /// Open connections.
    connections: connections = 1_024, within 2, 65_536,
        at "new ones are refused";
    /// Of those, the ones on which no request has carried a valid credential yet.
    connections_unidentified: connections = 64, within 1, 65_536,
        at "the oldest of them is closed";
    /// Time for the TLS handshake of a new connection.
    handshake_timeout: time = seconds(5), within millis(100), seconds(60),
        at "the connection is closed";
    /// Time for the HTTP/2 preface of a new connection.
    preface_timeout: time = seconds(5), within millis(100), seconds(60),
        at "the connection is closed";
    /// Time for the `Hello` of a new channel.
    hello_timeout: time = seconds(10), within millis(100), seconds(300),
        at "DEADLINE_EXCEEDED HELLO_TIMEOUT: the channel is closed";
    /// Deadline of a call that names none.
    call_timeout: time = seconds(10), within millis(1), seconds(86_400),
        at "DEADLINE_EXCEEDED DEADLINE";
    /// Longest deadline of a call; a longer one is cut.
    call_timeout_max: time = seconds(300), within millis(1), seconds(86_400),
        at "DEADLINE_EXCEEDED DEADLINE";
    /// Nesting depth of calls.
    call_depth: calls = 16, within 1, 256,
        at "FAILED_PRECONDITION CALL_DEPTH";
    /// Calls in flight at one provider that does not say otherwise.
    calls_per_provider: calls = 256, within 1, 65_536,
        at "further calls wait";
    /// Calls that wait for a place at one provider.
    calls_waiting: calls = 1_024, within 0, 1_048_576,
        at "RESOURCE_EXHAUSTED PROVIDER_BUSY";
    /// A cancelled or expired call keeps its place so long, unless the provider acknowledges earlier.
    cancelled_call_hold: time = seconds(5), within Duration::ZERO, seconds(300),
        at "the place is freed";
    /// Callers wait so long for a provider whose channel is lost and may come back.
    suspended_wait: time = seconds(3), within Duration::ZERO, seconds(300),
        at "UNAVAILABLE NO_PROVIDER";
    /// What may wait for a plugin to read its channel.
    outbox_bytes: bytes = 8 * MIB, within 4 * MIB, 1_024 * MIB,
        at "new calls to that plugin are refused";
    /// A channel with something to send makes no progress for so long.
    channel_stall: time = seconds(15), within seconds(1), seconds(3_600),
        at "RESOURCE_EXHAUSTED CHANNEL_STALLED: the channel ends";
    /// Time between pings to a plugin that answers them.
    heartbeat_interval: time = seconds(5), within millis(100), seconds(3_600),
        at "two missed: the plugin is degraded";
    /// A plugin that misses pings sends not one byte over any connection for so long.
    silent_after: time = seconds(15), within millis(300), seconds(3_600),
        at "its run ends (silent) and it is restarted";
    /// A plugin whose connections live answers no ping for so long.
    unresponsive_after: time = seconds(60), within millis(300), seconds(86_400),
        at "its run ends (unresponsive) and it is restarted";
    /// Plugins at once on their way from spawn to ready.
    plugins_starting: plugins = 4, within 1, 1_024,
        at "further ones wait (reason start_slot)";
    /// Starts of plugins in a row, of all together.
    start_burst: starts = 64, within 1, 65_536,
        at "further ones wait (reason start_slot) for starts_per_second";
    /// Starts of plugins that are refilled each second.
    starts_per_second: starts = 8, within 1, 1_024,
        at "see start_burst";
    /// Services of one plugin.
    services_per_plugin: services = 1_000, within 1, 100_000,
        at "RESOURCE_EXHAUSTED TOO_MANY_SERVICES";
    /// Watches of one plugin, of the state, the storage and services together.
    watches_per_plugin: watches = 64, within 1, 65_536,
        at "RESOURCE_EXHAUSTED TOO_MANY_SUBSCRIPTIONS";
    /// Events that the log keeps for subscribers who are behind.
    event_log_events: events = 65_536, within 16, 16_777_216,
        at "the oldest are forgotten; who had not read them gets a Gap";
    /// Bytes of events that the log keeps.
    event_log_bytes: bytes = 64 * MIB, within 4 * MIB, 16_384 * MIB,
        at "the oldest are forgotten; who had not read them gets a Gap";
    /// Events that a subscriber may be behind before it counts as slow.
    slow_subscriber_events: events = 4_096, within 1, 16_777_216,
        at "advisory $core.slow_subscriber; publishers never wait";
    /// Bytes of events that a subscriber may be behind before it counts as slow.
    slow_subscriber_bytes: bytes = 4 * MIB, within KIB, 16_384 * MIB,
        at "advisory $core.slow_subscriber; publishers never wait";
    /// Events of one batch.
    publish_batch_events: events = 1_000, within 1, 10_000,
        at "INVALID_ARGUMENT BATCH_TOO_LARGE";
    /// Bytes of one batch.
    publish_batch_bytes: bytes = MIB, within KIB, MIB,
        at "INVALID_ARGUMENT BATCH_TOO_LARGE";
    /// Keys of the state.
    state_keys: keys = 100_000, within 1, 10_000_000,
        at "RESOURCE_EXHAUSTED STATE_FULL";
    /// Largest value of the state.
    state_value_bytes: bytes = 64 * KIB, within KIB, MIB,
        at "INVALID_ARGUMENT TOO_LARGE";
    /// All values of the state together.
    state_bytes: bytes = 256 * MIB, within MIB, 65_536 * MIB,
        at "RESOURCE_EXHAUSTED STATE_FULL";
    /// Keys of the state below one first name, as those of a plugin are; the core's own are not bounded.
    state_owner_keys: keys = 25_000, within 1, 10_000_000,
        at "RESOURCE_EXHAUSTED STATE_FULL";
    /// All values of the state below one first name.
    state_owner_bytes: bytes = 64 * MIB, within MIB, 65_536 * MIB,
        at "RESOURCE_EXHAUSTED STATE_FULL";
    /// A key of the state is kept so long after the end of the run that it belongs to.
    state_stale_ttl: time = seconds(600), within millis(1), seconds(86_400),
        at "the key is removed";
    /// Largest value of the storage.
    storage_value_bytes: bytes = 256 * KIB, within KIB, MIB,
        at "INVALID_ARGUMENT TOO_LARGE";
    /// Writes that wait for the storage.
    storage_queue_writes: writes = 4_096, within 1, 1_048_576,
        at "RESOURCE_EXHAUSTED QUEUE_FULL";
    /// Bytes of writes that wait for the storage.
    storage_queue_bytes: bytes = 16 * MIB, within 2 * MIB, 1_024 * MIB,
        at "RESOURCE_EXHAUSTED QUEUE_FULL";
    /// Reads of the storage that run at once.
    storage_readers: readers = 4, within 1, 64,
        at "further reads wait";
    /// Memory for entries of the storage read or written lately; 0: none.
    storage_cache_bytes: bytes = 16 * MIB, within 0, 16_384 * MIB,
        at "entries that were not used for long leave";
    /// Keys of a namespace of the storage, unless its quota says otherwise.
    storage_namespace_keys: keys = 100_000, within 1, 1_000_000_000,
        at "RESOURCE_EXHAUSTED QUOTA_KEYS; deletes go on";
    /// A namespace of the storage, unless its quota says otherwise: of each entry its namespace, key and value, and 64 bytes.
    storage_namespace_bytes: bytes = 64 * MIB, within KIB, 65_536 * MIB,
        at "RESOURCE_EXHAUSTED QUOTA_BYTES; deletes go on";
    /// All namespaces of the storage together, counted as in storage_namespace_bytes.
    storage_bytes: bytes = 2_048 * MIB, within MIB, 1_048_576 * MIB,
        at "RESOURCE_EXHAUSTED QUOTA_BYTES; deletes go on";
}

/// Bounds of a connection that no honest peer comes near.
pub mod http2 {
    /// Metadata of one request. Up to four times as much the request is refused, beyond that the
    /// connection ends.
    pub const HEADER_LIST_BYTES: u32 = 16 << 10;
    /// Metadata of one request as it travels, compressed or not: h2 goes away at about 112 KiB of frames
    /// of the usual size, and says so; this is for larger frames.
    pub const HEADER_BLOCK_BYTES: usize = 128 << 10;
    /// Streams that were reset before the core had looked at them (CVE-2023-44487). h2's own default;
    /// more than a few of them at the same moment need a batch of requests and resets in one packet.
    pub const PENDING_RESETS: usize = 20;
    /// Streams that the core had to reset for what was wrong with their frames, and streams beyond the
    /// limit that it refused, over the whole life of a connection (CVE-2025-8671). hyper's own default.
    pub const LOCAL_RESETS: usize = 1_024;
    /// What may wait in HTTP/2 to be sent on one stream to a peer whose window is larger: two batches of
    /// events. Peers with the windows of the contract never see it.
    pub const SEND_BUFFER_BYTES: usize = 128 << 10;
    /// Frames that carry nothing (pings, settings, resets, window updates, empty data, …) in a row.
    pub const EMPTY_FRAMES_AT_ONCE: u32 = 20_000;
    /// And each second, beyond those that answer what was sent to the peer. About 1 % of a core.
    pub const EMPTY_FRAMES_PER_SECOND: u32 = 10_000;
    /// Requests without a credential at once on a connection whose peer is not known.
    pub const ANONYMOUS_REQUESTS: usize = 16;
}

/// Bounds of the contract itself, on which SDKs and stored data rely; and bounds against abuse, which
/// only who abuses would want to change.
const FIXED: &[Limit] = &[
    Limit {
        name: "anonymous_requests",
        value: http2::ANONYMOUS_REQUESTS as u64,
        unit: "requests",
        at_limit: "RESOURCE_EXHAUSTED CALLER_BUSY; fixed",
    },
    Limit {
        name: "dotted_name_bytes",
        value: crate::types::MAX_BYTES as u64,
        unit: "bytes",
        at_limit: "INVALID_ARGUMENT naming the rule broken; fixed",
    },
    Limit {
        name: "dotted_name_tokens",
        value: crate::types::MAX_TOKENS as u64,
        unit: "tokens",
        at_limit: "INVALID_ARGUMENT naming the rule broken; fixed",
    },
    Limit {
        name: "http2_empty_frames",
        value: http2::EMPTY_FRAMES_AT_ONCE as u64,
        unit: "frames",
        at_limit: "the connection is closed; fixed",
    },
    Limit {
        name: "http2_header_list_bytes",
        value: http2::HEADER_LIST_BYTES as u64,
        unit: "bytes",
        at_limit: "the request is refused (HTTP status 431), far beyond it the connection ends; fixed",
    },
    Limit {
        name: "http2_local_resets",
        value: http2::LOCAL_RESETS as u64,
        unit: "streams",
        at_limit: "the connection ends with ENHANCE_YOUR_CALM; fixed",
    },
    Limit {
        name: "http2_pending_resets",
        value: http2::PENDING_RESETS as u64,
        unit: "streams",
        at_limit: "the connection ends with ENHANCE_YOUR_CALM; fixed",
    },
    Limit {
        name: "http2_send_buffer_bytes",
        value: http2::SEND_BUFFER_BYTES as u64,
        unit: "bytes",
        at_limit: "what follows waits in its queue; fixed",
    },
    Limit {
        name: "plugin_name_bytes",
        value: crate::types::PluginName::MAX_BYTES as u64,
        unit: "bytes",
        at_limit: "the configuration is refused; fixed",
    },
];

impl Limits {
    /// Bounds that contradict each other: the two keys, and what is wrong.
    pub(super) fn contradictions(&self) -> Vec<(&'static str, &'static str, &'static str)> {
        let mut found = Vec::new();
        if self.call_timeout > self.call_timeout_max {
            found.push((
                "call_timeout",
                "call_timeout_max",
                "limits.call_timeout is longer than limits.call_timeout_max",
            ));
        }
        if self.slow_subscriber_events > self.event_log_events {
            found.push((
                "slow_subscriber_events",
                "event_log_events",
                "limits.slow_subscriber_events is more than limits.event_log_events: \
                 nobody would ever count as slow",
            ));
        }
        if self.slow_subscriber_bytes > self.event_log_bytes {
            found.push((
                "slow_subscriber_bytes",
                "event_log_bytes",
                "limits.slow_subscriber_bytes is more than limits.event_log_bytes: \
                 nobody would ever count as slow",
            ));
        }
        if self.publish_batch_bytes < self.payload_bytes {
            found.push((
                "publish_batch_bytes",
                "payload_bytes",
                "limits.publish_batch_bytes is less than limits.payload_bytes: \
                 a batch must hold at least one event",
            ));
        }
        found
    }
}
