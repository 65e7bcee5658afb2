//! The real binary: how it begins, how it ends, and what its exit code says.

#[path = "binary/core.rs"]
mod core_process;
#[path = "binary/upgrade.rs"]
mod upgrade;

use std::time::Duration;

use core_process::{Core, PATIENCE};
use core_proto::v1;
use rustix::process::Signal;
use tokio::time::Instant;

const CLEAN: i32 = 0;
const USAGE: i32 = 2;
const INTERNAL: i32 = 70;
const BAD_CONFIGURATION: i32 = 78;

#[tokio::test]
async fn it_boots_to_serving_and_a_sigterm_ends_it_cleanly_in_time() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut core = Core::new();
        core.write("core.toml", "shutdown_timeout = 3\n");
        core.boot().await;
        assert!(
            core.path("data/runtime.db").exists(),
            "the default database"
        );
        let began = Instant::now();
        core.signal(signal);
        let end = core.end();
        assert_eq!(end.code, Some(CLEAN), "{}", end.stderr);
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        assert!(!core.path("data/run/core.sock").exists());
        assert!(!core.path("data/run/operator.sock").exists());
    }
}

#[tokio::test]
async fn systemd_is_told_how_the_core_is() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("set");
    let next = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).expect("it tells in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let until = |wanted: &str| {
        loop {
            match next() {
                told if told == wanted => return,
                told => assert_eq!(told, "WATCHDOG=1", "before {wanted}"),
            }
        }
    };
    let path = path.to_str().expect("it is text").to_owned();
    let mut core = Core::new()
        .env("NOTIFY_SOCKET", path.leak())
        .env("WATCHDOG_USEC", "200000");
    core.boot().await;
    assert_eq!(next(), "READY=1\nSTATUS=");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    core.signal(Signal::HUP);
    until("RELOADING=1");
    until("READY=1\nSTATUS=");
    core.signal(Signal::TERM);
    until("STOPPING=1");
    assert_eq!(core.end().code, Some(CLEAN));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_nothing() {
    // As with a full disk, a closed terminal, or a reader of the log that left.
    let mut core = Core::new().log_to("/dev/full");
    core.boot().await;
    core.signal(Signal::HUP);
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
}

#[test]
fn a_bad_configuration_is_refused_with_file_line_and_suggestion_before_anything_begins() {
    let core = Core::new();
    core.write(
        "core.toml",
        "\nshutdwon_timeout = 5\n[storage]\nadapter = \"sqlit\"\n",
    );
    core.write(
        "plugins/lamp/plugin.toml",
        "name = \"lamp\"\n[run]\ncomand = \"./lamp\"\n",
    );
    for arguments in [&[][..], &["check-config"]] {
        let end = core.run(arguments);
        assert_eq!(end.code, Some(BAD_CONFIGURATION), "{}", end.stderr);
        for mistake in [
            "core.toml:2:1: unknown key \"shutdwon_timeout\"; did you mean \"shutdown_timeout\"?",
            "core.toml:4:11: storage.adapter: \"sqlit\" is not one of",
            "did you mean \"sqlite\"?",
            "plugins/lamp/plugin.toml:3:1: unknown key \"comand\" in [run]; did you mean \"command\"?",
        ] {
            assert!(
                end.stderr.contains(mistake),
                "{mistake}\nis not in\n{}",
                end.stderr
            );
        }
        assert!(!core.path("data").exists(), "something was begun");
    }
}

#[test]
fn a_malformed_manifest_or_file_is_told_with_its_place() {
    for (name, content, expected) in [
        ("core.toml", "listen = [\n", "core.toml:"),
        (
            "plugins/lamp/plugin.toml",
            "name = \n",
            "plugins/lamp/plugin.toml:1:",
        ),
        (
            "plugins/lamp/plugin.toml",
            "name = \"Lamp\"\n",
            "plugins/lamp/plugin.toml:1:8",
        ),
        (
            "plugins/lamp/plugin.toml",
            "version = \"1\"\n",
            "plugins/lamp/plugin.toml",
        ),
    ] {
        let core = Core::new();
        core.write(name, content);
        let end = core.run(&[]);
        assert_eq!(
            end.code,
            Some(BAD_CONFIGURATION),
            "{content}: {}",
            end.stderr
        );
        assert!(
            end.stderr.contains(expected),
            "{expected} is not in {}",
            end.stderr
        );
    }
}

#[test]
fn plaintext_off_the_loopback_is_refused_naming_the_flag() {
    let core = Core::new();
    let end = core.run(&["--listen", "0.0.0.0:0"]);
    assert_eq!(end.code, Some(BAD_CONFIGURATION), "{}", end.stderr);
    assert!(
        end.stderr.contains("--insecure-plaintext"),
        "{}",
        end.stderr
    );
}

#[test]
fn a_mistake_on_the_command_line_is_a_usage_error() {
    let core = Core::new();
    for arguments in [&["--nonsense"][..], &["fly"], &["--db"]] {
        let end = core.run(arguments);
        assert_eq!(end.code, Some(USAGE), "{arguments:?}: {}", end.stderr);
        assert!(end.stderr.contains("--help"), "{}", end.stderr);
    }
    for arguments in [&["--help"][..], &["--version"]] {
        let end = core.run(arguments);
        assert_eq!((end.code, end.stderr.as_str()), (Some(CLEAN), ""));
        assert!(!end.stdout.is_empty());
    }
}

#[test]
fn check_config_prints_every_setting_with_its_origin_and_begins_nothing() {
    let core = Core::new().env("RUNTIME_SHUTDOWN_TIMEOUT", "7");
    core.write("core.toml", "[log]\nfilter = \"debug\"\n");
    let end = core.run(&["check-config", "--db", "elsewhere.db"]);
    assert_eq!(end.code, Some(CLEAN), "{}", end.stderr);
    let line = |setting: &str| {
        let found = end.stdout.lines().find(|line| line.contains(setting));
        found
            .unwrap_or_else(|| panic!("no {setting} in {}", end.stdout))
            .to_owned()
    };
    for (setting, value, origin) in [
        ("shutdown_timeout", "7", "RUNTIME_SHUTDOWN_TIMEOUT"),
        ("filter", "debug", "core.toml:2"),
        ("elsewhere.db", "elsewhere.db", "--db"),
        ("plugins_dir", "plugins", "default"),
    ] {
        let line = line(setting);
        assert!(line.contains(value) && line.contains(origin), "{line}");
    }
    assert!(!core.path("data").exists());
}

#[tokio::test]
async fn the_probe_tells_by_its_exit_code_whether_a_core_serves() {
    let mut core = Core::new();
    let absent = core.run(&["health"]);
    assert_eq!(absent.code, Some(INTERNAL));
    assert!(absent.stderr.contains("operator.sock"), "{}", absent.stderr);
    core.boot().await;
    assert_eq!(core.run(&["health"]).code, Some(CLEAN));
    let plugins = format!("unix:{}", core.path("data/run/core.sock").display());
    assert_eq!(core.run(&["health", "--addr", &plugins]).code, Some(CLEAN));
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
    assert_eq!(core.run(&["health"]).code, Some(INTERNAL));
}

#[tokio::test]
async fn the_database_is_where_runtime_db_path_says() {
    let mut core = Core::new().env("RUNTIME_DB_PATH", "own/place.db");
    let operator = core.boot().await;
    let request = v1::StorageSetRequest {
        namespace: "notes".to_owned(),
        key: "k".to_owned(),
        value: "1".into(),
        ..Default::default()
    };
    v1::storage_client::StorageClient::new(operator)
        .set(request)
        .await
        .expect("written");
    assert!(core.path("own/place.db").exists());
    assert!(!core.path("data/runtime.db").exists());
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
}

#[tokio::test]
async fn a_second_core_on_the_same_database_or_sockets_is_refused_and_the_first_unharmed() {
    let mut core = Core::new();
    core.boot().await;
    let database = core.path("data/runtime.db").display().to_string();
    let own_sockets = ["--data-dir", "second", "--db", database.as_str()];
    let own_database = ["--ephemeral"];
    for (arguments, what) in [
        (&own_sockets[..], "runtime.db"),
        (&own_database, "core.sock"),
    ] {
        let end = core.run(arguments);
        assert_eq!(
            end.code,
            Some(INTERNAL),
            "{arguments:?}: {}{}",
            end.stdout,
            end.stderr
        );
        let said = format!("{}{}", end.stdout, end.stderr);
        assert!(said.contains(what), "{what} is not in {said}");
    }
    assert_eq!(core.run(&["health"]).code, Some(CLEAN), "the first goes on");
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
}

#[tokio::test]
async fn a_core_that_was_killed_starts_again_on_what_it_left() {
    let mut core = Core::new();
    core.boot().await;
    core.signal(Signal::KILL);
    assert_eq!(core.end().code, None);
    assert!(
        core.path("data/run/core.sock").exists(),
        "a stale socket is left"
    );
    core.boot().await;
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
}

#[tokio::test]
async fn a_child_that_ignores_everything_is_gone_within_the_shutdown_timeout() {
    let mut core = Core::new().env("RUNTIME_SHUTDOWN_TIMEOUT", "3");
    core.write(
        "plugins/deaf/plugin.toml",
        "name = \"deaf\"\n[run]\ncommand = \"sh\"\n\
         args = [\"-c\", \"trap '' TERM INT HUP; echo here; while :; do sleep 1; done\"]\n",
    );
    let operator = core.boot().await;
    let mut manager = v1::plugin_manager_client::PluginManagerClient::new(operator);
    let deadline = Instant::now() + PATIENCE;
    let pid = loop {
        let request = v1::PluginManagerGetRequest {
            name: "deaf".to_owned(),
        };
        let answer = manager.get(request).await.expect("known").into_inner();
        match answer.plugin.expect("a plugin").pid {
            0 => assert!(Instant::now() < deadline, "it is not started"),
            pid => break pid,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let began = Instant::now();
    core.signal(Signal::TERM);
    let end = core.end();
    assert_eq!(end.code, Some(CLEAN), "{}{}", end.stdout, end.stderr);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "{pid} survived"
    );
}
