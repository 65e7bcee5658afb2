//! `Enrollment`.

use core_proto::servers::enrollment_server;
use core_proto::v1;
use tonic::{Request, Response, Status};

use super::access::MakeKnown;
use super::convert::time_to_proto;
use super::{gate, status};
use crate::error::Failure;
use crate::security::access::{self, Identity};
use crate::security::{Access, Audit, Peer, audit};
use crate::task::blocking;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) access: Access,
    pub(super) audit: Audit,
    pub(super) make_known: MakeKnown,
}

impl Api {
    /// Notes who got a certificate, and who did not.
    fn note<T>(
        &self,
        action: &str,
        peer: Option<&Peer>,
        resource: &str,
        result: &Result<Identity, T>,
    ) {
        let (decision, plugin) = match result {
            Ok(identity) => (audit::decision::ALLOWED, identity.plugin.to_string()),
            Err(_) => (audit::decision::DENIED, String::new()),
        };
        self.audit.note(audit::Record {
            action: action.to_owned(),
            decision,
            plugin,
            peer: peer.map(ToString::to_string).unwrap_or_default(),
            resource: resource.chars().take(80).collect(),
            ..audit::Record::default()
        });
    }
}

/// Where the request comes from, if over TLS: secrets and certificates travel nowhere else.
fn over_tls<T>(request: &Request<T>) -> Result<std::net::SocketAddr, Failure> {
    match request.extensions().get::<Peer>() {
        Some(Peer::Tls { address, .. }) => Ok(*address),
        _ => Err(access::Error::NoTls.into()),
    }
}

fn identity(identity: Identity) -> v1::Identity {
    v1::Identity {
        plugin: identity.plugin.to_string(),
        certificate_pem: identity.certificate_pem,
        ca_pem: identity.ca_pem,
        expires_at: Some(time_to_proto(identity.expires_at)),
        renew_at: Some(time_to_proto(identity.renew_at)),
    }
}

#[tonic::async_trait]
impl enrollment_server::Enrollment for Api {
    async fn join(
        &self,
        request: Request<v1::EnrollmentJoinRequest>,
    ) -> Result<Response<v1::EnrollmentJoinResponse>, Status> {
        let join = async {
            let from = over_tls(&request)?.ip().to_canonical();
            let peer = request.extensions().get::<Peer>().cloned();
            let request = request.into_inner();
            let id = request.id.clone();
            let access = self.access.clone();
            let join = move || access.join(&request.id, &request.secret, &request.csr, Some(from));
            let joined = blocking(join).await;
            self.note("Enrollment/Join", peer.as_ref(), &id, &joined);
            let joined = joined?;
            tracing::info!(plugin = %joined.plugin, %from, "a plugin joined");
            (self.make_known)().await?;
            Ok::<_, Failure>(identity(joined))
        };
        let identity = join.await.map_err(status::from_failure)?;
        Ok(Response::new(v1::EnrollmentJoinResponse {
            identity: Some(identity),
        }))
    }

    async fn renew(
        &self,
        request: Request<v1::EnrollmentRenewRequest>,
    ) -> Result<Response<v1::EnrollmentRenewResponse>, Status> {
        let credential = gate::credential(&request)?;
        let renew = async {
            over_tls(&request)?;
            let peer = request.extensions().get::<Peer>().cloned();
            let csr = request.into_inner().csr;
            let access = self.access.clone();
            let renew = move || access.renew(&credential, &csr);
            let renewed = blocking(renew).await;
            self.note("Enrollment/Renew", peer.as_ref(), "", &renewed);
            Ok::<_, Failure>(identity(renewed?))
        };
        let identity = renew.await.map_err(status::from_failure)?;
        Ok(Response::new(v1::EnrollmentRenewResponse {
            identity: Some(identity),
        }))
    }
}
