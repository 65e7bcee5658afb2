//! A core stands what a hostile or broken plugin sends it: other plugins do not notice.

use std::path::Path;
use std::time::Duration;

use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_channel_client::PluginChannelClient;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, CoreMessage, PluginMessage};
use core_server::Runtime;
use core_server::config::{CallPermission, Config, Need, Quotas};
use core_server::plugin_manager::{Kind, Manifest};
use core_server::security::Token;
use core_server::types::{Pattern, PluginName};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Nothing here takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(20);

fn token(name: &str) -> String {
    format!("token-of-{name}-0123456789")
}

/// A core that knows remote plugins of these names. Each may call all services.
async fn core(directory: &Path, names: &[&str]) -> Runtime {
    core_with(directory, names, |_| {}).await
}

async fn core_with(directory: &Path, names: &[&str], change: impl FnOnce(&mut Config)) -> Runtime {
    let mut config = Config::for_tests(directory);
    change(&mut config);
    for name in names {
        let token = Token::from_text(&token(name)).expect("long enough");
        let name = PluginName::parse(name).expect("good name");
        let mut manifest = Manifest::new(name, Kind::Remote { token: Some(token) });
        manifest.permissions.call = vec![CallPermission {
            services: Pattern::parse(">").expect("good pattern"),
            need: Need::Required,
        }];
        config.plugins.push(manifest);
    }
    Runtime::builder(config).start().await.expect("starts")
}

async fn connect(socket: &Path) -> Channel {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://core");
    let connected = endpoint.connect_with_connector(connector).await;
    connected.expect("connects")
}

/// A plugin that speaks the bare contract.
struct Plugin {
    frames: Streaming<CoreMessage>,
    sender: mpsc::Sender<PluginMessage>,
}

impl Plugin {
    /// Opens a channel, reads its `Welcome` and waits until the plugin is STARTED.
    async fn open(core: &Runtime, name: &str, services: &[&str]) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        let service = |name: &&str| v1::ServiceDescription {
            name: (*name).to_owned(),
            ..v1::ServiceDescription::default()
        };
        let hello = v1::Hello {
            ready: true,
            services: services.iter().map(service).collect(),
            ..v1::Hello::default()
        };
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        let authorization = format!("Bearer {}", token(name));
        let authorization = authorization.parse().expect("ASCII");
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let mut client = PluginChannelClient::new(connect(core.plugin_socket()).await);
        let hello = PluginMessage {
            message: Some(ToCore::Hello(hello)),
        };
        sender.send(hello).await.expect("room");
        let frames = client.open(request).await.expect("admitted").into_inner();
        let mut plugin = Self { frames, sender };
        match plugin.next().await {
            FromCore::Welcome(welcome) => assert!(welcome.refused.is_empty()),
            other => panic!("expected Welcome, not {other:?}"),
        }
        let deadline = tokio::time::Instant::now() + LIMIT;
        let started = core.plugin_manager().start(name, deadline).await;
        started.expect("it needs no hooks");
        plugin
    }

    async fn send(&self, message: ToCore) {
        let message = PluginMessage {
            message: Some(message),
        };
        self.sender.send(message).await.expect("the channel lives");
    }

    async fn request(&self, request_id: u64, method: &str, message: &impl prost::Message) {
        let request = v1::Request {
            request_id,
            method: method.to_owned(),
            message: message.encode_to_vec().into(),
            ..v1::Request::default()
        };
        self.send(ToCore::Request(request)).await;
    }

    async fn next(&mut self) -> FromCore {
        let frame = tokio::time::timeout(LIMIT, self.frames.message()).await;
        let frame = frame.expect("in time").expect("the channel lives");
        frame
            .expect("the channel has not ended")
            .message
            .expect("of a known kind")
    }

    async fn response(&mut self, request_id: u64) -> v1::Response {
        loop {
            if let FromCore::Response(response) = self.next().await
                && response.request_id == request_id
            {
                return response;
            }
        }
    }

    async fn call(&mut self) -> v1::CallRequest {
        loop {
            if let FromCore::CallRequest(call) = self.next().await {
                return call;
            }
        }
    }
}

/// Ends the core, which must not need to abort anything.
async fn shut_down(core: Runtime) {
    let report = tokio::time::timeout(LIMIT, core.shutdown()).await;
    let report = report.expect("in time");
    assert!(report.is_clean(), "{report:?}");
    assert!(report.aborted_tasks.is_empty(), "{report:?}");
}

fn call(service: &str) -> v1::ServiceRegistryCallRequest {
    v1::ServiceRegistryCallRequest {
        service: service.to_owned(),
        ..v1::ServiceRegistryCallRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_ends_with_calls_in_flight_takes_them_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core(directory.path(), &["asks", "works"]).await;
    let mut works = Plugin::open(&core, "works", &["works.on"]).await;
    let asks = Plugin::open(&core, "asks", &[]).await;
    for request_id in 1..=3 {
        asks.request(request_id, "ServiceRegistry/Call", &call("works.on"))
            .await;
        works.call().await;
    }
    drop(asks);
    let mut cancelled = 0;
    while cancelled < 3 {
        cancelled += u32::from(matches!(works.next().await, FromCore::CallCancel(_)));
    }
    // The reader of the channel has ended too: nothing is left to abort.
    shut_down(core).await;
}

#[tokio::test]
async fn a_timeout_beyond_all_clocks_is_taken_as_a_long_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core(directory.path(), &["asks"]).await;
    let mut asks = Plugin::open(&core, "asks", &[]).await;
    let request = v1::Request {
        request_id: 1,
        method: "StateEngine/List".to_owned(),
        timeout: Some(prost_types::Duration {
            seconds: i64::MAX,
            nanos: 999_999_999,
        }),
        ..v1::Request::default()
    };
    asks.send(ToCore::Request(request)).await;
    assert_eq!(asks.response(1).await.error, None);
    shut_down(core).await;
}

#[tokio::test]
async fn an_answer_too_large_is_the_callers_error_and_not_the_end_of_its_channel() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core(directory.path(), &["asks", "works"]).await;
    let mut works = Plugin::open(&core, "works", &["works.on"]).await;
    let mut asks = Plugin::open(&core, "asks", &[]).await;
    // Each fits a message of the provider, but not one of the core around it.
    let text = "x".repeat((4 << 20) - 64);
    let error = core_proto::google::rpc::Status {
        code: 5,
        message: text.clone(),
        ..Default::default()
    };
    let answers = [
        v1::CallResponse {
            error: Some(error),
            ..v1::CallResponse::default()
        },
        v1::CallResponse {
            content_type: text,
            ..v1::CallResponse::default()
        },
    ];
    for (answer, request_id) in answers.into_iter().zip(1..) {
        asks.request(request_id, "ServiceRegistry/Call", &call("works.on"))
            .await;
        let call_id = works.call().await.call_id;
        works
            .send(ToCore::CallResponse(v1::CallResponse { call_id, ..answer }))
            .await;
        let error = asks.response(request_id).await.error.expect("too large");
        assert!(error.message.contains("the limit is"), "{}", error.message);
    }
    shut_down(core).await;
}

#[tokio::test]
async fn a_request_with_endless_texts_is_refused_and_its_channel_lives() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core(directory.path(), &["asks"]).await;
    let mut asks = Plugin::open(&core, "asks", &[]).await;
    let text = "x".repeat(3 << 20);
    let request = v1::ServiceRegistryCallRequest {
        content_type: text.clone(),
        ..call("asks.self")
    };
    asks.request(1, "ServiceRegistry/Call", &request).await;
    asks.request(2, &text, &call("asks.self")).await;
    let request = v1::Request {
        request_id: 3,
        method: "StateEngine/List".to_owned(),
        traceparent: text,
        ..v1::Request::default()
    };
    asks.send(ToCore::Request(request)).await;
    for request_id in 1..=3 {
        let error = asks.response(request_id).await.error.expect("refused");
        assert!(error.message.len() < 1_000, "{}", error.message.len());
    }
    shut_down(core).await;
}

#[tokio::test]
async fn a_response_that_would_fit_no_message_is_refused_and_not_the_end_of_the_channel() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core_with(directory.path(), &["asks"], |config| {
        config.quotas = Quotas::UNLIMITED;
    })
    .await;
    let mut asks = Plugin::open(&core, "asks", &[]).await;
    let keys: Vec<_> = (0..20).map(|index| format!("key-{index}")).collect();
    for (key, request_id) in keys.iter().zip(1..) {
        let set = v1::StorageSetRequest {
            namespace: "asks".to_owned(),
            key: key.clone(),
            value: format!("\"{}\"", "x".repeat(255 << 10)).into(),
            ..v1::StorageSetRequest::default()
        };
        asks.request(request_id, "Storage/Set", &set).await;
        assert_eq!(asks.response(request_id).await.error, None);
    }
    let get = v1::StorageGetManyRequest {
        namespace: "asks".to_owned(),
        keys,
    };
    asks.request(100, "Storage/GetMany", &get).await;
    let error = asks.response(100).await.error.expect("too large");
    assert!(error.message.contains("ask for fewer"), "{}", error.message);
    let get = v1::StorageGetRequest {
        namespace: "asks".to_owned(),
        key: "key-0".to_owned(),
    };
    asks.request(101, "Storage/Get", &get).await;
    assert_eq!(asks.response(101).await.error, None);
    shut_down(core).await;
}

#[tokio::test]
async fn frames_of_an_ended_run_change_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core(directory.path(), &["asks"]).await;
    let asks = Plugin::open(&core, "asks", &[]).await;
    let deadline = tokio::time::Instant::now() + LIMIT;
    let (unloaded, ()) = tokio::join!(core.plugin_manager().unload("asks", deadline), async {
        for index in 0..200 {
            let set = v1::StateEngineSetRequest {
                key: format!("asks.key-{index}"),
                value: "1".into(),
                ..v1::StateEngineSetRequest::default()
            };
            let register = v1::ServiceRegistryRegisterRequest {
                service: Some(v1::ServiceDescription {
                    name: format!("asks.service-{index}"),
                    ..v1::ServiceDescription::default()
                }),
            };
            let request = |request_id, method: &str, message: Vec<u8>| PluginMessage {
                message: Some(ToCore::Request(v1::Request {
                    request_id,
                    method: method.to_owned(),
                    message: message.into(),
                    ..v1::Request::default()
                })),
            };
            use prost::Message as _;
            let register = request(
                2 * index + 1,
                "ServiceRegistry/Register",
                register.encode_to_vec(),
            );
            let set = request(2 * index + 2, "StateEngine/Set", set.encode_to_vec());
            // The channel may end meanwhile.
            let _ended = asks.sender.send(register).await;
            let _ended = asks.sender.send(set).await;
        }
    });
    unloaded.expect("it ends by its deadline");
    let services = core.service_registry().list(None, None, 1_000);
    assert!(
        services
            .iter()
            .all(|service| service.registered_at.is_none())
    );
    shut_down(core).await;
}

#[tokio::test]
async fn whoever_takes_all_connections_does_not_shut_out_operators() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core_with(directory.path(), &["asks"], |config| {
        config.limits.connections = 1;
    })
    .await;
    let only = Plugin::open(&core, "asks", &[]).await;
    let second = connect(core.plugin_socket()).await;
    check(second).await.expect_err("there is room for one only");
    let operator = connect(core.operator_socket()).await;
    check(operator).await.expect("operators have their own");
    drop(only);
    shut_down(core).await;
}

#[tokio::test]
async fn whoever_is_known_stays_while_strangers_give_way_to_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let core = core_with(directory.path(), &["asks"], |config| {
        config.limits.connections = 2;
    })
    .await;
    let mut known = Plugin::open(&core, "asks", &[]).await;
    for _ in 0..20 {
        let stranger = connect(core.plugin_socket()).await;
        check(stranger.clone())
            .await
            .expect("the newest has a place");
        // Kept open: the next one takes its place.
        std::mem::forget(stranger);
    }
    let get = v1::StateEngineGetRequest {
        key: "asks.anything".to_owned(),
    };
    known.request(1, "StateEngine/Get", &get).await;
    match known.next().await {
        FromCore::Response(answer) => assert_eq!(answer.request_id, 1),
        other => panic!("expected an answer, not {other:?}"),
    }
    shut_down(core).await;
}

async fn check(channel: Channel) -> Result<(), tonic::Status> {
    let mut client = HealthClient::new(channel);
    let answer = client.check(HealthCheckRequest::default());
    let answer = tokio::time::timeout(LIMIT, answer).await.expect("in time");
    answer.map(drop)
}
