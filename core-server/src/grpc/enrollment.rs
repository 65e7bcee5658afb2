//! `Enrollment`.

use core_proto::servers::enrollment_server;
use core_proto::v1;
use tonic::{Request, Response, Status};

use super::access::MakeKnown;
use super::convert::time_to_proto;
use super::{gate, status};
use crate::error::{Classify as _, Failure};
use crate::plugin_manager::{GrantChange, PluginManager};
use crate::security::access::{self, Identity, Promised};
use crate::security::{Access, Audit, Peer, RequestId, audit};
use crate::task::blocking;
use crate::types::PluginName;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) access: Access,
    pub(super) audit: Audit,
    pub(super) manager: PluginManager,
    pub(super) make_known: MakeKnown,
}

impl Api {
    /// Notes who got a certificate, and who did not.
    fn note(
        &self,
        action: &str,
        from: &Origin,
        resource: &str,
        result: Result<&Identity, &access::Error>,
    ) {
        let (decision, plugin) = match result {
            Ok(identity) => (audit::decision::ALLOWED, identity.plugin.to_string()),
            Err(_) => (audit::decision::DENIED, String::new()),
        };
        let rule = result.map_or_else(|error| error.reason().as_str(), |_| "");
        self.audit.note(audit::Record {
            action: action.to_owned(),
            decision,
            plugin,
            peer: from
                .peer
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            request: from.request.to_string(),
            resource: resource.chars().take(80).collect(),
            rule: rule.to_owned(),
            ..audit::Record::default()
        });
    }

    /// Grants what the invitation promised. Where that fails the plugin has its certificate all the same, and
    /// waits for what it lacks: joining once more would not help it.
    async fn keep_promise(&self, plugin: &PluginName, promised: Promised) {
        let Promised { permissions, by } = promised;
        if permissions.is_empty() {
            return;
        }
        let change = GrantChange::Give(permissions, by);
        let granted = self.manager.change_grants(plugin.as_str(), change).await;
        if let Err(error) = granted {
            tracing::warn!(%plugin, "what was promised with its invitation is not granted: {error}");
        }
    }
}

/// Where a request comes from, for the audit log.
struct Origin {
    peer: Option<Peer>,
    request: RequestId,
}

impl Origin {
    fn of<T>(request: &Request<T>) -> Self {
        let extensions = request.extensions();
        Self {
            peer: extensions.get().cloned(),
            request: extensions.get().copied().unwrap_or_default(),
        }
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
            let origin = Origin::of(&request);
            let request = request.into_inner();
            let id = request.id.clone();
            let access = self.access.clone();
            let join = move || access.join(&request.id, &request.secret, &request.csr, Some(from));
            let joined = blocking(join).await;
            let judged = joined.as_ref().map(|(identity, _)| identity);
            self.note("Enrollment/Join", &origin, &id, judged);
            let (joined, promised) = joined?;
            tracing::info!(plugin = %joined.plugin, %from, "a plugin joined");
            (self.make_known)().await?;
            self.keep_promise(&joined.plugin, promised).await;
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
            let origin = Origin::of(&request);
            let csr = request.into_inner().csr;
            let access = self.access.clone();
            let renew = move || access.renew(&credential, &csr);
            let renewed = blocking(renew).await;
            self.note("Enrollment/Renew", &origin, "", renewed.as_ref());
            Ok::<_, Failure>(identity(renewed?))
        };
        let identity = renew.await.map_err(status::from_failure)?;
        Ok(Response::new(v1::EnrollmentRenewResponse {
            identity: Some(identity),
        }))
    }
}
