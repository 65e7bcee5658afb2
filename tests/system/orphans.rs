//! No process outlives the core, and none its run: with real processes, each layer by itself and all
//! together. Times are printed; the bounds are those of `docs/concepts/plugins.md`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use core_tests::{Client, CoreProcess, eventually, is_alive, patience, within};
use rustix::process::Signal;
use serde_json::json;

use super::{CORE, ECHO, ESCAPING, MISBEHAVING};

const LAYERS: [&str; 4] = ["parent_death_signal", "guardian", "subreaper", "boot_sweep"];

fn manifest(name: &str, program: &str, arguments: &[&str]) -> String {
    format!("name = \"{name}\"\n[run]\ncommand = \"{program}\"\nargs = {arguments:?}\n")
}

fn settings(on: &[&str]) -> String {
    let line = |layer: &str| format!("{layer} = {}\n", on.contains(&layer));
    format!("[supervision]\n{}", LAYERS.map(line).concat())
}

/// A core with these layers only, and a plugin for each way to escape.
fn core_with(on: &[&str], ways: &[&str]) -> CoreProcess {
    ways.iter().fold(
        CoreProcess::new(CORE, &settings(on)).env("RUNTIME_SHUTDOWN_TIMEOUT", "3"),
        |core, way| core.plugin(way, &manifest(way, ESCAPING, &[way])),
    )
}

/// Leader and further processes of each plugin.
async fn processes(operator: &Client, ways: &[&str]) -> BTreeMap<String, (u32, Vec<u32>)> {
    let mut processes = BTreeMap::new();
    for way in ways {
        let leader = operator.until_phase(way, "ready").await.pid;
        let answer = operator.call(&format!("{way}.pids"), json!({})).await;
        let others: Vec<u32> = serde_json::from_value(answer.expect("answered")).expect("pids");
        processes.insert((*way).to_owned(), (leader, others));
    }
    for pid in processes
        .values()
        .flat_map(|(leader, others)| [&[*leader], &others[..]].concat())
    {
        assert!(is_alive(pid));
    }
    processes
}

/// Children of a process whose command line begins so.
fn children(parent: u32, program: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc")
        .expect("proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_one = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.to_owned())
            .unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        fields.split(' ').nth(1) == Some(&parent.to_string())
            && line.starts_with(program.as_bytes())
    };
    pids.filter(is_one).collect()
}

fn guardian_of(core: &CoreProcess) -> Option<u32> {
    children(core.pid(), "core-guardian").first().copied()
}

/// Waits until all are gone and says how long that took from `began`.
async fn gone(what: &str, pids: &[u32], began: Instant) -> Duration {
    eventually!(!pids.iter().any(|pid| is_alive(*pid)), "{what}: {pids:?}");
    let took = began.elapsed();
    eprintln!("{what}: gone after {} ms", took.as_millis());
    took
}

fn assert_within(what: &str, took: Duration, seconds: u64) {
    assert!(
        took <= Duration::from_secs(seconds),
        "{what}: gone after {took:?}"
    );
}

#[tokio::test]
async fn nothing_survives_a_killed_core() {
    let ways = ["alone", "group", "session"];
    let mut core = core_with(&LAYERS, &ways);
    let names: Vec<_> = (0..7).map(|number| format!("good-{number}")).collect();
    for name in &names {
        core = core.plugin(name, &manifest(name, ECHO, &[]));
    }
    let operator = core.start().await;
    let started = processes(&operator, &ways).await;
    let mut leaders: Vec<_> = started.values().map(|(leader, _)| *leader).collect();
    for name in &names {
        leaders.push(operator.until_phase(name, "ready").await.pid);
    }
    let guardian = guardian_of(&core).expect("a guardian");
    let began = Instant::now();
    core.kill().await;
    let leaders = gone("leaders", &leaders, began).await;
    let group = gone("group child", &started["group"].1, began).await;
    let session = gone("setsid child", &started["session"].1, began).await;
    let guardian = gone("guardian", &[guardian], began).await;
    assert_within("leaders", leaders, 1);
    assert_within("group child", group, 1);
    assert_within("setsid child", session, 2);
    assert_within("guardian", guardian, 3);
}

#[tokio::test]
async fn the_parent_death_signal_alone_ends_leaders() {
    let mut core = core_with(&["parent_death_signal"], &["alone", "group"]);
    let operator = core.start().await;
    let started = processes(&operator, &["alone", "group"]).await;
    assert_eq!(guardian_of(&core), None);
    let leaders: Vec<_> = started.values().map(|(leader, _)| *leader).collect();
    let began = Instant::now();
    core.kill().await;
    let took = gone("leaders", &leaders, began).await;
    assert_within("leaders", took, 1);
    // What it does not cover, so that this test tells the layers apart.
    let rest = started["group"].1[0];
    assert!(is_alive(rest));
    core_tests::signal(rest, Signal::KILL);
}

#[tokio::test]
async fn the_guardian_alone_ends_groups_and_who_left_them() {
    let ways = ["alone", "group", "session"];
    let mut core = core_with(&["guardian"], &ways);
    let operator = core.start().await;
    let started = processes(&operator, &ways).await;
    let guardian = guardian_of(&core).expect("a guardian");
    // Whoever ends all programs kindly, or closes the terminal, does not end it.
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        core_tests::signal(guardian, signal);
    }
    let groups: Vec<_> = started
        .values()
        .map(|(leader, _)| *leader)
        .chain(started["group"].1.clone())
        .collect();
    let began = Instant::now();
    core.kill().await;
    let group = gone("groups", &groups, began).await;
    let session = gone("setsid child", &started["session"].1, began).await;
    let guardian = gone("guardian", &[guardian], began).await;
    assert_within("groups", group, 1);
    assert_within("setsid child", session, 2);
    assert_within("guardian", guardian, 3);
}

#[tokio::test]
async fn a_guardian_that_dies_is_replaced_within_a_second_and_knows_everything() {
    let ways = ["group", "session"];
    let mut core = core_with(&["guardian"], &ways);
    let operator = core.start().await;
    let started = processes(&operator, &ways).await;
    let first = guardian_of(&core).expect("a guardian");
    core_tests::signal(first, Signal::KILL);
    let began = Instant::now();
    let is_new = |guardian: Option<u32>| guardian.is_some_and(|pid| pid != first && is_alive(pid));
    eventually!(is_new(guardian_of(&core)));
    let log = || core.log();
    let took = began.elapsed();
    eprintln!("guardian: replaced after {} ms", took.as_millis());
    assert_within("guardian", took, 1);
    assert!(log().contains("the guardian has ended"), "{}", log());
    let info = async || {
        let request = core_proto::v1::IntrospectionGetInfoRequest {};
        let info = operator.introspection().get_info(request).await;
        info.expect("told").into_inner().orphan_layers
    };
    eventually!(info().await == ["guardian"]);
    let everything: Vec<_> = started
        .values()
        .flat_map(|(leader, others)| [&[*leader], &others[..]].concat())
        .collect();
    let began = Instant::now();
    core.kill().await;
    let took = gone("everything", &everything, began).await;
    assert_within("everything", took, 2);
}

#[tokio::test]
async fn a_child_with_an_sdk_ends_by_itself() {
    let mut core =
        CoreProcess::new(CORE, &settings(&[])).plugin("good", &manifest("good", ECHO, &[]));
    let leader = core.start().await.until_phase("good", "ready").await.pid;
    let began = Instant::now();
    core.kill().await;
    let took = gone("leader", &[leader], began).await;
    assert_within("leader", took, 11);
}

#[tokio::test]
async fn the_next_core_ends_what_the_last_one_left() {
    let ways = ["alone", "group", "session"];
    let mut core = core_with(&["boot_sweep"], &ways);
    let operator = core.start().await;
    let left = processes(&operator, &ways).await;
    core.kill().await;
    let left: Vec<_> = left
        .values()
        .flat_map(|(leader, others)| [&[*leader], &others[..]].concat())
        .collect();
    assert!(
        left.iter().all(|pid| is_alive(*pid)),
        "no other layer is on"
    );
    let began = Instant::now();
    core.spawn();
    let took = gone("everything", &left, began).await;
    assert_within("everything", took, 5);
    let operator = core.operator();
    eventually!(
        operator
            .another_connection()
            .health()
            .check(tonic_health::pb::HealthCheckRequest::default())
            .await
            .is_ok()
    );
    let again = processes(&operator, &ways).await;
    assert_eq!(again.len(), ways.len());
    stop(&mut core).await;
}

#[tokio::test]
async fn a_broken_or_stale_record_stops_no_core_and_kills_no_stranger() {
    let mut stranger = tokio::process::Command::new("sleep")
        .arg("60")
        .kill_on_drop(true)
        .spawn()
        .expect("sleep starts");
    let pid = stranger.id().expect("it runs");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("an id");
    let record = json!({
        "boot_id": boot.trim(),
        "core": { "pid": 999_999_999, "started": 1 },
        "cookie": "0123456789abcdef",
        // Its number, but not its start.
        "children": [{ "plugin": "lamp", "pid": pid, "started": 1 }],
    });
    for content in [record.to_string(), "{".to_owned()] {
        let mut core = core_with(&["boot_sweep"], &[]);
        let file = core.directory().join("data/run-state.json");
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        std::fs::write(&file, &content).expect("written");
        core.start().await;
        assert!(is_alive(pid));
        stop(&mut core).await;
    }
    stranger.kill().await.expect("its own child");
}

async fn stop(core: &mut CoreProcess) {
    core.signal(Signal::TERM);
    let status = core.wait(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", core.log());
}

#[tokio::test]
async fn what_leaves_its_plugins_group_ends_with_the_run_and_nobody_else_does() {
    let ways = ["session", "bare", "group"];
    // No guardian: what ends it is the core.
    let mut core = core_with(&["subreaper"], &ways)
        .plugin("other", &manifest("other", ESCAPING, &["session"]));
    let operator = core.start().await;
    let started = processes(&operator, &ways).await;
    let others = processes(&operator, &["other"]).await;
    let unload = async |way: &str| {
        let began = Instant::now();
        let unloaded = within("unloaded", operator.unload(way)).await;
        unloaded.expect("in time");
        let took = began.elapsed();
        let (leader, escaped) = &started[way];
        // It is over when the core says so, not a moment later.
        let over = !is_alive(*leader) && !is_alive(escaped[0]);
        assert!(over, "{way}\n{}", core.log());
        eprintln!("{way}: unloaded after {} ms", took.as_millis());
        assert_within(way, took, 10);
    };
    tokio::join!(unload("session"), unload("bare"), unload("group"));
    let (leader, escaped) = &others["other"];
    assert!(
        is_alive(*leader) && is_alive(escaped[0]),
        "another plugin's are left alone"
    );
    stop(&mut core).await;
    assert!(!is_alive(*leader) && !is_alive(escaped[0]));
}

#[tokio::test]
async fn adopted_orphans_are_reaped_and_no_status_of_an_own_child_is_lost() {
    reaps(CORE, |core| core.pid()).await;
}

#[tokio::test]
async fn the_first_process_of_a_container_reaps_what_it_adopts() {
    let namespaces = [
        "--pid --fork --mount-proc",
        "--user --map-root-user --pid --fork --mount-proc",
    ];
    let works = |flags: &&str| {
        let status = std::process::Command::new("unshare")
            .args(flags.split(' '))
            .arg("true")
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    let Some(flags) = namespaces.into_iter().find(works) else {
        eprintln!("skipped: this machine allows no pid namespaces");
        return;
    };
    let scratch = core_tests::Scratch::new();
    let script = format!("#!/bin/sh\nexec unshare --kill-child {flags} {CORE}\n");
    let program = executable(&scratch, "first", &script);
    reaps(&program, |core| children(core.pid(), CORE)[0]).await;
}

fn executable(scratch: &core_tests::Scratch, name: &str, script: &str) -> String {
    let program = scratch.write(name, script);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("ours");
    program.to_str().expect("UTF-8").to_owned()
}

/// Has a plugin leave 200 orphans while another crashes; `core_pid` finds the core's process.
async fn reaps(program: &str, core_pid: impl Fn(&CoreProcess) -> u32) {
    let restart = "[restart]\nbackoff = \"10ms\"\nbackoff_max = \"10ms\"\n";
    let mut core = CoreProcess::new(program, "")
        .plugin("orphans", &manifest("orphans", ESCAPING, &["orphans"]))
        .plugin("good", &(manifest("good", ECHO, &[]) + restart));
    let operator = core.start().await;
    operator.until_phase("orphans", "ready").await;
    operator.until_phase("good", "ready").await;
    let pid = core_pid(&core);
    let leave = operator.call("orphans.orphans", json!({ "count": 200 }));
    let crash = async {
        for generation in 1..=5 {
            operator
                .until("good", "ready", |p| {
                    p.generation == generation && p.phase == "ready"
                })
                .await;
            // It ends and cannot answer.
            drop(
                operator
                    .call("good.exit", json!({ "code": 40 + generation }))
                    .await,
            );
            let code = 40 + i32::try_from(generation).expect("small");
            operator
                .until("good", "its exit code", |p| {
                    p.last_exit
                        .as_ref()
                        .is_some_and(|exit| exit.code == Some(code))
                })
                .await;
        }
    };
    let (left, ()) = tokio::join!(leave, crash);
    left.expect("answered");
    let began = Instant::now();
    eventually!(
        children(pid, "sleep").is_empty() && zombies(pid) == 0,
        "{} zombies",
        zombies(pid)
    );
    let took = began.elapsed();
    eprintln!("orphans: reaped after {} ms", took.as_millis());
    assert_within("zombies", took, 1);
    core.kill().await;
}

fn zombies(parent: u32) -> usize {
    let is_zombie = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    children(parent, "")
        .iter()
        .filter(|pid| is_zombie(pid))
        .count()
}

#[tokio::test]
async fn who_was_there_before_the_core_is_no_plugins() {
    let scratch = core_tests::Scratch::new();
    let script = format!("#!/bin/sh\nsleep 97 &\nsetsid sleep 98 &\nexec {CORE}\n");
    let program = executable(&scratch, "before", &script);
    let mut core = CoreProcess::new(&program, &settings(&LAYERS))
        .plugin("bare", &manifest("bare", ESCAPING, &["bare"]));
    let operator = core.start().await;
    let started = processes(&operator, &["bare"]).await;
    let strangers = children(core.pid(), "sleep\09");
    assert_eq!(strangers.len(), 2);
    within("unloaded", operator.unload("bare"))
        .await
        .expect("in time");
    assert!(!is_alive(started["bare"].1[0]));
    stop(&mut core).await;
    let spared = strangers.iter().all(|pid| is_alive(*pid));
    for pid in strangers {
        core_tests::signal(pid, Signal::KILL);
    }
    assert!(spared, "they were no plugin's");
}

#[tokio::test]
async fn a_pipe_in_the_records_place_holds_nothing_up() {
    let mut core = core_with(&["boot_sweep"], &["alone"]);
    let directory = core.directory().join("data");
    std::fs::create_dir_all(&directory).expect("made");
    for name in ["run-state.json", "run-state.json.new"] {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, directory.join(name), mode).expect("a pipe");
    }
    let operator = core.start().await;
    let started = processes(&operator, &["alone"]).await;
    let record = directory.join("run-state.json");
    let leader = started["alone"].0;
    let names = |pid: u32| {
        let is_file = std::fs::metadata(&record).is_ok_and(|metadata| metadata.is_file());
        is_file
            && std::fs::read_to_string(&record).is_ok_and(|text| text.contains(&pid.to_string()))
    };
    eventually!(names(leader));
    stop(&mut core).await;
    assert!(!is_alive(leader));
}

#[tokio::test]
async fn children_inherit_no_descriptor_though_the_core_did() {
    let scratch = core_tests::Scratch::new();
    let script = format!("#!/bin/sh\nexec 7</etc/passwd\nexec 9</etc/passwd\nexec {CORE}\n");
    let program = executable(&scratch, "leaky", &script);
    let mut core = CoreProcess::new(&program, "")
        .plugin("child", &manifest("child", MISBEHAVING, &["environment"]));
    let operator = core.start().await;
    let own = std::fs::read_link(format!("/proc/{}/fd/9", core.pid())).expect("the core has it");
    assert_eq!(own, std::path::Path::new("/etc/passwd"));
    operator.until_phase("child", "ready").await;
    let report = operator
        .call("child.report", json!({}))
        .await
        .expect("answered");
    assert_eq!(report["descriptors"], json!([]));
    let guardian = guardian_of(&core).expect("a guardian");
    let descriptors = std::fs::read_dir(format!("/proc/{guardian}/fd")).expect("ours");
    assert_eq!(descriptors.count(), 3, "standard input, output and error");
    stop(&mut core).await;
}

#[tokio::test]
async fn an_orderly_end_takes_the_guardian_along() {
    let mut core = CoreProcess::new(CORE, "").plugin("good", &manifest("good", ECHO, &[]));
    core.start().await.until_phase("good", "ready").await;
    let guardian = guardian_of(&core).expect("a guardian");
    stop(&mut core).await;
    assert!(!is_alive(guardian));
    assert!(
        !core.log().contains("guardian:"),
        "it had nothing to say:\n{}",
        core.log()
    );
    assert!(
        core.log().contains("boot_sweep"),
        "the log says which layers are in force"
    );
}

/// Whether any process of the way `relay` lives.
fn relay_lives(core: &CoreProcess) -> bool {
    let path = core.directory().join("data/plugins/relay/relay");
    let file = std::fs::File::open(path).expect("it was made");
    file.try_lock_shared().is_err()
}

#[tokio::test]
async fn who_runs_away_by_forking_ends_with_its_run_and_with_the_core() {
    let mut core = core_with(&LAYERS, &["relay"]);
    let operator = core.start().await;
    operator.until_phase("relay", "ready").await;
    assert!(relay_lives(&core), "the fixture does what it should");
    let began = Instant::now();
    within("unloaded", operator.unload("relay"))
        .await
        .expect("in time");
    eprintln!("unloaded after {} ms", began.elapsed().as_millis());
    assert!(!relay_lives(&core), "it outlived its run");
    within("started", operator.start("relay"))
        .await
        .expect("in time");
    assert!(relay_lives(&core));
    stop(&mut core).await;
    assert!(!relay_lives(&core), "it outlived the core");
}

#[tokio::test]
async fn limits_that_are_sampled_count_who_left_the_group_and_the_session() {
    let limits = "[limits]\npids = 20\n[restart]\nmode = \"never\"\n";
    let mut core = core_with(&LAYERS, &[])
        .plugin("crowd", &(manifest("crowd", ESCAPING, &["crowd"]) + limits));
    let operator = core.start().await;
    let ended = operator
        .until("crowd", "its end at the limit", |plugin| {
            plugin.last_exit.is_some()
        })
        .await;
    let isolation = ended.isolation.expect("shown");
    let mode = |name: &str| {
        let limit = isolation.limits.iter().find(|limit| limit.name == name);
        limit.map(|limit| limit.mode.clone())
    };
    if mode("pids").as_deref() == Some("sampled") {
        let message = ended.last_exit.expect("an end").message;
        assert!(message.contains("of 20 processes"), "{message}");
    }
    stop(&mut core).await;
}
