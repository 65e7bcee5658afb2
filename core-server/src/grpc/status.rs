//! Errors to gRPC and back. The only place that maps a kind to a code.

use std::sync::Arc;

use core_proto::contract::{self, metadata};
use core_proto::google::rpc;
use prost::Message as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::fit::fit;
use crate::error::{ApplicationFailure, ErrorKind, Failure, Outcome, Reason, SystemFailure};

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// The gRPC code of a kind of error.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
    }
}

fn outcome(failure: &SystemFailure) -> &'static str {
    match failure.outcome {
        Outcome::NotApplied => "not_applied",
        Outcome::Unknown => "unknown",
    }
}

/// A failure as the body that travels in channel frames.
pub(super) fn body(failure: &Failure) -> rpc::Status {
    match failure {
        Failure::System(failure) => system_body(failure),
        Failure::Application(failure) => rpc::Status {
            code: failure.code,
            message: failure.message.clone(),
            details: failure
                .details
                .iter()
                .map(|(type_url, value)| prost_types::Any {
                    type_url: type_url.clone(),
                    value: value.to_vec(),
                })
                .collect(),
        },
    }
}

fn system_body(failure: &SystemFailure) -> rpc::Status {
    let mut facts: std::collections::BTreeMap<String, String> = failure
        .metadata
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    facts.insert("outcome".to_owned(), outcome(failure).to_owned());
    let info = rpc::ErrorInfo {
        reason: failure.reason.as_str().to_owned(),
        domain: contract::ERROR_DOMAIN.to_owned(),
        metadata: facts,
    };
    let mut details = vec![prost_types::Any {
        type_url: ERROR_INFO.to_owned(),
        value: info.encode_to_vec(),
    }];
    if let Some(delay) = failure.retry_after {
        let retry = rpc::RetryInfo {
            retry_delay: prost_types::Duration::try_from(delay).ok(),
        };
        details.push(prost_types::Any {
            type_url: RETRY_INFO.to_owned(),
            value: retry.encode_to_vec(),
        });
    }
    rpc::Status {
        code: code(failure.kind) as i32,
        message: failure.message.clone(),
        details,
    }
}

/// A failure as the status of an RPC, with the plain trailers for clients without rich errors.
pub(super) fn from_failure(failure: impl Into<Failure>) -> Status {
    let failure = failure.into();
    let (body, cut) = fit(body(&failure));
    let encoded = body.encode_to_vec().into();
    let mut status = Status::with_details(Code::from_i32(body.code), body.message, encoded);
    let trailers = status.metadata_mut();
    if let Some(cut) = cut {
        trailers.insert(metadata::CUT, MetadataValue::from_static(cut));
    }
    match &failure {
        Failure::System(failure) => {
            trailers.insert(
                metadata::REASON,
                MetadataValue::from_static(failure.reason.as_str()),
            );
            trailers.insert(
                metadata::OUTCOME,
                MetadataValue::from_static(outcome(failure)),
            );
            if let Some(delay) = failure.retry_after {
                // Rounded up: whoever waits so long has waited long enough.
                let millis = delay.as_nanos().div_ceil(1_000_000);
                let millis = u64::try_from(millis).unwrap_or(u64::MAX);
                trailers.insert(metadata::RETRY_MS, MetadataValue::from(millis));
            }
        }
        Failure::Application(_) => {
            let provider = MetadataValue::from_static(metadata::ORIGIN_PROVIDER);
            trailers.insert(metadata::ORIGIN, provider);
        }
    }
    status
}

/// A stream of requests that broke off: a message was too long, or the client is gone.
pub(super) fn broken_request(status: &Status) -> Failure {
    let (kind, reason) = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            (ErrorKind::InvalidArgument, Reason::TooLarge)
        }
        _ => (ErrorKind::Cancelled, Reason::Cancelled),
    };
    Failure::System(Arc::new(SystemFailure {
        kind,
        reason,
        message: format!("the stream of requests broke off: {}", status.message()),
        metadata: Vec::new(),
        retry_after: None,
        outcome: Outcome::NotApplied,
    }))
}

/// A provider's error, taken as it is; a code that is no error becomes UNKNOWN.
pub(super) fn application(status: rpc::Status) -> ApplicationFailure {
    let code = match Code::from_i32(status.code) {
        Code::Ok => Code::Unknown,
        code => code,
    };
    ApplicationFailure {
        code: code as i32,
        message: status.message,
        details: status
            .details
            .into_iter()
            .map(|any| (any.type_url, any.value.into()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use core_proto::v1;

    use super::*;

    fn lost() -> Failure {
        Failure::System(Arc::new(SystemFailure {
            kind: ErrorKind::Unavailable,
            reason: Reason::ProviderLost,
            message: "gone".to_owned(),
            metadata: vec![("plugin", "lamp".to_owned())],
            retry_after: Some(Duration::from_micros(249_001)),
            outcome: Outcome::Unknown,
        }))
    }

    #[test]
    fn a_broken_stream_of_requests_is_an_error() {
        for (code, expected) in [
            (Code::OutOfRange, Code::InvalidArgument),
            (Code::Cancelled, Code::Cancelled),
            (Code::Internal, Code::Cancelled),
        ] {
            let status = from_failure(broken_request(&Status::new(code, "why")));
            assert_eq!(status.code(), expected);
            assert!(status.message().ends_with(": why"), "{}", status.message());
        }
    }

    #[test]
    fn the_same_facts_stand_in_details_and_trailers() {
        let status = from_failure(lost());
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "gone")
        );
        let trailer = |name| {
            status
                .metadata()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        assert_eq!(trailer("core-reason"), Some("PROVIDER_LOST"));
        assert_eq!(trailer("core-outcome"), Some("unknown"));
        assert_eq!(trailer("core-retry-ms"), Some("250"));
        assert_eq!(trailer("core-origin"), None);
        let body = rpc::Status::decode(status.details()).expect("a google.rpc.Status");
        let info = rpc::ErrorInfo::decode(body.details[0].value.as_slice()).expect("an ErrorInfo");
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("PROVIDER_LOST", "coreruntime")
        );
        assert_eq!(info.metadata["plugin"], "lamp");
        assert_eq!(info.metadata["outcome"], "unknown");
    }

    #[test]
    fn an_applications_error_passes_verbatim() {
        let sent = rpc::Status {
            code: Code::NotFound as i32,
            message: "no such lamp".to_owned(),
            details: vec![prost_types::Any {
                type_url: "x/y".to_owned(),
                value: vec![1, 2],
            }],
        };
        let failure = Failure::Application(Arc::new(application(sent.clone())));
        assert_eq!(body(&failure), sent);
        let status = from_failure(failure);
        assert_eq!(rpc::Status::decode(status.details()).expect("valid"), sent);
        assert!(status.metadata().get("core-reason").is_none());
        assert_eq!(
            status.metadata().get("core-origin").expect("set"),
            "provider"
        );
    }

    #[test]
    fn a_code_that_is_no_error_becomes_unknown() {
        for code in [0, 99, -1] {
            let status = rpc::Status {
                code,
                ..rpc::Status::default()
            };
            assert_eq!(application(status).code, Code::Unknown as i32);
        }
    }

    #[test]
    fn the_contract_lists_exactly_the_reasons_of_the_code() {
        let in_code: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        let mut in_contract = BTreeSet::new();
        for number in 1..1_000 {
            if let Ok(reason) = v1::Reason::try_from(number) {
                in_contract.insert(reason.as_str_name().trim_start_matches("REASON_"));
            }
        }
        assert_eq!(in_code, in_contract);
    }
}
