//! `ServiceRegistry`.

use core_proto::servers::service_registry_server;
use core_proto::v1;
use futures_util::StreamExt as _;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::convert::{BadField, check_size, page_size, registry, up_to_page_bytes};
use super::{gate, place_for_watch, status, unary};
use crate::channel::Run;
use crate::config::Quota;
use crate::error::Failure;
use crate::event_bus::MAX_CONTENT_TYPE_BYTES;
use crate::routing::{Call, Router};
use crate::security::{Action, Caller, Gatekeeper};
use crate::service_registry::{ServiceRegistry, WatchItem};
use crate::task::TaskScope;
use crate::types::{Pattern, Payload, ServiceName};

/// What registering a service and taking it back costs, each: like a key of the state it is told to whoever watches.
const COST: [(Quota, u64); 1] = [(Quota::StateWritesPerSecond, 1)];

#[derive(Clone)]
pub(super) struct Api {
    pub(super) registry: ServiceRegistry,
    pub(super) router: Router,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) scope: TaskScope,
    pub(super) max_payload_bytes: usize,
    pub(super) max_watches: usize,
}

impl Api {
    pub(super) fn register(
        &self,
        caller: &Caller,
        request: v1::ServiceRegistryRegisterRequest,
    ) -> Result<v1::ServiceRegistryRegisterResponse, Failure> {
        caller.meter.charge(&COST)?;
        let service = request
            .service
            .ok_or(BadField::Missing { field: "service" })?;
        let description = registry::description(service)?;
        let provide = Action::Provide(description.name.as_str());
        self.gatekeeper.authorize(caller, provide)?;
        let (run, name) = (run_of(caller)?, description.name.clone());
        self.registry.register(run, description)?;
        // Granted when it was judged; it may have been withdrawn before it was there.
        let provide = Action::Provide(name.as_str());
        if let Err(denied) = self.gatekeeper.authorize(caller, provide) {
            self.registry.unregister(run.id(), name.as_str());
            return Err(denied.into());
        }
        Ok(v1::ServiceRegistryRegisterResponse {})
    }

    pub(super) fn unregister(
        &self,
        caller: &Caller,
        request: &v1::ServiceRegistryUnregisterRequest,
    ) -> Result<v1::ServiceRegistryUnregisterResponse, Failure> {
        caller.meter.charge(&COST)?;
        let existed = self
            .registry
            .unregister(run_of(caller)?.id(), &request.name);
        Ok(v1::ServiceRegistryUnregisterResponse { existed })
    }

    /// A call, judged and ready for the router: the one way for RPCs and for frames.
    pub(super) fn prepare_call(
        &self,
        caller: &Caller,
        request: v1::ServiceRegistryCallRequest,
    ) -> Result<Call, Failure> {
        caller.meter.charge(&[(Quota::CallsPerSecond, 1)])?;
        check_size("arguments", request.arguments.len(), self.max_payload_bytes)?;
        check_size(
            "content_type",
            request.content_type.len(),
            MAX_CONTENT_TYPE_BYTES,
        )?;
        // A name that breaks the grammar can be nobody's: it is told by the grammar's error.
        let service = ServiceName::parse(&request.service).map_err(BadField::from)?;
        self.gatekeeper
            .authorize(caller, Action::Call(service.as_str()))?;
        Ok(Call {
            service: request.service,
            arguments: Payload {
                content_type: request.content_type.into(),
                data: request.arguments,
            },
            timeout: caller
                .deadline
                .map(|at| at.saturating_duration_since(Instant::now())),
            wait_for_ready: request.wait_for_ready,
            caller: caller.source.clone(),
            slot: Some(caller.meter.hold(Quota::RequestsInFlight)?),
            cause: caller.cause,
            traceparent: caller.traceparent.clone(),
        })
    }

    async fn call(
        &self,
        caller: &Caller,
        request: v1::ServiceRegistryCallRequest,
    ) -> Result<v1::ServiceRegistryCallResponse, Failure> {
        let call = self.prepare_call(caller, request)?;
        let payload = self.router.call_and_wait(call).await?;
        Ok(v1::ServiceRegistryCallResponse {
            content_type: payload.content_type.as_ref().to_owned(),
            result: payload.data,
        })
    }

    pub(super) fn list(
        &self,
        request: &v1::ServiceRegistryListRequest,
    ) -> Result<v1::ServiceRegistryListResponse, Failure> {
        let pattern = pattern(&request.pattern)?;
        let limit = page_size(request.page_size, 100)?;
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        if after.is_some_and(|token| ServiceName::parse(token).is_err()) {
            return Err(BadField::PageToken.into());
        }
        let page = self.registry.list(pattern.as_ref(), after, limit + 1);
        let found = page.len();
        let services = page.iter().take(limit).map(registry::info_to_proto);
        let services = up_to_page_bytes(services);
        let more = found > services.len();
        let last = services.last().filter(|_| more);
        let next_page_token = last.and_then(|info| info.description.as_ref());
        let next_page_token = next_page_token.map(|description| description.name.clone());
        let next_page_token = next_page_token.unwrap_or_default();
        Ok(v1::ServiceRegistryListResponse {
            services,
            next_page_token,
        })
    }

    pub(super) fn describe(
        &self,
        request: &v1::ServiceRegistryDescribeRequest,
    ) -> Result<v1::ServiceRegistryDescribeResponse, Failure> {
        let info = self.registry.describe(&request.name)?;
        Ok(v1::ServiceRegistryDescribeResponse {
            service: Some(registry::info_to_proto(&info)),
        })
    }
}

fn pattern(text: &str) -> Result<Option<Pattern>, BadField> {
    Ok(match text {
        "" => None,
        text => Some(Pattern::parse(text)?),
    })
}

/// Only plugins with a run get to RPCs that need one.
fn run_of(caller: &Caller) -> Result<&Run, BadField> {
    caller
        .run
        .as_deref()
        .ok_or(BadField::Missing { field: "core-run" })
}

#[tonic::async_trait]
impl service_registry_server::ServiceRegistry for Api {
    async fn register(
        &self,
        request: Request<v1::ServiceRegistryRegisterRequest>,
    ) -> Result<Response<v1::ServiceRegistryRegisterResponse>, Status> {
        unary(request, async |caller, message| {
            self.register(&caller, message)
        })
        .await
    }

    async fn unregister(
        &self,
        request: Request<v1::ServiceRegistryUnregisterRequest>,
    ) -> Result<Response<v1::ServiceRegistryUnregisterResponse>, Status> {
        unary(request, async |caller, message| {
            self.unregister(&caller, &message)
        })
        .await
    }

    async fn call(
        &self,
        request: Request<v1::ServiceRegistryCallRequest>,
    ) -> Result<Response<v1::ServiceRegistryCallResponse>, Status> {
        // Not through `unary`: the router keeps the deadline itself, and says whether the call had
        // been dispatched.
        let caller = gate::caller(&request)?;
        let answer = self.call(&caller, request.into_inner()).await;
        answer.map(Response::new).map_err(status::from_failure)
    }

    async fn list(
        &self,
        request: Request<v1::ServiceRegistryListRequest>,
    ) -> Result<Response<v1::ServiceRegistryListResponse>, Status> {
        unary(request, async |_, message| self.list(&message)).await
    }

    async fn describe(
        &self,
        request: Request<v1::ServiceRegistryDescribeRequest>,
    ) -> Result<Response<v1::ServiceRegistryDescribeResponse>, Status> {
        unary(request, async |_, message| self.describe(&message)).await
    }

    type WatchStream = super::ResponseStream<v1::ServiceRegistryWatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::ServiceRegistryWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use v1::service_registry_watch_response::Item;
        let caller = gate::caller(&request)?;
        let pattern = pattern(&request.get_ref().pattern).map_err(status::from_failure)?;
        let place = place_for_watch(&caller, self.max_watches).map_err(status::from_failure)?;
        let items = self.registry.watch(pattern).map(move |item| {
            let _held = &place;
            let item = match item {
                WatchItem::Service(info) => Item::Service(registry::info_to_proto(&info)),
                WatchItem::Unregistered(name) => Item::Unregistered(name.to_string()),
                WatchItem::SnapshotEnd => Item::SnapshotEnd(true),
            };
            Ok(v1::ServiceRegistryWatchResponse { item: Some(item) })
        });
        Ok(Response::new(super::stream(items, &caller, &self.scope)))
    }
}
