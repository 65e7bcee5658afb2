//! What every error of the core can say of itself, free of gRPC.
//!
//! Each module has its own `Error`; it implements [`Classify`]. Only `grpc/status.rs` turns that into
//! a status. An error on its way to a caller through several components is a [`Failure`].

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// The vocabulary of gRPC's codes: what the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Correct the request.
    InvalidArgument,
    /// It does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// Ask for a grant.
    PermissionDenied,
    /// Present a credential.
    Unauthenticated,
    /// A bound is reached; slow down.
    ResourceExhausted,
    /// Change the state of things first.
    FailedPrecondition,
    /// Read again, decide again.
    Aborted,
    /// The position asked for is gone.
    OutOfRange,
    /// There is no such method.
    Unimplemented,
    /// A defect of the core.
    Internal,
    /// Try again later.
    Unavailable,
    /// Data is damaged.
    DataLoss,
    /// Time ran out.
    DeadlineExceeded,
    /// The caller gave up.
    Cancelled,
}

/// Whether the thing asked for may have happened in spite of the error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen; trying again is safe.
    #[default]
    NotApplied,
    /// It may have happened.
    Unknown,
}

macro_rules! reasons {
    ($($variant:ident = $word:literal),+ $(,)?) => {
        /// The stable words of `error.proto`, each with its meaning and remedy there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "error.proto documents them, in one place")]
        pub enum Reason { $($variant),+ }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word as it travels.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

reasons! {
    BadCredential = "BAD_CREDENTIAL",
    NotAllowed = "NOT_ALLOWED",
    NotGranted = "NOT_GRANTED",
    NoRun = "NO_RUN",
    StaleRun = "STALE_RUN",
    RunEnded = "RUN_ENDED",
    ShuttingDown = "SHUTTING_DOWN",
    Internal = "INTERNAL",
    Deadline = "DEADLINE",
    Cancelled = "CANCELLED",
    BadField = "BAD_FIELD",
    TooLarge = "TOO_LARGE",
    UnknownMethod = "UNKNOWN_METHOD",
    BadMessage = "BAD_MESSAGE",
    WireVersion = "WIRE_VERSION",
    AlreadyConnected = "ALREADY_CONNECTED",
    NotWanted = "NOT_WANTED",
    Backoff = "BACKOFF",
    BadHello = "BAD_HELLO",
    HelloTimeout = "HELLO_TIMEOUT",
    ChannelStalled = "CHANNEL_STALLED",
    ChannelReplaced = "CHANNEL_REPLACED",
    BadTopic = "BAD_TOPIC",
    BadPattern = "BAD_PATTERN",
    BatchTooLarge = "BATCH_TOO_LARGE",
    FellBehind = "FELL_BEHIND",
    RateLimited = "RATE_LIMITED",
    TooManyConnections = "TOO_MANY_CONNECTIONS",
    TooManySubscriptions = "TOO_MANY_SUBSCRIPTIONS",
    NoSuchService = "NO_SUCH_SERVICE",
    NoProvider = "NO_PROVIDER",
    ProviderDegraded = "PROVIDER_DEGRADED",
    ProviderBusy = "PROVIDER_BUSY",
    CallerBusy = "CALLER_BUSY",
    ProviderLost = "PROVIDER_LOST",
    CallDepth = "CALL_DEPTH",
    Application = "APPLICATION",
    ServiceTaken = "SERVICE_TAKEN",
    BadServiceName = "BAD_SERVICE_NAME",
    TooManyServices = "TOO_MANY_SERVICES",
    BadStateKey = "BAD_STATE_KEY",
    StateFull = "STATE_FULL",
    RevisionMismatch = "REVISION_MISMATCH",
    BadKey = "BAD_KEY",
    BadNamespace = "BAD_NAMESPACE",
    NotJson = "NOT_JSON",
    DuplicateKey = "DUPLICATE_KEY",
    BadPageToken = "BAD_PAGE_TOKEN",
    QueueFull = "QUEUE_FULL",
    DiskLow = "DISK_LOW",
    Corrupt = "CORRUPT",
    StorageFailed = "STORAGE_FAILED",
    QuotaKeys = "QUOTA_KEYS",
    QuotaBytes = "QUOTA_BYTES",
    Compacted = "COMPACTED",
    Unsupported = "UNSUPPORTED",
    LogTooLong = "LOG_TOO_LONG",
    FileExists = "FILE_EXISTS",
    BadLine = "BAD_LINE",
    NoSuchPlugin = "NO_SUCH_PLUGIN",
    WrongState = "WRONG_STATE",
    DependencyCycle = "DEPENDENCY_CYCLE",
    Superseded = "SUPERSEDED",
    PluginFailed = "PLUGIN_FAILED",
    ConfigRefused = "CONFIG_REFUSED",
    NoLoader = "NO_LOADER",
    UpgradeRefused = "UPGRADE_REFUSED",
    UpgradeRolledBack = "UPGRADE_ROLLED_BACK",
    LogShared = "LOG_SHARED",
    NotKept = "NOT_KEPT",
    BadInvitation = "BAD_INVITATION",
    TooManyAttempts = "TOO_MANY_ATTEMPTS",
    NoTls = "NO_TLS",
    CredentialsFull = "CREDENTIALS_FULL",
    NoSuchCredential = "NO_SUCH_CREDENTIAL",
    GrantsFull = "GRANTS_FULL",
}

/// What an error says of itself beyond its text.
pub trait Classify: StdError {
    /// What the caller should do.
    fn kind(&self) -> ErrorKind;
    /// The stable word.
    fn reason(&self) -> Reason;
    /// The facts, by name; `outcome` is added where errors are converted.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// When trying again may help.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
    /// Whether it may have happened all the same.
    fn outcome(&self) -> Outcome {
        Outcome::NotApplied
    }
}

/// An error on its way to a caller. Cheap to clone: one event may end many calls.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The system's: could not be routed, not allowed, timed out.
    System(Arc<SystemFailure>),
    /// The application's: the provider's handler ran and said no.
    Application(Arc<ApplicationFailure>),
}

/// An error of the core, taken out of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemFailure {
    /// See [`Classify::kind`].
    pub kind: ErrorKind,
    /// See [`Classify::reason`].
    pub reason: Reason,
    /// The error's text, causes included.
    pub message: String,
    /// See [`Classify::metadata`].
    pub metadata: Vec<(&'static str, String)>,
    /// See [`Classify::retry_after`].
    pub retry_after: Option<Duration>,
    /// See [`Classify::outcome`].
    pub outcome: Outcome,
}

/// An error of a provider, passed on verbatim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplicationFailure {
    /// gRPC code, never 0.
    pub code: i32,
    /// The provider's text.
    pub message: String,
    /// The provider's `google.rpc.Status.details`: type URL and bytes of each.
    pub details: Vec<(String, Bytes)>,
}

impl Failure {
    /// The stable word, of an error of the core.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::System(failure) => Some(failure.reason),
            Self::Application(_) => None,
        }
    }
}

impl<E: Classify> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::System(Arc::new(SystemFailure {
            kind: error.kind(),
            reason: error.reason(),
            message: chain(&error),
            metadata: error.metadata(),
            retry_after: error.retry_after(),
            outcome: error.outcome(),
        }))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(failure) => formatter.write_str(&failure.message),
            Self::Application(failure) => formatter.write_str(&failure.message),
        }
    }
}

/// The whole chain of an error in one line: each layer's `Display` says only its own part.
#[must_use]
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The name in `known` that `name` was probably meant to be: `; did you mean "…"?`, or nothing.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    /// Comparing takes the product of both lengths, callers hold locks, and nobody mistypes more.
    const LONGEST: usize = 80;
    if name.len() > LONGEST {
        return String::new();
    }
    let nearest = known
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    nearest.map_or_else(String::new, |(_, candidate)| {
        format!("; did you mean \"{candidate}\"?")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[test]
    fn the_chain_prints_each_layer_once() {
        assert_eq!(chain(&Outer(Inner)), "outer: inner");
    }

    #[test]
    fn a_suggestion_is_near_or_absent() {
        let known = ["devices.turn_off", "geo.lookup"];
        assert_eq!(
            did_you_mean("devices.turn_of", known),
            "; did you mean \"devices.turn_off\"?"
        );
        assert_eq!(did_you_mean("zzz", known), "");
        let (long, longer) = ("x".repeat(81), "x".repeat(82));
        assert_eq!(did_you_mean(&long, [long.as_str(), &longer]), "");
    }
}
