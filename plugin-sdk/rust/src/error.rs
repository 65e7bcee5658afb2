//! One error for everything a plugin meets and everything it answers.
//!
//! An [`Error`] carries what a program decides by (code, reason, outcome, origin, delay) and what a
//! person reads (message). It travels as a `google.rpc.Status` in channel frames and in
//! `grpc-status-details-bin` of unary RPCs, and arrives at a caller as its provider made it.
//!
//! Like `anyhow::Error` it does not implement [`std::error::Error`] itself, so that `?` works on every
//! standard error inside a handler. Such an error becomes an application error of code `UNKNOWN` whose
//! message is the whole chain: the plugin's author wrote no code for it, and its caller should still
//! read what happened. Use a constructor where the caller can act on the kind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use core_proto::contract::{self, metadata};
use core_proto::google::rpc;
use prost::Message as _;
use tonic::Status;

pub use tonic::Code;

/// What the SDK's functions return; `Result` alone is `Result<()>`.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
/// Reason of [`Error::restart_needed`]; it never travels.
pub(crate) const RESTART_NEEDED: &str = "RESTART_NEEDED";

/// Whether what was asked for happened in spite of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen; trying again is safe.
    NotApplied,
    /// It may or may not have happened.
    Unknown,
}

/// Whose error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process made it: a handler's answer, or the SDK's own (a lost channel, a bad argument).
    Local,
    /// The core: the request could not be routed, was not allowed, ran out of time.
    Core,
    /// The provider of the called service: its handler ran and said no.
    Provider,
}

/// An error with a code, a reason and a message. See the [module](self) for how it is made.
#[derive(Clone)]
pub struct Error {
    // Boxed: results of handlers stay small.
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    code: Code,
    reason: String,
    domain: String,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    outcome: Outcome,
    origin: Origin,
    /// Details of kinds that the SDK does not know, passed on verbatim.
    details: Vec<prost_types::Any>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(Code::$code, message)
        })*
    };
}

impl Error {
    /// An error of this code. A code of `Ok` becomes `Unknown`.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let code = if code == Code::Ok {
            Code::Unknown
        } else {
            code
        };
        Self {
            inner: Box::new(Inner {
                code,
                reason: String::new(),
                domain: String::new(),
                message: message.into(),
                metadata: BTreeMap::new(),
                retry_after: None,
                outcome: Outcome::NotApplied,
                origin: Origin::Local,
                details: Vec::new(),
            }),
        }
    }

    constructors! {
        /// The arguments are wrong whatever the state of the system.
        invalid_argument => InvalidArgument;
        /// The thing named does not exist.
        not_found => NotFound;
        /// The thing exists already.
        already_exists => AlreadyExists;
        /// This caller may not do that.
        permission_denied => PermissionDenied;
        /// The system is not in the state that this needs; the same request may work later.
        failed_precondition => FailedPrecondition;
        /// Lost a race, such as a compare-and-set; read again and decide again.
        aborted => Aborted;
        /// A position or page that does not exist.
        out_of_range => OutOfRange;
        /// A quota or a queue is full.
        resource_exhausted => ResourceExhausted;
        /// Cannot be reached now; worth another try.
        unavailable => Unavailable;
        /// Took too long.
        deadline_exceeded => DeadlineExceeded;
        /// The caller no longer wants it.
        cancelled => Cancelled;
        /// This service does not do that.
        unimplemented => Unimplemented;
        /// A defect of this plugin.
        internal => Internal;
        /// Anything else.
        unknown => Unknown;
    }

    /// Sets the reason: a stable UPPER_SNAKE word that callers may match on.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.inner.reason = reason.into();
        self
    }

    /// Adds a fact, by name.
    #[must_use]
    pub fn with_metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.inner.metadata.insert(name.into(), value.into());
        self
    }

    /// Says how long to wait before another try.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.inner.retry_after = Some(delay);
        self
    }

    /// Says whether it may have happened all the same.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.inner.outcome = outcome;
        self
    }

    /// The gRPC status code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.inner.code
    }

    /// The stable word, such as `NO_SUCH_SERVICE`; empty if there is none. The core's are listed in
    /// `error.proto`; the SDK itself adds `CHANNEL_LOST` (the channel broke; see [`Self::outcome`]).
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.inner.reason
    }

    /// For people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// A fact about the error: `metadata("current_revision")`.
    #[must_use]
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.inner.metadata.get(name).map(String::as_str)
    }

    /// How long to wait before another try, where waiting helps.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// Whether it may have happened all the same.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.inner.outcome
    }

    /// Whose error it is.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.inner.origin
    }

    /// The error as the wire carries it. `domain` is that of a reason set here: the plugin's name.
    pub(crate) fn to_status(&self, domain: &str) -> rpc::Status {
        let inner = &self.inner;
        let mut details = Vec::new();
        if !inner.reason.is_empty() || !inner.metadata.is_empty() {
            let mut facts: std::collections::BTreeMap<_, _> =
                inner.metadata.clone().into_iter().collect();
            if inner.outcome == Outcome::Unknown {
                facts.insert("outcome".to_owned(), "unknown".to_owned());
            }
            let domain = if inner.domain.is_empty() {
                domain
            } else {
                &inner.domain
            };
            details.push(any(
                ERROR_INFO,
                &rpc::ErrorInfo {
                    reason: inner.reason.clone(),
                    domain: domain.to_owned(),
                    metadata: facts,
                },
            ));
        }
        if let Some(delay) = inner.retry_after {
            details.push(any(
                RETRY_INFO,
                &rpc::RetryInfo {
                    retry_delay: prost_types::Duration::try_from(delay).ok(),
                },
            ));
        }
        details.extend(inner.details.iter().cloned());
        rpc::Status {
            code: inner.code as i32,
            message: inner.message.clone(),
            details,
        }
    }

    /// The error that a frame or a unary RPC brought.
    pub(crate) fn from_status(status: rpc::Status, origin: Origin) -> Self {
        let mut error = Self::new(Code::from_i32(status.code), status.message);
        error.inner.origin = origin;
        for detail in status.details {
            error.take_detail(detail);
        }
        error
    }

    /// The error of an RPC made with plain generated clients, of [`crate::client`] for example.
    #[must_use]
    pub fn from_grpc(status: &Status) -> Self {
        let trailer = |name: &str| {
            status
                .metadata()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let origin = match trailer(metadata::ORIGIN) {
            Some(metadata::ORIGIN_PROVIDER) => Origin::Provider,
            _ => Origin::Core,
        };
        let mut error = match rpc::Status::decode(status.details()) {
            Ok(body) if !status.details().is_empty() => Self::from_status(body, origin),
            _ => Self::new(status.code(), status.message()),
        };
        error.inner.origin = origin;
        if error.inner.reason.is_empty() {
            error.inner.reason = trailer(metadata::REASON).unwrap_or_default().to_owned();
        }
        if trailer(metadata::OUTCOME) == Some("unknown") {
            error.inner.outcome = Outcome::Unknown;
        }
        if error.inner.retry_after.is_none() {
            error.inner.retry_after = trailer(metadata::RETRY_MS)
                .and_then(|text| text.parse().ok())
                .map(Duration::from_millis);
        }
        if error.inner.reason.is_empty() && origin == Origin::Core {
            // No core wrote this: the connection failed underneath.
            error.inner.origin = Origin::Local;
            error.inner.outcome = Outcome::Unknown;
            if matches!(status.code(), Code::Unavailable | Code::Unknown) {
                error.inner.reason = "CHANNEL_LOST".to_owned();
            }
        }
        error
    }

    fn take_detail(&mut self, detail: prost_types::Any) {
        let inner = &mut self.inner;
        if detail.type_url == ERROR_INFO
            && let Ok(info) = rpc::ErrorInfo::decode(detail.value.as_slice())
        {
            inner.reason = info.reason;
            inner.domain = info.domain;
            inner.metadata = info.metadata.into_iter().collect();
            if let Some(outcome) = inner.metadata.get("outcome") {
                inner.outcome = match outcome.as_str() {
                    "unknown" => Outcome::Unknown,
                    _ => Outcome::NotApplied,
                };
            }
        } else if detail.type_url == RETRY_INFO
            && let Ok(info) = rpc::RetryInfo::decode(detail.value.as_slice())
        {
            inner.retry_after = info
                .retry_delay
                .and_then(|delay| Duration::try_from(delay).ok());
        } else {
            inner.details.push(detail);
        }
    }

    /// The same error as its caller sees it.
    pub(crate) fn into_provider(mut self) -> Self {
        self.inner.origin = Origin::Provider;
        self
    }

    /// True for the core's own reason of this name, also as seen through the SDK.
    pub(crate) fn is(&self, reason: &str) -> bool {
        self.inner.reason == reason
            && (self.inner.domain.is_empty() || self.inner.domain == contract::ERROR_DOMAIN)
    }

    /// The channel broke; `outcome` says whether the request may have been carried out.
    pub(crate) fn channel_lost(outcome: Outcome) -> Self {
        let message = match outcome {
            Outcome::NotApplied => "no channel to the core; nothing was sent",
            Outcome::Unknown => "the channel to the core broke before the answer came",
        };
        Self::unavailable(message)
            .with_reason("CHANNEL_LOST")
            .with_outcome(outcome)
    }

    /// For `on_config`: the plugin cannot take this configuration while it runs; the core restarts it.
    pub fn restart_needed(message: impl Into<String>) -> Self {
        Self::failed_precondition(message).with_reason(RESTART_NEEDED)
    }

    /// The run of this `Ctx` is over.
    pub(crate) fn run_ended() -> Self {
        Self::unavailable("the run that this request belongs to has ended").with_reason("RUN_ENDED")
    }
}

fn any(type_url: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

/// The upper-case name of a code, as in the documentation of gRPC.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        write!(formatter, "{} ({}", inner.message, code_name(inner.code))?;
        if !inner.reason.is_empty() {
            write!(formatter, " {}", inner.reason)?;
        }
        formatter.write_str(")")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        formatter
            .debug_struct("Error")
            .field("code", &inner.code)
            .field("reason", &inner.reason)
            .field("message", &inner.message)
            .field("metadata", &inner.metadata)
            .field("retry_after", &inner.retry_after)
            .field("outcome", &inner.outcome)
            .field("origin", &inner.origin)
            .finish()
    }
}

/// Any standard error: code `UNKNOWN`, the whole chain as its message.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::unknown(message)
    }
}

impl From<Error> for Box<dyn std::error::Error + Send + Sync + 'static> {
    fn from(error: Error) -> Self {
        #[derive(Debug)]
        struct Standard(Error);
        impl fmt::Display for Standard {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
        impl std::error::Error for Standard {}
        Box::new(Standard(error))
    }
}

impl From<Error> for Box<dyn std::error::Error + 'static> {
    fn from(error: Error) -> Self {
        Box::<dyn std::error::Error + Send + Sync>::from(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        let error = Error::not_found("no lamp \"x\"")
            .with_reason("NO_SUCH_LAMP")
            .with_metadata("id", "x")
            .with_retry_after(Duration::from_millis(1500))
            .with_outcome(Outcome::Unknown);
        let status = error.to_status("lamp");
        let back = Error::from_status(status, Origin::Provider);
        assert_eq!(back.code(), Code::NotFound);
        assert_eq!(back.reason(), "NO_SUCH_LAMP");
        assert_eq!(back.metadata("id"), Some("x"));
        assert_eq!(back.retry_after(), Some(Duration::from_millis(1500)));
        assert_eq!(back.outcome(), Outcome::Unknown);
        assert_eq!(back.origin(), Origin::Provider);
        // Passed on by another plugin it keeps its first domain.
        let info = back.to_status("other").details.remove(0);
        let info = rpc::ErrorInfo::decode(info.value.as_slice()).expect("an ErrorInfo");
        assert_eq!(info.domain, "lamp");
    }

    #[test]
    fn a_question_mark_keeps_the_whole_chain() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot switch")]
        struct Outer(#[source] std::num::ParseIntError);
        fn handler() -> Result<u8> {
            "x".parse::<u8>().map_err(Outer)?;
            Ok(1)
        }
        let error = handler().expect_err("x is no number");
        assert_eq!(error.code(), Code::Unknown);
        assert_eq!(
            error.message(),
            "cannot switch: invalid digit found in string"
        );
    }

    #[test]
    fn plain_trailers_are_enough() {
        let mut status = Status::unavailable("not wanted");
        status
            .metadata_mut()
            .insert("core-reason", "NOT_WANTED".parse().expect("ascii"));
        status
            .metadata_mut()
            .insert("core-retry-ms", "250".parse().expect("ascii"));
        let error = Error::from_grpc(&status);
        assert!(error.is("NOT_WANTED"));
        assert_eq!(error.origin(), Origin::Core);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_broken_connection_is_no_error_of_the_core() {
        let error = Error::from_grpc(&Status::unavailable("transport"));
        assert_eq!(error.origin(), Origin::Local);
        assert_eq!(error.outcome(), Outcome::Unknown);
    }
}
