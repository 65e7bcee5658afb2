//! The fake's server for permissions; nobody asks it for credentials, but for invitations.

use core_proto::servers::access_server::Access;
use core_proto::v1::*;
use tonic::{Code, Request, Response, Status};

use super::{Shared, refusal};

/// What the fake's operator is called.
pub(crate) const OPERATOR: &str = "uid 7";

impl Shared {
    /// All that is said of a plugin's permissions.
    fn permissions(&self, plugin: &str) -> Result<Vec<PermissionInfo>, Status> {
        let world = self.world.lock();
        if !world.plugins.contains_key(plugin) {
            let message = format!("there is no plugin \"{plugin}\"");
            return Err(refusal(Code::NotFound, "NO_SUCH_PLUGIN", &message, &[]));
        }
        Ok(world.permissions.clone())
    }
}

#[tonic::async_trait]
impl Access for Shared {
    async fn create_token(
        &self,
        _request: Request<AccessCreateTokenRequest>,
    ) -> Result<Response<AccessCreateTokenResponse>, Status> {
        Err(Status::unimplemented("not in the fake"))
    }

    async fn invite(
        &self,
        request: Request<AccessInviteRequest>,
    ) -> Result<Response<AccessInviteResponse>, Status> {
        let request = request.into_inner();
        let grants = request.permissions.iter();
        let grants = grants.map(|one| format!("{}={}", one.action, one.resource));
        // Tells what it was asked for.
        let join = format!(
            "corejoin1 {} {}",
            request.plugin,
            grants.collect::<Vec<_>>().join(" ")
        );
        Ok(Response::new(AccessInviteResponse {
            credential: Some(CredentialInfo::default()),
            join,
        }))
    }

    async fn list_credentials(
        &self,
        _request: Request<AccessListCredentialsRequest>,
    ) -> Result<Response<AccessListCredentialsResponse>, Status> {
        Err(Status::unimplemented("not in the fake"))
    }

    async fn revoke_credential(
        &self,
        _request: Request<AccessRevokeCredentialRequest>,
    ) -> Result<Response<AccessRevokeCredentialResponse>, Status> {
        Err(Status::unimplemented("not in the fake"))
    }

    async fn grant(
        &self,
        request: Request<AccessGrantRequest>,
    ) -> Result<Response<AccessGrantResponse>, Status> {
        let request = request.into_inner();
        self.permissions(&request.plugin)?;
        let mut granted = Vec::new();
        for wanted in request.permissions {
            let mut world = self.world.lock();
            let same = |info: &&mut PermissionInfo| {
                let known = info.permission.as_ref().expect("there");
                (&known.action, &known.resource) == (&wanted.action, &wanted.resource)
            };
            let info = match world.permissions.iter_mut().find(same) {
                Some(info) => info,
                None => {
                    world.permissions.push(PermissionInfo {
                        permission: Some(wanted.clone()),
                        ..Default::default()
                    });
                    world.permissions.last_mut().expect("pushed")
                }
            };
            if !info.granted_by.iter().any(|who| who == OPERATOR) {
                info.granted_by.push(OPERATOR.to_owned());
                granted.push(wanted);
            }
        }
        let permissions = self.permissions(&request.plugin)?;
        Ok(Response::new(AccessGrantResponse {
            granted,
            permissions,
        }))
    }

    async fn revoke(
        &self,
        request: Request<AccessRevokeRequest>,
    ) -> Result<Response<AccessRevokeResponse>, Status> {
        let request = request.into_inner();
        self.permissions(&request.plugin)?;
        let mut revoked = Vec::new();
        for info in &mut self.world.lock().permissions {
            let known = info.permission.clone().expect("there");
            let is_named =
                |one: &Permission| (&known.action, &known.resource) == (&one.action, &one.resource);
            let meant = request.permissions.is_empty() || request.permissions.iter().any(is_named);
            if meant && info.granted_by.iter().any(|who| who == OPERATOR) {
                info.granted_by.retain(|who| who != OPERATOR);
                revoked.push(known);
            }
        }
        let permissions = self.permissions(&request.plugin)?;
        Ok(Response::new(AccessRevokeResponse {
            revoked,
            permissions,
        }))
    }

    async fn list_permissions(
        &self,
        request: Request<AccessListPermissionsRequest>,
    ) -> Result<Response<AccessListPermissionsResponse>, Status> {
        let permissions = self.permissions(&request.into_inner().plugin)?;
        Ok(Response::new(AccessListPermissionsResponse { permissions }))
    }
}
