//! What the fake core says of itself.

use core_proto::servers::introspection_server::Introspection;
use core_proto::v1::*;
use tonic::{Request, Response, Status};

use super::{EPOCH, Shared, ago};

#[tonic::async_trait]
impl Introspection for Shared {
    async fn get_info(
        &self,
        _request: Request<IntrospectionGetInfoRequest>,
    ) -> Result<Response<IntrospectionGetInfoResponse>, Status> {
        Ok(Response::new(IntrospectionGetInfoResponse {
            version: "0.9.0".to_owned(),
            wire_version_min: 1,
            wire_version_max: 2,
            features: vec!["heartbeat".to_owned()],
            started_at: Some(ago(2 * 86400 + 4 * 3600 + 60)),
            epoch: EPOCH,
            addresses: vec![
                "unix:/run/core.sock".to_owned(),
                "127.0.0.1:7070".to_owned(),
            ],
            insecure_plaintext: self.world.lock().insecure,
            storage: "sqlite".to_owned(),
            storage_path: "/var/lib/core/runtime.db".to_owned(),
            limits: Vec::new(),
            orphan_layers: Vec::new(),
        }))
    }

    async fn get_quotas(
        &self,
        request: Request<IntrospectionGetQuotasRequest>,
    ) -> Result<Response<IntrospectionGetQuotasResponse>, Status> {
        let quota = |name: &str, unit: &str, limit, used, refused| PluginQuota {
            plugin: request.get_ref().plugin.clone(),
            name: name.to_owned(),
            unit: unit.to_owned(),
            limit,
            used,
            refused,
        };
        Ok(Response::new(IntrospectionGetQuotasResponse {
            quotas: vec![
                quota("calls_per_second", "calls per second", 2_000, 1_999, 17),
                quota("state_writes_per_second", "writes per second", 0, 0, 0),
                quota("connections", "connections", 8, 2, 0),
            ],
        }))
    }

    async fn get_stats(
        &self,
        _request: Request<IntrospectionGetStatsRequest>,
    ) -> Result<Response<IntrospectionGetStatsResponse>, Status> {
        Err(Status::unimplemented("corectl does not ask for it"))
    }
}
