//! Certificates that expire while the core runs: of a few seconds' life, so that a test sees their end.

use std::time::Duration;

use core_proto::v1;
use core_tests::{Client, Hello, RawPlugin, TestCore, Told, eventually, program, within};
use core_tls::{ClientTls, CredentialsDir, EnrollError, Enrolled, JoinString};
use serde_json::json;
use tonic::Code;

use super::ECHO;

/// Long enough for a few requests, short enough to be waited for.
const LIFE: Duration = Duration::from_secs(3);

async fn core() -> TestCore {
    let short = |config: &mut core_server::config::Config| config.security.certificate_life = LIFE;
    TestCore::builder().tls().configure(short).start().await
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

fn tls(enrolled: &Enrolled) -> ClientTls {
    let identity = (
        enrolled.certificate_pem.as_bytes(),
        enrolled.key_pem.as_bytes(),
    );
    ClientTls::from_pem(enrolled.ca_pem.as_bytes(), Some(identity)).expect("good")
}

fn client(core: &TestCore, enrolled: &Enrolled) -> Client {
    Client::over_tls(core.tls_address(), tls(enrolled))
}

async fn renew(core: &TestCore, enrolled: &Enrolled) -> Result<Enrolled, EnrollError> {
    let addresses = [core.tls_address().to_string()];
    let renewed = core_tls::renew(&addresses, &tls(enrolled), &enrolled.key_pem).await;
    renewed.map(|(renewed, _)| renewed)
}

/// Asks until the certificate has expired by the core's clock.
async fn until_expired(client: &Client) -> tonic::Status {
    within("the certificate expires", async {
        loop {
            match client.publish("shed.a", json!(1)).await {
                Ok(_) => tokio::time::sleep(core_tests::POLL).await,
                Err(refused) => return refused,
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_expired_certificate_is_good_for_the_next_one_and_for_nothing_else() {
    let core = core().await;
    let (first, _) = core_tls::join(&invite(&core, "shed").await)
        .await
        .expect("joined");
    let mut shed = RawPlugin::open(&client(&core, &first), Hello::ready())
        .await
        .expect("admitted");
    let refused = until_expired(&shed.client()).await;
    Told::by(&refused)
        .is(Code::Unauthenticated, "BAD_CREDENTIAL")
        .says("expired")
        .says("renewed");
    // What was opened with it ends too.
    Told::by(&shed.end().await).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let again = RawPlugin::open(&client(&core, &first), Hello::ready()).await;
    Told::by(&again.expect_err("expired")).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let second = renew(&core, &first)
        .await
        .expect("devices are switched off");
    let late = client(&core, &first).publish("shed.a", json!(1)).await;
    Told::by(&late.expect_err("expired")).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let client = client(&core, &second);
    let admitted = async {
        // A run that ended like this counts as a failed one.
        while let Err(refused) = RawPlugin::open(&client, Hello::ready()).await {
            assert_eq!(Told::by(&refused).reason, "BACKOFF", "{refused:?}");
            tokio::time::sleep(core_tests::POLL).await;
        }
    };
    within("it is let in again", admitted).await;

    let request = v1::AccessRevokeCredentialRequest {
        plugin: "shed".to_owned(),
        ..Default::default()
    };
    let revoked = core.operator().access().revoke_credential(request).await;
    assert_eq!(revoked.expect("revoked").into_inner().revoked, 2);
    for revoked in [&first, &second] {
        match renew(&core, revoked).await {
            Err(EnrollError::Refused(status)) => {
                Told::by(&status).is(Code::Unauthenticated, "BAD_CREDENTIAL");
            }
            other => panic!("a revoked certificate is good for nothing: {other:?}"),
        }
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_of_the_sdk_renews_in_time_and_keeps_its_run() {
    let core = core().await;
    let join = invite(&core, "shed").await.to_string();
    let directory = core.directory().join("credentials");
    let began = std::time::Instant::now();
    let mut shed = program(ECHO, &[], core.directory())
        .env("CORE_JOIN", &join)
        .env("CORE_PLUGIN", "shed")
        .env("CORE_CREDENTIALS_DIR", &directory)
        .spawn()
        .expect("starts");
    let operator = core.operator();
    operator.until_phase("shed", "ready").await;
    let kept = CredentialsDir::new(&directory);
    let first = kept.read().expect("kept");
    // Three lives of the certificate that the connection began with.
    eventually!(
        kept.read()
            .is_ok_and(|kept| { kept.expires_at >= first.expires_at + 2 * LIFE.as_secs() })
    );
    assert!(began.elapsed() >= LIFE, "the first one has expired by now");
    // The plugin itself asks the core for something, and is known.
    let emit = json!({ "topic": "shed.a", "data": 1 });
    operator.call("shed.emit", emit).await.expect("let in");
    let info = operator.plugin("shed").await;
    assert_eq!((info.generation, &*info.phase), (1, "ready"), "{info:?}");
    let audit = core.directory().join("data/security/audit.jsonl");
    let audit = std::fs::read_to_string(audit).expect("there");
    assert!(
        !audit.contains("BAD_CREDENTIAL"),
        "it was never without a good certificate: {audit}"
    );
    shed.start_kill().expect("killed");
    within("it ends", shed.wait()).await.expect("reaped");
    core.shutdown().await;
}

/// A board without a clock: what it issues while it knows that its clock is behind is not judged.
#[tokio::test]
async fn a_core_whose_clock_is_behind_does_not_judge_what_it_issues() {
    use core_tests::CoreProcess;
    // The least that a configuration may say is a minute; the clock that was remembered is what counts.
    let mut core = CoreProcess::new(super::CORE, "[listen]\ntls = [\"127.0.0.1:0\"]\n");
    let operator = core.start().await;
    let create = v1::AccessCreateTokenRequest {
        plugin: "shed".to_owned(),
        ..Default::default()
    };
    operator
        .access()
        .create_token(create.clone())
        .await
        .expect("made");
    core.kill().await;
    // As if it had been written in a year to come: the clock of this start is behind it.
    let file = core.directory().join("data/security/credentials.json");
    let text = std::fs::read_to_string(&file).expect("there");
    let mut content: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let known = content["clock"].as_u64().expect("a time") + 40 * 86_400;
    content["clock"] = json!(known);
    std::fs::write(&file, content.to_string()).expect("written");
    let operator = core.start().await;
    let request = v1::AccessInviteRequest {
        plugin: "shed".to_owned(),
        ..Default::default()
    };
    let invited = operator.access().invite(request).await.expect("invited");
    let join: JoinString = invited.into_inner().join.parse().expect("a join string");
    let (enrolled, address) = core_tls::join(&join).await.expect("joined");
    // Good from the time that is known on, so that it is good when the clock is right again.
    let expires_at = enrolled
        .expires_at
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a time");
    assert!(expires_at.as_secs() >= known + 86_000, "{expires_at:?}");
    let text = std::fs::read_to_string(&file).expect("there");
    let content: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let record = content["credentials"].as_array().expect("a list").iter();
    let mut record = record.filter(|record| record["kind"] == "certificate");
    let record = record.next().expect("the certificate's");
    assert_eq!(record["clock_was_behind"], true, "{record}");
    assert_eq!(content["clock"], known, "the right time is not forgotten");
    let tls = tls(&enrolled);
    let address = address.parse::<std::net::SocketAddr>().expect("an address");
    RawPlugin::open(&Client::over_tls(address, tls), Hello::ready())
        .await
        .expect("admitted");
    core.kill().await;
}
