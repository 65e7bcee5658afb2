//! Plugins that do not go when they should: deaf to SIGTERM, to the end of their standard input and to
//! the loss of their channel, with processes that leave their group, their session, their environment.
//! The first argument names the way. `NAME.pids` answers with the processes that it started.
//!
//! Whatever happens, all of it is gone after [`LIFE`]: no failing test leaves it behind for long.

use std::process::{Command, Stdio};
use std::time::Duration;

use core_proto::contract::env;
use core_proto::v1::core_message::Message as FromCore;
use core_tests::{Client, Hello, RawPlugin};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// The leader ends itself after this; a child's program is `sleep` for as long.
const LIFE: Duration = Duration::from_secs(90);
const SLEEP: &str = "trap '' TERM HUP; exec sleep 90";

fn main() {
    // Before there is any thread: it forks.
    if std::env::args().nth(1).as_deref() == Some("relay") {
        start_relay();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _deaf = [SignalKind::terminate(), SignalKind::hangup()]
        .map(|kind| signal(kind).expect("a handler"));
    let deaf = async {
        escape(&arguments).await;
        std::future::pending::<()>().await;
    };
    drop(tokio::time::timeout(LIFE, deaf).await);
}

async fn escape(arguments: &[&str]) {
    let mut children = Vec::new();
    match arguments {
        // Nobody but itself.
        ["alone"] => {}
        // A child of its own group.
        ["group"] => children.push(start(Command::new("sh").args(["-c", SLEEP]))),
        // One of another session that holds the plugin's output.
        ["session"] => children.push(start(Command::new("setsid").args(["sh", "-c", SLEEP]))),
        // The same, with nothing in its environment that tells whose it is.
        ["bare"] => {
            children.push(start(
                Command::new("setsid").args(["sh", "-c", SLEEP]).env_clear(),
            ));
        }
        // Processes that run away by forking: see `start_relay`.
        ["relay"] => {}
        // Many that left everything but their environment.
        ["crowd"] => {
            let script =
                "i=0; while [ $i -lt 40 ]; do setsid sleep 90 >/dev/null 2>&1 & i=$((i+1)); done";
            start(Command::new("setsid").args(["sh", "-c", script]));
        }
        // Leaves orphans when it is asked to.
        ["orphans"] => {}
        other => panic!("no such way: {other:?}"),
    }
    serve(&children).await;
}

/// A process that leaves its session, forks and exits, about every half millisecond: whoever is seen is
/// gone already. Its environment says whose it is. All of them hold a lock on the file `relay` of the
/// plugin's directory, by which a test sees whether any of them lives.
#[expect(unsafe_code, reason = "fork")]
fn start_relay() {
    let file = std::fs::File::create("relay").expect("a directory of its own");
    file.lock().expect("nobody else's");
    let until = std::time::Instant::now() + LIFE;
    // SAFETY: there is one thread; the child makes system calls only.
    if unsafe { libc::fork() } != 0 {
        return;
    }
    while std::time::Instant::now() < until {
        // SAFETY: as above.
        unsafe {
            libc::setsid();
            std::thread::sleep(Duration::from_micros(500));
            if libc::fork() != 0 {
                libc::_exit(0);
            }
        }
    }
    // SAFETY: as above.
    unsafe { libc::_exit(0) };
}

/// Nobody waits for it: whoever adopts it does.
fn start(command: &mut Command) -> u32 {
    command
        .stdin(Stdio::null())
        .spawn()
        .expect("it starts")
        .id()
}

/// Double forks: each orphan ends soon after it was left.
async fn leave_orphans(count: u64) {
    let script = format!("i=0; while [ $i -lt {count} ]; do (sleep 0.05 &); i=$((i+1)); done");
    let status = tokio::process::Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .await;
    assert!(status.expect("sh starts").success());
}

async fn serve(children: &[u32]) {
    let variable = |name: &str| std::env::var(name).expect("the core gives it");
    let address = variable(env::ADDR);
    let path = address.strip_prefix("unix:").expect("a unix socket");
    let client = Client::new(std::path::Path::new(path)).with_token(&variable(env::TOKEN));
    let name = variable(env::PLUGIN);
    let services = [format!("{name}.pids"), format!("{name}.orphans")];
    let services = services.each_ref().map(String::as_str);
    let mut plugin = RawPlugin::open(&client, Hello::ready().services(&services))
        .await
        .expect("a channel");
    loop {
        match plugin.next_or_silence(LIFE).await {
            Some(Ok(FromCore::CallRequest(call))) if call.service.ends_with("orphans") => {
                let arguments: Value = serde_json::from_slice(&call.arguments).expect("JSON");
                leave_orphans(arguments["count"].as_u64().expect("a count")).await;
                plugin.answer(call.call_id, json!(null)).await;
            }
            Some(Ok(FromCore::CallRequest(call))) => {
                plugin.answer(call.call_id, json!(children)).await;
            }
            // No hook is answered.
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}
