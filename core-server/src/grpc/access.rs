//! `Access`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use core_proto::servers::access_server;
use core_proto::v1;
use futures_util::future::BoxFuture;
use tonic::{Request, Response, Status};

use super::convert::{BadField, access as convert, check_size, duration, time_to_proto};
use super::unary;
use crate::config::Permission;
use crate::error::Failure;
use crate::plugin_manager::{GrantChange, PluginKind, PluginManager};
use crate::security::access::{INVITATION_LIFE, Promised, Record, Which};
use crate::security::operator_grants::MAX_GRANTS;
use crate::security::{Access, Audit, Standing};
use crate::task::blocking;
use crate::types::PluginName;

/// Longest label.
const MAX_LABEL_BYTES: usize = 80;
/// Shortest life of a token and of an invitation.
const MIN_LIFE: Duration = Duration::from_secs(1);
/// Longest life of an invitation.
const MAX_INVITATION_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// Longest life of a token: 100 years, which every clock can count.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Makes plugins known that have a credential and stand in no configuration. The runtime knows how.
pub(crate) type MakeKnown = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) access: Access,
    pub(super) manager: PluginManager,
    pub(super) audit: Audit,
    pub(super) make_known: MakeKnown,
}

/// Permissions of one request.
fn several(permissions: &[v1::Permission]) -> Result<Vec<Permission>, BadField> {
    if permissions.len() > MAX_GRANTS {
        return Err(BadField::Malformed {
            field: "permissions",
            why: format!(
                "{} entries, at most {MAX_GRANTS} are allowed",
                permissions.len()
            ),
        });
    }
    convert::parse(permissions)
}

fn names(permissions: &[Permission]) -> String {
    let names: Vec<_> = permissions.iter().map(ToString::to_string).collect();
    names.join(" ")
}

fn standings(standings: Vec<Standing>) -> Vec<v1::PermissionInfo> {
    standings.into_iter().map(convert::standing).collect()
}

impl Api {
    /// A plugin that may have a credential: any, but those that the core starts itself.
    fn remote(&self, name: &str) -> Result<PluginName, Failure> {
        let malformed = |why: String| BadField::Malformed {
            field: "plugin",
            why,
        };
        let plugin = PluginName::parse(name).map_err(|error| malformed(error.to_string()))?;
        match self.manager.get(name) {
            Ok(info) if info.kind != PluginKind::Remote => Err(malformed(format!(
                "the core runs \"{plugin}\" itself and gives each of its runs a token; \
                 credentials are for plugins that run elsewhere"
            ))
            .into()),
            _ => Ok(plugin),
        }
    }
}

fn life(
    field: Option<prost_types::Duration>,
    longest: Duration,
) -> Result<Option<Duration>, BadField> {
    let life = duration("valid_for", field)?;
    match life {
        Some(life) if !(MIN_LIFE..=longest).contains(&life) => Err(BadField::Malformed {
            field: "valid_for",
            why: format!("it must be from {MIN_LIFE:?} to {longest:?}"),
        }),
        life => Ok(life),
    }
}

fn info(record: Record) -> v1::CredentialInfo {
    let time = |seconds| time_to_proto(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    v1::CredentialInfo {
        id: record.id,
        kind: record.kind.as_str().to_owned(),
        plugin: record.plugin.unwrap_or_default(),
        label: record.label,
        created_at: Some(time(record.created_at)),
        expires_at: record.expires_at.map(time),
    }
}

#[tonic::async_trait]
impl access_server::Access for Api {
    async fn create_token(
        &self,
        request: Request<v1::AccessCreateTokenRequest>,
    ) -> Result<Response<v1::AccessCreateTokenResponse>, Status> {
        unary(request, async |caller, request| {
            let plugin = match request.plugin.as_str() {
                "" => None,
                name => Some(self.remote(name)?),
            };
            check_size("label", request.label.len(), MAX_LABEL_BYTES)?;
            let life = life(request.valid_for, MAX_TOKEN_LIFE)?;
            let access = self.access.clone();
            let is_plugin = plugin.is_some();
            let make = move || access.create_token(plugin.as_ref(), &request.label, life);
            let (record, token) = blocking(make).await?;
            let whose = record.plugin.as_deref().unwrap_or_default();
            self.audit
                .note_allowed(&caller, "Access/CreateToken", whose, &record.id);
            if is_plugin {
                (self.make_known)().await?;
            }
            Ok(v1::AccessCreateTokenResponse {
                credential: Some(info(record)),
                token: token.reveal().to_owned(),
            })
        })
        .await
    }

    async fn invite(
        &self,
        request: Request<v1::AccessInviteRequest>,
    ) -> Result<Response<v1::AccessInviteResponse>, Status> {
        unary(request, async |caller, request| {
            let plugin = self.remote(&request.plugin)?;
            let life = life(request.valid_for, MAX_INVITATION_LIFE)?;
            let life = life.unwrap_or(INVITATION_LIFE);
            let permissions = several(&request.permissions)?;
            let shown = names(&permissions);
            let by = caller.operator.as_deref().unwrap_or_default();
            let grants = Promised {
                permissions,
                by: by.to_owned(),
            };
            let (record, join) = self.access.invite(&plugin, life, grants)?;
            let resource = format!("{} {shown}", record.id);
            let resource = resource.trim_end();
            self.audit
                .note_allowed(&caller, "Access/Invite", plugin.as_str(), resource);
            Ok(v1::AccessInviteResponse {
                credential: Some(info(record)),
                join: join.to_string(),
            })
        })
        .await
    }

    async fn list_credentials(
        &self,
        request: Request<v1::AccessListCredentialsRequest>,
    ) -> Result<Response<v1::AccessListCredentialsResponse>, Status> {
        unary(request, async |_, request| {
            let access = self.access.clone();
            let records = blocking(move || access.list(None)).await;
            let wanted = |record: &Record| {
                request.plugin.is_empty() || record.plugin.as_deref() == Some(&request.plugin)
            };
            let credentials = records.into_iter().filter(wanted).map(info).collect();
            Ok(v1::AccessListCredentialsResponse { credentials })
        })
        .await
    }

    async fn revoke_credential(
        &self,
        request: Request<v1::AccessRevokeCredentialRequest>,
    ) -> Result<Response<v1::AccessRevokeCredentialResponse>, Status> {
        unary(request, async |caller, request| {
            let which = match (request.plugin.as_str(), request.ids) {
                ("", ids) if !ids.is_empty() => Which::Ids(ids),
                (name, ids) if !name.is_empty() && ids.is_empty() => {
                    let plugin = PluginName::parse(name).map_err(|error| BadField::Malformed {
                        field: "plugin",
                        why: error.to_string(),
                    })?;
                    Which::OfPlugin(plugin)
                }
                _ => {
                    let why = "either ids or a plugin must be named".to_owned();
                    return Err(BadField::Malformed { field: "ids", why }.into());
                }
            };
            let (whose, what) = match &which {
                Which::Ids(ids) => (String::new(), ids.join(",")),
                Which::OfPlugin(plugin) => (plugin.to_string(), String::new()),
            };
            self.audit
                .note_allowed(&caller, "Access/RevokeCredential", &whose, &what);
            let access = self.access.clone();
            let configured_token_remains = match &which {
                Which::OfPlugin(plugin) => access.has_configured_token(plugin),
                Which::Ids(_) => false,
            };
            let revoked = blocking(move || access.revoke(&which)).await;
            // Whoever has no credential any more is not known any more, on the disk or not.
            (self.make_known)().await?;
            Ok(v1::AccessRevokeCredentialResponse {
                revoked: u32::try_from(revoked?).unwrap_or(u32::MAX),
                configured_token_remains,
            })
        })
        .await
    }

    async fn grant(
        &self,
        request: Request<v1::AccessGrantRequest>,
    ) -> Result<Response<v1::AccessGrantResponse>, Status> {
        unary(request, async |caller, request| {
            let permissions = several(&request.permissions)?;
            if permissions.is_empty() {
                let field = "permissions";
                return Err(BadField::Missing { field }.into());
            }
            let plugin = self.manager.get(&request.plugin)?.name;
            let (audit, what) = (&self.audit, names(&permissions));
            audit.note_allowed(&caller, "Access/Grant", plugin.as_str(), &what);
            let by = caller.operator.as_deref().unwrap_or_default().to_owned();
            let change = GrantChange::Give(permissions, by);
            let granted = self.manager.change_grants(plugin.as_str(), change).await?;
            Ok(v1::AccessGrantResponse {
                granted: convert::permissions(&granted.changed),
                permissions: standings(granted.standings),
            })
        })
        .await
    }

    async fn revoke(
        &self,
        request: Request<v1::AccessRevokeRequest>,
    ) -> Result<Response<v1::AccessRevokeResponse>, Status> {
        unary(request, async |caller, request| {
            let permissions = several(&request.permissions)?;
            let plugin = self.manager.get(&request.plugin)?.name;
            let what = match permissions.is_empty() {
                true => "all".to_owned(),
                false => names(&permissions),
            };
            self.audit
                .note_allowed(&caller, "Access/Revoke", plugin.as_str(), &what);
            let change = GrantChange::Take(permissions);
            let revoked = self.manager.change_grants(plugin.as_str(), change).await?;
            Ok(v1::AccessRevokeResponse {
                revoked: convert::permissions(&revoked.changed),
                permissions: standings(revoked.standings),
            })
        })
        .await
    }

    async fn list_permissions(
        &self,
        request: Request<v1::AccessListPermissionsRequest>,
    ) -> Result<Response<v1::AccessListPermissionsResponse>, Status> {
        unary(request, async |_, request| {
            let looked = self
                .manager
                .change_grants(&request.plugin, GrantChange::None)
                .await?;
            Ok(v1::AccessListPermissionsResponse {
                permissions: standings(looked.standings),
            })
        })
        .await
    }
}
