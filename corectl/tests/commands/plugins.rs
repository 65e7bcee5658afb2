//! status, plugins, wait, version, completions.

use serde_json::json;

use core_proto::v1::{CrashReport, LastExit, PluginInfo, PluginState};

use crate::fake::FakeCore;
use crate::program::{Live, command, command_for, corectl, run, words};

#[test]
fn status_shows_the_core_and_what_needs_attention() {
    let core = FakeCore::start();
    let lines = words(&corectl(&core, &["status"]).ok());
    assert_eq!(lines[0], "core 0.9.0");
    assert!(lines[1].starts_with("up 2d 4h (since "), "{lines:?}");
    assert_eq!(lines[2], "addresses unix:/run/core.sock, 127.0.0.1:7070");
    assert_eq!(lines[3], "storage sqlite at /var/lib/core/runtime.db");
    assert_eq!(lines[4], "plugins 1 started, 2 unloaded");
    assert_eq!(lines[6], "need attention");
    assert!(
        lines[8].starts_with("automation unloaded crash_loop 3h ago"),
        "{lines:?}"
    );
    let expected = "exit code 3 after 2 s; next try in 4m";
    assert!(lines[8].contains(expected), "{lines:?}");
    assert!(
        lines[9].starts_with("camera unloaded connecting"),
        "{lines:?}"
    );
}

#[test]
fn status_is_loud_about_plaintext() {
    let core = FakeCore::start();
    core.with(|world| world.insecure = true);
    let stdout = corectl(&core, &["status"]).ok();
    assert!(stdout.starts_with("INSECURE: "), "{stdout}");
    let status = corectl(&core, &["status", "--json"]).json();
    assert_eq!(status["insecure_plaintext"], true);
}

#[test]
fn status_as_json_has_the_documented_shape() {
    let core = FakeCore::start();
    let status = corectl(&core, &["status", "--json"]).json();
    assert_eq!(status["version"], "0.9.0");
    assert_eq!(status["address"], core.address);
    assert_eq!(status["epoch"], "18446744073709551614");
    assert_eq!(
        status["plugins"],
        json!({"started": 1, "loaded": 0, "stopped": 0, "unloaded": 2})
    );
    assert_eq!(status["attention"][0]["name"], "automation");
    assert!(
        status["uptime_seconds"].as_u64() >= Some(2 * 86400),
        "{status}"
    );
}

#[test]
fn status_check_is_exit_code_9_when_a_plugin_needs_attention() {
    let core = FakeCore::start();
    let outcome = corectl(&core, &["status", "--check", "--quiet"]);
    assert_eq!(outcome.stdout, "automation\ncamera\n");
    let stderr = outcome.failed(9);
    assert!(stderr.contains("automation, camera"), "{stderr}");
    core.with(|world| world.plugins.retain(|name, _| name == "devices"));
    assert_eq!(corectl(&core, &["status", "--check", "--quiet"]).ok(), "");
}

#[test]
fn plugins_are_listed_across_pages() {
    let core = FakeCore::start();
    let lines = words(&corectl(&core, &["plugins", "list"]).ok());
    // Some seconds of the 250 have passed.
    let automation = &lines[1];
    let expected = "exit code 3 after 2 s; next try in 4m";
    assert!(automation.contains(expected), "{automation}");
    assert_eq!(
        lines,
        [
            "NAME STATE PHASE SINCE RESTARTS KIND VERSION WHY",
            automation,
            "camera unloaded connecting 3h ago 0 remote 1.2.0 -",
            "devices started ready 3h ago 2 process 1.2.0 -",
        ]
    );
    let names = corectl(&core, &["plugins", "list", "-q"]).ok();
    assert_eq!(names, "automation\ncamera\ndevices\n");
    let list = corectl(&core, &["--json", "plugins", "ls"]).json();
    assert_eq!(list["plugins"].as_array().map(Vec::len), Some(3));
    assert_eq!(list["plugins"][2]["state"], "started");
}

#[test]
fn an_empty_list_says_so_on_stderr_only() {
    let core = FakeCore::start();
    core.with(|world| world.plugins.clear());
    let outcome = corectl(&core, &["plugins", "list"]);
    assert_eq!(outcome.stderr, "no plugins\n");
    assert_eq!(outcome.ok(), "");
    let list = corectl(&core, &["plugins", "list", "--json"]).json();
    assert_eq!(list, json!({"plugins": []}));
}

#[test]
fn a_described_plugin_explains_itself() {
    let core = FakeCore::start();
    let text = corectl(&core, &["plugins", "describe", "automation"]).ok();
    let lines = words(&text);
    assert_eq!(
        lines[0],
        "It has failed 8 times since it was last stable (the last time: exit code 3)."
    );
    assert!(lines[1].ends_with("and every 5m after that, for ever."));
    for expected in [
        "name automation",
        "state unloaded",
        "desired started",
        "phase crash_loop",
        "reason exited",
        "message exit code 3 after 2 s",
        "- | loading rules",
        "requires devices",
        "pid -",
        "quotas 1999 of 2000 calls per second, 17 refused (calls_per_second)",
        "2 of 8 connections",
    ] {
        let expected = expected.trim_start_matches("- ");
        assert!(
            lines.iter().any(|line| line == expected),
            "{expected}: {text}"
        );
    }
    let starts = |start: &str| lines.iter().any(|line| line.starts_with(start));
    assert!(starts("next attempt in 4m "), "{text}");
    assert!(starts("since 3h ago (2"), "{text}");
    assert!(starts("last exit exit code 3, 1m"), "{text}");
    assert!(text.contains("after running 2s"), "{text}");
}

#[test]
fn a_described_plugin_as_json_has_the_documented_shape() {
    let core = FakeCore::start();
    let plugin = corectl(&core, &["plugins", "describe", "automation", "--json"]).json();
    assert_eq!(plugin["phase"], "crash_loop");
    assert_eq!(plugin["pid"], json!(null));
    assert_eq!(plugin["last_exit"]["code"], 3);
    assert_eq!(plugin["last_exit"]["signal"], json!(null));
    assert_eq!(plugin["last_exit"]["ran_for_seconds"], 2.5);
    assert_eq!(plugin["last_exit"]["last_lines"][1], "no rules.toml");
    assert!(plugin["next_attempt_at"].is_string(), "{plugin}");
    let calls = json!({
        "name": "calls_per_second", "unit": "calls per second", "limit": 2000, "used": 1999, "refused": 17,
    });
    assert_eq!(plugin["quotas"][0], calls);
    assert_eq!(plugin["quotas"][1]["limit"], json!(null), "unlimited");
    let plugin = corectl(&core, &["plugins", "describe", "devices", "--json"]).json();
    assert_eq!(plugin["pid"], 4711);
    assert_eq!(plugin["last_exit"], json!(null));
    assert_eq!(
        plugin["services"],
        json!(["devices.turn_on", "devices.fail"])
    );
}

#[test]
fn an_unknown_plugin_is_exit_code_3_with_the_one_meant() {
    let core = FakeCore::start();
    for arguments in [
        ["plugins", "describe", "devcies"],
        ["plugins", "start", "devcies"],
        ["plugins", "logs", "devcies"],
        ["wait", "plugin/devcies", "--for=ready"],
    ] {
        let stderr = corectl(&core, &arguments).failed(3);
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert!(
            stderr.contains("hint: did you mean \"devices\"?"),
            "{stderr}"
        );
    }
}

#[test]
fn plugins_change_state() {
    let core = FakeCore::start();
    for (verb, line) in [
        ("stop", "devices stopped idle"),
        ("start", "devices started ready"),
        ("restart", "devices started ready"),
        ("unload", "devices unloaded idle"),
        ("load", "devices loaded idle"),
    ] {
        let stdout = corectl(&core, &["plugins", verb, "devices"]).ok();
        assert_eq!(words(&stdout), [line], "{verb}");
    }
    let results = corectl(&core, &["plugins", "start", "devices", "--json"]).json();
    assert_eq!(results["results"][0]["name"], "devices");
    assert_eq!(results["results"][0]["ok"], true);
    assert_eq!(results["results"][0]["plugin"]["state"], "started");
    assert_eq!(results["results"][0]["error"], json!(null));
}

#[test]
fn one_plugin_that_fails_does_not_keep_the_others_from_their_turn() {
    let core = FakeCore::start();
    let outcome = corectl(&core, &["plugins", "start", "automation", "camera", "-q"]);
    assert_eq!(outcome.stdout, "camera\n");
    let stderr = outcome.failed(8);
    assert!(
        stderr.contains("corectl plugins logs automation"),
        "{stderr}"
    );

    let outcome = corectl(
        &core,
        &["plugins", "start", "automation", "nobody", "devices"],
    );
    assert_eq!(words(&outcome.stdout), ["devices started ready"]);
    let stderr = outcome.failed(1);
    assert!(stderr.contains("did not start"), "{stderr}");
    assert!(stderr.contains("\"nobody\""), "{stderr}");
    assert!(stderr.contains("2 of 3 failed"), "{stderr}");
}

#[test]
fn a_refused_change_is_exit_code_8_and_says_what_is_allowed() {
    let core = FakeCore::start();
    let stderr = corectl(&core, &["plugins", "stop", "camera"]).failed(8);
    assert!(stderr.contains("camera is UNLOADED"), "{stderr}");
    assert!(stderr.contains("ends its tries"), "{stderr}");
}

#[test]
fn all_plugins_are_started_and_stopped() {
    let core = FakeCore::start();
    let outcome = corectl(&core, &["plugins", "start", "--all", "--json"]);
    let results: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(results["results"][0]["name"], "automation");
    assert_eq!(results["results"][0]["ok"], false);
    assert_eq!(
        results["results"][0]["error"]["code"],
        "FAILED_PRECONDITION"
    );
    assert_eq!(results["results"][0]["error"]["exit_code"], 8);
    let stderr = outcome.failed(8);
    assert!(stderr.starts_with("{\"error\":{"), "{stderr}");
    let stdout = corectl(&core, &["plugins", "stop", "--all"]).ok();
    assert_eq!(words(&stdout)[2], "devices stopped ready");
}

#[test]
fn all_plugins_are_restarted_unloaded_and_loaded_each_in_its_turn() {
    let core = FakeCore::start();
    let outcome = corectl(&core, &["plugins", "restart", "--all"]);
    // Those that automation requires first; that it fails keeps nobody from its turn.
    assert_eq!(
        words(&outcome.stdout),
        ["camera started ready", "devices started ready"]
    );
    outcome.failed(8);
    core.with(|world| world.plugins.remove("automation"));
    let stdout = corectl(&core, &["plugins", "unload", "--all"]).ok();
    assert_eq!(
        words(&stdout),
        ["devices unloaded idle", "camera unloaded idle"]
    );
    assert_eq!(corectl(&core, &["plugins", "unload", "--all"]).ok(), "");
    let stdout = corectl(&core, &["plugins", "load", "--all", "-q"]).ok();
    assert_eq!(words(&stdout), ["camera", "devices"]);
}

/// After a rollback the newest crash is of another version than the one that runs.
#[test]
fn a_crash_says_which_version_with_which_configuration() {
    let core = FakeCore::start();
    core.with(|world| {
        let report = CrashReport {
            generation: 4,
            plugin_version: "1.3.0".to_owned(),
            config_revision: 7,
            reason: "hook_timeout".to_owned(),
            exit: Some(LastExit {
                message: "on_start did not end within 30 s".to_owned(),
                ran_for: Some(prost_types::Duration {
                    seconds: 31,
                    nanos: 0,
                }),
                forced: true,
                ..LastExit::default()
            }),
            rss_bytes: Some(12 << 20),
        };
        let devices = world.plugins.get_mut("devices").expect("it is there");
        devices.crash_reports = vec![report];
    });
    let text = corectl(&core, &["plugins", "describe", "devices"]).ok();
    let expected = "on_start did not end within 30 s, forced by the core, after running 31s, reason \
                    hook_timeout, generation 4, version 1.3.0, config revision 7, 12 MiB resident";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_start_that_takes_too_long_says_what_it_waits_for() {
    let core = FakeCore::start();
    core.with(|world| {
        let lazy = PluginInfo {
            name: "lazy".to_owned(),
            desired: PluginState::Started.into(),
            phase: "waiting_dependency".to_owned(),
            requires: vec!["automation".to_owned()],
            ..PluginInfo::default()
        };
        world.plugins.insert(lazy.name.clone(), lazy);
    });
    let arguments = ["plugins", "start", "lazy", "--timeout", "300ms"];
    let stderr = corectl(&core, &arguments).failed(6);
    let expected =
        "It waits for automation, which keeps crashing (exit code 3) and is tried again in";
    assert!(stderr.contains(expected), "{stderr}");
    assert!(stderr.contains("the wish stands"), "{stderr}");
}

#[test]
fn log_levels_are_shown_set_and_put_back() {
    let core = FakeCore::start();
    let level = |more: &[&str]| {
        let outcome = corectl(
            &core,
            &[&["plugins", "log-level", "devices"], more].concat(),
        );
        words(&outcome.ok())
    };
    assert_eq!(level(&[]), ["devices default"]);
    assert_eq!(level(&["debug"]), ["devices debug"]);
    assert_eq!(level(&["-q"]), ["debug"]);
    assert_eq!(level(&["default"]), ["devices default"]);
    let shown = corectl(&core, &["plugins", "log-level", "devices", "--json"]).json();
    assert_eq!(shown, json!({"name": "devices", "level": "default"}));
    let stderr = corectl(&core, &["plugins", "log-level", "devices", "loud"]).failed(2);
    assert!(stderr.contains("none of off, error, warn"), "{stderr}");
    corectl(&core, &["plugins", "log-level", "devcies"]).failed(3);
}

#[test]
fn logs_are_printed_filtered_and_harmless() {
    let core = FakeCore::start();
    let logs =
        |more: &[&str]| corectl(&core, &[&["plugins", "logs", "devices"], more].concat()).ok();
    let stdout = logs(&[]);
    let lines = words(&stdout);
    assert!(lines[1].ends_with("INFO lamp on lamp=kitchen"), "{stdout}");
    assert!(lines[2].ends_with("WARN lamp\\u{1b}[2J slow"), "{stdout}");
    assert_eq!(logs(&["--level", "warn", "-q"]), "lamp\\u{1b}[2J slow\n");
    assert_eq!(logs(&["--tail", "2", "-q"]).lines().count(), 2);
    assert_eq!(logs(&["--since", "10m", "-q"]).lines().count(), 3);
    assert_eq!(logs(&["--since", "10s", "-q"]), "");
    let stdout = logs(&["--json"]);
    let line = stdout.lines().nth(1).expect("three lines");
    let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(record["fields"], json!({"lamp": "kitchen"}));
    assert_eq!(record["level"], "info");
    assert_eq!(record["generation"], 3);
}

#[test]
fn a_wait_ends_when_the_state_is_reached() {
    let core = FakeCore::start();
    let stdout = corectl(&core, &["wait", "plugin/devices", "--for", "started"]).ok();
    assert_eq!(words(&stdout), ["devices started ready"]);
    let waiting = Live::spawn(command_for(
        &core,
        &[
            "wait",
            "plugin/camera",
            "--for",
            "ready",
            "--json",
            "--timeout",
            "30s",
        ],
    ));
    core.change_plugin("camera", |info| {
        info.state = PluginState::Started.into();
        info.phase = "degraded".to_owned();
    });
    core.change_plugin("camera", |info| info.phase = "ready".to_owned());
    assert_eq!(waiting.json()["phase"], "ready");
    assert_eq!(waiting.end().0.code(), Some(0));
}

#[test]
fn a_wait_that_is_too_long_is_exit_code_6_and_tells_how_it_stands() {
    let core = FakeCore::start();
    let arguments = ["wait", "plugin/automation", "--timeout", "300ms"];
    let stderr = corectl(&core, &arguments).failed(6);
    assert!(stderr.contains("no answer within 300ms"), "{stderr}");
    assert!(
        stderr.contains("unloaded (crash_loop: exit code 3"),
        "{stderr}"
    );
    assert!(
        stderr.contains("corectl plugins describe automation"),
        "{stderr}"
    );
}

#[test]
fn a_wait_begins_before_the_core_does() {
    let core = FakeCore::start_at("first/operator.sock");
    let later = core.directory.path().join("later.sock");
    let mut early = command(&["wait", "plugin/devices", "--timeout", "30s", "-q"]);
    early.env("CORE_ADDR", format!("unix:{}", later.display()));
    let waiting = Live::spawn(early);
    std::os::unix::fs::symlink(core.directory.path().join("first/operator.sock"), later)
        .expect("linked");
    assert_eq!(waiting.line(), "devices");
    assert_eq!(waiting.end().0.code(), Some(0));
}

#[test]
fn version_tells_both_versions_and_does_without_a_core() {
    let core = FakeCore::start();
    let lines = words(&corectl(&core, &["version"]).ok());
    assert_eq!(
        lines[0],
        format!("corectl {} wire 1", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(lines[1], format!("core 0.9.0 wire 1 to 2 {}", core.address));
    let version = corectl(&core, &["version", "--json"]).json();
    assert_eq!(version["core"]["version"], "0.9.0");
    assert_eq!(version["json_version"], 1);

    let mut alone = command(&["version", "--json"]);
    alone.current_dir(core.directory.path());
    let version = run(alone).json();
    assert_eq!(version["core"], json!(null));
    assert_eq!(version["corectl"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn completions_need_no_core() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(command(&["completions", shell])).ok();
        assert!(script.contains("corectl"), "{shell}");
    }
    let stderr = run(command(&["completions", "cmd.com"])).failed(2);
    assert!(stderr.contains("possible values"), "{stderr}");
}

#[test]
fn a_reload_shows_what_was_done_and_what_needs_a_restart() {
    let core = FakeCore::start();
    let outcome = corectl(&core, &["reload"]);
    assert!(
        outcome
            .stderr
            .contains("needs a restart of the core: listen.tcp")
    );
    assert_eq!(
        words(&outcome.ok()),
        [
            "NAME CHANGE WHY",
            "camera added -",
            "devices rejected port 2 is taken",
            "unchanged: 1",
        ]
    );
    let reload = corectl(&core, &["reload", "--json"]).json();
    assert_eq!(
        reload,
        json!({
            "changes": [
                {"name": "camera", "change": "added", "message": ""},
                {"name": "devices", "change": "rejected", "message": "port 2 is taken"},
            ],
            "unchanged": 1,
            "needs_restart": ["listen.tcp"],
            "warnings": [],
        })
    );
    assert_eq!(corectl(&core, &["reload", "-q"]).ok(), "camera\ndevices\n");
    core.with(|world| world.bad_config = true);
    let stderr = corectl(&core, &["reload"]).failed(8);
    assert!(stderr.contains("core.toml:1:1: unknown key"), "{stderr}");
    assert!(stderr.contains("core-server check-config"), "{stderr}");
}

#[test]
fn an_upgrade_sends_an_absolute_path_and_tells_how_it_went() {
    let core = FakeCore::start();
    let done = corectl(&core, &["plugins", "upgrade", "devices", "./new"]).ok();
    assert_eq!(words(&done), ["devices started ready"]);
    let stderr = corectl(&core, &["plugins", "upgrade", "devices", "/new/bad"]).failed(8);
    assert!(stderr.contains("the one before runs again"), "{stderr}");
    assert!(stderr.contains("corectl plugins logs devices"), "{stderr}");
    corectl(&core, &["plugins", "upgrade", "device", "/new"]).failed(3);
}
