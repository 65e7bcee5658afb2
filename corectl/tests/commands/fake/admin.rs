//! The fake's server for the administration of the storage.

use std::time::SystemTime;

use core_proto::servers::storage_admin_server::StorageAdmin;
use core_proto::v1::*;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Answers, Shared, page, refusal};

/// What all of its namespaces hold.
fn owner(namespace: &str) -> StorageOwnerUsage {
    let name = namespace.split('.').next().unwrap_or_default();
    StorageOwnerUsage {
        name: name.to_owned(),
        namespaces: 2,
        keys: 5,
        bytes: 90,
        max_keys: 5,
        max_bytes: u64::MAX,
    }
}

#[tonic::async_trait]
impl StorageAdmin for Shared {
    async fn list_namespaces(
        &self,
        request: Request<StorageAdminListNamespacesRequest>,
    ) -> Result<Response<StorageAdminListNamespacesResponse>, Status> {
        let held = [("core", u64::MAX), ("lamp", 9), ("notes", 7)];
        let all = held.map(|(name, max_keys)| StorageNamespaceUsage {
            namespace: name.to_owned(),
            keys: 2,
            bytes: 30,
            max_keys,
            max_bytes: 100,
            owner: Some(owner(name)),
        });
        let (namespaces, next_page_token) = page(&all, &request.get_ref().page_token)?;
        Ok(Response::new(StorageAdminListNamespacesResponse {
            namespaces,
            next_page_token,
        }))
    }

    async fn set_quota(
        &self,
        request: Request<StorageAdminSetQuotaRequest>,
    ) -> Result<Response<StorageAdminSetQuotaResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(StorageAdminSetQuotaResponse {
            max_keys: request.max_keys.unwrap_or(100_000),
            max_bytes: request.max_bytes.unwrap_or(64 << 20),
            owner: Some(owner(&request.namespace)),
        }))
    }

    async fn drop_namespace(
        &self,
        request: Request<StorageAdminDropNamespaceRequest>,
    ) -> Result<Response<StorageAdminDropNamespaceResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let mut world = self.world.lock();
        let before = world.storage.len();
        world.storage.retain(|(place, _), _| *place != namespace);
        let removed = (before - world.storage.len()) as u64;
        Ok(Response::new(StorageAdminDropNamespaceResponse { removed }))
    }

    async fn backup(
        &self,
        request: Request<StorageAdminBackupRequest>,
    ) -> Result<Response<StorageAdminBackupResponse>, Status> {
        let StorageAdminBackupRequest { mut path, home } = request.into_inner();
        if home {
            path.push_str(" with home");
        }
        if path == "/taken.db" {
            let message = "/taken.db is there already";
            return Err(refusal(Code::AlreadyExists, "FILE_EXISTS", message, &[]));
        }
        Ok(Response::new(StorageAdminBackupResponse {
            path,
            bytes: 4_096,
            sha256: "ab".repeat(32),
            revision: 7,
            took: Some(prost_types::Duration {
                seconds: 2,
                nanos: 0,
            }),
        }))
    }

    /// Damaged once something is stored under "damage".
    async fn check(
        &self,
        _request: Request<StorageAdminCheckRequest>,
    ) -> Result<Response<StorageAdminCheckResponse>, Status> {
        let world = self.world.lock();
        let damaged = world.storage.keys().any(|(_, key)| key == "damage");
        let findings = damaged.then(|| "a page is torn".to_owned());
        Ok(Response::new(StorageAdminCheckResponse {
            findings: findings.into_iter().collect(),
        }))
    }

    type ExportStream = Answers<StorageAdminExportResponse>;

    async fn export(
        &self,
        request: Request<StorageAdminExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let wanted = request.into_inner().namespace;
        let world = self.world.lock();
        let own = world.storage.iter();
        let own = own.filter(|((place, _), _)| wanted.is_empty() || *place == wanted);
        let lines: Vec<_> = own
            .map(|((place, key), entry)| {
                let value = String::from_utf8_lossy(&entry.value);
                format!("{{\"namespace\":{place:?},\"key\":{key:?},\"value\":{value}}}\n")
            })
            .collect();
        let lines = lines.into_iter().enumerate().map(|(index, line)| {
            Ok(StorageAdminExportResponse {
                lines: line.into(),
                entries: index as u64 + 1,
            })
        });
        let lines: Vec<_> = lines.collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }

    type ImportStream = Answers<StorageAdminImportResponse>;

    /// Takes each line as one entry of the namespace "imported", and refuses one that is "bad".
    async fn import(
        &self,
        request: Request<Streaming<StorageAdminImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let shared = self.clone();
        let mut entries = 0;
        let progress = request.into_inner().map(move |message| {
            for line in message?.lines.split(|byte| *byte == b'\n') {
                if line == b"bad" {
                    let message = "line 1 is no entry";
                    return Err(refusal(Code::InvalidArgument, "BAD_LINE", message, &[]));
                }
                if line.is_empty() {
                    continue;
                }
                entries += 1;
                let entry = StorageEntry {
                    key: format!("line{entries}"),
                    value: line.to_vec().into(),
                    revision: entries,
                    updated_at: Some(SystemTime::now().into()),
                    ..Default::default()
                };
                let place = ("imported".to_owned(), entry.key.clone());
                shared.world.lock().storage.insert(place, entry);
            }
            Ok(StorageAdminImportResponse {
                entries,
                expired: 0,
            })
        });
        Ok(Response::new(Box::pin(progress)))
    }
}
