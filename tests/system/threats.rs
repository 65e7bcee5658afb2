//! Rows of the threat table that need more than one party, seen from outside.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use core_proto::v1;
use core_server::supervisor::isolation::Sandbox;
use core_tests::{
    CoreProcess, Declared, Hello, RawPlugin, TestCore, Told, eventually, finished, plugins,
};
use plugin_sdk::prelude::{Ctx, Plugin, Service};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use super::{CORE, CORECTL, ECHO, MISBEHAVING};

/// A provider that opens for one caller only.
fn safe() -> Plugin {
    Plugin::builder("safe")
        .service(Service::new("open").handle(|ctx: Ctx, (): ()| async move {
            ctx.require_caller(&["butler"])?;
            Ok(ctx.caller().to_owned())
        }))
        .build()
}

/// Everybody may call the deputy, only the butler and the deputy the safe. A guest who has the deputy call the
/// safe is not taken for the butler, and neither is the deputy, whatever they say of themselves.
#[tokio::test]
async fn a_confused_deputy_is_seen_for_what_it_is() {
    let core = TestCore::builder()
        .plugin(Declared::embedded("safe"))
        .plugin(Declared::embedded("deputy").may_call("safe.>"))
        .plugin(Declared::remote("butler").may_call("safe.>"))
        .plugin(Declared::remote("guest").may_call("deputy.>"))
        .embed(safe())
        .embed(plugins::echo("deputy"))
        .start()
        .await;
    let operator = core.operator();
    for name in ["safe", "deputy"] {
        operator.until_phase(name, "ready").await;
    }
    let admitted = async |name: &str| {
        let plugin = RawPlugin::open(&core.remote(name), Hello::ready()).await;
        let plugin = plugin.expect("admitted");
        operator.until_phase(name, "ready").await;
        plugin
    };
    let (butler, guest) = (admitted("butler").await, admitted("guest").await);
    let opened = butler.client().call("safe.open", json!({})).await;
    assert_eq!(opened.expect("the butler may"), "butler");

    let denied = guest.client().call("safe.open", json!({})).await;
    Told::by(&denied.expect_err("no grant")).is(Code::PermissionDenied, "NOT_GRANTED");
    let relay = json!({
        "service": "safe.open",
        "arguments": {},
        // Nobody reads this.
        "caller": "butler",
    });
    for client in [
        guest.client(),
        // Metadata that a caller could think of.
        guest.client().presenting("core-caller", "butler"),
        guest.client().presenting("core-plugin", "butler"),
    ] {
        let denied = client.call("deputy.relay", relay.clone()).await;
        let told = Told::by(&denied.expect_err("the deputy is no butler"));
        assert_eq!(told.code, Code::PermissionDenied, "{told:?}");
        told.says("\"deputy\" may not call this");
    }
    core.shutdown().await;
}

/// A token that is good for one user's process is good for no other's.
#[tokio::test]
async fn a_child_s_token_in_the_hands_of_another_user_is_worth_nothing() {
    const SOMEBODY: u32 = 64_321;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start a process as another user");
        return;
    }
    let sandbox = Sandbox {
        user: Some(SOMEBODY.to_string()),
        group: Some(SOMEBODY.to_string()),
        ..Sandbox::default()
    };
    let core = TestCore::builder()
        .configure(|config| {
            let home = config.data_dir.parent().expect("in a directory");
            let open = fs::Permissions::from_mode(0o711);
            fs::set_permissions(home, open).expect("ours");
        })
        .plugin(
            Declared::process("child", MISBEHAVING)
                .args(&["environment"])
                .sandbox(sandbox),
        )
        .start()
        .await;
    core.operator().until_phase("child", "ready").await;
    let report = core.operator().call("child.report", json!({})).await;
    let report = report.expect("answered");
    let token = report["variables"]["CORE_TOKEN"].as_str().expect("text");
    // This process is another user, with the token and the way to the socket.
    let thief = core.anonymous().with_token(token);
    let request = v1::IntrospectionGetInfoRequest::default();
    let refused = thief.introspection().get_info(request).await;
    Told::by(&refused.expect_err("stolen"))
        .is(Code::Unauthenticated, "BAD_CREDENTIAL")
        .says("another user");
    core.operator().until_phase("child", "ready").await;
    core.shutdown().await;
}

/// Files below a directory that hold a text.
fn holding(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path()));
        } else if let Ok(content) = fs::read(&path)
            && content
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

/// Command lines that hold a text, of all processes of this machine.
fn told_by_ps(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines.filter(|line| line.contains(text)).collect()
}

/// A day of a core at its most talkative: tokens of every kind are made, used, mistaken and revoked, plugins
/// crash. Afterwards no secret stands anywhere but where it belongs.
#[tokio::test]
async fn secrets_stand_in_no_log_no_audit_no_crash_report_no_argument() {
    let configured = "a-configured-token-of-the-lamp";
    let wish = "the-secret-in-a-plugin-s-configuration";
    let mut core = CoreProcess::new(
        CORE,
        "[listen]\ntls = [\"127.0.0.1:0\"]\n[log]\nfilter = \"debug\"\n[plugins.lamp]\ntoken_env = \"LAMP_TOKEN\"\n",
    )
    .plugin("lamp", "name = \"lamp\"\nrun.kind = \"remote\"\n")
    .plugin(
        "child",
        &format!("name = \"child\"\nrun.command = {MISBEHAVING:?}\nrun.args = [\"environment\"]\n"),
    )
    .plugin(
        "echo",
        &format!(
            "name = \"echo\"\nrun.command = {ECHO:?}\n[config]\npassword = {{ env = \"WISH\" }}\n"
        ),
    )
    .env("WISH", wish)
    .env("LAMP_TOKEN", configured);
    let operator = core.start().await;
    for name in ["child", "echo"] {
        operator.until_phase(name, "ready").await;
    }
    let mut secrets = vec![configured.to_owned(), wish.to_owned()];
    let report = operator
        .call("child.report", json!({}))
        .await
        .expect("answered");
    let token = report["variables"]["CORE_TOKEN"].as_str().expect("text");
    secrets.push(token.to_owned());

    let directory = core.directory().to_owned();
    let mut told = String::new();
    let mut corectl = async |arguments: &[&str]| {
        let done = finished(CORECTL, arguments, &directory).await;
        told.push_str(&format!("{}{}", done.stdout, done.stderr));
        done
    };
    let mut made = Vec::new();
    for whose in [&["--plugin", "shed"][..], &["--operator"]] {
        let arguments = [&["tokens", "create", "--json"], whose].concat();
        let done = finished(CORECTL, &arguments, &directory).await;
        let done: Value = serde_json::from_str(&done.stdout).expect("JSON");
        made.push(done["token"].as_str().expect("a token").to_owned());
    }
    let invited = finished(CORECTL, &["plugins", "invite", "attic"], &directory).await;
    let join: core_tls::JoinString = invited.stdout.trim().parse().expect("a join string");
    secrets.push(join.secret.clone());
    secrets.extend(made.iter().cloned());
    // Used, mistaken, replayed.
    let (enrolled, _) = core_tls::join(&join).await.expect("joined");
    core_tls::join(&join).await.expect_err("used");
    secrets.extend(enrolled.key_pem.lines().nth(1).map(str::to_owned));
    for secret in secrets.clone() {
        let client = core.anonymous().with_token(&secret);
        let request = v1::IntrospectionGetInfoRequest::default();
        let _judged = client.introspection().get_info(request).await;
        let wrong = core.anonymous().with_token(&format!("{secret}x"));
        let request = v1::IntrospectionGetInfoRequest::default();
        wrong
            .introspection()
            .get_info(request)
            .await
            .expect_err("none");
    }
    let shed = core.anonymous().with_token(&made[0]);
    let shed = RawPlugin::open(&shed, Hello::ready())
        .await
        .expect("admitted");
    drop(shed);
    core_tests::signal(operator.plugin("child").await.pid, Signal::ABORT);
    operator
        .until("child", "another run", |plugin| {
            plugin.generation == 2 && plugin.phase == "ready"
        })
        .await;
    let panicking = operator.call("echo.panic", json!({})).await;
    panicking.expect_err("it panics");
    for arguments in [
        &["plugins", "describe", "child", "--json"][..],
        &["plugins", "describe", "echo"],
        &["plugins", "logs", "child", "--json"],
        &["tokens", "list", "--json"],
        &["status"],
        &["storage", "export"],
    ] {
        corectl(arguments).await;
    }
    let revoke = ["tokens", "revoke", "--plugin", "shed"];
    assert_eq!(corectl(&revoke).await.code, Some(0));
    let audit = directory.join("data/security/audit.jsonl");
    let audited = || fs::read_to_string(&audit).unwrap_or_default();
    eventually!(
        audited().contains("Access/RevokeCredential"),
        "{}",
        audited()
    );
    assert!(core.log().contains("DEBUG"), "it is talkative");
    for secret in &secrets {
        assert_eq!(told_by_ps(secret), [""; 0]);
        assert!(!told.contains(secret), "told by corectl");
        let found = holding(&directory, secret);
        assert!(found.is_empty(), "{found:?}");
    }
    core.signal(Signal::TERM);
    core.wait(core_tests::patience()).await;
    for secret in &secrets {
        let found = holding(&directory, secret);
        assert!(found.is_empty(), "{found:?}");
    }
}
