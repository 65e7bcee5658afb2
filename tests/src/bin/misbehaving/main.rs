//! Plugins that misbehave, written on plain frames. The first argument names the fault; habits may stand
//! before it:
//!
//! | habit | |
//! |---|---|
//! | `--deaf` | does not end with its standard input |
//! | `--ignores-term` | ignores SIGTERM |
//! | `--child` | starts a process of its group that ignores SIGTERM; its number stands in `child.pid` |
//! | `--escapee` | the same in a session of its own; `escapee.pid` |
//!
//! But for the deaf and what they leave behind, which live for minutes at most, the program ends when
//! its standard input does: no failing test leaves it behind.

mod environment;
mod family;
mod identity;
mod load;
mod output;

use std::process::Stdio;
use std::time::Duration;

use core_proto::contract::env;
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::run_hook::Hook;
use core_proto::v1::{HookDone, IntrospectionGetInfoRequest};
use core_tests::{Client, Hello, RawPlugin};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

/// Lines that `flood` writes before it is ready.
const FLOOD_LINES: usize = 20_000;

/// A deaf plugin ends by itself after this, whatever a failing test forgot.
const DEAF_LIFE: Duration = Duration::from_secs(180);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut deaf = arguments
        .first()
        .is_some_and(|first| *first == "lingers" || *first == "bomb");
    let mut caught = None;
    while let Some(habit) = arguments.first().and_then(|first| first.strip_prefix("--")) {
        match habit {
            "deaf" => deaf = true,
            "ignores-term" => {
                caught = Some(signal(SignalKind::terminate()).expect("a handler"));
            }
            "child" => family::leave("child.pid", "same-session").await,
            "escapee" => family::leave("escapee.pid", "new-session").await,
            other => panic!("no such habit: {other}"),
        }
        arguments.remove(0);
    }
    let misbehaving = async {
        let code = misbehave(&arguments).await;
        if deaf {
            // Nor does it go because its channel does.
            std::future::pending::<()>().await;
        }
        code
    };
    let code = tokio::select! {
        code = misbehaving => code,
        () = core_is_gone(), if !deaf => 0,
        () = tokio::time::sleep(DEAF_LIFE), if deaf => 0,
    };
    drop(caught);
    // Not by returning: the thread that reads standard input cannot be ended.
    std::process::exit(code);
}

/// Standard input ends when the core does.
async fn core_is_gone() {
    let mut bytes = [0; 64];
    let mut input = tokio::io::stdin();
    while !matches!(input.read(&mut bytes).await, Ok(0) | Err(_)) {}
}

async fn misbehave(arguments: &[&str]) -> i32 {
    match arguments {
        ["exit-at-start", code] => {
            eprintln!("boom: it cannot go on");
            number(code)
        }
        // The first so many runs of its data directory.
        ["exit-at-first-starts", times, code] => {
            let before = std::fs::read_to_string("starts").unwrap_or_default();
            let before: i32 = before.parse().unwrap_or_default();
            std::fs::write("starts", (before + 1).to_string()).expect("its own directory");
            if before < number(times) {
                return number(code);
            }
            serve("starts", |_| json!(before + 1)).await;
            0
        }
        ["exit-when-ready", code] => {
            let plugin = open(Hello::ready()).await;
            // What it sent has arrived when the core answers.
            drop(plugin.client().introspection().get_info(info()).await);
            number(code)
        }
        ["exit-after", millis, code] => {
            let serving = serve("pid", |_| json!(std::process::id()));
            let time = Duration::from_millis(millis.parse().expect("milliseconds"));
            drop(tokio::time::timeout(time, serving).await);
            number(code)
        }
        ["never-connects"] => std::future::pending().await,
        ["speaks", version] => {
            let version = version.parse().expect("a wire version");
            let refused =
                RawPlugin::open(&credential(), Hello::ready().wire(version, version)).await;
            // It waits to be ended: the core alone decides what follows.
            drop(refused);
            std::future::pending().await
        }
        ["never-ends", hook] => answer_until(Hello::with_hooks(), hook_of(hook), None).await,
        ["takes", hook, millis] => {
            let time = Duration::from_millis(millis.parse().expect("milliseconds"));
            take(hook_of(hook), time).await
        }
        ["extends", hook] => extend(hook_of(hook)).await,
        ["fails-in", hook] => {
            let failure = core_proto::google::rpc::Status {
                code: tonic::Code::FailedPrecondition.into(),
                message: "the lamp is broken".to_owned(),
                details: Vec::new(),
            };
            answer_until(Hello::with_hooks(), hook_of(hook), Some(failure)).await
        }
        ["stubborn"] => {
            let _caught = signal(SignalKind::terminate()).expect("a handler");
            answer_until(Hello::with_hooks(), Hook::Stop, None).await
        }
        ["crashes-on-call"] => {
            serve("crash", |_| std::process::abort()).await;
            0
        }
        ["serves"] => {
            serve("pid", |_| json!(std::process::id())).await;
            0
        }
        ["deadlocked", topic] => deadlock(topic).await,
        ["forks"] => {
            let child = std::process::Command::new("sleep")
                .arg("600")
                .stdin(Stdio::null())
                .spawn();
            let child = child.expect("sleep starts").id();
            serve("child", |_| json!(child)).await;
            0
        }
        ["lingers", session, file] => family::linger(session, file).await,
        ["orphans"] => {
            serve("orphans", |count| {
                family::orphans(count[0].as_u64().unwrap_or_default());
                json!(std::process::id())
            })
            .await;
            0
        }
        ["bomb", levels] => {
            family::bomb(levels.parse().expect("a number of levels"));
            std::future::pending().await
        }
        ["bombs"] => {
            serve("bomb", |levels| {
                let levels = levels[0].as_u64().unwrap_or_default();
                json!(family::bomb(
                    u32::try_from(levels.min(8)).unwrap_or_default()
                ))
            })
            .await;
            0
        }
        ["hogs", bytes_per_second, limit] => {
            let bytes = |text: &str| text.parse().expect("bytes");
            load::hog(bytes(bytes_per_second), bytes(limit));
            serve("pid", |_| json!(std::process::id())).await;
            0
        }
        ["floods"] => {
            for line in 0..FLOOD_LINES {
                eprintln!("line {line} of far too many");
            }
            serve("say", |_| json!("still here")).await;
            0
        }
        ["floods-for", kind, seconds] => {
            let plugin = open_with(&["report"], Hello::ready()).await;
            let flood =
                output::Flood::begin(kind, Duration::from_secs(seconds.parse().expect("seconds")));
            answer_calls(plugin, |_| flood.report()).await;
            0
        }
        ["claims-twice"] => {
            let first = open_with(&["verdict"], Hello::ready()).await;
            let second = RawPlugin::open(&credential(), Hello::ready()).await;
            let verdict = match second {
                Ok(_) => "two channels".to_owned(),
                Err(status) => identity::verdict(&status),
            };
            answer_calls(first, |_| json!(verdict)).await;
            0
        }
        ["replays"] => {
            let plugin = open_with(&["verdicts"], Hello::ready()).await;
            let verdicts = identity::replay(&plugin.welcome.run).await;
            answer_calls(plugin, |_| json!(verdicts)).await;
            0
        }
        ["drops-its-token"] => {
            let findings = identity::findings().await;
            serve("findings", |_| findings.clone()).await;
            0
        }
        ["asks-as-operator", socket] => {
            let said = identity::ask_as_operator(socket).await;
            std::io::Write::write_all(&mut std::io::stdout(), said.as_bytes()).expect("a pipe");
            0
        }
        ["environment"] => {
            let facts = environment::report();
            serve("report", |_| facts.clone()).await;
            0
        }
        other => {
            eprintln!("no such fault: {other:?}");
            2
        }
    }
}

fn number(text: &str) -> i32 {
    text.parse().expect("an exit code")
}

fn hook_of(name: &str) -> Hook {
    match name {
        "load" => Hook::Load,
        "start" => Hook::Start,
        "stop" => Hook::Stop,
        "unload" => Hook::Unload,
        other => panic!("no such hook: {other}"),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("the core gives it")
}

fn anonymous() -> Client {
    let address = variable(env::ADDR);
    let path = address.strip_prefix("unix:").expect("a unix socket");
    Client::new(std::path::Path::new(path))
}

fn credential() -> Client {
    anonymous().with_token(&variable(env::TOKEN))
}

async fn open(hello: Hello) -> RawPlugin {
    RawPlugin::open(&credential(), hello)
        .await
        .expect("a channel")
}

async fn open_with(services: &[&str], hello: Hello) -> RawPlugin {
    let name = variable(env::PLUGIN);
    let services: Vec<_> = services
        .iter()
        .map(|service| format!("{name}.{service}"))
        .collect();
    let services: Vec<_> = services.iter().map(String::as_str).collect();
    open(hello.services(&services)).await
}

/// Answers hooks until `last` comes, and that one with `answer` or never.
async fn answer_until(
    hello: Hello,
    last: Hook,
    answer: Option<core_proto::google::rpc::Status>,
) -> i32 {
    // A service that is never answered, for whoever wants a call in flight.
    let mut plugin = open_with(&["never"], hello).await;
    while let Some(message) = next(&mut plugin).await {
        let hook = match message {
            FromCore::RunHook(hook) => hook,
            FromCore::CallRequest(_) => {
                std::fs::write("called", "1\n").expect("its own directory");
                continue;
            }
            _ => continue,
        };
        if hook.hook() != last {
            plugin.hook_done(&hook).await;
            if hook.hook() == Hook::Unload {
                return 0;
            }
            continue;
        }
        match answer {
            Some(error) => {
                let done = HookDone {
                    hook_id: hook.hook_id,
                    error: Some(error),
                };
                plugin.send(ToCore::HookDone(done)).await;
                break;
            }
            None => return std::future::pending().await,
        }
    }
    std::future::pending().await
}

/// Answers hooks, one of them only after so long.
async fn take(slow: Hook, time: Duration) -> i32 {
    let mut plugin = open(Hello::with_hooks()).await;
    while let Some(message) = next(&mut plugin).await {
        let FromCore::RunHook(hook) = message else {
            continue;
        };
        if hook.hook() == slow {
            tokio::time::sleep(time).await;
        }
        plugin.hook_done(&hook).await;
        if hook.hook() == Hook::Unload {
            return 0;
        }
    }
    0
}

/// Answers hooks until `last` comes, and asks for more time for that one again and again.
async fn extend(last: Hook) -> i32 {
    let mut plugin = open(Hello::with_hooks()).await;
    while let Some(message) = next(&mut plugin).await {
        let FromCore::RunHook(hook) = message else {
            continue;
        };
        if hook.hook() != last {
            plugin.hook_done(&hook).await;
            continue;
        }
        loop {
            let by = prost_types::Duration {
                seconds: 30,
                nanos: 0,
            };
            let extension = core_proto::v1::ExtendDeadline {
                hook_id: hook.hook_id,
                by: Some(by),
            };
            plugin.send(ToCore::ExtendDeadline(extension)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    std::future::pending().await
}

/// Reads its channel no more once it is ready, and so answers no heartbeat, but publishes without end.
async fn deadlock(topic: &str) -> i32 {
    let plugin = open_with(&["pid"], Hello::ready().feature("heartbeat")).await;
    let publisher = plugin.client();
    loop {
        if let Err(status) = publisher.publish(topic, json!({})).await {
            eprintln!("not published: {}", identity::verdict(&status));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The next message, however long it takes; `None` at the end of the channel.
async fn next(plugin: &mut RawPlugin) -> Option<FromCore> {
    loop {
        match plugin.next_or_silence(Duration::from_secs(3_600)).await {
            Some(message) => return message.ok(),
            None => continue,
        }
    }
}

/// Offers one service and answers its calls until it is told to go.
async fn serve(service: &str, answer: impl Fn(Value) -> Value) {
    let plugin = open_with(&[service], Hello::ready()).await;
    answer_calls(plugin, answer).await;
}

async fn answer_calls(mut plugin: RawPlugin, answer: impl Fn(Value) -> Value) {
    while let Some(message) = next(&mut plugin).await {
        match message {
            FromCore::CallRequest(call) => {
                let arguments = serde_json::from_slice(&call.arguments).unwrap_or_default();
                plugin.answer(call.call_id, answer(arguments)).await;
            }
            FromCore::RunHook(_) => return,
            _ => {}
        }
    }
}

fn info() -> IntrospectionGetInfoRequest {
    IntrospectionGetInfoRequest::default()
}
