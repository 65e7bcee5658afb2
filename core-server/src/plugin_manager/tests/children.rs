//! Children: real processes, as shell scripts. What they say on their channel is played by the test,
//! which reads the token that they print.

use std::path::Path;

use super::*;
use crate::error::{Classify as _, Reason};
use crate::supervisor::output::{Level, LogStream};

/// Prints the credential and then does nothing for a long time.
pub(super) const IDLE: &str = "echo \"token=$CORE_TOKEN\"; exec sleep 1000";

pub(super) fn child(text: &str, script: &str, data: &Path) -> Manifest {
    let command = Command {
        program: "sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: [("DECLARED".to_owned(), "yes".to_owned())].into(),
        pass_env: Vec::new(),
        working_dir: data.join("plugins").join(text),
    };
    let ms = Duration::from_millis;
    Manifest {
        restart: RestartPolicy {
            backoff_base: ms(20),
            backoff_max: ms(100),
            crash_loop_every: ms(300),
            ..RestartPolicy::default()
        },
        timeouts: Timeouts {
            drain: ms(50),
            stop: ms(200),
            term: ms(200),
            ..Timeouts::default()
        },
        ..manifest(text, Kind::Process(command))
    }
}

fn home_with(make: impl FnOnce(&Path) -> Vec<Manifest>) -> Home {
    let data = Arc::new(tempfile::tempdir().expect("a directory"));
    let manifests = make(data.path());
    Home::build(manifests, HashMap::new(), data)
}

impl Home {
    /// The first line of a run that begins so; its rest.
    async fn line(&self, plugin: &str, generation: u64, begin: &str) -> String {
        let follow = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let mut records = std::pin::pin!(self.manager.logs(plugin, follow).expect("known"));
        let search = async {
            while let Some(record) = records.next().await {
                if record.generation.0 == generation
                    && let Some(rest) = record.message.strip_prefix(begin)
                {
                    return rest.to_owned();
                }
            }
            panic!("the log ended");
        };
        timeout(PATIENCE, search).await.expect("a line in time")
    }

    pub(super) async fn credential(&self, plugin: &str, generation: u64) -> Credential {
        let token = self.line(plugin, generation, "token=").await;
        self.credentials.verify(&token).expect("a valid token")
    }

    /// Plays a child that answers every hook.
    pub(super) async fn play(&self, plugin: &str, generation: u64) -> Obedient {
        let credential = self.credential(plugin, generation).await;
        let link = self
            .open_as(credential, hello("i"))
            .await
            .expect("admitted");
        Obedient::new(&self.scope, link, |_| Ok(()))
    }
}

fn alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie that its parent (not the core) has not reaped is dead.
    !status.is_empty() && !status.contains(") Z ")
}

async fn gone(pid: &str) {
    let wait = async {
        while alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("gone in time");
}

#[tokio::test]
async fn a_child_gets_a_clean_environment_its_directory_and_its_own_session() {
    let script = "env | sort | cut -d= -f1 | tr '\\n' ' ' | sed 's/^/env=/'; echo; \
                  echo \"cwd=$(pwd)\"; echo \"mask=$(umask)\"; \
                  echo \"session=$(cut -d' ' -f6 /proc/$$/stat) $$\"; echo \"token=$CORE_TOKEN\"; \
                  echo oops >&2; cat >/dev/null";
    let home = home_with(|data| vec![child("lamp", script, data)]);
    let names = home.line("lamp", 1, "env=").await;
    let own = [
        "CORE_ADDR",
        "CORE_COOKIE",
        "CORE_PLUGIN",
        "CORE_TOKEN",
        "DECLARED",
    ];
    let shells_own = ["PATH", "LANG", "TZ", "HOME", "PWD", "SHLVL", "_", "OLDPWD"];
    for name in own {
        assert!(
            names.split_whitespace().any(|there| there == name),
            "{name}: {names}"
        );
    }
    for name in names.split_whitespace() {
        assert!(
            own.contains(&name) || shells_own.contains(&name),
            "leaked: {name}"
        );
    }
    assert!(home.line("lamp", 1, "cwd=").await.ends_with("plugins/lamp"));
    assert!(home.line("lamp", 1, "mask=").await.ends_with("077"));
    let session = home.line("lamp", 1, "session=").await;
    let (session, leader) = session.split_once(' ').expect("two numbers");
    assert_eq!(session, leader);
    home.line("lamp", 1, "oops").await;
    let errors = LogQuery {
        level: Some(Level::Warn),
        ..LogQuery::default()
    };
    let records: Vec<_> = home
        .manager
        .logs("lamp", errors)
        .expect("known")
        .collect()
        .await;
    assert_eq!(records[0].stream, LogStream::Stderr);
    let info = home.phase("lamp", Phase::Connecting).await;
    assert_eq!(info.pid.to_string(), leader);
    home.close().await;
    gone(leader).await;
}

#[tokio::test]
async fn a_child_is_loaded_started_and_unloaded_and_its_credential_dies_with_its_run() {
    let home = home_with(|data| vec![child("lamp", IDLE, data)]);
    let plugin = home.play("lamp", 1).await;
    let pid = home.phase("lamp", Phase::Ready).await.pid.to_string();
    assert!(alive(&pid));
    let credential = home.credential("lamp", 1).await;
    let info = home.manager.unload("lamp", soon()).await.expect("unloaded");
    assert_eq!(
        (info.state, info.phase, info.pid),
        (PluginState::Unloaded, Phase::Idle, 0)
    );
    assert!(!alive(&pid));
    assert_eq!(
        plugin.got(),
        ["on_load", "on_start", "on_stop", "on_unload"]
    );
    let token = home.line("lamp", 1, "token=").await;
    assert_eq!(home.credentials.verify(&token), None);
    let refused = home
        .open_as(credential, hello("i"))
        .await
        .err()
        .expect("refused");
    assert_eq!(refused.reason(), Reason::BadCredential);
    home.close().await;
}

#[tokio::test]
async fn a_killed_child_comes_back_by_itself() {
    let home = home_with(|data| vec![child("lamp", IDLE, data)]);
    let first = home.play("lamp", 1).await;
    let pid = home.phase("lamp", Phase::Ready).await.pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let info = home.until("lamp", |info| info.last_exit.is_some()).await;
    let exit = info.last_exit.expect("known");
    assert_eq!(
        (exit.signal, exit.message.as_str(), exit.forced),
        (Some(9), "killed by SIGKILL", false)
    );
    assert!(exit.last_lines[0].starts_with("token="));
    let second = home.play("lamp", 2).await;
    let info = home.phase("lamp", Phase::Ready).await;
    assert_eq!((info.generation.0, info.restarts), (2, 1));
    assert!(home.said().contains(&"lamp recovered".to_owned()));
    drop((first, second));
    home.close().await;
}

#[tokio::test]
async fn a_child_that_always_dies_ends_in_a_crash_loop_and_is_still_tried() {
    let home = home_with(|data| {
        let mut lamp = child("lamp", "echo \"cannot find the sensor\"; exit 3", data);
        lamp.restart.max_failures = 3;
        vec![lamp]
    });
    let info = home.phase("lamp", Phase::CrashLoop).await;
    assert_eq!(
        (info.generation.0, info.reason, info.message.as_str()),
        (3, "exited", "exit code 3")
    );
    assert_eq!(
        info.last_exit.expect("known").last_lines,
        ["cannot find the sensor"]
    );
    home.until("lamp", |info| info.generation.0 > 3).await;
    let said = home.said();
    assert_eq!(
        said.iter()
            .filter(|said| *said == "lamp crash_loop")
            .count(),
        1
    );
    home.close().await;
}

#[tokio::test]
async fn ends_that_cannot_get_better_by_trying_are_final() {
    let home = home_with(|data| {
        let mut missing = child("missing", "", data);
        if let Kind::Process(command) = &mut missing.kind {
            command.program = data.join("no-such-program");
        }
        vec![missing, child("wrong", "exit 78", data)]
    });
    let info = home.phase("missing", Phase::ConfigError).await;
    assert_eq!((info.reason, info.generation.0), ("spawn_failed", 1));
    assert!(
        info.message.contains("no-such-program cannot be started"),
        "{}",
        info.message
    );
    assert_eq!(
        home.phase("wrong", Phase::ConfigError).await.message,
        "exit code 78"
    );
    let error = home
        .manager
        .start("wrong", soon())
        .await
        .expect_err("failed again");
    assert_eq!(error.reason(), Reason::PluginFailed);
    home.close().await;
}

#[tokio::test]
async fn a_child_that_never_connects_is_killed_and_counted() {
    let home = home_with(|data| {
        let mut lamp = child("lamp", IDLE, data);
        lamp.timeouts.connect = Duration::from_millis(200);
        vec![lamp]
    });
    let pid = home.phase("lamp", Phase::Connecting).await.pid.to_string();
    let info = home.until("lamp", |info| info.last_exit.is_some()).await;
    let exit = info.last_exit.expect("known");
    assert_eq!(exit.message, "it did not open its channel within 0.2 s");
    assert!(exit.forced && !alive(&pid));
    home.close().await;
}

#[tokio::test]
async fn a_group_that_ignores_everything_is_killed_within_its_bound() {
    // The shell and its child ignore SIGTERM; so does a stranger in a session of its own, which
    // holds the output open and is nobody's to wait for.
    let script = "trap '' TERM; (trap '' TERM; echo \"inner=$(exec sh -c 'echo $PPID')\"; \
                  while :; do sleep 1; done) & \
                  setsid sh -c 'trap \"\" TERM; echo \"stranger=$$\"; exec sleep 1000' & \
                  echo \"token=$CORE_TOKEN\"; while :; do sleep 1; done";
    let home = home_with(|data| vec![child("lamp", script, data)]);
    let credential = home.credential("lamp", 1).await;
    let inner = home.line("lamp", 1, "inner=").await;
    let stranger = home.line("lamp", 1, "stranger=").await;
    let ready = Hello {
        ready: true,
        ..hello("i")
    };
    let link = home.open_as(credential, ready).await.expect("admitted");
    let pid = home.phase("lamp", Phase::Ready).await.pid.to_string();
    assert!(alive(&pid) && alive(&inner));
    let begin = Instant::now();
    let info = home.manager.unload("lamp", soon()).await.expect("unloaded");
    // drain 50 ms (nothing is in flight), hook 200 ms, SIGTERM to SIGKILL 200 ms, and some leisure.
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    assert!(info.last_exit.expect("known").forced);
    assert!(!alive(&pid));
    gone(&inner).await;
    let stranger = rustix::process::Pid::from_raw(stranger.parse().expect("a pid")).expect("a pid");
    rustix::process::kill_process(stranger, rustix::process::Signal::KILL).expect("cleaned up");
    drop(link);
    home.close().await;
}

#[tokio::test]
async fn shutdown_is_bounded_by_its_deadline_whatever_children_do() {
    let stubborn = "trap '' TERM; echo \"token=$CORE_TOKEN\"; while :; do sleep 1; done";
    let home = home_with(|data| {
        let mut plugins = vec![child("a", stubborn, data), child("b", stubborn, data)];
        plugins[1].requires = vec![name("a")];
        for plugin in &mut plugins {
            plugin.timeouts = Timeouts::default();
        }
        plugins
    });
    let mut links = Vec::new();
    for plugin in ["a", "b"] {
        let credential = home.credential(plugin, 1).await;
        let hello = Hello {
            ready: true,
            ..hello(plugin)
        };
        links.push(home.open_as(credential, hello).await.expect("admitted"));
        home.phase(plugin, Phase::Ready).await;
    }
    let pids: Vec<_> = ["a", "b"]
        .map(|plugin| home.info(plugin).pid.to_string())
        .into();
    let begin = Instant::now();
    let report = home.manager.shutdown(begin + Duration::from_secs(2)).await;
    assert!(
        begin.elapsed() < Duration::from_millis(2_500),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(report.forced, [name("a"), name("b")]);
    assert!(report.survivors.is_empty(), "{report:?}");
    assert!(pids.iter().all(|pid| !alive(pid)));
    home.close().await;
}

#[tokio::test]
async fn at_most_four_start_at_once() {
    let home = home_with(|data| {
        let names = ["p1", "p2", "p3", "p4", "p5", "p6"];
        names.iter().map(|name| child(name, IDLE, data)).collect()
    });
    for plugin in ["p1", "p2", "p3", "p4"] {
        home.phase(plugin, Phase::Connecting).await;
    }
    assert_eq!(home.info("p5").reason, "start_slot");
    let first = home.play("p1", 1).await;
    home.phase("p5", Phase::Connecting).await;
    assert_eq!(home.info("p6").reason, "start_slot");
    drop(first);
    home.close().await;
}

#[tokio::test]
async fn a_child_that_changes_its_user_is_not_tried_again_and_again() {
    let home = home_with(|data| vec![child("lamp", IDLE, data)]);
    let token = home.line("lamp", 1, "token=").await;
    let uid = rustix::process::geteuid().as_raw() + 1;
    let presented = crate::security::Presented {
        token: Some(&token),
        ..Default::default()
    };
    let peer = crate::security::Peer::PluginSocket { uid };
    let method = "coreruntime.v1.PluginChannel/Open";
    let refused = home.gatekeeper.admit(&peer, method, &presented);
    assert!(refused.is_err());
    let info = home.phase("lamp", Phase::Incompatible).await;
    assert_eq!((info.reason, info.generation.0), ("identity", 1));
    assert!(info.message.contains("uid"), "{}", info.message);
    home.close().await;
}

#[tokio::test]
async fn plugins_beyond_the_bucket_of_starts_wait_for_it_to_be_refilled() {
    let data = Arc::new(tempfile::tempdir().expect("a directory"));
    let plugins = ["p1", "p2", "p3"].map(|name| child(name, IDLE, data.path()));
    let config = Config {
        start_burst: 2,
        starts_per_second: 2,
        ..Config::default()
    };
    let begin = Instant::now();
    let home = Home::build_with(config, plugins.into(), HashMap::new(), data);
    home.phase("p1", Phase::Connecting).await;
    home.phase("p2", Phase::Connecting).await;
    home.phase("p3", Phase::Connecting).await;
    // There were slots all the time.
    assert!(begin.elapsed() >= Duration::from_millis(500));
    home.close().await;
}

#[tokio::test]
async fn children_die_with_the_worker_even_without_a_shutdown() {
    let home = home_with(|data| vec![child("lamp", IDLE, data)]);
    let pid = home.phase("lamp", Phase::Connecting).await.pid.to_string();
    home.close().await;
    gone(&pid).await;
}

/// Its program is what `install` puts there.
fn scripted(data: &Path) -> Manifest {
    let mut lamp = child("lamp", "", data);
    if let Kind::Process(command) = &mut lamp.kind {
        command.program = data.join("lamp.sh");
        command.args.clear();
    }
    lamp
}

fn install(data: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let fresh = data.join("fresh.sh");
    std::fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).expect("written");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&fresh, mode).expect("executable");
    std::fs::rename(fresh, data.join("lamp.sh")).expect("renamed");
}

#[tokio::test]
async fn a_changed_program_ends_every_giving_up() {
    let home = home_with(|data| {
        let mut lamp = scripted(data);
        lamp.restart.mode = RestartMode::Never;
        install(data, "exit 1");
        vec![lamp]
    });
    assert_eq!(home.phase("lamp", Phase::GivenUp).await.generation.0, 1);
    install(home.data.path(), IDLE);
    home.line("lamp", 2, "token=").await;
    home.manager.shutdown(soon()).await;
    home.close().await;
}

#[tokio::test]
async fn a_program_that_is_missing_or_fails_is_tried_again_when_it_changes() {
    let home = home_with(|data| {
        let mut lamp = scripted(data);
        lamp.restart.backoff_base = PATIENCE * 10;
        lamp.restart.backoff_max = PATIENCE * 10;
        vec![lamp]
    });
    let install = |script: &str| install(home.data.path(), script);
    assert_eq!(home.phase("lamp", Phase::ConfigError).await.generation.0, 1);
    install("exit 1");
    let info = home.phase("lamp", Phase::Backoff).await;
    assert_eq!(info.generation.0, 2, "one spawn for one change");
    install("exit 78");
    assert_eq!(home.phase("lamp", Phase::ConfigError).await.generation.0, 3);
    install(IDLE);
    home.line("lamp", 4, "token=").await;
    home.manager.shutdown(soon()).await;
    home.close().await;
}
