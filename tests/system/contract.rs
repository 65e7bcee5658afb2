//! The laws of the channel, tried with plain frames.

use std::time::Duration;

use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::run_hook::Hook;
use core_proto::v1::{self, IntrospectionGetInfoRequest};
use core_tests::{Declared, Hello, RawPlugin, TestCore, Told, eventually, within};
use prost::Message as _;
use serde_json::json;
use tonic::Code;

async fn core() -> TestCore {
    TestCore::builder()
        .tcp()
        .plugin(Declared::remote("lamp"))
        .start()
        .await
}

#[tokio::test]
async fn a_minimal_plugin_needs_three_frames_over_the_unix_socket_and_over_tcp() {
    let core = core().await;
    for (round, client) in [core.remote("lamp"), core.remote_over_tcp("lamp")]
        .iter()
        .enumerate()
    {
        let hello = Hello::ready().services(&["lamp.on"]);
        let mut lamp = RawPlugin::open(client, hello).await.expect("admitted");
        let welcome = &lamp.welcome;
        assert_eq!(welcome.plugin, "lamp");
        assert_eq!(welcome.generation, round as u64 + 1);
        assert_eq!((welcome.wire_version, welcome.resumed), (1, false));
        assert_eq!(&welcome.config[..], b"{}");
        assert!(!welcome.run.is_empty() && welcome.refused.is_empty());
        let limits = welcome.limits.as_ref().expect("limits");
        assert_eq!(
            (limits.max_message_bytes, limits.max_payload_bytes),
            (4 << 20, 256 << 10)
        );
        core.operator().until_phase("lamp", "ready").await;
        let operator = core.operator().clone();
        let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
        let arrived = lamp.expect_call().await;
        lamp.answer(arrived.call_id, json!("on")).await;
        assert_eq!(within("answered", call).await.unwrap().unwrap(), "on");
        let request = v1::PluginManagerRestartRequest {
            name: "lamp".to_owned(),
        };
        let operator = core.operator().clone();
        let restart = tokio::spawn(async move { operator.plugin_manager().restart(request).await });
        match lamp.next().await {
            Ok(FromCore::RunHook(hook)) => assert_eq!(hook.hook(), Hook::Unload),
            other => panic!("{other:?}"),
        }
        lamp.close().await;
        restart.abort();
        eventually!(core.operator().plugin("lamp").await.phase == "connecting");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn frames_of_unknown_kinds_are_ignored_and_counted() {
    let core = core().await;
    let lamp = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), lamp)
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    // Field 1000, a message of two bytes; field 999, a number; an empty frame; an empty oneof.
    for frame in [&[0xc2, 0x3e, 2, 8, 1][..], &[0xb8, 0x3e, 42], &[]] {
        lamp.send_bytes(frame.to_vec()).await;
    }
    // Ids that nobody knows are no error either.
    lamp.send(ToCore::CallResponse(v1::CallResponse {
        call_id: 99,
        ..Default::default()
    }))
    .await;
    lamp.send(ToCore::RequestCancel(v1::RequestCancel { request_id: 99 }))
        .await;
    lamp.send(ToCore::HookDone(v1::HookDone {
        hook_id: 99,
        error: None,
    }))
    .await;
    lamp.send(ToCore::ExtendDeadline(v1::ExtendDeadline {
        hook_id: 99,
        by: None,
    }))
    .await;
    lamp.send(ToCore::Pong(v1::Pong { nonce: 99 })).await;
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!("as ever")).await;
    assert_eq!(within("answered", call).await.unwrap().unwrap(), "as ever");
    let request = v1::IntrospectionGetStatsRequest::default();
    let stats = core
        .operator()
        .introspection()
        .get_stats(request)
        .await
        .expect("stats");
    let unknown: u64 = stats
        .into_inner()
        .metrics
        .into_iter()
        .filter(|metric| metric.name.contains("unknown_frames"))
        .filter_map(|metric| match metric.value {
            Some(v1::metric::Value::Counter(value)) => Some(value),
            _ => None,
        })
        .sum();
    assert!(unknown >= 3, "{unknown} counted");
    core.shutdown().await;
}

#[tokio::test]
async fn an_oversize_frame_ends_its_channel_only_and_the_process_resumes() {
    let core = core().await;
    let client = core.remote("lamp");
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&client, hello.clone())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    lamp.client()
        .store("lamp", "k", "1")
        .await
        .expect("written");
    lamp.send_bytes(vec![0; (4 << 20) + 1]).await;
    lamp.end().await;
    let again = RawPlugin::open(&client.another_connection(), hello)
        .await
        .expect("resumed");
    assert!(again.welcome.resumed);
    assert_eq!(
        again
            .client()
            .stored("lamp", "k")
            .await
            .expect("read")
            .as_deref(),
        Some("1")
    );
    core.shutdown().await;
}

fn error_info(status: &core_proto::google::rpc::Status) -> core_proto::google::rpc::ErrorInfo {
    let info = status
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("ErrorInfo"));
    prost::Message::decode(info.expect("an ErrorInfo").value.as_ref()).expect("an ErrorInfo")
}

#[tokio::test]
async fn a_request_frame_and_its_unary_rpc_answer_alike() {
    let core = core().await;
    let mut lamp = core.ready_plugin("lamp").await;
    let set = |namespace: &str, value: &str| v1::StorageSetRequest {
        namespace: namespace.to_owned(),
        key: "k".to_owned(),
        value: value.to_owned().into(),
        ..Default::default()
    };
    let framed: v1::StorageSetResponse = lamp
        .request("Storage/Set", &set("lamp", "1"))
        .await
        .expect("written");
    assert!(framed.created);
    for request in [
        set("lamp", "not json"),
        set("door", "1"),
        set("Bad Name", "1"),
    ] {
        let unary = lamp
            .client()
            .storage()
            .set(request.clone())
            .await
            .expect_err("refused");
        let framed = lamp
            .request::<v1::StorageSetResponse>("Storage/Set", &request)
            .await;
        let framed = framed.expect_err("refused");
        assert_eq!(framed.code, i32::from(unary.code()));
        assert_eq!(framed.message, unary.message());
        let unary = core_proto::google::rpc::Status::decode(unary.details()).expect("a body");
        assert_eq!(
            error_info(&framed),
            error_info(&unary),
            "the very same body"
        );
    }
    let unknown = lamp
        .request::<v1::StorageSetResponse>("Storage/Fly", &set("lamp", "1"))
        .await;
    assert_eq!(
        unknown.expect_err("no such method").code,
        i32::from(Code::Unimplemented)
    );
    let request_id = lamp
        .send_request("Storage/Get", &v1::NewEvent::default())
        .await;
    assert!(lamp.response(request_id).await.error.is_some());
    // The channel has taken no harm, and unary requests without a run go on too.
    let info = lamp
        .client()
        .introspection()
        .get_info(IntrospectionGetInfoRequest::default())
        .await;
    assert_eq!(info.expect("answered").into_inner().wire_version_max, 1);
    core.shutdown().await;
}

#[tokio::test]
async fn every_unary_rpc_of_the_four_services_travels_as_a_frame() {
    let core = core().await;
    let mut lamp = core.ready_plugin("lamp").await;
    let descriptors =
        prost_types::FileDescriptorSet::decode(core_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut tried = 0;
    for service in descriptors.file.iter().flat_map(|file| &file.service) {
        if !["EventBus", "ServiceRegistry", "StateEngine", "Storage"].contains(&service.name()) {
            continue;
        }
        for method in &service.method {
            let name = format!("{}/{}", service.name(), method.name());
            let request_id = lamp
                .send_request(&name, &v1::IntrospectionGetInfoRequest {})
                .await;
            let code = lamp
                .response(request_id)
                .await
                .error
                .map_or(0, |error| error.code);
            let streams = method.client_streaming() || method.server_streaming();
            assert_eq!(
                code == i32::from(Code::Unimplemented),
                streams,
                "{name}: {code}"
            );
            tried += 1;
        }
    }
    assert!(tried > 15);
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_does_not_read_its_channel_harms_itself_only() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::remote("door"))
        .configure(|config| config.limits.channel_stall = Duration::from_secs(1))
        .start()
        .await;
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    let door = Hello::ready().services(&["door.open"]);
    let mut door = RawPlugin::open(&core.remote("door"), door)
        .await
        .expect("admitted");
    for name in ["lamp", "door"] {
        core.operator().until_phase(name, "ready").await;
    }
    // 200 calls of 64 KiB: more than the outbox holds, to a plugin that does not read.
    let arguments = json!({ "big": "x".repeat(64 << 10) });
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (operator, arguments) = (core.operator().clone(), arguments.clone());
            tokio::spawn(async move { operator.call("lamp.on", arguments).await })
        })
        .collect();
    let operator = core.operator().clone();
    let other = tokio::spawn(async move { operator.call("door.open", json!({})).await });
    let arrived = door.expect_call().await;
    door.answer(arrived.call_id, json!("opened")).await;
    assert_eq!(within("answered", other).await.unwrap().unwrap(), "opened");
    let mut reasons = std::collections::BTreeSet::new();
    for call in calls {
        let status = within("every call ends", call)
            .await
            .unwrap()
            .expect_err("nobody reads");
        reasons.insert(Told::by(&status).reason);
    }
    assert!(reasons.contains("PROVIDER_BUSY"), "{reasons:?}");
    assert!(reasons.contains("PROVIDER_LOST"), "{reasons:?}");
    let end = lamp.end().await;
    Told::by(&end).is(Code::ResourceExhausted, "CHANNEL_STALLED");
    core.shutdown().await;
}
