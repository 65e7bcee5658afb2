//! Who may use what: every RPC of the contract by every kind of caller, grants and denies, and how a change
//! of them acts on what is open.

use bytes::Bytes;
use core_proto::v1;
use core_server::config::{Manage, Permissions};
use core_server::plugin_manager::Manifest;
use core_server::security::{Granting, Mode};
use core_server::types::Pattern;
use core_tests::{
    BytesCodec, Client, Declared, Hello, RawPlugin, TestCore, Told, eventually, within,
};
use core_tls::ClientTls;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

/// "package.Service/Method" of all RPCs that reflection shows; `standard_client` sees that it shows these.
fn methods() -> Vec<String> {
    let contract = prost_types::FileDescriptorSet::decode(core_proto::FILE_DESCRIPTOR_SET);
    let health = prost_types::FileDescriptorSet::decode(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let mut methods = Vec::new();
    for file in [contract.expect("good"), health.expect("good")]
        .into_iter()
        .flat_map(|set| set.file)
    {
        let package = file.package().to_owned();
        for service in &file.service {
            let names = service
                .method
                .iter()
                .map(|method| format!("{package}.{}/{}", service.name(), method.name()));
            methods.extend(names);
        }
    }
    methods.push("grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned());
    methods
}

/// What becomes of an empty message: "let in", or why not.
async fn attempt(client: &Client, method: &str) -> String {
    let mut grpc = tonic::client::Grpc::new(client.link());
    grpc.ready().await.expect("connected");
    let path: PathAndQuery = format!("/{method}").parse().expect("a path");
    let messages = tokio_stream::once(Bytes::new());
    let mut request = Request::new(messages);
    request.set_timeout(std::time::Duration::from_secs(5));
    // What is refused is refused before anything else is sent.
    let answer = within(method, grpc.streaming(request, path, BytesCodec)).await;
    match answer {
        Ok(_) => "let in".to_owned(),
        Err(status) => {
            let reason = Told::by(&status).reason;
            match reason.as_str() {
                "BAD_CREDENTIAL" | "NOT_ALLOWED" | "NOT_GRANTED" | "NO_RUN" => reason,
                _ => "let in".to_owned(),
            }
        }
    }
}

/// The kinds of callers of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Anonymous,
    WithoutRun,
    Plugin,
    Manager,
    Operator,
}

/// The table of `contract.md`, written once more.
fn expected(kind: Kind, method: &str) -> &'static str {
    let (service, name) = method.split_once('/').expect("a slash");
    let service = service.rsplit_once('.').map_or(service, |(_, last)| last);
    let is_open = service == "Health" || (service, name) == ("Enrollment", "Join");
    if is_open {
        return "let in";
    }
    let of_a_run = match service {
        "EventBus" | "ServiceRegistry" | "StateEngine" | "Storage" => true,
        "PluginManager" => ["Get", "PushLogs"].contains(&name),
        "Introspection" => name == "GetInfo",
        _ => false,
    };
    let managed = match service {
        "PluginManager" => [
            "List", "Watch", "Logs", "Load", "Start", "Stop", "Unload", "Restart",
        ]
        .contains(&name),
        "Introspection" => ["GetStats", "GetQuotas"].contains(&name),
        "StorageAdmin" => name == "Backup",
        _ => false,
    };
    let by_credential = service == "ServerReflection" || service == "PluginChannel";
    match kind {
        Kind::Anonymous => "BAD_CREDENTIAL",
        Kind::Operator => match (service, name) {
            ("PluginChannel", _)
            | ("ServiceRegistry", "Register" | "Unregister")
            | ("PluginManager", "PushLogs")
            | ("Enrollment", "Renew") => "NOT_ALLOWED",
            _ => "let in",
        },
        _ if by_credential => "let in",
        _ if (service, name) == ("Enrollment", "Renew") => "BAD_CREDENTIAL",
        Kind::WithoutRun if of_a_run => "NO_RUN",
        // An empty message names nobody, and so not the plugin itself.
        Kind::Plugin if (service, name) == ("PluginManager", "Get") => "NOT_GRANTED",
        Kind::WithoutRun | Kind::Plugin if managed => "NOT_GRANTED",
        _ if of_a_run || managed => "let in",
        _ => "NOT_ALLOWED",
    }
}

async fn assert_matrix(kind: Kind, client: &Client) {
    let mut wrong = Vec::new();
    for method in methods() {
        let (seen, wanted) = (attempt(client, &method).await, expected(kind, &method));
        if seen != wanted {
            wrong.push(format!("{kind:?} {method}: {seen}, not {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn managing(name: &str) -> Declared {
    let mut declared = Declared::remote(name);
    declared.manifest_mut().permissions.manage = vec![
        Manage::ViewPlugins,
        Manage::ManagePlugins,
        Manage::ReadLogs,
        Manage::BackUpStorage,
    ];
    declared
}

#[tokio::test]
async fn every_rpc_lets_in_exactly_whom_the_contract_names() {
    assert!(methods().len() > 40, "{:?}", methods());
    let core = TestCore::builder()
        .tls()
        .plugin(Declared::remote("absent"))
        .plugin(Declared::remote("lamp"))
        .plugin(managing("warden"))
        .start()
        .await;
    assert_matrix(Kind::Anonymous, &core.anonymous()).await;
    assert_matrix(Kind::WithoutRun, &core.remote("absent")).await;
    let _lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    assert_matrix(Kind::Plugin, &core.remote("lamp")).await;
    let _warden = RawPlugin::open(&core.remote("warden"), Hello::ready())
        .await
        .expect("admitted");
    assert_matrix(Kind::Manager, &core.remote("warden")).await;
    core.shutdown().await;

    // On a core of their own: they may end everything.
    let core = TestCore::builder().tls().start().await;
    assert_matrix(Kind::Operator, core.operator()).await;
    let request = v1::AccessCreateTokenRequest::default();
    let made = core
        .operator()
        .access()
        .create_token(request)
        .await
        .expect("made");
    let ca = std::fs::read(core.directory().join("data/security/ca.pem")).expect("there");
    let tls = ClientTls::from_pem(&ca, None).expect("a CA");
    let far = Client::over_tls(core.tls_address(), tls).with_token(&made.into_inner().token);
    assert_matrix(Kind::Operator, &far).await;
    core.shutdown().await;
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    let parsed = texts
        .iter()
        .map(|text| Pattern::parse(text).expect("a pattern"));
    parsed.collect()
}

/// The configuration of a core with one plugin changed.
async fn change(core: &TestCore, plugin: &str, alter: impl FnOnce(&mut Manifest)) {
    let mut config = core.config().clone();
    let found = config
        .plugins
        .iter_mut()
        .find(|one| one.name.as_str() == plugin);
    alter(found.expect("declared"));
    core.runtime().reload(config).await.expect("reloaded");
}

#[tokio::test]
async fn grants_and_denies_act_at_once_on_what_is_open() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp").may_subscribe("home.>"))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let generation = lamp.welcome.generation;
    let plugin = lamp.client();
    let kept = plugin.subscribe(&["lamp.>"]).await;
    let lost = plugin.subscribe(&["home.>"]).await;
    let denied = plugin
        .publish("home.scene", json!(1))
        .await
        .expect_err("not granted");
    Told::by(&denied)
        .is(Code::PermissionDenied, "NOT_GRANTED")
        .says("[plugins.lamp.grants]");
    change(&core, "lamp", |lamp| {
        lamp.granted.publish = patterns(&["home.scene"]);
        lamp.denied.subscribe = patterns(&["home.alarm.>"]);
    })
    .await;
    plugin
        .publish("home.scene", json!(1))
        .await
        .expect("granted by now");
    let ended = within("what is denied ends", lost.end()).await;
    Told::by(&ended)
        .is(Code::PermissionDenied, "NOT_GRANTED")
        .says("[plugins.lamp.deny]");
    let request = v1::EventBusSubscribeRequest {
        patterns: vec!["home.alarm.zone".to_owned()],
        ..Default::default()
    };
    let denied = plugin.subscribe_as(request).await.expect_err("denied");
    Told::by(&denied).is(Code::PermissionDenied, "NOT_GRANTED");
    plugin.subscribe(&["home.door"]).await;
    // The same run, and what was not touched goes on.
    plugin.publish("lamp.on", json!(1)).await.expect("its own");
    assert_eq!(core.operator().plugin("lamp").await.generation, generation);
    drop(kept);
    core.shutdown().await;
}

#[tokio::test]
async fn watches_and_services_end_with_what_was_granted() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let grant = |lamp: &mut Manifest| {
        lamp.granted.storage.read = patterns(&["home"]);
        lamp.granted.manage = vec![Manage::ViewPlugins, Manage::ReadLogs];
        lamp.granted.provide = patterns(&["geo.>"]);
    };
    change(&core, "lamp", grant).await;
    let hello = Hello::ready().services(&["geo.lookup", "lamp.on"]);
    let lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    let plugin = lamp.client();
    let watch = v1::StorageWatchRequest {
        namespace: "home".to_owned(),
        ..Default::default()
    };
    let watch = plugin.storage().watch(watch).await;
    let mut watch = watch.expect("granted").into_inner();
    let plugins = v1::PluginManagerWatchRequest::default();
    let plugins = plugin.plugin_manager().watch(plugins).await;
    let mut plugins = plugins.expect("granted").into_inner();
    let logs = v1::PluginManagerLogsRequest {
        name: "lamp".to_owned(),
        follow: true,
        ..Default::default()
    };
    let logs = plugin.plugin_manager().logs(logs).await;
    let mut logs = logs.expect("granted").into_inner();
    change(&core, "lamp", |lamp| lamp.granted = Permissions::default()).await;
    macro_rules! ends {
        ($stream:ident) => {
            let end = within("it ends", async {
                loop {
                    match $stream.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("it ends without saying why"),
                        Err(status) => break status,
                    }
                }
            });
            Told::by(&end.await).is(Code::PermissionDenied, "NOT_GRANTED");
        };
    }
    ends!(watch);
    ends!(plugins);
    ends!(logs);
    let services = core.operator().plugin("lamp").await.services;
    assert_eq!(services, ["lamp.on"]);
    core.shutdown().await;
}

#[tokio::test]
async fn under_review_a_manifest_asks_and_the_operator_grants() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp").may_publish("home.>"))
        .configure(|config| config.security.granting = Granting::Reviewed)
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let plugin = lamp.client();
    // It waits to be granted all that it asks for; what it has it may use meanwhile.
    core.operator().until_phase("lamp", "waiting_grant").await;
    plugin.publish("lamp.on", json!(1)).await.expect("its own");
    let denied = plugin
        .publish("home.scene", json!(1))
        .await
        .expect_err("only asked for");
    Told::by(&denied).is(Code::PermissionDenied, "NOT_GRANTED");
    change(&core, "lamp", |lamp| {
        lamp.granted.publish = patterns(&["home.scene"])
    })
    .await;
    plugin
        .publish("home.scene", json!(1))
        .await
        .expect("granted");
    plugin
        .publish("home.other", json!(1))
        .await
        .expect_err("not that");
    core.shutdown().await;
}

#[tokio::test]
async fn in_audit_mode_what_is_not_granted_is_done_and_noted_but_the_core_s_own_stays_its_own() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .configure(|config| config.security.mode = Mode::Audit)
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let plugin = lamp.client();
    plugin
        .publish("home.scene", json!("value-of-an-event"))
        .await
        .expect("done");
    let denied = plugin.publish("core.plugin.started", json!(1)).await;
    Told::by(&denied.expect_err("never")).is(Code::PermissionDenied, "NOT_GRANTED");
    let would = |line: &Value| {
        line["decision"] == "would_be_denied"
            && line["plugin"] == "lamp"
            && line["action"] == "publish"
            && line["resource"] == "home.scene"
            && line["generation"] == 1
    };
    eventually!(core.audited().iter().any(would), "{:?}", core.audited());
    let text = serde_json::to_string(&core.audited()).expect("JSON");
    assert!(!text.contains("value-of-an-event") && !text.contains(core.token("lamp")));
    core.shutdown().await;
}

#[tokio::test]
async fn the_audit_log_tells_who_was_refused_and_what_operators_did_without_secrets() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let wrong = core.anonymous().with_token("not-a-token-of-this-core");
    wrong.publish("a.b", json!(1)).await.expect_err("nobody");
    let request = v1::AccessCreateTokenRequest {
        plugin: "shed".to_owned(),
        ..Default::default()
    };
    let made = core
        .operator()
        .access()
        .create_token(request)
        .await
        .expect("made")
        .into_inner();
    let id = made.credential.expect("there").id;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    for _ in 0..100 {
        lamp.client()
            .publish("home.a", json!(1))
            .await
            .expect_err("denied");
    }
    let has = |wanted: &dyn Fn(&Value) -> bool| core.audited().iter().any(wanted);
    eventually!(has(&|line| line["rule"] == "BAD_CREDENTIAL"
        && line["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("plugin socket"))));
    eventually!(has(&|line| line["action"] == "Access/CreateToken"
        && line["plugin"] == "shed"
        && line["resource"] == id.as_str()));
    eventually!(has(
        &|line| line["plugin"] == "lamp" && line["rule"] == "not_granted"
    ));
    let lines = core.audited();
    let told = lines.iter().filter(|line| line["plugin"] == "lamp").count();
    assert!(
        told < 60,
        "{told} of 100 denials in a moment were told one by one"
    );
    let text = serde_json::to_string(&lines).expect("JSON");
    assert!(!text.contains(&made.token) && !text.contains("not-a-token-of-this-core"));
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_may_view_sees_others_and_may_not_touch_them() {
    let mut viewer = Declared::remote("viewer");
    viewer.manifest_mut().permissions = Permissions {
        manage: vec![Manage::ViewPlugins],
        ..Permissions::default()
    };
    let core = TestCore::builder()
        .plugin(viewer)
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let viewer = RawPlugin::open(&core.remote("viewer"), Hello::ready())
        .await
        .expect("admitted");
    assert_eq!(viewer.client().plugin("lamp").await.name, "lamp");
    let refused = viewer.client().stop("lamp").await.expect_err("only an eye");
    Told::by(&refused)
        .is(Code::PermissionDenied, "NOT_GRANTED")
        .says("plugins.manage");
    core.shutdown().await;
}
