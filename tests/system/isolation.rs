//! What children are kept to: always, and when their manifest asks for it. What this machine cannot do
//! is skipped, and said.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use core_proto::v1::{Isolation, PluginInfo};
use core_server::config::Config;
use core_server::supervisor::isolation::{Resource, ResourceLimits, Sandbox};
use core_tests::{CoreProcess, Declared, TestCore, eventually, is_alive};
use serde_json::{Value, json};

use super::{CORE, ECHO, PROBER};

/// A user that is neither root nor anybody: numbers need no entry.
const SOMEBODY: u32 = 64_123;

fn prober(mode: &str) -> Declared {
    Declared::process("prober", PROBER).args(&[mode])
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

fn isolation(plugin: &PluginInfo) -> &Isolation {
    plugin.isolation.as_ref().expect("of a child")
}

fn mode<'a>(plugin: &'a PluginInfo, resource: &str) -> &'a str {
    let limits = &isolation(plugin).limits;
    let limit = limits.iter().find(|limit| limit.name == resource);
    &limit.expect("every resource is shown").mode
}

async fn ask(core: &TestCore, service: &str, arguments: Value) -> Value {
    let answer = core.operator().call(service, arguments).await;
    answer.expect("the prober answers")
}

/// The directory of a test, which its core does not count as its own to open.
fn set_mode(config: &mut Config, mode: u32) {
    let directory = config.data_dir.parent().expect("its directory");
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("ours");
}

/// A directory with a secret that everybody may read, and a program that makes whoever runs it root.
fn outside() -> (tempfile::TempDir, PathBuf) {
    let outside = tempfile::tempdir().expect("a directory");
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    fs::write(outside.path().join("secret"), "text").expect("written");
    let program = outside.path().join("id");
    fs::copy("/usr/bin/id", &program).expect("there is one");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("ours");
    (outside, program)
}

#[tokio::test]
async fn every_child_starts_with_three_descriptors_and_no_way_to_gain_rights() {
    // A library that opens a file without care.
    let leaked = fs::File::open("/etc/hostname").or_else(|_| fs::File::open("/etc/passwd"));
    let leaked = leaked.expect("a file");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("inheritable");
    let core = TestCore::builder().plugin(prober("facts")).start().await;
    let plugin = core.operator().until_phase("prober", "ready").await;
    let facts = ask(&core, "prober.facts", json!({})).await;
    let descriptors = facts["descriptors"].as_array().expect("a list");
    let numbers: Vec<_> = descriptors
        .iter()
        .filter_map(|line| line.as_str()?.split(' ').next())
        .collect();
    assert_eq!(numbers, ["0", "1", "2"], "{descriptors:?}");
    assert_eq!(facts["no_new_privs"], "1");
    assert_eq!(facts["core_dumps"], json!(["0", "0"]));
    let isolation = isolation(&plugin);
    assert_eq!(
        (isolation.user.as_str(), isolation.landlock.as_str()),
        ("core", "none")
    );
    let modes = isolation.limits.iter().map(|limit| limit.mode.as_str());
    assert_eq!(modes.collect::<Vec<_>>(), ["unlimited"; 4]);
    assert_eq!(isolation.notes, Vec::<String>::new());
    drop(leaked);
    core.shutdown().await;
}

#[tokio::test]
async fn open_files_are_limited_by_the_kernel() {
    let limits = ResourceLimits {
        open_files: Some(77),
        required: vec![Resource::OpenFiles],
        ..ResourceLimits::default()
    };
    let core = TestCore::builder()
        .plugin(prober("facts").limits(limits))
        .start()
        .await;
    let plugin = core.operator().until_phase("prober", "ready").await;
    assert_eq!(mode(&plugin, "open_files"), "rlimit");
    let facts = ask(&core, "prober.facts", json!({})).await;
    assert_eq!(facts["open_files"], json!(["77", "77"]));
    core.shutdown().await;
}

#[tokio::test]
async fn a_memory_hog_is_restarted_and_others_live() {
    let limits = ResourceLimits {
        memory: Some(96 << 20),
        ..ResourceLimits::default()
    };
    let core = TestCore::builder()
        .plugin(prober("hogs-memory").limits(limits))
        .plugin(Declared::process("echo", ECHO))
        .start()
        .await;
    let operator = core.operator();
    let plugin = operator.until_phase("prober", "ready").await;
    let mode = mode(&plugin, "memory").to_owned();
    let neighbour = operator.until_phase("echo", "ready").await;
    let began = Instant::now();
    let ended = operator
        .until("prober", "its end at the limit", |plugin| {
            plugin.last_exit.is_some()
        })
        .await;
    let took = began.elapsed();
    eprintln!(
        "memory hog, limit kept as {mode}: ended after {} ms",
        took.as_millis()
    );
    let message = ended.last_exit.expect("an end").message;
    assert!(message.contains("memory"), "{message}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    operator
        .until("prober", "another run", |plugin| plugin.generation > 1)
        .await;
    let same = operator.plugin("echo").await;
    assert_eq!((same.pid, same.generation), (neighbour.pid, 1));
    core.shutdown().await;
}

#[tokio::test]
async fn too_many_processes_end_a_run_with_all_of_them() {
    let limits = ResourceLimits {
        pids: Some(20),
        ..ResourceLimits::default()
    };
    let core = TestCore::builder()
        .plugin(prober("forks").limits(limits))
        .start()
        .await;
    let operator = core.operator();
    let plugin = operator.until_phase("prober", "ready").await;
    let began = Instant::now();
    let forked = ask(&core, "prober.fork", json!({})).await;
    let children: Vec<u64> = serde_json::from_value(forked["children"].clone()).expect("ids");
    let mode = mode(&plugin, "pids").to_owned();
    if mode == "cgroup" {
        assert!(
            children.len() <= 20 && forked["refused"].is_string(),
            "{forked}"
        );
        return core.shutdown().await;
    }
    assert_eq!(mode, "sampled");
    let ended = operator
        .until("prober", "its end at the limit", |plugin| {
            plugin.last_exit.is_some()
        })
        .await;
    eprintln!(
        "processes, limit kept as {mode}: ended after {} ms",
        began.elapsed().as_millis()
    );
    let message = ended.last_exit.expect("an end").message;
    assert!(message.contains("of 20 processes"), "{message}");
    let alive = || {
        children
            .iter()
            .filter(|pid| is_alive(u32::try_from(**pid).unwrap_or(0)))
    };
    eventually!(alive().count() == 0, "{} live", alive().count());
    core.shutdown().await;
}

#[tokio::test]
async fn a_required_limit_that_cannot_be_kept_refuses_the_start() {
    let limits = ResourceLimits {
        cpu_weight: Some(50),
        required: vec![Resource::CpuWeight],
        ..ResourceLimits::default()
    };
    let core = TestCore::builder()
        .plugin(prober("facts").limits(limits))
        .start()
        .await;
    let operator = core.operator();
    let decided = operator
        .until("prober", "a decision", |plugin| {
            ["ready", "config_error"].contains(&plugin.phase.as_str())
        })
        .await;
    if decided.phase == "ready" {
        assert_eq!(mode(&decided, "cpu_weight"), "cgroup");
        skipped("cgroups are writable here: nothing is refused");
    } else {
        let message = &decided.message;
        assert!(message.contains("limits.cpu_weight: required"), "{message}");
        assert_eq!(decided.restarts, 0, "it is not tried again");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn cgroups_keep_limits_where_they_are_writable() {
    let limits = ResourceLimits {
        memory: Some(256 << 20),
        ..ResourceLimits::default()
    };
    let core = TestCore::builder()
        .plugin(prober("facts").limits(limits))
        .start()
        .await;
    let plugin = core.operator().until_phase("prober", "ready").await;
    if mode(&plugin, "memory") != "cgroup" {
        skipped(&format!(
            "no cgroups: {}",
            isolation(&plugin).notes.join("; ")
        ));
        return core.shutdown().await;
    }
    let of = fs::read_to_string(format!("/proc/{}/cgroup", plugin.pid)).expect("it lives");
    assert!(of.contains("prober-1"), "{of}");
    core.shutdown().await;
}

/// Whether the kernel enforces all of Landlock, as the core says.
async fn has_landlock(core: &TestCore) -> bool {
    let plugin = core.operator().until_phase("prober", "ready").await;
    let word = isolation(&plugin).landlock.clone();
    if word != "full" {
        assert!(
            !isolation(&plugin).notes.is_empty(),
            "what is missing is noted"
        );
        skipped(&format!("Landlock is {word} here"));
    }
    word == "full"
}

#[tokio::test]
async fn landlock_closes_what_is_not_named() {
    let (outside, program) = outside();
    let shown = tempfile::tempdir().expect("a directory");
    fs::write(shown.path().join("secret"), "text").expect("written");
    let sandbox = Sandbox {
        landlock: true,
        read: vec![shown.path().to_owned()],
        ..Sandbox::default()
    };
    let core = TestCore::builder()
        .plugin(Declared::process("echo", ECHO).sandbox(Sandbox {
            landlock: true,
            ..Sandbox::default()
        }))
        .plugin(prober("probes").sandbox(sandbox))
        .start()
        .await;
    core.operator().until_phase("echo", "ready").await;
    let said = ask(&core, "echo.say", json!({ "text": "inside" })).await;
    assert_eq!(
        said["text"], "inside",
        "an ordinary plugin needs no more than that"
    );
    if has_landlock(&core).await {
        let probes = json!({
            "core": std::process::id(),
            "outside": outside.path(),
            "setuid": program,
        });
        let found = ask(&core, "prober.probe", probes).await;
        let denied = [
            "read_outside",
            "list_outside",
            "write_outside",
            "core_memory",
            "core_environment",
            "core_descriptors",
            "setuid_program",
            "runs_from_data",
            "signal_core",
        ];
        for what in denied {
            let verdict = found[what].as_str().expect("a verdict");
            assert!(verdict.starts_with("denied"), "{what}: {found:#}");
        }
        for what in ["own_directory", "own_memory", "runs_programs"] {
            assert_eq!(found[what], "done", "{what}: {found:#}");
        }
        eprintln!(
            "sandbox probes: {} of {} denied",
            denied.len(),
            denied.len()
        );
        let probes = json!({ "core": std::process::id(), "outside": shown.path() });
        let found = ask(&core, "prober.probe", probes).await;
        assert_eq!(
            found["read_outside"], "done",
            "what is named stays open: {found:#}"
        );
        assert_ne!(found["write_outside"], "done", "to be read only: {found:#}");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_user_of_its_own_reaches_its_directory_and_the_core_and_no_more() {
    if !is_root() {
        return skipped("only root can start a process as another user");
    }
    let (outside, program) = outside();
    let hidden = tempfile::tempdir().expect("a directory");
    fs::set_permissions(hidden.path(), fs::Permissions::from_mode(0o700)).expect("ours");
    fs::write(hidden.path().join("secret"), "text").expect("written");
    let sandbox = Sandbox {
        user: Some(SOMEBODY.to_string()),
        group: Some(SOMEBODY.to_string()),
        required: true,
        ..Sandbox::default()
    };
    let limits = ResourceLimits {
        pids: Some(40),
        required: vec![Resource::Pids],
        ..ResourceLimits::default()
    };
    let core = TestCore::builder()
        .configure(|config| set_mode(config, 0o711))
        .plugin(
            Declared::process("facts", PROBER)
                .args(&["facts"])
                .sandbox(sandbox.clone()),
        )
        .plugin(prober("probes").sandbox(sandbox.clone()))
        .plugin(
            Declared::process("forks", PROBER)
                .args(&["forks"])
                .sandbox(Sandbox {
                    user: Some((SOMEBODY + 1).to_string()),
                    group: Some(SOMEBODY.to_string()),
                    ..sandbox
                })
                .limits(limits),
        )
        .start()
        .await;
    let operator = core.operator();
    let plugin = operator.until_phase("facts", "ready").await;
    let label = format!("{SOMEBODY} ({SOMEBODY}:{SOMEBODY})");
    assert_eq!(isolation(&plugin).user, label);
    let facts = ask(&core, "facts.facts", json!({})).await;
    let four = [
        SOMEBODY.to_string(),
        SOMEBODY.to_string(),
        SOMEBODY.to_string(),
        SOMEBODY.to_string(),
    ];
    assert_eq!(facts["users"], four.join("\t"));
    assert_eq!(facts["groups"], four.join("\t"));
    assert_eq!(facts["other_groups"], SOMEBODY.to_string());
    assert_eq!(facts["directory"], json!([SOMEBODY, SOMEBODY]));
    assert_eq!(facts["writes_directory"], true);

    operator.until_phase("prober", "ready").await;
    let probes = json!({
        "core": std::process::id(),
        "outside": hidden.path(),
        "setuid": program,
    });
    let found = ask(&core, "prober.probe", probes).await;
    for what in [
        "read_outside",
        "list_outside",
        "write_outside",
        "core_memory",
        "core_environment",
        "core_descriptors",
        "setuid_program",
        "signal_core",
    ] {
        let verdict = found[what].as_str().expect("a verdict");
        assert!(verdict.starts_with("denied"), "{what}: {found:#}");
    }
    assert_eq!(found["own_directory"], "done", "{found:#}");

    let plugin = operator.until_phase("forks", "ready").await;
    assert_eq!(mode(&plugin, "pids"), "rlimit");
    let forked = ask(&core, "forks.fork", json!({})).await;
    let children = forked["children"].as_array().expect("a list").len();
    assert!(children < 40 && forked["refused"].is_string(), "{forked}");
    // The sockets are nobody else's business.
    let socket = core.runtime().plugin_socket().to_owned();
    let modes = [&socket, &core.runtime().operator_socket().to_owned()]
        .map(|path| fs::metadata(path).expect("there").permissions().mode() & 0o007);
    assert_eq!(modes, [0, 0]);
    drop(outside);
    core.shutdown().await;
}

#[tokio::test]
async fn a_user_that_cannot_reach_the_core_is_refused_by_name() {
    if !is_root() {
        return skipped("only root can start a process as another user");
    }
    let sandbox = |user: &str, group: Option<&str>| Sandbox {
        user: Some(user.to_owned()),
        group: group.map(str::to_owned),
        ..Sandbox::default()
    };
    let core = TestCore::builder()
        .configure(|config| set_mode(config, 0o700))
        .plugin(prober("facts").sandbox(sandbox("64123", Some("64123"))))
        .plugin(Declared::process("unknown", PROBER).sandbox(sandbox("nobody-of-this-name", None)))
        .start()
        .await;
    let closed = core.operator().until_phase("prober", "config_error").await;
    let directory = core.directory().display().to_string();
    assert!(
        closed.message.contains("cannot pass through") && closed.message.contains(&directory),
        "{}",
        closed.message
    );
    let unknown = core.operator().until_phase("unknown", "config_error").await;
    assert!(
        unknown.message.contains("no user \"nobody-of-this-name\""),
        "{}",
        unknown.message
    );
    core.shutdown().await;
}

/// Row 50 without a sandbox: a child of the core's own user. Its files are open to it, the core's
/// inside is not.
#[tokio::test]
async fn a_child_of_the_same_user_cannot_look_into_the_core() {
    if !is_root() {
        return skipped("the tests must be root, to run a core that is not");
    }
    let (outside, program) = outside();
    let toml = format!("name = \"prober\"\n[run]\ncommand = \"{PROBER}\"\nargs = [\"probes\"]\n");
    let mut core = CoreProcess::new(CORE, "operators = [0]\n")
        .plugin("prober", &toml)
        .env("A_SECRET_OF_THE_CORE", "0123456789")
        .user(SOMEBODY);
    let reachable = Path::new(CORE).ancestors().skip(1).all(|directory| {
        let mode = fs::metadata(directory).map(|metadata| metadata.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o001 != 0)
    });
    if !reachable {
        return skipped("others cannot reach the programs of these tests");
    }
    let operator = core.start().await;
    operator.until_phase("prober", "ready").await;
    let probes = json!({ "core": core.pid(), "outside": outside.path(), "setuid": program });
    let found = operator
        .call("prober.probe", probes)
        .await
        .expect("it answers");
    for what in [
        "core_memory",
        "core_environment",
        "core_descriptors",
        "setuid_program",
    ] {
        let verdict = found[what].as_str().expect("a verdict");
        assert!(verdict.starts_with("denied"), "{what}: {found:#}");
    }
    for what in [
        "read_outside",
        "signal_core",
        "own_directory",
        "runs_from_data",
    ] {
        assert_eq!(found[what], "done", "no sandbox was asked for: {found:#}");
    }
    core.signal(rustix::process::Signal::TERM);
    let status = core.wait(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}: {}", core.log());
}
