//! Plugins that misbehave, written on plain frames. The first argument names the fault.
//!
//! Whatever the fault, the program ends when its standard input does: no failing test leaves it
//! behind.

use std::process::Stdio;
use std::time::Duration;

use core_proto::contract::env;
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::run_hook::Hook;
use core_proto::v1::{HookDone, IntrospectionGetInfoRequest};
use core_tests::{Client, Hello, RawPlugin, Told};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

/// Lines that `flood` writes before it is ready.
const FLOOD_LINES: usize = 20_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = tokio::select! {
        code = misbehave(&arguments) => code,
        () = core_is_gone() => 0,
    };
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
        ["exit-when-ready", code] => {
            let plugin = open(Hello::ready()).await;
            // What it sent has arrived when the core answers.
            drop(plugin.client().introspection().get_info(info()).await);
            number(code)
        }
        ["never-connects"] => std::future::pending().await,
        ["never-ends", hook] => answer_until(Hello::with_hooks(), hook_of(hook), None).await,
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
        ["forks"] => {
            let child = std::process::Command::new("sleep")
                .arg("600")
                .stdin(Stdio::null())
                .spawn();
            let child = child.expect("sleep starts").id();
            serve("child", |_| json!(child)).await;
            0
        }
        ["floods"] => {
            for line in 0..FLOOD_LINES {
                eprintln!("line {line} of far too many");
            }
            serve("say", |_| json!("still here")).await;
            0
        }
        ["claims-twice"] => {
            let first = open_with(&["verdict"], Hello::ready()).await;
            let second = RawPlugin::open(&credential(), Hello::ready()).await;
            let verdict = match second {
                Ok(_) => "two channels".to_owned(),
                Err(status) => verdict(&status),
            };
            answer_calls(first, |_| json!(verdict)).await;
            0
        }
        ["drops-its-token"] => {
            let findings = findings().await;
            serve("findings", |_| findings.clone()).await;
            0
        }
        ["asks-as-operator", socket] => {
            let said = ask_as_operator(socket).await;
            std::io::Write::write_all(&mut std::io::stdout(), said.as_bytes()).expect("a pipe");
            0
        }
        ["environment"] => {
            let facts = json!({
                "variables": std::env::vars().collect::<std::collections::BTreeMap<_, _>>(),
                "directory": std::env::current_dir().expect("a directory"),
                "pid": std::process::id(),
                "group": rustix::process::getpgrp().as_raw_nonzero().get(),
                "session": rustix::process::getsid(None).map(|id| id.as_raw_nonzero().get()).ok(),
                "umask": umask(),
                "descriptors": descriptors(),
            });
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
    let mut plugin = open(hello).await;
    while let Some(message) = next(&mut plugin).await {
        let FromCore::RunHook(hook) = message else {
            continue;
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

fn verdict(status: &tonic::Status) -> String {
    let told = Told::by(status);
    format!("{:?} {}", told.code, told.reason)
}

/// What happens to a child that tries to be somebody else.
async fn findings() -> Value {
    let open = RawPlugin::open(&anonymous(), Hello::ready()).await;
    let without_token = open
        .err()
        .map_or("admitted".to_owned(), |status| verdict(&status));
    let wrong = anonymous().with_token("0123456789abcdef0123456789abcdef");
    let wrong = RawPlugin::open(&wrong, Hello::ready()).await;
    let wrong_token = wrong
        .err()
        .map_or("admitted".to_owned(), |status| verdict(&status));
    // The socket is not named to children; it is easily guessed.
    let plugins = variable(env::ADDR);
    let socket = plugins
        .trim_start_matches("unix:")
        .replace("core.sock", "operator.sock");
    let program = std::env::current_exe().expect("its own program");
    let grandchild = tokio::process::Command::new(program)
        .args(["asks-as-operator", &socket])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .expect("a grandchild");
    let said = grandchild.wait_with_output();
    let (itself, said) = tokio::join!(ask_as_operator(&socket), said);
    let said = said.expect("its own child").stdout;
    json!({
        "without_token": without_token,
        "wrong_token": wrong_token,
        "as_operator": itself,
        "as_operator_from_a_grandchild_with_a_cleared_environment":
            String::from_utf8_lossy(&said).trim(),
    })
}

async fn ask_as_operator(socket: &str) -> String {
    let client = Client::new(std::path::Path::new(socket));
    let request = core_proto::v1::PluginManagerListRequest::default();
    let answer = client.plugin_manager().list(request).await;
    answer
        .err()
        .map_or("admitted".to_owned(), |status| verdict(&status))
}

/// Read by setting it, as POSIX has it, and set back.
fn umask() -> String {
    let mask = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    rustix::process::umask(mask);
    format!("{:03o}", mask.bits())
}

/// What its descriptors are, those of this program's own making (sockets, event queues) left out.
fn descriptors() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target.starts_with('/') && !target.starts_with("/proc/"))
        .collect()
}
