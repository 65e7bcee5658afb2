//! Finding the core, credentials, and what stands on the command line.

use std::os::unix::fs::symlink;

use crate::fake::{FakeCore, OPERATOR_TOKEN, PLUGIN_TOKEN};
use crate::program::{command, command_for, corectl, run};

#[test]
fn the_flag_beats_core_addr() {
    let core = FakeCore::start();
    let mut named = command(&["plugins", "list", "-q", "--addr", &core.address]);
    named.env("CORE_ADDR", "unix:/nowhere/core.sock");
    assert_eq!(run(named).ok(), "automation\ncamera\ndevices\n");
}

#[test]
fn the_operator_socket_is_found_in_each_of_its_places() {
    let core = FakeCore::start_at("core-runtime/operator.sock");
    let directory = core.directory.path();
    let mut found = command(&["plugins", "list", "-q"]);
    found
        .env("XDG_RUNTIME_DIR", directory)
        .current_dir(directory);
    run(found).ok();

    let mut found = command(&["plugins", "list", "-q"]);
    found
        .env("RUNTIME_DIRECTORY", directory.join("core-runtime"))
        .env("XDG_RUNTIME_DIR", "/nowhere")
        // A token that happens to be there does not go to a socket that was found.
        .env("CORE_TOKEN", PLUGIN_TOKEN);
    run(found).ok();

    std::fs::create_dir_all(directory.join("home/data")).expect("created");
    symlink(
        directory.join("core-runtime"),
        directory.join("home/data/run"),
    )
    .expect("linked");
    let mut found = command(&["plugins", "list", "-q"]);
    found.current_dir(directory.join("home"));
    run(found).ok();
}

#[test]
fn no_core_is_exit_code_4_and_names_all_that_was_tried_and_how_to_start_one() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut nowhere = command(&["status"]);
    nowhere
        .current_dir(directory.path())
        .env("XDG_RUNTIME_DIR", directory.path());
    let stderr = run(nowhere).failed(4);
    for part in [
        "--addr",
        "CORE_ADDR",
        "$RUNTIME_DIRECTORY",
        "core-runtime/operator.sock",
        "data/run/operator.sock",
        "`core-server`",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn an_address_that_does_not_answer_is_exit_code_4_and_says_who_named_it() {
    let stderr = run(command(&["status", "--addr", "unix:/nowhere/core.sock"])).failed(4);
    assert!(
        stderr.contains("unix:/nowhere/core.sock (from --addr)"),
        "{stderr}"
    );
    assert!(stderr.contains("No such file"), "{stderr}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let mut refused = command(&["status"]);
    refused.env("CORE_ADDR", &address);
    let stderr = run(refused).failed(4);
    assert!(
        stderr.contains(&format!("{address} (from CORE_ADDR)")),
        "{stderr}"
    );
    let arguments = ["wait", "plugin/x", "--timeout", "300ms", "--addr", &address];
    run(command(&arguments)).failed(4);
}

#[test]
fn a_listener_that_does_not_speak_is_no_core() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    let arguments = ["plugins", "list", "--timeout", "300ms", "--addr", &address];
    let outcome = run(command(&arguments));
    assert!(matches!(outcome.code, Some(4 | 6)), "{outcome:?}");
}

#[test]
fn over_tcp_a_token_is_needed_and_may_come_from_three_places() {
    let core = FakeCore::start_tcp();
    let stderr = corectl(&core, &["plugins", "list"]).failed(5);
    assert!(stderr.contains("operator socket"), "{stderr}");

    let mut given = command_for(&core, &["plugins", "list", "-q"]);
    given.env("CORE_TOKEN", OPERATOR_TOKEN);
    run(given).ok();

    let file = core.directory.path().join("token");
    std::fs::write(&file, format!("{OPERATOR_TOKEN}\n")).expect("written");
    let file = file.to_str().expect("text");
    let mut given = command_for(&core, &["plugins", "list", "-q", "--token-file", file]);
    given.env("CORE_TOKEN", "wrong");
    run(given).ok();
    let mut given = command_for(&core, &["plugins", "list", "-q"]);
    given.env("CORE_TOKEN_FILE", file);
    run(given).ok();

    let missing = ["plugins", "list", "--token-file", "/nowhere/token"];
    let stderr = corectl(&core, &missing).failed(2);
    assert!(stderr.contains("/nowhere/token"), "{stderr}");
}

#[test]
fn what_only_operators_may_is_exit_code_5_for_others() {
    let core = FakeCore::start_tcp();
    let mut plugin = command_for(&core, &["plugins", "stop", "devices"]);
    plugin.env("CORE_TOKEN", PLUGIN_TOKEN);
    let stderr = run(plugin).failed(5);
    assert!(
        stderr.contains("plugins may not operate the core"),
        "{stderr}"
    );
    assert!(stderr.contains("operator socket"), "{stderr}");
}

#[test]
fn mistakes_on_the_command_line_are_exit_code_2() {
    let core = FakeCore::start();
    for (arguments, hint) in [
        (&["plugin", "lsit"][..], "list"),
        (&["plugsin"], "plugins"),
        (&["plugins", "start"], "--all"),
        (&["plugins", "start", "x", "--all"], "--all"),
        (&["plugins", "list", "--json", "--quiet"], "--quiet"),
        (&["status", "--timeout", "30"], "30s?"),
        (&["status", "--addr", "/run/x.sock"], "unix:/run/x.sock"),
        (&["wait", "devices"], "plugin/devices"),
        (&["plugins", "logs", "devices", "--level", "loud"], "warn"),
    ] {
        let stderr = corectl(&core, arguments).failed(2);
        assert!(stderr.contains(hint), "{arguments:?}: {stderr}");
    }
}

#[test]
fn colour_is_only_for_terminals_unless_asked_for() {
    let core = FakeCore::start();
    let plain = corectl(&core, &["plugins", "list"]).ok();
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let mut forced = command_for(&core, &["plugins", "list"]);
    forced.env("CLICOLOR_FORCE", "1");
    let coloured = run(forced).ok();
    assert!(
        coloured.contains("\u{1b}[32mstarted\u{1b}[0m"),
        "{coloured}"
    );
    let mut forbidden = command_for(&core, &["plugins", "list"]);
    forbidden.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert_eq!(run(forbidden).ok(), plain);
}
