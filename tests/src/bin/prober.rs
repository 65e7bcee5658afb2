//! A plugin that tries to get out of its sandbox and beyond its limits, written on plain frames. The
//! first argument names what it is about; every try is bounded, whatever the core does.
//!
//! It ends when its standard input does: no failing test leaves it behind.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use core_proto::contract::env;
use core_proto::v1::core_message::Message as FromCore;
use core_tests::{Client, Hello, RawPlugin};
use serde_json::{Value, json};

/// Memory that `hogs-memory` takes at most.
const MOST_MIB: usize = 400;
/// Processes that `forks` starts at most.
const MOST_PROCESSES: usize = 64;

fn main() {
    // Before anything here opens a descriptor of its own.
    let descriptors = descriptors();
    std::thread::spawn(|| {
        // Standard input ends when the core does.
        let ended = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(i32::from(ended.is_err()));
    });
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let threads = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    threads
        .expect("a runtime")
        .block_on(act(&arguments, &descriptors));
}

async fn act(arguments: &[&str], descriptors: &[String]) {
    match arguments {
        ["facts"] => serve("facts", |_| facts(descriptors)).await,
        ["probes"] => serve("probe", probe).await,
        ["hogs-memory"] => {
            let serving = serve("say", |_| json!("still here"));
            tokio::join!(serving, hog());
        }
        ["forks"] => {
            let mut children = Vec::new();
            serve("fork", |_| {
                let mut refused = None;
                while children.len() < MOST_PROCESSES && refused.is_none() {
                    let sleep = Command::new("sleep")
                        .arg("600")
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .spawn();
                    match sleep {
                        Ok(child) => children.push(child.id()),
                        Err(error) => refused = Some(error.to_string()),
                    }
                }
                json!({ "children": children, "refused": refused })
            })
            .await;
        }
        other => eprintln!("no such probe: {other:?}"),
    }
}

/// Takes memory and touches it, until there is as much as this program ever takes.
async fn hog() {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for step in 0..MOST_MIB / 8 {
        taken.push(vec![u8::try_from(step % 255).unwrap_or(1) | 1; 8 << 20]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::hint::black_box(&taken);
    std::future::pending::<()>().await;
}

fn facts(descriptors: &[String]) -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status: BTreeMap<_, _> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let directory = fs::metadata(".").map(|metadata| (metadata.uid(), metadata.gid()));
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name));
        let values = line.map(|line| line[name.len()..].split_whitespace().take(2));
        values.map(|values| values.map(str::to_owned).collect::<Vec<_>>())
    };
    json!({
        "descriptors": descriptors,
        "no_new_privs": status.get("NoNewPrivs"),
        "users": status.get("Uid"),
        "groups": status.get("Gid"),
        "other_groups": status.get("Groups"),
        "open_files": limit("Max open files"),
        "core_dumps": limit("Max core file size"),
        "directory": directory.ok(),
        "writes_directory": fs::write("mine", "text").is_ok(),
    })
}

/// Tries each of `{"what": [argument, ...]}`: "done", or the error.
fn probe(arguments: Value) -> Value {
    let text = |key: &str| arguments[key].as_str().unwrap_or_default().to_owned();
    let core = arguments["core"].as_u64().unwrap_or_default();
    let of_core = |file: &str| PathBuf::from(format!("/proc/{core}/{file}"));
    let outside = PathBuf::from(text("outside"));
    json!({
        "read_outside": verdict(fs::read(outside.join("secret"))),
        "list_outside": verdict(fs::read_dir(&outside)),
        "write_outside": verdict(fs::write(outside.join("left-by-the-prober"), "text")),
        "core_memory": verdict(fs::File::open(of_core("mem"))),
        "core_environment": verdict(fs::read(of_core("environ"))),
        "core_descriptors": verdict(descriptors_of(&of_core("fd"))),
        "signal_core": verdict(signal(core)),
        "setuid_program": verdict(setuid(Path::new(&text("setuid")))),
        "own_directory": verdict(fs::write("mine", "text").and_then(|()| fs::read("mine"))),
        "own_memory": verdict(fs::read("/proc/self/environ")),
        "runs_programs": verdict(Command::new("true").status()),
        "runs_from_data": verdict(runs_from_data()),
    })
}

/// What the descriptors of another process are; their mere numbers are no secret.
fn descriptors_of(directory: &Path) -> io::Result<usize> {
    let looked = fs::read_dir(directory)?.map(|entry| fs::read_link(entry?.path()));
    Ok(looked.collect::<io::Result<Vec<_>>>()?.len())
}

/// Signal 0: only the permission is asked.
fn signal(pid: u64) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::test_kill_process(pid)?)
}

/// A copy of `id` that belongs to root and has the setuid bit.
fn setuid(program: &Path) -> io::Result<()> {
    let said = Command::new(program).arg("-u").output()?;
    let own = rustix::process::getuid().as_raw().to_string();
    if String::from_utf8_lossy(&said.stdout).trim() == own {
        return Err(io::Error::other("it gave no rights"));
    }
    Ok(())
}

fn runs_from_data() -> io::Result<()> {
    fs::copy("/bin/true", "true")?;
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions("true", fs::Permissions::from_mode(0o700))?;
    Command::new("./true").status().map(drop)
}

fn verdict<T>(tried: io::Result<T>) -> String {
    match tried {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("denied: {error}"),
    }
}

/// What its descriptors point to, the one that reads them left out.
fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_string_lossy().into_owned();
            let target = fs::read_link(&path).ok()?;
            Some(format!("{number} {}", target.display()))
        })
        .filter(|line| !line.contains("/proc/"))
        .collect()
}

/// Offers one service and answers its calls until it is told to go.
async fn serve(service: &str, mut answer: impl FnMut(Value) -> Value) {
    let variable = |name| std::env::var(name).expect("the core gives it");
    let address = variable(env::ADDR);
    let socket = address.strip_prefix("unix:").expect("a unix socket");
    let client = Client::new(Path::new(socket)).with_token(&variable(env::TOKEN));
    let service = format!("{}.{service}", variable(env::PLUGIN));
    let hello = Hello::ready().services(&[&service]);
    let mut plugin = RawPlugin::open(&client, hello).await.expect("a channel");
    loop {
        let Some(message) = plugin.next_or_silence(Duration::from_secs(3_600)).await else {
            continue;
        };
        match message {
            Ok(FromCore::CallRequest(call)) => {
                let arguments = serde_json::from_slice(&call.arguments).unwrap_or_default();
                plugin.answer(call.call_id, answer(arguments)).await;
            }
            Ok(FromCore::RunHook(_)) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
