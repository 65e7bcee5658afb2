//! A table for every phase; the words that are told.

use core_proto::v1::{CrashReport, Isolation, LastExit};

use super::*;

fn now() -> Timestamp {
    "2026-01-31T12:00:00Z".parse().expect("RFC 3339")
}

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    let then = now() + jiff::SignedDuration::from_secs(seconds);
    Some(time::to_wire(then))
}

fn exit(message: &str) -> LastExit {
    LastExit {
        message: message.to_owned(),
        ..LastExit::default()
    }
}

/// A plugin, told as "state desired phase reason: message".
fn plugin(told: &str) -> PluginInfo {
    let (words, message) = told.split_once(": ").unwrap_or((told, ""));
    let mut words = words.split(' ');
    let mut state = || match words.next() {
        Some("loaded") => PluginState::Loaded,
        Some("started") => PluginState::Started,
        Some("stopped") => PluginState::Stopped,
        _ => PluginState::Unloaded,
    };
    PluginInfo {
        name: "lamp".to_owned(),
        kind: PluginKind::Process.into(),
        state: state().into(),
        desired: state().into(),
        phase: words.next().unwrap_or_default().to_owned(),
        reason: words.next().unwrap_or_default().to_owned(),
        message: message.to_owned(),
        since: at(-90),
        ..PluginInfo::default()
    }
}

fn told(info: &PluginInfo) -> String {
    explain(info, &|_| None, now()).join(" ")
}

/// Every phase of the core, in the words of its table of legal pairs.
#[test]
fn every_phase_says_what_goes_on_and_what_follows() {
    let table = [
        (
            "unloaded unloaded idle not_wanted: nobody asked for it",
            "nobody asked for it. `corectl plugins start lamp` starts it",
        ),
        (
            "unloaded unloaded idle operator: it was unloaded by request",
            "does not run: it was unloaded by request. `corectl plugins start lamp` starts it",
        ),
        (
            "unloaded stopped idle operator: it was stopped by request, and is not tried again: exit code 1",
            "no process of it is left: it was stopped by request, and is not tried again: exit code 1",
        ),
        ("loaded loaded idle", "loaded and not started, as asked for"),
        (
            "stopped stopped idle operator",
            "stopped by request; its process stays",
        ),
        (
            "loaded stopped idle",
            "stopped by request; its process stays",
        ),
        (
            "unloaded started idle shutdown: the core is stopping",
            "wanted started, and nothing is under way (the core is stopping)",
        ),
        (
            "unloaded started spawning start_slot",
            "Its turn to start has not come",
        ),
        ("unloaded started spawning", "Its process is being started"),
        (
            "unloaded started connecting",
            "has not opened its channel yet",
        ),
        ("unloaded started loading", "`on_load` runs"),
        ("loaded started starting", "`on_start` runs"),
        (
            "started started ready",
            "It runs and has been well for 1m 30s.",
        ),
        (
            "started started degraded heartbeat: x",
            "does not answer the core's heartbeats. New calls to it are refused",
        ),
        (
            "started started degraded health: the bridge is away.",
            "says itself that it is unwell: the bridge is away. Calls to it go on",
        ),
        (
            "started started suspended channel_lost",
            "Its channel to the core broke",
        ),
        (
            "started stopped stopping operator: by request",
            "being stopped (by request)",
        ),
        (
            "unloaded unloaded unloading operator: by request",
            "Its run is over (by request)",
        ),
        (
            "unloaded unloaded unloading hung: x",
            "told to end and has not: its process survives even SIGKILL",
        ),
        (
            "unloaded started backoff exited: exit code 3",
            "The core tries again soon.",
        ),
        (
            "unloaded started crash_loop exited: exit code 3",
            "and every 5m after that, for ever.",
        ),
        (
            "unloaded started given_up exited: exit code 3",
            "The core does not try again",
        ),
        (
            "unloaded started config_error exited: exit code 78",
            "It cannot run as it is: exit code 78. The core tries again when",
        ),
        (
            "unloaded started config_error dependency_cycle: a -> b -> a",
            "Take one of these requirements out",
        ),
        (
            "unloaded started incompatible wire_version: it speaks 2",
            "another version of the wire protocol: it speaks 2. Update",
        ),
        (
            "unloaded started incompatible identity: made for uid 1000, uid 33 presents it",
            "uid 33 presents it. Its program must open the channel as the user that it is started as",
        ),
        (
            "unloaded started incompatible mood: it frowned",
            "refuses its handshake: it frowned. It is tried again",
        ),
        (
            "unloaded started completed exited",
            "(`restart.mode = \"always\"`) says that this was all",
        ),
        (
            "unloaded started backoff memory_limit: 80 MiB resident, 64 MiB allowed",
            "raise `memory` in `[limits]` of its plugin.toml",
        ),
        (
            "unloaded started crash_loop pids_limit: too many threads",
            "raise `pids` in `[limits]` of its plugin.toml",
        ),
        (
            "started started dancing music: it plays",
            "in phase `dancing`, which this corectl does not know (it plays)",
        ),
        (
            "started started ready upgrade_rolled_back: 1.1 crashed",
            "version before it was put back: 1.1 crashed. It runs and has been well",
        ),
    ];
    for (plugin, expected) in table {
        let told = told(&self::plugin(plugin));
        assert!(told.contains(expected), "{plugin}: {told}");
        assert!(told.ends_with('.'), "{plugin}: {told}");
    }
}

#[test]
fn a_crash_loop_tells_how_often_how_and_when_again() {
    let mut info = plugin("unloaded started crash_loop exited: exit code 3");
    info.failures = 8;
    info.next_attempt_at = at(252);
    info.last_exit = Some(exit("exit code 3"));
    let report = |message: &str| CrashReport {
        exit: Some(exit(message)),
        ..CrashReport::default()
    };
    info.crash_reports = vec![report("exit code 3"); 8];
    assert_eq!(
        told(&info),
        "It has failed 8 times since it was last stable (exit code 3 each time). The core tries \
         again in 4m 12s, and every 5m after that, for ever. `corectl plugins start lamp` tries \
         now; so does a change of its program or configuration."
    );
    assert_eq!(brief(&info, now()), "exit code 3; next try in 4m 12s");
    info.crash_reports[4] = report("killed by SIGSEGV");
    assert!(told(&info).contains("(the last time: exit code 3)"));
    info.failures = 30;
    info.crash_reports = vec![report("exit code 3"); 20];
    assert!(
        told(&info).contains("30 times since it was last stable (exit code 3 the last 20 times)")
    );
    info.next_attempt_at = at(-1);
    assert!(told(&info).contains("tries again now"));
}

#[test]
fn a_list_says_why_it_is_tried_again_and_in_one_short_line() {
    let mut info = plugin("unloaded started connecting");
    assert_eq!(brief(&info, now()), "", "nothing has failed");
    info.last_exit = Some(exit("exit code 3"));
    assert_eq!(brief(&info, now()), "", "it was ended in order");
    info.failures = 2;
    assert_eq!(brief(&info, now()), "tried again after: exit code 3");
    info.message = format!("no room\n{}", "x".repeat(100));
    assert_eq!(brief(&info, now()), "no room…");
    info.message = "ü".repeat(LONGEST_BRIEF + 1);
    assert_eq!(brief(&info, now()), "ü".repeat(LONGEST_BRIEF) + "…");
}

#[test]
fn a_back_off_tells_what_comes_after_it() {
    let mut info =
        plugin("unloaded started backoff hook_timeout: on_start did not end within 30 s");
    info.failures = 1;
    info.next_attempt_at = at(2);
    info.last_exit = Some(LastExit {
        forced: true,
        ..exit("on_start did not end within 30 s")
    });
    assert_eq!(
        told(&info),
        "It has failed once since it was last stable (on_start did not end within 30 s; the core \
         ended it). The core tries again in 2s. After 7 more failures without 1m of being ready in \
         between the core tries only every 5m. `corectl plugins start lamp` tries now; so does a \
         change of its program or configuration."
    );
    info.failures = 0;
    info.last_exit = Some(exit("exit code 75"));
    assert!(told(&info).starts_with("Its run ended (exit code 75), which counts as no failure."));
    info.restart = Some(RestartPolicy {
        max_failures: 3,
        give_up: true,
        ..policy(&PluginInfo::default())
    });
    info.failures = 2;
    assert!(
        told(&info)
            .contains("After 1 more failure without 1m of being ready in between it is given up.")
    );
}

#[test]
fn what_is_given_up_names_the_rule() {
    let mut info = plugin("unloaded started given_up exited: exit code 3");
    info.failures = 1;
    let rule = |mode: &str, give_up| RestartPolicy {
        mode: mode.to_owned(),
        max_failures: 3,
        give_up,
        ..RestartPolicy::default()
    };
    info.restart = Some(rule("never", false));
    assert!(told(&info).contains("does not try again: `restart.mode = \"never\"`."));
    info.restart = Some(rule("always", true));
    assert!(told(&info).contains("does not try again: `restart.give_up = true` after 3 failures."));
}

/// Nothing is wrong with the version of one that came as another user.
#[test]
fn incompatible_names_the_wire_protocol_only_where_that_is_the_reason() {
    for (reason, of_the_wire) in [("wire_version", true), ("identity", false), ("mood", false)] {
        let info = plugin(&format!("unloaded started incompatible {reason}: so it is"));
        assert_eq!(
            told(&info).contains("wire protocol"),
            of_the_wire,
            "{reason}"
        );
        let waiting = PluginInfo {
            requires: vec!["lamp".to_owned()],
            ..plugin("unloaded started waiting_dependency dependency")
        };
        let waiting = PluginInfo {
            name: "room".to_owned(),
            ..waiting
        };
        let find = |name: &str| (name == "lamp").then_some(&info);
        let told = explain(&waiting, &find, now()).join(" ");
        assert_eq!(told.contains("wire protocol"), of_the_wire, "{told}");
    }
}

#[test]
fn one_that_waits_for_a_grant_says_for_what_and_how_it_is_given() {
    let message = "it asks for publish=home.>, which nobody has granted: `corectl plugins grant lamp` \
                   grants what it asks for";
    let info = plugin(&format!(
        "unloaded started waiting_grant not_granted: {message}"
    ));
    let told = told(&info);
    for part in [
        "waits for an operator",
        message,
        "corectl plugins permissions",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn a_chain_of_dependencies_is_followed_to_its_end() {
    let named = |name: &str, told: &str, requires: &[&str]| PluginInfo {
        name: name.to_owned(),
        requires: requires.iter().map(ToString::to_string).collect(),
        ..plugin(told)
    };
    let waits = "unloaded started waiting_dependency dependency: waits for something";
    let mut radio = named(
        "radio",
        "unloaded started crash_loop exited: exit code 3",
        &[],
    );
    radio.next_attempt_at = at(60);
    radio.last_exit = Some(exit("exit code 3"));
    let mut camera = named("camera", "unloaded started connecting remote", &[]);
    camera.kind = PluginKind::Remote.into();
    let world = [
        named("devices", waits, &["radio"]),
        radio,
        camera,
        named("clock", "unloaded unloaded idle not_wanted", &[]),
        named("day", waits, &["night"]),
        named("night", waits, &["day"]),
        named("well", "started started ready", &[]),
    ];
    let find = |name: &str| world.iter().find(|info| info.name == name);
    for (requires, expected) in [
        (
            vec!["devices", "well"],
            "It waits for devices, which waits for radio, which keeps crashing (exit code 3) and is \
             tried again in 1m. It goes on by itself",
        ),
        (
            vec!["camera", "ghost"],
            "It waits for camera, which has not connected yet; and for ghost, which is not there: no \
             plugin has this name.",
        ),
        (
            vec!["clock"],
            "It waits for clock, which is unloaded by request (`corectl plugins start clock`).",
        ),
        (
            vec!["day"],
            "day, which waits for night, which waits for day, and so in a circle.",
        ),
        (vec!["well"], "that came just now"),
    ] {
        let info = named("lamp", waits, &requires);
        let told = explain(&info, &find, now()).join(" ");
        assert!(told.contains(expected), "{requires:?}: {told}");
    }
    let info = named(
        "lamp",
        "stopped started waiting_dependency dependency",
        &["clock"],
    );
    let told = explain(&info, &find, now()).join(" ");
    assert!(
        told.starts_with("It was stopped because what it requires was lost."),
        "{told}"
    );
}

#[test]
fn what_stands_beside_the_phase_is_told_too() {
    let mut info = plugin("started started ready");
    (info.suppressed_lines, info.failures) = (212, 2);
    info.log_level = "debug".to_owned();
    info.last_exit = Some(exit("exit code 3"));
    assert_eq!(
        told(&info),
        "It runs and has been well for 1m 30s. It has failed 2 times since it was last stable (the \
         last time: exit code 3); once it has been ready for 1m that is forgotten. 212 lines of its \
         output were dropped: it writes faster than the core keeps. Its log level was set to debug; \
         `corectl plugins log-level lamp default` sets it back."
    );
    let mut kept = plugin("started started ready");
    kept.config_rejected = "`level` must be a number.".to_owned();
    kept.config_revision = 4;
    kept.isolation = Some(Isolation {
        notes: vec!["the kernel has no landlock".to_owned()],
        ..Isolation::default()
    });
    assert_eq!(
        told(&kept),
        "It runs and has been well for 1m 30s. It rejected its newest configuration: `level` must be \
         a number. Configuration 4 is still in force. Not all of its isolation is in force: the kernel \
         has no landlock."
    );
    let hung = PluginInfo {
        kind: PluginKind::Embedded.into(),
        ..plugin("unloaded unloaded unloading hung")
    };
    assert!(told(&hung).contains("its thread does not return"));
}
