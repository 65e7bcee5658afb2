//! TLS, tokens made while the core runs, and how a plugin on another machine gets in: from outside, with
//! plain gRPC clients.

use std::time::{Duration, Instant};

use core_proto::v1;
use core_tests::{
    Client, Declared, Finished, Hello, RawPlugin, TestCore, Told, eventually, finished, within,
};
use core_tls::{ClientTls, CredentialsDir, EnrollError, JoinString, NewKey};
use serde_json::json;
use tonic::Code;

use super::CORECTL;

async fn core() -> TestCore {
    TestCore::builder().tls().start().await
}

fn ca_of(core: &TestCore) -> Vec<u8> {
    std::fs::read(core.directory().join("data/security/ca.pem")).expect("the CA's certificate")
}

fn trusting(core: &TestCore) -> ClientTls {
    ClientTls::from_pem(&ca_of(core), None).expect("a CA")
}

/// Somebody who trusts the core's CA and has no credential.
fn stranger(core: &TestCore) -> Client {
    Client::over_tls(core.tls_address(), trusting(core))
}

async fn token(core: &TestCore, plugin: &str) -> v1::AccessCreateTokenResponse {
    let request = v1::AccessCreateTokenRequest {
        plugin: plugin.to_owned(),
        ..Default::default()
    };
    let made = core.operator().access().create_token(request).await;
    made.expect("made").into_inner()
}

async fn invite(core: &TestCore, plugin: &str) -> JoinString {
    let request = v1::AccessInviteRequest {
        plugin: plugin.to_owned(),
        ..Default::default()
    };
    let invited = core.operator().access().invite(request).await;
    let join = invited.expect("invited").into_inner().join;
    join.parse().expect("a join string")
}

async fn revoke(core: &TestCore, plugin: &str) -> u32 {
    let request = v1::AccessRevokeCredentialRequest {
        plugin: plugin.to_owned(),
        ..Default::default()
    };
    let revoked = core.operator().access().revoke_credential(request).await;
    revoked.expect("revoked").into_inner().revoked
}

async fn plugins(core: &TestCore) -> usize {
    let request = v1::PluginManagerListRequest::default();
    let listed = core.operator().plugin_manager().list(request).await;
    listed.expect("listed").into_inner().plugins.len()
}

/// A plugin that has joined.
async fn joined(core: &TestCore, plugin: &str) -> (Client, core_tls::Enrolled) {
    let (enrolled, _) = core_tls::join(&invite(core, plugin).await)
        .await
        .expect("joined");
    (with_certificate(core, &enrolled), enrolled)
}

fn with_certificate(core: &TestCore, enrolled: &core_tls::Enrolled) -> Client {
    let identity = (
        enrolled.certificate_pem.as_bytes(),
        enrolled.key_pem.as_bytes(),
    );
    let tls = ClientTls::from_pem(enrolled.ca_pem.as_bytes(), Some(identity)).expect("good");
    Client::over_tls(core.tls_address(), tls)
}

#[tokio::test]
async fn a_token_of_an_undeclared_name_makes_a_plugin_with_its_own_area_and_revoking_it_ends_all() {
    let core = core().await;
    let made = token(&core, "shed").await;
    let client = stranger(&core).with_token(&made.token);
    let mut shed = RawPlugin::open(&client, Hello::ready().services(&["shed.open"]))
        .await
        .expect("admitted");
    core.operator().until_phase("shed", "ready").await;
    let plugin = shed.client();
    plugin
        .publish("shed.door", json!(1))
        .await
        .expect("its own");
    let denied = plugin.publish("house.door", json!(1)).await;
    Told::by(&denied.expect_err("not its own")).is(Code::PermissionDenied, "NOT_GRANTED");
    let events = plugin.subscribe(&["shed.>"]).await;

    let began = Instant::now();
    assert_eq!(revoke(&core, "shed").await, 1);
    let end = shed.end().await;
    Told::by(&end).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let ended = within("the subscription ends", events.end()).await;
    assert!(matches!(
        ended.code(),
        Code::Unauthenticated | Code::Unavailable
    ));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let refused = client.publish("shed.door", json!(1)).await;
    Told::by(&refused.expect_err("revoked")).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    // Without a credential nobody knows it any more.
    eventually!(plugins(&core).await == 0);
    core.shutdown().await;
}

#[tokio::test]
async fn a_run_that_ends_with_its_credential_is_no_crash_and_says_why() {
    let shed = Declared::remote("shed");
    let core = TestCore::builder().tls().plugin(shed).start().await;
    let made = token(&core, "shed").await;
    let client = stranger(&core).with_token(&made.token);
    let operator = core.operator();
    let crashes = operator.subscribe(&["core.plugin.>"]).await;
    let mut plugin = RawPlugin::open(&client, Hello::ready())
        .await
        .expect("admitted");
    operator.until_phase("shed", "ready").await;
    let revoked = corectl(&core, &["tokens", "revoke", "--plugin", "shed"]).await;
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
    // The configured one is good still, which whoever revokes is told.
    assert!(revoked.stderr.contains("token_file"), "{revoked:?}");
    Told::by(&plugin.end().await).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let info = operator.until_phase("shed", "connecting").await;
    assert_eq!(info.reason, "credential", "{info:?}");
    assert!(info.message.contains("revoked"), "{info:?}");
    assert!(info.crash_reports.is_empty(), "{info:?}");
    // Nothing to wait for: with the other token it is let in at once.
    let again = RawPlugin::open(&core.remote("shed"), Hello::ready()).await;
    again.expect("admitted");
    let info = operator.until_phase("shed", "ready").await;
    assert_eq!((info.generation, info.restarts), (2, 0), "{info:?}");
    let mut crashes = crashes;
    loop {
        let event = crashes.event().await;
        assert_ne!(event.topic, "core.plugin.crashed", "{event:?}");
        if event.topic == "core.plugin.unloaded" {
            break;
        }
    }
    let none = corectl(&core, &["tokens", "revoke", "--plugin", "attic"]).await;
    assert!(!none.stderr.contains("token_file"), "{none:?}");
    core.shutdown().await;
}

async fn corectl(core: &TestCore, arguments: &[&str]) -> Finished {
    let socket = core.runtime().operator_socket().display().to_string();
    let address = format!("unix:{socket}");
    let arguments = [&["--addr", &address], arguments].concat();
    finished(CORECTL, &arguments, core.directory()).await
}

#[tokio::test]
async fn an_operator_s_token_is_good_over_tls_and_loopback_and_never_on_the_plugins_socket() {
    let core = TestCore::builder().tls().tcp().start().await;
    let made = token(&core, "").await;
    for operator in [stranger(&core), Client::new(core.tcp_address())] {
        let operator = operator.with_token(&made.token);
        operator
            .plugin_manager()
            .list(v1::PluginManagerListRequest::default())
            .await
            .expect("an operator");
        let refused = RawPlugin::open(&operator, Hello::ready()).await;
        Told::by(&refused.expect_err("no plugin")).is(Code::PermissionDenied, "NOT_ALLOWED");
    }
    let on_the_socket = core.anonymous().with_token(&made.token);
    let refused = on_the_socket
        .plugin_manager()
        .list(v1::PluginManagerListRequest::default())
        .await;
    Told::by(&refused.expect_err("never there"))
        .is(Code::Unauthenticated, "BAD_CREDENTIAL")
        .says("operator socket");
    core.shutdown().await;
}

#[tokio::test]
async fn a_watch_of_an_operator_ends_with_its_token() {
    let core = core().await;
    let made = token(&core, "").await;
    let operator = stranger(&core).with_token(&made.token);
    let request = v1::PluginManagerWatchRequest::default();
    let mut watch = operator
        .plugin_manager()
        .watch(request)
        .await
        .expect("open")
        .into_inner();
    let ids = vec![made.credential.expect("there").id];
    let request = v1::AccessRevokeCredentialRequest {
        ids,
        ..Default::default()
    };
    let mut access = core.operator().access();
    access
        .revoke_credential(request.clone())
        .await
        .expect("revoked");
    let ended = within("the watch ends", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ends with a reason"),
                Err(status) => return status,
            }
        }
    })
    .await;
    Told::by(&ended).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let again = access.revoke_credential(request).await.expect_err("gone");
    Told::by(&again).is(Code::NotFound, "NO_SUCH_CREDENTIAL");
    core.shutdown().await;
}

#[tokio::test]
async fn plaintext_and_foreign_authorities_get_nowhere() {
    let core = core().await;
    let plain = Client::new(core.tls_address());
    let health = tonic_health::pb::HealthCheckRequest::default();
    let refused = plain.health().check(health.clone()).await;
    refused.expect_err("TLS is spoken there");
    // A core of somebody else in the same house.
    let other = self::core().await;
    let mistaken = Client::over_tls(core.tls_address(), trusting(&other));
    let refused = mistaken.health().check(health.clone()).await;
    assert_eq!(
        refused.expect_err("not that core").code(),
        Code::Unavailable
    );
    // A certificate of the other is none here.
    let (_, enrolled) = joined(&other, "shed").await;
    let identity = (
        enrolled.certificate_pem.as_bytes(),
        enrolled.key_pem.as_bytes(),
    );
    let tls = ClientTls::from_pem(&ca_of(&core), Some(identity)).expect("good");
    let foreign = Client::over_tls(core.tls_address(), tls);
    foreign
        .health()
        .check(health.clone())
        .await
        .expect_err("it is told to go");
    stranger(&core)
        .health()
        .check(health)
        .await
        .expect("open to anybody");
    core.shutdown().await;
    other.shutdown().await;
}

#[tokio::test]
async fn one_join_string_makes_one_plugin_that_renews_itself_until_it_is_revoked() {
    let core = core().await;
    let join = invite(&core, "shed").await;
    let (enrolled, address) = core_tls::join(&join).await.expect("joined");
    assert_eq!(address, core.tls_address().to_string());
    let replayed = core_tls::join(&join).await.expect_err("used");
    let EnrollError::Refused(status) = &replayed else {
        panic!("{replayed}");
    };
    let told = Told::by(status);
    assert!(
        ["BAD_INVITATION", "TOO_MANY_ATTEMPTS"].contains(&told.reason.as_str()),
        "{told:?}"
    );
    let client = with_certificate(&core, &enrolled);
    let mut shed = RawPlugin::open(&client, Hello::ready())
        .await
        .expect("admitted");
    assert_eq!(shed.welcome.plugin, "shed");
    let addresses = [address];
    let tls = ClientTls::from_pem(
        enrolled.ca_pem.as_bytes(),
        Some((
            enrolled.certificate_pem.as_bytes(),
            enrolled.key_pem.as_bytes(),
        )),
    )
    .expect("good");
    let (renewed, _) = core_tls::renew(&addresses, &tls, &enrolled.key_pem)
        .await
        .expect("renewed");
    assert_ne!(renewed.certificate_pem, enrolled.certificate_pem);
    assert_eq!(renewed.key_pem, enrolled.key_pem);
    shed.client()
        .publish("shed.a", json!(1))
        .await
        .expect("both are good");

    let began = Instant::now();
    assert_eq!(revoke(&core, "shed").await, 2);
    Told::by(&shed.end().await).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    assert!(began.elapsed() < Duration::from_secs(1));
    for revoked in [&enrolled, &renewed] {
        let client = with_certificate(&core, revoked);
        let refused = RawPlugin::open(&client, Hello::ready()).await;
        Told::by(&refused.expect_err("revoked")).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    }
    let refused = core_tls::renew(&addresses, &tls, &enrolled.key_pem).await;
    assert!(
        matches!(refused, Err(EnrollError::Refused(_))),
        "{refused:?}"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn whoever_guesses_at_an_invitation_voids_it_and_a_wrong_pin_gives_nothing_away() {
    let core = core().await;
    let join = invite(&core, "shed").await;
    let in_the_middle = JoinString {
        pin: core_tls::Pin::of(b"somebody else"),
        ..join.clone()
    };
    let refused = core_tls::join(&in_the_middle).await;
    assert!(
        matches!(refused, Err(EnrollError::Unreachable { .. })),
        "{refused:?}"
    );
    let guess = |secret: &str| {
        let request = v1::EnrollmentJoinRequest {
            id: join.id.clone(),
            secret: secret.to_owned(),
            csr: NewKey::generate().expect("made").csr_der.into(),
        };
        let mut enrollment = stranger(&core).enrollment();
        async move { enrollment.join(request).await }
    };
    let (mut wrong, mut too_soon) = (0, 0);
    let mut told = Vec::new();
    within("five guesses", async {
        while wrong < 5 {
            let refused = guess("0123456789abcdef0123").await.expect_err("wrong");
            match Told::by(&refused).reason.as_str() {
                "BAD_INVITATION" => wrong += 1,
                "TOO_MANY_ATTEMPTS" => too_soon += 1,
                other => told.push(other.to_owned()),
            }
            if too_soon < 2 {
                continue;
            }
            // The advice of the refusal.
            tokio::time::sleep(Duration::from_millis(1_000)).await;
        }
    })
    .await;
    assert!(told.is_empty(), "{told:?}");
    assert!(too_soon > 0, "nobody slowed the guesses down");
    // The same advice: only time gives another guess.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let refused = guess(&join.secret).await.expect_err("void");
    Told::by(&refused).is(Code::Unauthenticated, "BAD_INVITATION");
    core.shutdown().await;
}

#[tokio::test]
async fn joining_is_for_tls_only_and_tokens_renew_nothing() {
    let core = TestCore::builder()
        .tls()
        .tcp()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let join = invite(&core, "shed").await;
    let request = v1::EnrollmentJoinRequest {
        id: join.id.clone(),
        secret: join.secret.clone(),
        csr: NewKey::generate().expect("made").csr_der.into(),
    };
    for plain in [Client::new(core.tcp_address()), core.anonymous()] {
        let refused = plain.enrollment().join(request.clone()).await;
        Told::by(&refused.expect_err("no TLS")).is(Code::FailedPrecondition, "NO_TLS");
    }
    core_tls::join(&join).await.expect("it was not used up");
    let by_token = stranger(&core).with_token(core.token("lamp"));
    let renew = v1::EnrollmentRenewRequest {
        csr: request.csr.clone(),
    };
    let refused = by_token.enrollment().renew(renew).await;
    Told::by(&refused.expect_err("no certificate")).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let mut access = core.operator().access();
    let child = v1::AccessInviteRequest {
        plugin: "no such name".to_owned(),
        ..Default::default()
    };
    let refused = access.invite(child).await.expect_err("no name");
    Told::by(&refused).is(Code::InvalidArgument, "BAD_FIELD");
    core.shutdown().await;
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_restart() {
    let core = core().await;
    let (plugin, _) = joined(&core, "shed").await;
    let shed = RawPlugin::open(&plugin, Hello::ready())
        .await
        .expect("admitted");
    let security = core.directory().join("data/security");
    let before = std::fs::read(security.join("server.pem")).expect("there");
    // Another certificate of the same authority, for the same names.
    std::fs::remove_file(security.join("server.json")).expect("there");
    let (authority, _) =
        core_server::security::Authority::open_or_make(&security).expect("the same");
    let names = ["127.0.0.1".to_owned(), "only-now.test".to_owned()];
    authority.server_certificate(&names).expect("made");
    assert_ne!(
        std::fs::read(security.join("server.pem")).expect("there"),
        before
    );
    let reload = core.runtime().reload(core.config().clone()).await;
    let warnings = reload.expect("reloaded").warnings;
    assert!(warnings.is_empty(), "{warnings:?}");
    let stream = tokio::net::TcpStream::connect(core.tls_address())
        .await
        .expect("there");
    let renamed = trusting(&core).connect(stream, "only-now.test").await;
    renamed.expect("the new one is shown");
    shed.client()
        .publish("shed.a", json!(1))
        .await
        .expect("live channels go on");
    // One that cannot be used changes nothing.
    std::fs::write(security.join("server.pem"), "nonsense").expect("written");
    let reload = core.runtime().reload(core.config().clone()).await;
    let warnings = reload.expect("reloaded").warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("server.pem")),
        "{warnings:?}"
    );
    let stream = tokio::net::TcpStream::connect(core.tls_address())
        .await
        .expect("there");
    trusting(&core)
        .connect(stream, "127.0.0.1")
        .await
        .expect("as before");
    core.shutdown().await;
}

#[tokio::test]
async fn a_certificate_that_somebody_else_replaces_is_noticed() {
    let core = core().await;
    let security = core.directory().join("data/security");
    std::fs::remove_file(security.join("server.json")).expect("there");
    let (authority, _) =
        core_server::security::Authority::open_or_make(&security).expect("the same");
    authority
        .server_certificate(&["only-now.test".to_owned()])
        .expect("made");
    let shown = async || {
        let stream = tokio::net::TcpStream::connect(core.tls_address()).await;
        let stream = stream.expect("there");
        trusting(&core)
            .connect(stream, "only-now.test")
            .await
            .is_ok()
    };
    eventually!(shown().await, "nobody reloaded");
    core.shutdown().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_given_up() {
    let core = TestCore::builder()
        .tls()
        .configure(|config| config.limits.handshake_timeout = Duration::from_millis(200))
        .start()
        .await;
    use tokio::io::AsyncReadExt as _;
    let mut silent = tokio::net::TcpStream::connect(core.tls_address())
        .await
        .expect("there");
    let mut nothing = [0; 1];
    let read = within("it is closed", silent.read(&mut nothing)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_of_the_sdk_joins_by_its_environment_alone() {
    let core = core().await;
    let join = invite(&core, "shed").await.to_string();
    let home = tempfile::tempdir().expect("a directory");
    let directory = home.path().join("credentials");
    let mut shed = std::process::Command::new(super::ECHO)
        .env_clear()
        .env("CORE_JOIN", &join)
        .env("CORE_PLUGIN", "shed")
        .env("CORE_CREDENTIALS_DIR", &directory)
        .spawn()
        .expect("starts");
    core.operator().until_phase("shed", "ready").await;
    let kept = CredentialsDir::new(&directory);
    assert!(kept.holds_certificate());
    shed.kill().expect("killed");
    shed.wait().expect("reaped");
    core.operator()
        .until("shed", "gone", |plugin| plugin.phase != "ready")
        .await;
    // The string is used up; the certificate is not.
    let mut again = std::process::Command::new(super::ECHO)
        .env_clear()
        .env("CORE_JOIN", &join)
        .env("CORE_PLUGIN", "shed")
        .env("CORE_CREDENTIALS_DIR", &directory)
        .spawn()
        .expect("starts");
    core.operator()
        .until("shed", "ready again", |plugin| {
            plugin.phase == "ready" && plugin.generation == 2
        })
        .await;
    again.kill().expect("killed");
    again.wait().expect("reaped");
    core.shutdown().await;
}
