//! What a failed RPC tells, for assertions.

use core_proto::contract::metadata;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The facts of a [`Status`], read from the rich details and checked against the plain trailers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The gRPC code.
    pub code: Code,
    /// `ErrorInfo.reason`; empty when there is none.
    pub reason: String,
    /// "not_applied", "unknown", or empty for an application's error.
    pub outcome: String,
    /// `RetryInfo` is there.
    pub retry: bool,
    /// It is the provider's own error.
    pub from_provider: bool,
    /// The sentence.
    pub message: String,
    /// `ErrorInfo.metadata`, in order of name.
    pub facts: Vec<(String, String)>,
}

impl Told {
    /// Reads a status.
    ///
    /// # Panics
    /// When the plain trailers say something else than the rich details.
    #[must_use]
    #[track_caller]
    pub fn by(status: &Status) -> Self {
        let trailer = |name| {
            let value = status.metadata().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map(|info| info.reason.clone()).unwrap_or_default();
        let facts = info.map(|info| info.metadata.clone()).unwrap_or_default();
        let mut facts: Vec<_> = facts.into_iter().collect();
        facts.sort();
        let outcome = facts.iter().find(|(name, _)| name == "outcome");
        let outcome = outcome.map(|(_, value)| value.clone()).unwrap_or_default();
        let from_provider = trailer(metadata::ORIGIN) == metadata::ORIGIN_PROVIDER;
        if !from_provider && !reason.is_empty() {
            assert_eq!(
                trailer(metadata::REASON),
                reason,
                "the plain trailer: {status:?}"
            );
            assert_eq!(
                trailer(metadata::OUTCOME),
                outcome,
                "the plain trailer: {status:?}"
            );
        }
        let retry = details.retry_info().is_some();
        if !from_provider {
            assert_eq!(!trailer(metadata::RETRY_MS).is_empty(), retry, "{status:?}");
        }
        Self {
            code: status.code(),
            reason,
            outcome,
            retry,
            from_provider,
            message: status.message().to_owned(),
            facts,
        }
    }

    /// One fact of the metadata; empty when it is not there.
    #[must_use]
    pub fn fact(&self, name: &str) -> &str {
        let fact = self.facts.iter().find(|(known, _)| known == name);
        fact.map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// Asserts code and reason.
    ///
    /// # Panics
    /// When they differ.
    #[track_caller]
    pub fn is(&self, code: Code, reason: &str) -> &Self {
        assert_eq!(
            (self.code, self.reason.as_str()),
            (code, reason),
            "{self:?}"
        );
        self
    }

    /// Asserts that the message says something.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn says(&self, part: &str) -> &Self {
        assert!(
            self.message.contains(part),
            "{part:?} is not in {:?}",
            self.message
        );
        self
    }
}
