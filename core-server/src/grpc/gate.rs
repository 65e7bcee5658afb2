//! The layer that every RPC passes: it reads what the request carries, asks the gatekeeper, and
//! attaches the answer. Nothing behind it sees an unjudged request.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use core_proto::contract::metadata;
use futures_util::future::{BoxFuture, Either};
use futures_util::{FutureExt as _, TryFutureExt as _};
use http::HeaderMap;
use tokio::time::Instant;
use tower::Service;

use super::status;
use crate::channel::LastRead;
use crate::config::{Quota, http2};
use crate::error::{Classify, ErrorKind, Failure, Reason};
use crate::security::{Admitted, Caller, Credential, Error, Gatekeeper, Meter, Peer, Presented};
use crate::transport::{AnonymousRequest, Standing};
use crate::types::PluginName;

/// The layer; see the module.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S> {
    gatekeeper: Gatekeeper,
    inner: S,
}

impl<S> Gate<S> {
    pub(super) fn new(gatekeeper: Gatekeeper, inner: S) -> Self {
        Self { gatekeeper, inner }
    }

    /// Judges a request. `Some`: nobody known made it, and it counts until its answer was sent.
    fn admit<B>(
        &self,
        request: &mut http::Request<B>,
    ) -> Result<Option<AnonymousRequest>, Failure> {
        let headers = request.headers();
        let deadline = match header(headers, "grpc-timeout") {
            Some(text) => Some(Instant::now() + parse_timeout(text).ok_or(BadTimeout)?),
            None => None,
        };
        let presented = Presented {
            token: header(headers, metadata::AUTHORIZATION).and_then(bearer),
            run: header(headers, metadata::RUN),
            parent: header(headers, metadata::PARENT),
            deadline,
            traceparent: header(headers, metadata::TRACEPARENT),
            request: self.gatekeeper.next_request(),
        };
        let id = presented.request;
        let method = request.uri().path().trim_start_matches('/');
        // A connection without a peer would be a defect of the transport: it gets no rights.
        let peer = request.extensions().get::<Peer>().unwrap_or(&Peer::Memory);
        let admitted = self.gatekeeper.admit(peer, method, &presented);
        request.extensions_mut().insert(id);
        let standing = request.extensions().get::<Standing>();
        if let Ok(Admitted::Anonymous) = admitted {
            let counted = standing.filter(|standing| !standing.is_known());
            return Ok(counted.map(anonymous_request).transpose()?);
        }
        if let Some(standing) = standing.filter(|standing| !standing.is_known())
            && let Some(meter) = self.known_as(&admitted)
        {
            match meter.hold(Quota::Connections) {
                Ok(slot) => standing.identify(slot),
                // It stays a stranger's.
                Err(exceeded) if admitted.is_ok() => return Err(exceeded.into()),
                Err(_) => {}
            }
        }
        match admitted? {
            Admitted::Anonymous => {}
            Admitted::Plugin(credential) => {
                request.extensions_mut().insert(credential);
            }
            Admitted::Caller(caller) => {
                if let (Some(run), Some(connection)) =
                    (&caller.run, request.extensions().get::<LastRead>())
                {
                    run.came_over(connection);
                }
                request.extensions_mut().insert(caller);
            }
        }
        Ok(None)
    }

    /// By whose meter the caller is measured, if its credential was valid, whatever became of the request.
    fn known_as(&self, admitted: &Result<Admitted, Error>) -> Option<Arc<Meter>> {
        let of = |plugin: &PluginName| self.gatekeeper.metering().of(plugin);
        match admitted {
            Ok(Admitted::Anonymous) => None,
            Ok(Admitted::Plugin(credential)) => Some(of(&credential.plugin)),
            Ok(Admitted::Caller(caller)) => Some(Arc::clone(&caller.meter)),
            Err(error) if error.is_told_to_somebody_known() => Some(
                error
                    .plugin()
                    .map_or_else(|| Arc::clone(self.gatekeeper.metering().of_others()), of),
            ),
            Err(_) => None,
        }
    }
}

fn anonymous_request(standing: &Standing) -> Result<AnonymousRequest, Crowded> {
    let limit = http2::ANONYMOUS_REQUESTS;
    standing.anonymous_request(limit).ok_or(Crowded { limit })
}

/// Somebody unknown asks for much at once.
#[derive(Debug, thiserror::Error)]
#[error(
    "{limit} requests without a credential are in progress on this connection; wait for some to end"
)]
struct Crowded {
    limit: usize,
}

impl Classify for Crowded {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ResourceExhausted
    }

    fn reason(&self) -> Reason {
        Reason::CallerBusy
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the metadata grpc-timeout is malformed: expected up to 8 digits and one of H M S m u n")]
struct BadTimeout;

impl Classify for BadTimeout {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }

    fn reason(&self) -> Reason {
        Reason::BadField
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// `grpc-timeout`, as the gRPC specification over HTTP/2 defines it.
pub(super) fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.admit(&mut request) {
            Ok(None) => Either::Left(self.inner.call(request)),
            Ok(Some(anonymous)) => {
                let answer = self.inner.call(request);
                let counted =
                    answer.map_ok(|answer| answer.map(|body| anonymous.lasts_as_long_as(body)));
                Either::Right(counted.boxed())
            }
            Err(failure) => {
                tracing::debug!(method = request.uri().path(), %failure, "refused");
                let refusal = status::from_failure(failure).into_http();
                Either::Right(std::future::ready(Ok(refusal)).boxed())
            }
        }
    }
}

/// The caller that the gate attached.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, tonic::Status> {
    attached(request)
}

/// The credential that the gate attached to an RPC which needs no run.
pub(super) fn credential<T>(request: &tonic::Request<T>) -> Result<Credential, tonic::Status> {
    attached(request)
}

/// A rule and a handler disagree on what an RPC needs: a defect, refused.
#[derive(Debug, thiserror::Error)]
#[error("the request reached its handler without being judged; this is a defect of the core")]
struct Unjudged;

impl Classify for Unjudged {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }

    fn reason(&self) -> Reason {
        Reason::Internal
    }
}

fn attached<T, A: Clone + Send + Sync + 'static>(
    request: &tonic::Request<T>,
) -> Result<A, tonic::Status> {
    let attached = request.extensions().get::<A>().cloned();
    attached.ok_or_else(|| status::from_failure(Unjudged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("999999999S", None),
            ("-1S", None),
            ("1.5S", None),
            ("1s", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn bearer_tokens_are_taken_and_others_are_not() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("abc"), None);
    }
}
