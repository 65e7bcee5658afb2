//! A direct unary echo over tonic, without a core: what gRPC itself costs. Its server stands on the
//! core's own transport (the same HTTP/2 settings, the same accept loop) and speaks the messages of
//! `ServiceRegistry.Call`; its client is the one that calls the core.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Result, bail};
use core_proto::v1;
use core_server::channel::CallerSlots;
use core_server::task::TaskScope;
use core_server::transport::{Http2, Server, Standing, Supervised, bind_tcp};
use hyper::body::Incoming;
use plugin_sdk::client::{Address, Connection};
use tonic::{Request, Response, Status};

use super::{Operation, Order, obey, operate, payload, peer_address};

/// Answers each call with its arguments.
#[derive(Clone)]
struct Echo;

impl tonic::server::UnaryService<v1::ServiceRegistryCallRequest> for Echo {
    type Response = v1::ServiceRegistryCallResponse;
    type Future = Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<v1::ServiceRegistryCallRequest>) -> Self::Future {
        let result = request.into_inner().arguments;
        let answer = v1::ServiceRegistryCallResponse {
            result,
            ..Default::default()
        };
        ready(Ok(Response::new(answer)))
    }
}

type Answer = Result<hyper::Response<tonic::body::Body>, Infallible>;

impl tower::Service<hyper::Request<Incoming>> for Echo {
    type Response = hyper::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Incoming>) -> Self::Future {
        let standing = request.extensions().get::<Standing>();
        // As a plugin's connection, without the limits of a stranger's.
        if let Some(standing) = standing.filter(|standing| !standing.is_known())
            && let Some(slot) = Arc::<CallerSlots>::default().take(1)
        {
            standing.identify(slot);
        }
        Box::pin(async {
            let codec = tonic_prost::ProstCodec::default();
            let answer = tonic::server::Grpc::new(codec).unary(Echo, request).await;
            Ok(answer)
        })
    }
}

pub(super) async fn server() -> Result<()> {
    let scope = TaskScope::new();
    let supervised = Supervised::new(Arc::new(Vec::new), "".into());
    let server = Server::new(Echo, Http2::default(), scope, supervised, []);
    server.serve_tcp(bind_tcp(peer_address()?.parse()?).await?);
    obey(|order| async move { bail!("an echo does not {order:?}") }).await
}

pub(super) async fn client() -> Result<()> {
    let address: Address = peer_address()?.parse()?;
    let connection = Connection::connect(address, None).await?;
    obey(move |order| {
        let connection = connection.clone();
        async move {
            let Order::Operate {
                kind: Operation::UnaryCall,
                concurrency,
                seconds,
            } = order
            else {
                bail!("an echo's client does not {order:?}");
            };
            let call = move |_| {
                let mut registry = connection.service_registry();
                async move {
                    let request = v1::ServiceRegistryCallRequest {
                        service: "provider.echo".to_owned(),
                        arguments: payload(),
                        ..Default::default()
                    };
                    registry.call(request).await?;
                    Ok(())
                }
            };
            Ok(serde_json::to_value(
                operate(concurrency, seconds, call).await?,
            )?)
        }
    })
    .await
}
