//! What any gRPC tool relies on: health and reflection. Stubs of other languages are tried with the
//! examples.

use std::collections::BTreeSet;

use core_proto::v1;
use core_tests::{Client, Declared, TestCore, Told, within};
use prost::Message as _;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

async fn ask(client: &Client, question: MessageRequest) -> Result<MessageResponse, tonic::Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let answers = client
        .reflection()
        .server_reflection_info(tokio_stream::once(request))
        .await?;
    let answer = within("reflection answers", answers.into_inner().message()).await?;
    Ok(answer
        .and_then(|answer| answer.message_response)
        .expect("an answer"))
}

async fn services(client: &Client) -> Result<BTreeSet<String>, tonic::Status> {
    let answer = ask(client, MessageRequest::ListServices(String::new())).await?;
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}");
    };
    Ok(list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect())
}

#[tokio::test]
async fn health_answers_anybody_on_every_listener() {
    let core = TestCore::builder().tcp().start().await;
    let tcp = Client::new(core.tcp_address());
    for client in [core.anonymous(), core.operator().clone(), tcp] {
        let answer = client
            .health()
            .check(HealthCheckRequest::default())
            .await
            .expect("answered");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        let unknown = HealthCheckRequest {
            service: "nothing.of.the.kind".to_owned(),
        };
        assert_eq!(
            client
                .health()
                .check(unknown)
                .await
                .expect_err("unknown")
                .code(),
            Code::NotFound
        );
    }
    core.shutdown().await;
}

#[tokio::test]
async fn health_says_not_serving_as_soon_as_the_core_stops() {
    let plugin = Declared::process("child", super::MISBEHAVING).args(&["stubborn"]);
    let plugin = plugin.timeouts(|timeouts| timeouts.stop = std::time::Duration::from_secs(2));
    let core = TestCore::builder().plugin(plugin).start().await;
    core.operator().until_phase("child", "ready").await;
    let mut watch = core
        .anonymous()
        .health()
        .watch(HealthCheckRequest::default())
        .await
        .expect("a watch")
        .into_inner();
    let mut next = async || {
        let message = within("health is told", watch.message()).await;
        message.ok().flatten().map(|message| message.status())
    };
    assert_eq!(next().await, Some(ServingStatus::Serving));
    let stopping = tokio::spawn(core.shutdown());
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    within("stopped", stopping).await.expect("clean");
}

#[tokio::test]
async fn reflection_lists_exactly_the_services_and_describes_each() {
    let core = TestCore::builder()
        .tcp()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let expected: BTreeSet<String> = [
        "coreruntime.v1.Access",
        "coreruntime.v1.Enrollment",
        "coreruntime.v1.EventBus",
        "coreruntime.v1.Introspection",
        "coreruntime.v1.PluginChannel",
        "coreruntime.v1.PluginManager",
        "coreruntime.v1.ServiceRegistry",
        "coreruntime.v1.StateEngine",
        "coreruntime.v1.Storage",
        "coreruntime.v1.StorageAdmin",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(services(core.operator()).await.expect("listed"), expected);
    assert_eq!(
        services(&core.remote_over_tcp("lamp"))
            .await
            .expect("listed"),
        expected
    );
    let refused = services(&core.anonymous())
        .await
        .expect_err("identified callers only");
    Told::by(&refused).is(Code::Unauthenticated, "BAD_CREDENTIAL");

    let mut rpcs = 0;
    for service in expected {
        let question = MessageRequest::FileContainingSymbol(service.clone());
        let answer = ask(core.operator(), question).await.expect("answered");
        let MessageResponse::FileDescriptorResponse(files) = answer else {
            panic!("{service}: {answer:?}");
        };
        for file in files.file_descriptor_proto {
            let file = prost_types::FileDescriptorProto::decode(file.as_slice()).expect("a file");
            let wanted = file
                .service
                .iter()
                .filter(|described| format!("{}.{}", file.package(), described.name()) == service);
            for method in wanted.flat_map(|service| &service.method) {
                let rpc = format!("{service}/{}", method.name());
                assert!(
                    core_server::security::rule_of(&rpc).is_some(),
                    "{rpc} has no rule"
                );
                rpcs += 1;
            }
        }
    }
    assert!(rpcs > 35, "only {rpcs} RPCs were found");
    core.shutdown().await;
}

#[tokio::test]
async fn introspection_tells_what_the_core_is_and_its_limits() {
    let core = TestCore::builder()
        .tcp()
        .sqlite()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let info = core
        .operator()
        .introspection()
        .get_info(v1::IntrospectionGetInfoRequest {})
        .await;
    let info = info.expect("answered").into_inner();
    assert_eq!((info.wire_version_min, info.wire_version_max), (1, 1));
    assert_eq!(info.features, ["heartbeat"]);
    assert_eq!(info.storage, "sqlite");
    assert!(
        info.storage_path.ends_with("runtime.db"),
        "{}",
        info.storage_path
    );
    assert!(!info.insecure_plaintext);
    let tcp = core.tcp_address().to_string();
    assert!(info.addresses.contains(&tcp), "{:?}", info.addresses);
    let limit = |name: &str| {
        info.limits
            .iter()
            .find(|limit| limit.name == name)
            .map(|l| l.value)
    };
    assert_eq!(limit("payload_bytes"), Some(256 << 10));
    assert_eq!(limit("call_depth"), Some(16));
    core.shutdown().await;
}
