//! Grants that operators give while the core runs: who waits for them, what they act on, what is told and
//! noted of them.

use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::{self, Permission};
use core_server::security::Granting;
use core_tests::{Client, Declared, Hello, RawPlugin, TestCore, Told, eventually, plugins, within};
use core_tls::ClientTls;
use plugin_sdk::{Ctx, Plugin};
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming};

use super::ECHO;

fn permission(text: &str) -> Permission {
    let (action, resource) = text.split_once('=').expect("an action and a resource");
    Permission {
        action: action.to_owned(),
        resource: resource.to_owned(),
        optional: false,
    }
}

fn permissions(texts: &[&str]) -> Vec<Permission> {
    texts.iter().map(|text| permission(text)).collect()
}

fn texts(permissions: &[Permission]) -> Vec<String> {
    let text = |one: &Permission| format!("{}={}", one.action, one.resource);
    permissions.iter().map(text).collect()
}

fn asking(texts: &[&str]) -> Hello {
    let mut hello = Hello::ready();
    hello.0.permissions = permissions(texts);
    hello
}

async fn grant(operator: &Client, plugin: &str, texts: &[&str]) -> v1::AccessGrantResponse {
    let request = v1::AccessGrantRequest {
        plugin: plugin.to_owned(),
        permissions: permissions(texts),
    };
    let granted = operator.access().grant(request).await;
    granted.expect("granted").into_inner()
}

async fn revoke(core: &TestCore, plugin: &str, texts: &[&str]) -> v1::AccessRevokeResponse {
    let request = v1::AccessRevokeRequest {
        plugin: plugin.to_owned(),
        permissions: permissions(texts),
    };
    let revoked = core.operator().access().revoke(request).await;
    revoked.expect("revoked").into_inner()
}

/// "publish=home.> granted by uid 7": how each permission of a plugin stands.
async fn standings(core: &TestCore, plugin: &str) -> Vec<String> {
    let request = v1::AccessListPermissionsRequest {
        plugin: plugin.to_owned(),
    };
    let listed = core.operator().access().list_permissions(request).await;
    let listed = listed.expect("listed").into_inner().permissions;
    let show = |one: v1::PermissionInfo| {
        let text = texts(&[one.permission.expect("there")]).remove(0);
        let asked = if one.asked { " asked" } else { "" };
        let by = match &one.granted_by[..] {
            [] => String::new(),
            by => format!(" granted by {}", by.join(", ")),
        };
        let denied = if one.denied { " denied" } else { "" };
        format!("{text}{asked}{by}{denied}")
    };
    listed.into_iter().map(show).collect()
}

fn own_uid() -> String {
    format!("uid {}", rustix::process::geteuid().as_raw())
}

/// A plugin that no configuration knows, with a token for it.
async fn with_token(core: &TestCore, plugin: &str) -> Client {
    let request = v1::AccessCreateTokenRequest {
        plugin: plugin.to_owned(),
        ..Default::default()
    };
    let made = core.operator().access().create_token(request).await;
    let token = made.expect("made").into_inner().token;
    core.anonymous().with_token(&token)
}

/// How a stream ends; what comes before is passed over.
async fn end_of<T>(mut stream: Streaming<T>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ends without saying why"),
                Err(status) => return status,
            }
        }
    };
    within("the stream ends", end).await
}

#[tokio::test]
async fn under_review_a_child_is_started_when_it_is_granted_what_it_asks_for() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).hears_scenes())
        .configure(|config| config.security.granting = Granting::Reviewed)
        .start()
        .await;
    let operator = core.operator();
    let waits = operator.until_phase("child", "waiting_grant").await;
    assert_eq!((waits.reason.as_str(), waits.pid), ("not_granted", 0));
    assert!(
        waits.message.contains("subscribe=scene.>")
            && waits.message.contains("corectl plugins grant child"),
        "{}",
        waits.message
    );
    let refused = operator.start("child").await.expect_err("it waits");
    Told::by(&refused)
        .is(Code::FailedPrecondition, "PLUGIN_FAILED")
        .says("corectl plugins grant child");
    assert_eq!(standings(&core, "child").await, ["subscribe=scene.> asked"]);
    let granted = grant(operator, "child", &["subscribe=scene.>"]).await;
    assert_eq!(texts(&granted.granted), ["subscribe=scene.>"]);
    operator.until_phase("child", "ready").await;
    let by = format!("subscribe=scene.> asked granted by {}", own_uid());
    assert_eq!(standings(&core, "child").await, [by]);
    core.shutdown().await;
}

#[tokio::test]
async fn a_remote_plugin_nobody_declared_has_its_own_area_and_waits_for_the_rest() {
    let core = TestCore::start().await;
    let client = with_token(&core, "shed").await;
    let hello = asking(&["publish=home.>", "provide=geo.lookup", "call=lamp.>"])
        .services(&["shed.open", "geo.lookup"]);
    let mut shed = RawPlugin::open(&client, hello).await.expect("let in");
    assert!(shed.welcome.granted.is_empty());
    let refused: Vec<_> = shed
        .welcome
        .refused
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(refused, ["geo.lookup"]);
    let operator = core.operator();
    operator.until_phase("shed", "waiting_grant").await;
    shed.client()
        .publish("shed.x", json!(1))
        .await
        .expect("its own");
    let denied = shed.client().publish("home.x", json!(1)).await;
    Told::by(&denied.expect_err("asked for, not granted"))
        .is(Code::PermissionDenied, "NOT_GRANTED")
        .says("`corectl plugins grant shed publish=home.x`");
    grant(operator, "shed", &["publish=home.>", "call=lamp.>"]).await;
    let waits = operator.until_phase("shed", "waiting_grant").await;
    assert!(
        waits.message.contains("provide=geo.lookup"),
        "{}",
        waits.message
    );
    grant(operator, "shed", &["provide=geo.*"]).await;
    operator.until_phase("shed", "ready").await;
    for expected in [
        &["publish=home.>", "call=lamp.>"][..],
        &["publish=home.>", "provide=geo.*", "call=lamp.>"],
    ] {
        match shed.next().await {
            Ok(FromCore::PermissionsChanged(change)) => {
                assert_eq!(texts(&change.granted), expected);
            }
            other => panic!("{other:?}"),
        }
    }
    // What `Hello` named is registered by now, without a word from the plugin.
    let caller = operator.clone();
    let call = tokio::spawn(async move { caller.call("geo.lookup", json!({})).await });
    let arrived = shed.expect_call().await;
    shed.answer(arrived.call_id, json!("here")).await;
    assert_eq!(
        within("answered", call)
            .await
            .expect("not panicked")
            .expect("a result"),
        "here"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn what_is_revoked_ends_at_once_and_the_run_goes_on() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let all = [
        "subscribe=home.>",
        "provide=geo.>",
        "state.read=home.>",
        "storage.read=geo",
    ];
    grant(core.operator(), "lamp", &all).await;
    let hello = Hello::ready().services(&["lamp.on", "geo.lookup"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    assert!(lamp.welcome.refused.is_empty());
    assert_eq!(lamp.welcome.granted.len(), all.len());
    let plugin = lamp.client();
    let kept = plugin.subscribe(&["lamp.>"]).await;
    let events = plugin.subscribe(&["home.>"]).await;
    let request = v1::StateEngineWatchRequest {
        patterns: vec!["home.>".to_owned()],
        ..Default::default()
    };
    let state = plugin.state_engine().watch(request).await.expect("granted");
    let request = v1::StorageWatchRequest {
        namespace: "geo".to_owned(),
        ..Default::default()
    };
    let stored = plugin.storage().watch(request).await.expect("granted");
    let operator = core.operator();
    operator
        .until("lamp", "both services", |it| it.services.len() == 2)
        .await;
    let revoked = revoke(&core, "lamp", &[]).await;
    assert_eq!(revoked.revoked.len(), all.len());
    assert!(revoked.permissions.is_empty(), "{:?}", revoked.permissions);
    let ended = within("the subscription ends", events.end()).await;
    Told::by(&ended).is(Code::PermissionDenied, "NOT_GRANTED");
    for ended in [
        end_of(state.into_inner()).await,
        end_of(stored.into_inner()).await,
    ] {
        Told::by(&ended).is(Code::PermissionDenied, "NOT_GRANTED");
    }
    let info = operator.plugin("lamp").await;
    assert_eq!(info.services, ["lamp.on"]);
    assert_eq!((info.phase.as_str(), info.generation), ("ready", 1));
    let gone = operator
        .call("geo.lookup", json!({}))
        .await
        .expect_err("withdrawn");
    Told::by(&gone).is(Code::Unavailable, "NO_PROVIDER");
    match lamp.next().await {
        Ok(FromCore::PermissionsChanged(change)) => assert!(change.granted.is_empty()),
        other => panic!("{other:?}"),
    }
    lamp.client()
        .publish("lamp.x", json!(1))
        .await
        .expect("its own");
    drop(kept);
    core.shutdown().await;
}

#[tokio::test]
async fn who_may_not_manage_any_more_sees_no_more_of_others() {
    let core = TestCore::builder()
        .plugin(Declared::remote("warden"))
        .start()
        .await;
    grant(
        core.operator(),
        "warden",
        &["manage=plugins.view", "manage=logs.read"],
    )
    .await;
    let warden = RawPlugin::open(&core.remote("warden"), Hello::ready())
        .await
        .expect("admitted");
    let mut manager = warden.client().plugin_manager();
    let watch = v1::PluginManagerWatchRequest::default();
    let watch = manager.watch(watch).await.expect("granted").into_inner();
    let logs = v1::PluginManagerLogsRequest {
        name: "warden".to_owned(),
        follow: true,
        ..Default::default()
    };
    let logs = manager.logs(logs).await.expect("granted").into_inner();
    revoke(&core, "warden", &["manage=plugins.view"]).await;
    Told::by(&end_of(watch).await)
        .is(Code::PermissionDenied, "NOT_GRANTED")
        .says("corectl plugins grant warden manage=plugins.view");
    revoke(&core, "warden", &[]).await;
    Told::by(&end_of(logs).await).is(Code::PermissionDenied, "NOT_GRANTED");
    core.shutdown().await;
}

#[tokio::test]
async fn an_invitation_may_grant_in_advance_and_nothing_is_left_when_the_plugin_is_cut_off() {
    let core = TestCore::builder().tls().start().await;
    let invite = async || {
        let request = v1::AccessInviteRequest {
            plugin: "shed".to_owned(),
            permissions: permissions(&["publish=home.>"]),
            ..Default::default()
        };
        let invited = core.operator().access().invite(request).await;
        let join = invited.expect("invited").into_inner().join;
        join.parse().expect("a join string")
    };
    let (enrolled, _) = core_tls::join(&invite().await).await.expect("joined");
    let identity = (
        enrolled.certificate_pem.as_bytes(),
        enrolled.key_pem.as_bytes(),
    );
    let tls = ClientTls::from_pem(enrolled.ca_pem.as_bytes(), Some(identity)).expect("good");
    let client = Client::over_tls(core.tls_address(), tls);
    let shed = RawPlugin::open(&client, asking(&["publish=home.>"])).await;
    let shed = shed.expect("let in");
    assert_eq!(texts(&shed.welcome.granted), ["publish=home.>"]);
    core.operator().until_phase("shed", "ready").await;
    shed.client()
        .publish("home.x", json!(1))
        .await
        .expect("granted");
    let request = v1::AccessRevokeCredentialRequest {
        plugin: "shed".to_owned(),
        ..Default::default()
    };
    let revoked = core.operator().access().revoke_credential(request).await;
    revoked.expect("cut off");
    // A stranger of the same name finds nothing.
    let client = with_token(&core, "shed").await;
    assert!(standings(&core, "shed").await.is_empty());
    let mut shed;
    eventually!(
        {
            let opened = RawPlugin::open(&client, asking(&["publish=home.>"])).await;
            shed = opened.ok();
            shed.is_some()
        },
        "it may connect again"
    );
    core.operator().until_phase("shed", "waiting_grant").await;
    core.shutdown().await;
}

#[tokio::test]
async fn grants_outlive_the_core_and_their_file_is_the_core_s_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    grant(core.operator(), "lamp", &["publish=home.>"]).await;
    let path = core.directory().join("data/security/grants.json");
    let mode = std::fs::metadata(&path)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = std::fs::read(&path).expect("there");
    core.shutdown().await;
    let data = tempfile::tempdir().expect("a directory");
    let directory = data.path().join("data");
    std::fs::create_dir_all(directory.join("security")).expect("made");
    std::fs::write(directory.join("security/grants.json"), &kept).expect("written");
    let there = directory.clone();
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .configure(move |config| config.data_dir = there)
        .start()
        .await;
    let by = format!("publish=home.> granted by {}", own_uid());
    assert_eq!(standings(&core, "lamp").await, [by]);
    core.shutdown().await;
    std::fs::write(directory.join("security/grants.json"), "{").expect("written");
    let broken = TestCore::builder()
        .configure(move |config| config.data_dir = directory)
        .try_start()
        .await;
    let error = broken.err().expect("it says so instead of forgetting them");
    assert!(error.to_string().contains("grants.json"), "{error}");
}

#[tokio::test]
async fn bad_permissions_are_refused_with_their_reason() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let ask = async |plugin: &str, permissions: Vec<Permission>| {
        let plugin = plugin.to_owned();
        let request = v1::AccessGrantRequest {
            plugin,
            permissions,
        };
        operator.access().grant(request).await.expect_err("bad")
    };
    for (text, expected) in [
        ("publsh=a.b", "did you mean \"publish\""),
        ("publish=core.x", "the core's own"),
        ("manage=everything", "plugins.view"),
    ] {
        let refused = ask("lamp", permissions(&[text])).await;
        Told::by(&refused)
            .is(Code::InvalidArgument, "BAD_FIELD")
            .says(expected);
    }
    Told::by(&ask("lamp", Vec::new()).await).is(Code::InvalidArgument, "BAD_FIELD");
    let many = vec![permission("publish=a.b"); 1_001];
    Told::by(&ask("lamp", many).await)
        .is(Code::InvalidArgument, "BAD_FIELD")
        .says("1000");
    let many: Vec<_> = (0..1_000)
        .map(|n| permission(&format!("publish=a.x{n}")))
        .collect();
    let request = v1::AccessGrantRequest {
        plugin: "lamp".to_owned(),
        permissions: many,
    };
    operator
        .access()
        .grant(request)
        .await
        .expect("as many as there may be");
    Told::by(&ask("lamp", permissions(&["publish=b.x"])).await)
        .is(Code::ResourceExhausted, "GRANTS_FULL");
    Told::by(&ask("lam", permissions(&["publish=a.b"])).await)
        .is(Code::NotFound, "NO_SUCH_PLUGIN")
        .says("lamp");
    let refused = RawPlugin::open(&core.remote("lamp"), asking(&["publish=a..b"])).await;
    Told::by(&refused.expect_err("bad"))
        .is(Code::InvalidArgument, "BAD_HELLO")
        .says("permissions");
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_of_the_sdk_sees_what_it_may_do_and_hears_of_changes() {
    // Told from where nothing may wait; the few changes of this test are its bound.
    let (heard, mut news) = tokio::sync::mpsc::unbounded_channel::<String>();
    let listener = Plugin::builder("listener")
        .on_load(move |ctx: Ctx| {
            let heard = heard.clone();
            async move {
                let say = |granted: &[plugin_sdk::Permission]| {
                    let texts: Vec<_> = granted.iter().map(ToString::to_string).collect();
                    // The test may have ended.
                    heard.send(texts.join(" ")).ok();
                };
                say(&ctx.permissions().granted);
                let mut changes = ctx.watch_permissions();
                tokio::spawn(async move {
                    while let Some(now) = changes.next().await {
                        let texts: Vec<_> = now.granted.iter().map(ToString::to_string).collect();
                        heard.send(texts.join(" ")).ok();
                    }
                });
                Ok(())
            }
        })
        .build();
    let core = TestCore::builder()
        .embed(listener)
        .embed(plugins::echo("example"))
        .start()
        .await;
    core.operator().until_phase("listener", "ready").await;
    let mut next = async || within("news", news.recv()).await.expect("news");
    assert_eq!(next().await, "");
    grant(core.operator(), "listener", &["call=example.>"]).await;
    assert_eq!(next().await, "call=example.>");
    grant(core.operator(), "example", &["call=listener.>"]).await;
    revoke(&core, "listener", &["call=example.>"]).await;
    assert_eq!(next().await, "", "nothing of others' grants");
    core.shutdown().await;
}

#[tokio::test]
async fn the_audit_log_names_the_operator_the_request_and_what_was_done() {
    let core = TestCore::builder()
        .tls()
        .sqlite()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let request = v1::AccessCreateTokenRequest {
        label: "laptop".to_owned(),
        ..Default::default()
    };
    let made = core.operator().access().create_token(request).await;
    let made = made.expect("made").into_inner();
    let id = made.credential.expect("there").id;
    let ca = std::fs::read(core.directory().join("data/security/ca.pem")).expect("there");
    let tls = ClientTls::from_pem(&ca, None).expect("a CA");
    let far = Client::over_tls(core.tls_address(), tls).with_token(&made.token);
    grant(&far, "lamp", &["publish=home.>"]).await;
    far.unload("lamp").await.expect("unloaded");
    let quota = v1::StorageAdminSetQuotaRequest {
        namespace: "lamp".to_owned(),
        max_keys: Some(7),
        max_bytes: None,
    };
    far.storage_admin().set_quota(quota).await.expect("set");
    let backup = v1::StorageAdminBackupRequest::default();
    far.storage_admin().backup(backup).await.expect("made");
    let level = v1::PluginManagerSetLogLevelRequest {
        name: "lamp".to_owned(),
        level: Some("debug".to_owned()),
    };
    far.plugin_manager()
        .set_log_level(level)
        .await
        .expect("set");
    let namespace = "lamp".to_owned();
    let drop = v1::StorageAdminDropNamespaceRequest { namespace };
    far.storage_admin()
        .drop_namespace(drop)
        .await
        .expect("done");
    revoke(&core, "lamp", &[]).await;
    let token = format!("token {id} (laptop)");
    let done = |operator: &str, action: &str, plugin: &str, resource: &str| {
        let (operator, action) = (operator.to_owned(), action.to_owned());
        let (plugin, resource) = (plugin.to_owned(), resource.to_owned());
        move |line: &Value| {
            line["action"] == action
                && line["operator"] == operator
                && line["decision"] == "allowed"
                && line["rule"] == "operator"
                && line["plugin"].as_str().unwrap_or_default() == plugin
                && line["resource"]
                    .as_str()
                    .unwrap_or_default()
                    .contains(&resource)
                && line["request"]
                    .as_str()
                    .is_some_and(|it| it.starts_with('r'))
                && line["peer"].is_string()
        }
    };
    for wanted in [
        done(&own_uid(), "Access/CreateToken", "", &id),
        done(&token, "Access/Grant", "lamp", "publish=home.>"),
        done(&token, "PluginManager/Unload", "lamp", ""),
        done(&token, "StorageAdmin/SetQuota", "", "lamp"),
        done(&token, "StorageAdmin/Backup", "", "backups"),
        done(&token, "PluginManager/SetLogLevel", "lamp", "debug"),
        done(&token, "StorageAdmin/DropNamespace", "", "lamp"),
        done(&own_uid(), "Access/Revoke", "lamp", "all"),
    ] {
        eventually!(core.audited().iter().any(&wanted), "{:#?}", core.audited());
    }
    let lines = core.audited();
    let from_afar = lines.iter().find(|line| line["operator"] == token.as_str());
    let peer = from_afar.expect("there")["peer"].as_str().expect("text");
    assert!(peer.starts_with("tls 127.0.0.1"), "{peer}");
    let mut requests: Vec<_> = lines
        .iter()
        .map(|line| line["request"].to_string())
        .collect();
    requests.sort();
    let all = requests.len();
    requests.dedup();
    assert_eq!(requests.len(), all, "each was a request of its own");
    let text = serde_json::to_string(&lines).expect("JSON");
    assert!(!text.contains(&made.token));
    core.shutdown().await;
}

#[tokio::test]
async fn a_denial_over_a_channel_is_audited_with_its_frame_and_where_it_came_from() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let mut lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let event = v1::NewEvent {
        topic: "home.x".to_owned(),
        ..Default::default()
    };
    let request = v1::EventBusPublishRequest { event: Some(event) };
    let id = lamp.send_request("EventBus/Publish", &request).await;
    assert!(lamp.response(id).await.error.is_some());
    let noted = |line: &Value| {
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        text("rule") == "not_granted"
            && text("request").starts_with('c')
            && text("request").ends_with(&format!(".{id}"))
            && text("peer").starts_with("plugin socket")
            && text("plugin") == "lamp"
    };
    eventually!(core.audited().iter().any(noted), "{:#?}", core.audited());
    core.shutdown().await;
}
