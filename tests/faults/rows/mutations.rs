//! 35: messages that are none, on the channel and in unary requests.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, PluginMessage};
use core_server::supervisor::contest::ANSWER_WITHIN;
use core_tests::{BytesCodec, Client, Hello, RawPlugin, Told};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;

use super::http2::{credential, home};
use crate::home::Home;
use crate::measure::{count, ms};
use crate::mutator::Mutator;
use crate::report::Row;

/// For each of the two halves.
const TIME: Duration = Duration::from_secs(5);
const LONG_TIME: Duration = Duration::from_secs(300);
/// Nothing takes longer.
const HANG: Duration = Duration::from_secs(1);
/// Messages of one channel before it is looked at.
const BATCH: usize = 40;

pub(crate) async fn envelopes(row: Row) -> Result<()> {
    let time = if row.is_long() { LONG_TIME } else { TIME };
    let (home, bystander, socket) = home().await?;
    let (_, value) = credential();
    let client = Client::new(socket.as_path()).with_token(value.trim_start_matches("Bearer "));
    let before = home.operator.plugin("child").await.generation;
    home.operator
        .store("child", "kept", "[1]")
        .await
        .context("a value")?;
    home.operator
        .set_state("child.kept", "[1]")
        .await
        .context("a state")?;
    let on_channels = channels(&row, &home, &client, time).await?;
    let in_requests = requests(&row, &client, time).await?;
    let log = std::fs::read_to_string(home.directory().join("core.log")).unwrap_or_default();
    row.exactly("panics of the core", log.matches("panicked").count(), "", 0);
    row.tell(
        "on channels",
        on_channels / time.as_secs_f64(),
        "messages/s",
    );
    row.tell(
        "in unary requests",
        in_requests / time.as_secs_f64(),
        "messages/s",
    );
    row.tell("messages", on_channels + in_requests, "");
    let stored = home.operator.stored("child", "kept").await;
    row.require(
        stored.ok().flatten().as_deref() == Some("[1]"),
        "another's data are as they were",
    );
    let state = home.operator.state("child.kept").await.ok().flatten();
    row.require(
        state.is_some_and(|entry| entry.value == "[1]"),
        "another's state is as it was",
    );
    let after = home.operator.plugin("child").await;
    row.require(
        after.generation == before && after.phase == "ready",
        format!(
            "another plugin lives on: {} in run {}",
            after.phase, after.generation
        ),
    );
    let slowest = bystander.took(&row).into_iter().max().unwrap_or_default();
    row.at_most("another client's slowest call", ms(slowest), "ms", ms(HANG));
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// One good message of each kind, and requests of several methods.
fn frames() -> Vec<Vec<u8>> {
    let error = core_proto::google::rpc::Status {
        code: 5,
        message: "no".to_owned(),
        ..Default::default()
    };
    let request = |method: &str, message: Vec<u8>| {
        ToCore::Request(v1::Request {
            request_id: 7,
            method: method.to_owned(),
            message: message.into(),
            timeout: Some(prost_types::Duration {
                seconds: 1,
                nanos: 5,
            }),
            parent: "call/7".to_owned(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        })
    };
    let mut kinds = vec![
        ToCore::Hello(Hello::ready().services(&["peer.on"]).feature("heartbeat").0),
        ToCore::HookDone(v1::HookDone {
            hook_id: 1,
            error: Some(error.clone()),
        }),
        ToCore::ExtendDeadline(v1::ExtendDeadline {
            hook_id: 1,
            by: Some(prost_types::Duration {
                seconds: 30,
                nanos: 0,
            }),
        }),
        ToCore::CallResponse(v1::CallResponse {
            call_id: 1,
            result: "{}".into(),
            error: Some(error),
            ..Default::default()
        }),
        ToCore::RequestCancel(v1::RequestCancel { request_id: 7 }),
        ToCore::Pong(v1::Pong { nonce: 1 }),
        ToCore::Health(v1::Health {
            text: "fine".to_owned(),
            ..Default::default()
        }),
        ToCore::ConfigResult(v1::ConfigResult {
            text: "no".to_owned(),
            ..Default::default()
        }),
    ];
    let methods = messages().into_iter();
    kinds.extend(methods.map(|(method, message)| request(method, message)));
    kinds
        .into_iter()
        .map(|message| {
            PluginMessage {
                message: Some(message),
            }
            .encode_to_vec()
        })
        .collect()
}

/// Good messages, with the methods that they are of.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let event = v1::NewEvent {
        topic: "peer.said".to_owned(),
        subject: "me".to_owned(),
        data: "{\"a\":1}".into(),
        ..Default::default()
    };
    vec![
        (
            "EventBus/Publish",
            v1::EventBusPublishRequest {
                event: Some(event.clone()),
            }
            .encode_to_vec(),
        ),
        (
            "EventBus/PublishBatch",
            v1::EventBusPublishBatchRequest {
                events: vec![event.clone(), event],
            }
            .encode_to_vec(),
        ),
        (
            "ServiceRegistry/Call",
            v1::ServiceRegistryCallRequest {
                service: "child.say".to_owned(),
                arguments: "{\"text\":\"x\"}".into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "Storage/Set",
            v1::StorageSetRequest {
                namespace: "peer".to_owned(),
                key: "a/b".to_owned(),
                value: "[1,2]".into(),
                if_revision: Some(3),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "Storage/ListKeys",
            v1::StorageListKeysRequest {
                namespace: "peer".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "StateEngine/Set",
            v1::StateEngineSetRequest {
                key: "peer.mood".to_owned(),
                value: "\"good\"".into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
    ]
}

/// Channels that are opened, hear nonsense and are asked whether they still answer.
async fn channels(row: &Row, home: &Home, client: &Client, time: Duration) -> Result<f64> {
    let mut mutator = Mutator::new(row.seed(), frames());
    let instance = Hello::ready().0.instance;
    let until = Instant::now() + time;
    let mut sent = 0;
    let mut slowest = Duration::ZERO;
    let mut slowest_nonsense = Duration::ZERO;
    let mut ended = 0;
    while Instant::now() < until {
        let begin = Instant::now();
        // At times the first message is nonsense too. It may read as that of another instance, which waits for
        // whether the one that holds the run lives.
        let hello = Hello::ready()
            .services(&["peer.on"])
            .instance(instance.clone());
        let opened = if mutator.below(8) == 0 {
            let opened = RawPlugin::open_with(&client.another_connection(), mutator.next()).await;
            slowest_nonsense = slowest_nonsense.max(begin.elapsed());
            opened
        } else {
            let opened = RawPlugin::open(&client.another_connection(), hello).await;
            slowest = slowest.max(begin.elapsed());
            opened
        };
        let mut plugin = match opened {
            Ok(plugin) => plugin,
            Err(status) => {
                sent += 1;
                // A run that ended in disorder may not come back at once.
                if Told::by(&status).retry {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                continue;
            }
        };
        for _ in 0..BATCH {
            if plugin.try_send_bytes(mutator.next()).await.is_err() {
                break;
            }
            sent += 1;
        }
        let begin = Instant::now();
        // It answers, or it has ended: a bad message ends it.
        let alive = async {
            let asked = v1::IntrospectionGetInfoRequest::default().encode_to_vec();
            let request = v1::Request {
                request_id: u64::MAX,
                method: "StateEngine/Get".to_owned(),
                message: asked.into(),
                ..Default::default()
            };
            let frame = PluginMessage {
                message: Some(ToCore::Request(request)),
            };
            if plugin.try_send_bytes(frame.encode_to_vec()).await.is_err() {
                return false;
            }
            loop {
                match plugin.next().await {
                    Ok(v1::core_message::Message::Response(answer))
                        if answer.request_id == u64::MAX =>
                    {
                        return true;
                    }
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        };
        match tokio::time::timeout(10 * HANG, alive).await {
            Ok(answered) => ended += usize::from(!answered),
            Err(_) => row.broken("a channel neither answered nor ended"),
        }
        slowest = slowest.max(begin.elapsed());
    }
    row.at_most(
        "channels: slowest answer or end",
        ms(slowest),
        "ms",
        ms(HANG),
    );
    row.at_most(
        "channels: slowest answer to a first message of nonsense",
        ms(slowest_nonsense),
        "ms",
        ms(HANG + ANSWER_WITHIN),
    );
    row.tell("channels ended by what they heard", count(ended), "");
    let peer = home.operator.plugin("peer").await;
    row.tell(
        "runs of the plugin that talks nonsense",
        f64::from(u32::try_from(peer.generation)?),
        "",
    );
    Ok(f64::from(sent))
}

/// Every method of the contract that takes one message, with messages that are none.
async fn requests(row: &Row, client: &Client, time: Duration) -> Result<f64> {
    let samples = messages().into_iter().map(|(_, message)| message).collect();
    let mut mutator = Mutator::new(row.seed().wrapping_add(1), samples);
    let peer = open_in_time(client).await?;
    let client = peer.client();
    let methods = unary_methods()?;
    let until = Instant::now() + time;
    let mut sent: u32 = 0;
    let mut slowest = (Duration::ZERO, String::new());
    let mut strange = 0;
    while Instant::now() < until {
        let method = &methods[mutator.below(methods.len())];
        let mut grpc = tonic::client::Grpc::new(client.link());
        grpc.ready().await.context("connected")?;
        let path: PathAndQuery = method.parse().context("a path")?;
        let begin = Instant::now();
        let mut request = tonic::Request::new(Bytes::from(mutator.next()));
        // What may wait, waits no longer than this.
        request.set_timeout(HANG / 2);
        let asked = grpc.server_streaming(request, path, BytesCodec);
        let answer = tokio::time::timeout(10 * HANG, asked).await;
        let took = begin.elapsed();
        if took > slowest.0 {
            slowest = (took, method.clone());
        }
        match answer {
            Ok(Err(status)) if matches!(status.code(), Code::Internal | Code::Unknown) => {
                // tonic's word for bytes that are no message.
                strange += usize::from(!status.message().contains("decode"));
                println!("{method}: {status}");
            }
            Ok(_) => {}
            Err(_) => row.broken(format!("{method} hangs")),
        }
        sent += 1;
    }
    row.at_most("requests: slowest answer", ms(slowest.0), "ms", ms(HANG));
    row.exactly("requests: errors that are the core's own", strange, "", 0);
    row.note(format!("slowest: {}; {} methods", slowest.1, methods.len()));
    drop(peer);
    Ok(f64::from(sent))
}

/// The last run may have ended in disorder, and its plugin has to wait.
async fn open_in_time(client: &Client) -> Result<RawPlugin> {
    let until = Instant::now() + core_tests::patience();
    loop {
        let client = client.another_connection();
        match RawPlugin::open(&client, Hello::ready()).await {
            Ok(plugin) => return Ok(plugin),
            Err(status) if Instant::now() > until => return Err(status).context("admitted"),
            Err(_) => tokio::time::sleep(core_tests::POLL).await,
        }
    }
}

fn unary_methods() -> Result<Vec<String>> {
    let files = FileDescriptorSet::decode(core_proto::FILE_DESCRIPTOR_SET)?.file;
    let mut paths = Vec::new();
    for file in files {
        for service in &file.service {
            let methods = service.method.iter();
            paths.extend(
                methods
                    .filter(|method| !method.client_streaming())
                    .map(|method| {
                        format!("/{}.{}/{}", file.package(), service.name(), method.name())
                    }),
            );
        }
    }
    Ok(paths)
}
