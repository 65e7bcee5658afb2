//! Constants of the contract that no `.proto` can express: names of environment variables and of
//! metadata, versions, sizes.

/// Lowest wire version of the plugin channel that this code speaks.
pub const WIRE_VERSION_MIN: u32 = 1;
/// Highest wire version of the plugin channel that this code speaks.
pub const WIRE_VERSION_MAX: u32 = 1;

/// Feature of `Hello`: the plugin answers `Ping`.
pub const FEATURE_HEARTBEAT: &str = "heartbeat";

/// Feature of `Hello`: the plugin takes a changed configuration without a restart.
pub const FEATURE_LIVE_CONFIG: &str = "live_config";

/// `google.rpc.ErrorInfo.domain` of every error of the core.
pub const ERROR_DOMAIN: &str = "coreruntime";

/// Environment of a plugin.
pub mod env {
    /// Where the core is: `unix:/path` or `host:port`.
    pub const ADDR: &str = "CORE_ADDR";
    /// The credential, as text.
    pub const TOKEN: &str = "CORE_TOKEN";
    /// A file that holds the credential; white space around it is ignored.
    pub const TOKEN_FILE: &str = "CORE_TOKEN_FILE";
    /// A join string (`Access.Invite`): used once, when [`CREDENTIALS_DIR`] holds no certificate.
    pub const JOIN: &str = "CORE_JOIN";
    /// A directory of certificate, key and CA, as `corectl join` makes it. The plugin renews what is in it.
    pub const CREDENTIALS_DIR: &str = "CORE_CREDENTIALS_DIR";
    /// The CA's certificate, PEM. With it, and only with it, the connection is TLS.
    pub const CA_FILE: &str = "CORE_CA_FILE";
    /// The plugin's certificate, PEM; with [`KEY_FILE`].
    pub const CERT_FILE: &str = "CORE_CERT_FILE";
    /// Its private key, PEM.
    pub const KEY_FILE: &str = "CORE_KEY_FILE";
    /// The plugin's name.
    pub const PLUGIN: &str = "CORE_PLUGIN";
    /// Set for child processes of the core, to the core's instance cookie: 32 hex digits. A child
    /// ends when its standard input does.
    pub const COOKIE: &str = "CORE_COOKIE";
}

/// Names of gRPC metadata, all lower case.
pub mod metadata {
    /// Request: `Bearer <token>`.
    pub const AUTHORIZATION: &str = "authorization";
    /// Request: the run that a plugin speaks for, from `Welcome.run`.
    pub const RUN: &str = "core-run";
    /// Request: what the caller was handling: `call/<call_id>` or `event/<epoch>/<seq>`.
    pub const PARENT: &str = "core-parent";
    /// Request: W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// Trailer: the reason of an error.
    pub const REASON: &str = "core-reason";
    /// Trailer: `not_applied` or `unknown`.
    pub const OUTCOME: &str = "core-outcome";
    /// Trailer: milliseconds to wait before another try.
    pub const RETRY_MS: &str = "core-retry-ms";
    /// Trailer: what of the error was too long for trailers: `message`, `details` or
    /// `message,details`.
    pub const CUT: &str = "core-cut";
    /// Trailer: `provider` when the error is the application's own.
    pub const ORIGIN: &str = "core-origin";
    /// Value of [`ORIGIN`].
    pub const ORIGIN_PROVIDER: &str = "provider";
}

/// Content type that an empty `content_type` means.
pub const JSON: &str = "application/json";

/// Largest gRPC message, either way, in bytes: 4 MiB (`docs/reference/limits.md`).
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// SDKs send a request over the channel up to this size of its message, in bytes, and as a unary
/// RPC above it, so that nothing large sits on the channel.
pub const MAX_FRAME_REQUEST_BYTES: usize = 32 << 10;

/// HTTP/2 flow control that both sides use.
///
/// The window of a stream is what may be on its way at once. Batches of published events have up to
/// 32 KiB: with a window of two of them the core wakes everybody for little at a time, with eight it
/// does not (64 subscribers with a topic each: 0.6 and 1.0 million deliveries a second).
///
/// The window of a connection is larger, so that a stream that is not read does not stop the others,
/// and because h2 charges each unread DATA frame below 256 bytes with what it lacks, against half of
/// that window (h2 0.4.20). So a reader that pauses keeps its connection as long as unread frames have
/// 16 bytes or more: (256 - 16) * 256 KiB / 16 is less than 4 MiB. With windows of 1 MiB each it is
/// lost after about 2,500 unread frames of 45 bytes.
pub mod http2 {
    /// Receive window of one stream, in bytes.
    pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;
    /// Receive window of one connection, in bytes.
    pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
    /// Largest DATA frame accepted, in bytes.
    pub const MAX_FRAME_BYTES: u32 = 64 << 10;
}
