//! `StorageAdmin`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use core_proto::servers::storage_admin_server;
use core_proto::v1;
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::convert::storage::{owner_usage, usage};
use super::convert::{BadField, page_size};
use super::{DEFAULT_TIMEOUT, gate, status, unary};
use crate::error::{Classify as _, Failure, chain};
use crate::home;
use crate::security::{self, Action, Audit, Caller, Gatekeeper, audit};
use crate::storage::{Exporter, Importer, Namespace, OwnQuota, Storage};
use crate::task::TaskScope;
use crate::types::Source;

/// Deadline of a backup, a check or a dropping that gives none.
const LONG_TIMEOUT: Duration = Duration::from_secs(3_600);

#[derive(Clone)]
pub(super) struct Api {
    pub(super) storage: Storage,
    pub(super) audit: Audit,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) scope: TaskScope,
    pub(super) home: home::Places,
}

fn deadline(caller: &Caller, otherwise: Duration) -> Instant {
    caller
        .deadline
        .unwrap_or_else(|| Instant::now() + otherwise)
}

/// A request that may take far longer than others: without a deadline of its own it gets that of such.
async fn long<M, A>(
    mut request: Request<M>,
    handler: impl AsyncFnOnce(Caller, M) -> Result<A, Failure>,
) -> Result<Response<A>, Status> {
    let mut caller = gate::caller(&request)?;
    caller.deadline = Some(deadline(&caller, LONG_TIMEOUT));
    request.extensions_mut().insert(caller);
    unary(request, handler).await
}

impl Api {
    /// Notes what is about to be done.
    fn note(&self, caller: &Caller, action: &str, resource: &str) {
        self.audit.note_allowed(caller, action, "", resource);
    }

    fn backup_path(&self, asked: String, extension: &str) -> Result<PathBuf, BadField> {
        if asked.is_empty() {
            let now = SystemTime::now();
            return Ok(self.storage.default_backup_path(now, extension));
        }
        let path = PathBuf::from(asked);
        if !path.is_absolute() {
            return Err(BadField::Malformed {
                field: "path",
                why: "it must be absolute: it is a file of the core's machine".to_owned(),
            });
        }
        Ok(path)
    }

    /// Keys and grants are for operators, whatever a plugin may do with the store.
    fn permit_home(&self, caller: &Caller) -> Result<(), Failure> {
        let allowed = match &caller.source {
            Source::Plugin(plugin) => Err(security::Error::NotAllowed {
                method: "StorageAdmin/Backup of the whole home".to_owned(),
                caller: format!("plugin \"{plugin}\""),
                advice: ": it holds keys; leave out `home` for the store alone",
            }),
            _ => Ok(()),
        };
        let (decision, rule) = match &allowed {
            Ok(()) => (audit::decision::ALLOWED, "operator"),
            Err(error) => (audit::decision::DENIED, error.reason().as_str()),
        };
        self.audit.note(audit::Record {
            decision,
            rule: rule.to_owned(),
            ..audit::Record::of(caller, "StorageAdmin/Backup", "", "home")
        });
        Ok(allowed?)
    }
}

#[tonic::async_trait]
impl storage_admin_server::StorageAdmin for Api {
    async fn list_namespaces(
        &self,
        request: Request<v1::StorageAdminListNamespacesRequest>,
    ) -> Result<Response<v1::StorageAdminListNamespacesResponse>, Status> {
        unary(request, async |_, message| {
            // Small ones: a page of the most that are allowed has less than 100 KiB.
            let limit = page_size(message.page_size, 1_000)?;
            let after = message.page_token.as_str();
            if !after.is_empty() && Namespace::parse(after).is_err() {
                return Err(BadField::PageToken.into());
            }
            let mut namespaces = self.storage.namespaces().await?;
            namespaces.retain(|used| used.namespace.as_str() > after);
            let more = namespaces.len() > limit;
            namespaces.truncate(limit);
            let last = namespaces.last().filter(|_| more);
            Ok(v1::StorageAdminListNamespacesResponse {
                next_page_token: last.map_or_else(String::new, |used| used.namespace.to_string()),
                namespaces: namespaces.iter().map(usage).collect(),
            })
        })
        .await
    }

    async fn set_quota(
        &self,
        request: Request<v1::StorageAdminSetQuotaRequest>,
    ) -> Result<Response<v1::StorageAdminSetQuotaResponse>, Status> {
        unary(request, async |caller, message| {
            let namespace = Namespace::parse(&message.namespace)?;
            let own = OwnQuota {
                keys: message.max_keys,
                bytes: message.max_bytes,
            };
            self.note(&caller, "StorageAdmin/SetQuota", namespace.as_str());
            let deadline = deadline(&caller, DEFAULT_TIMEOUT);
            let set = self.storage.set_quota(&namespace, own, deadline).await?;
            Ok(v1::StorageAdminSetQuotaResponse {
                max_keys: set.quota.keys,
                max_bytes: set.quota.bytes,
                owner: Some(owner_usage(&set.owned)),
            })
        })
        .await
    }

    async fn drop_namespace(
        &self,
        request: Request<v1::StorageAdminDropNamespaceRequest>,
    ) -> Result<Response<v1::StorageAdminDropNamespaceResponse>, Status> {
        long(request, async |caller, message| {
            let namespace = Namespace::parse(&message.namespace)?;
            let write = Action::WriteStorage(namespace.as_str());
            self.gatekeeper.authorize(&caller, write)?;
            self.note(&caller, "StorageAdmin/DropNamespace", namespace.as_str());
            let deadline = deadline(&caller, LONG_TIMEOUT);
            let removed = self.storage.drop_namespace(&namespace, deadline).await?;
            Ok(v1::StorageAdminDropNamespaceResponse { removed })
        })
        .await
    }

    async fn backup(
        &self,
        request: Request<v1::StorageAdminBackupRequest>,
    ) -> Result<Response<v1::StorageAdminBackupResponse>, Status> {
        long(request, async |caller, message| {
            if matches!(caller.source, Source::Plugin(_)) && !message.path.is_empty() {
                // It would write wherever the core may.
                let why = "only operators choose where a backup goes; leave it empty".to_owned();
                let field = "path";
                return Err(BadField::Malformed { field, why }.into());
            }
            let began = Instant::now();
            let deadline = deadline(&caller, LONG_TIMEOUT);
            let made = if message.home {
                self.permit_home(&caller)?;
                let (path, home) = (self.backup_path(message.path, "tar")?, self.home.clone());
                let pack = move |copy: &Path, revision, to: &Path| home.pack(copy, revision, to);
                self.storage.backup_wrapped(path, deadline, pack).await?
            } else {
                let path = self.backup_path(message.path, "db")?;
                let shown = path.display().to_string();
                self.note(&caller, "StorageAdmin/Backup", &shown);
                self.storage.backup(path, deadline).await?
            };
            Ok(v1::StorageAdminBackupResponse {
                path: made.path.display().to_string(),
                bytes: made.bytes,
                sha256: made.sha256,
                revision: made.revision.0,
                took: prost_types::Duration::try_from(began.elapsed()).ok(),
            })
        })
        .await
    }

    async fn check(
        &self,
        request: Request<v1::StorageAdminCheckRequest>,
    ) -> Result<Response<v1::StorageAdminCheckResponse>, Status> {
        long(request, async |caller, _| {
            let deadline = deadline(&caller, LONG_TIMEOUT);
            let findings = self.storage.check(deadline).await?;
            Ok(v1::StorageAdminCheckResponse { findings })
        })
        .await
    }

    type ExportStream = super::ResponseStream<v1::StorageAdminExportResponse>;

    async fn export(
        &self,
        request: Request<v1::StorageAdminExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let caller = gate::caller(&request)?;
        let asked = request.into_inner().namespace;
        let one = (!asked.is_empty()).then(|| Namespace::parse(&asked));
        let one = one
            .transpose()
            .map_err(|error| status::from_failure(Failure::from(error)))?;
        let shown = one.as_ref().map_or("all", Namespace::as_str);
        self.note(&caller, "StorageAdmin/Export", shown);
        let exporter = Exporter::begin(self.storage.clone(), one).await;
        let exporter = exporter.map_err(|error| status::from_failure(Failure::from(error)))?;
        let lines = stream::try_unfold(exporter, async |mut exporter| {
            let lines = exporter.next().await?;
            Ok::<_, Failure>(lines.map(|lines| {
                let message = v1::StorageAdminExportResponse {
                    lines: lines.into(),
                    entries: exporter.entries(),
                };
                (message, exporter)
            }))
        });
        Ok(Response::new(super::stream(lines, &caller, &self.scope)))
    }

    type ImportStream = super::ResponseStream<v1::StorageAdminImportResponse>;

    async fn import(
        &self,
        request: Request<Streaming<v1::StorageAdminImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let caller = gate::caller(&request)?;
        let (gatekeeper, importer) = (self.gatekeeper.clone(), caller.clone());
        let permit = move |namespace: &Namespace| {
            let write = Action::WriteStorage(namespace.as_str());
            let judged = gatekeeper.authorize(&importer, write);
            judged.map_err(|denied| chain(&denied))
        };
        self.note(&caller, "StorageAdmin/Import", "");
        let importer = Importer::new(self.storage.clone(), permit);
        let progress = stream::unfold(Some((importer, request.into_inner())), async |state| {
            let (mut importer, mut requests) = state?;
            // Who goes away in the middle has what was answered, and perhaps what was not.
            let message = match requests.next().await? {
                Ok(message) => message,
                Err(error) => return Some((Err(status::broken_request(&error)), None)),
            };
            let done = importer.take(&message.lines).await;
            let goes_on = done.is_ok();
            let progress = done
                .map_err(Failure::from)
                .map(|()| v1::StorageAdminImportResponse {
                    entries: importer.entries(),
                    expired: importer.expired(),
                });
            Some((progress, goes_on.then_some((importer, requests))))
        });
        Ok(Response::new(super::stream(progress, &caller, &self.scope)))
    }
}
