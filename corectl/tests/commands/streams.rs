//! events, state watch, followed logs: what goes on, and how it ends.

use std::io::{BufRead as _, BufReader};

use serde_json::json;

use core_proto::v1::Event;

use crate::fake::{FakeCore, ago};
use crate::program::{Live, command_for, corectl, run, words};

fn event(topic: &str, data: &'static str) -> Event {
    Event {
        topic: topic.to_owned(),
        source: "devices".to_owned(),
        subject: "kitchen".to_owned(),
        data: data.into(),
        ..Event::default()
    }
}

#[test]
fn published_events_are_followed_as_json_lines() {
    let core = FakeCore::start();
    let tail = Live::spawn(command_for(
        &core,
        &["events", "tail", "lamp.>", "--json", "--count", "2"],
    ));
    let subscribed = tail.json();
    assert_eq!(subscribed["type"], "subscribed");
    assert_eq!(subscribed["epoch"], "18446744073709551614");
    let receipt = corectl(
        &core,
        &[
            "events",
            "publish",
            "lamp.changed",
            "on:=true",
            "--subject",
            "kitchen",
            "--json",
        ],
    );
    let receipt = receipt.json();
    assert_eq!(receipt["topic"], "lamp.changed");
    assert_eq!(receipt["seq"], 1);
    corectl(&core, &["events", "publish", "other.topic"]).ok();
    let line = tail.json();
    assert_eq!(line["type"], "event");
    assert_eq!(line["topic"], "lamp.changed");
    assert_eq!(line["source"], "operator");
    assert_eq!(line["subject"], "kitchen");
    assert_eq!(line["data"], json!({"on": true}));
    assert_eq!(line["data_encoding"], "json");
    assert_eq!(line["seq"], 1);
    core.publish(Event {
        content_type: "application/octet-stream".to_owned(),
        ..event("lamp.raw", "\u{1}")
    });
    let line = tail.json();
    assert_eq!(line["data"], "AQ==");
    assert_eq!(line["data_encoding"], "base64");
    assert_eq!(tail.end().0.code(), Some(0));
}

#[test]
fn publish_takes_pairs_json_or_nothing_and_tells_the_seq() {
    let core = FakeCore::start();
    let publish = |more: &[&str]| corectl(&core, &[&["events", "publish"], more].concat());
    assert_eq!(
        words(&publish(&["home.test", "a=b"]).ok()),
        ["home.test seq 1"]
    );
    assert_eq!(publish(&["home.test", "--data", "[1]", "-q"]).ok(), "");
    publish(&["home.test"]).ok();
    let data: Vec<_> = core.with(|world| {
        let events = world.events.iter();
        events.map(|event| event.data.clone()).collect()
    });
    assert_eq!(data, ["{\"a\":\"b\"}", "[1]", "{}"]);
    let stderr = publish(&["home..test"]).failed(2);
    assert!(stderr.contains("home..test"), "{stderr}");
}

#[test]
fn a_person_sees_lines_and_a_gap_on_stderr() {
    let core = FakeCore::start();
    core.publish(event("lamp.changed", "{ \"on\": true }"));
    core.publish(event("evil.\u{1b}[2J", "1"));
    let outcome = corectl(
        &core,
        &["events", "tail", "--since", "oldest", "--count", "1"],
    );
    assert_eq!(
        outcome.stderr,
        "gap: up to 5 events were missed: the core no longer keeps them\n"
    );
    let line = words(&outcome.ok()).remove(0);
    let expected = "lamp.changed kitchen {\"on\":true} from devices";
    assert!(line.ends_with(expected), "{line}");
}

#[test]
fn a_gap_is_data_to_a_program() {
    let core = FakeCore::start();
    core.publish(event("lamp.changed", "1"));
    let arguments = [
        "events", "tail", "--since", "oldest", "--count", "1", "--json",
    ];
    let stdout = corectl(&core, &arguments).ok();
    let gap: serde_json::Value =
        serde_json::from_str(stdout.lines().nth(1).expect("three lines")).expect("JSON");
    assert_eq!(
        gap,
        json!({"type": "gap", "reason": "too_old", "from_seq": 1, "to_seq": 5})
    );
}

#[test]
fn a_tail_begins_in_the_past_and_filters() {
    let core = FakeCore::start();
    core.publish(Event {
        time: Some(ago(3600)),
        ..event("lamp.old", "1")
    });
    core.publish(Event {
        source: "camera".to_owned(),
        ..event("lamp.other", "2")
    });
    core.publish(event("lamp.new", "3"));
    let arguments = [
        "events", "tail", "--since", "10m", "--source", "devices", "--count", "1", "-q",
    ];
    assert_eq!(corectl(&core, &arguments).ok(), "lamp.new\n");
    let stderr = corectl(&core, &["events", "tail", "lamp..x"]).failed(2);
    assert!(stderr.contains("lamp..x"), "{stderr}");
    corectl(&core, &["events", "tail", "--since", "yesterday"]).failed(2);
}

#[test]
fn state_is_watched_from_what_is_there_to_what_comes() {
    let core = FakeCore::start();
    corectl(&core, &["state", "set", "lamp.a", "1"]).ok();
    let watch = Live::spawn(command_for(
        &core,
        &["state", "watch", "lamp.>", "--json", "--count", "3"],
    ));
    let initial = watch.json();
    assert_eq!(initial["type"], "change");
    assert_eq!(initial["kind"], "initial");
    assert_eq!(initial["value"], 1);
    assert_eq!(initial.get("old_value"), None);
    assert_eq!(watch.json(), json!({"type": "snapshot_end", "revision": 1}));
    corectl(&core, &["state", "set", "lamp.a", "null"]).ok();
    corectl(&core, &["state", "set", "other", "1"]).ok();
    corectl(&core, &["state", "delete", "lamp.a"]).ok();
    let set = watch.json();
    assert_eq!(set["kind"], "set");
    assert_eq!(set["value"], json!(null));
    assert_eq!(set["old_value"], 1);
    let deleted = watch.json();
    assert_eq!(deleted["kind"], "deleted");
    assert_eq!(deleted.get("value"), None);
    assert_eq!(watch.end().0.code(), Some(0));
}

#[test]
fn watched_state_is_readable_and_may_begin_with_changes_only() {
    let core = FakeCore::start();
    corectl(&core, &["state", "set", "lamp.a", "1"]).ok();
    let stdout = corectl(&core, &["state", "watch", "--count", "1"]).ok();
    assert!(
        words(&stdout)[0].ends_with("initial lamp.a 1 by operator"),
        "{stdout}"
    );
    let watch = Live::spawn(command_for(
        &core,
        &["state", "watch", "--changes-only", "--json"],
    ));
    assert_eq!(watch.json()["type"], "snapshot_end");
    corectl(&core, &["state", "set", "lamp.a", "2"]).ok();
    assert_eq!(watch.json()["kind"], "set");
    watch.interrupt();
    assert_eq!(watch.end().0.code(), Some(130));
}

#[test]
fn ctrl_c_is_exit_code_130_without_a_word() {
    let core = FakeCore::start();
    let logs = Live::spawn(command_for(
        &core,
        &["plugins", "logs", "devices", "-f", "-q"],
    ));
    assert_eq!(logs.line(), "polling");
    logs.interrupt();
    let (status, stderr) = logs.end();
    assert_eq!(status.code(), Some(130));
    assert_eq!(stderr, "");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_in_silence() {
    let core = FakeCore::start();
    for form in ["--quiet", "--json", "--timeout=10s"] {
        let mut child = command_for(&core, &["plugins", "logs", "camera", form])
            .spawn()
            .expect("spawned");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        assert!(line.contains("frame 0"), "{line}");
        drop(stdout);
        let (status, stderr) = Live::without_lines(child).end();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert_eq!(stderr, "");
    }
}

#[test]
fn a_stream_without_a_reader_ends_though_nothing_happens() {
    let core = FakeCore::start();
    corectl(&core, &["state", "set", "lamp.a", "1"]).ok();
    for arguments in [
        &["events", "tail", "--json"][..],
        &["state", "watch"],
        &["plugins", "logs", "devices", "-f"],
    ] {
        let mut child = command_for(&core, arguments).spawn().expect("spawned");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut String::new()).expect("a line");
        drop(stdout);
        let (status, stderr) = Live::without_lines(child).end();
        assert_eq!(status.code(), Some(0), "{arguments:?}: {stderr}");
        assert_eq!(stderr, "", "{arguments:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure_that_is_told() {
    let core = FakeCore::start();
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = command_for(&core, &["plugins", "list"]);
    command.stdout(full.expect("every Linux has it"));
    let stderr = run(command).failed(1);
    assert!(stderr.contains("write to standard output"), "{stderr}");
}

#[test]
fn a_core_that_dies_under_a_stream_is_exit_code_4() {
    let core = FakeCore::start();
    let tail = Live::spawn(command_for(&core, &["events", "tail", "--json"]));
    assert_eq!(tail.json()["type"], "subscribed");
    let address = core.address.clone();
    let directory = core.kill();
    let (status, stderr) = tail.end();
    assert_eq!(status.code(), Some(4), "{stderr}");
    let error: serde_json::Value = serde_json::from_str(&stderr).expect("JSON on stderr");
    let message = error["error"]["message"].as_str().expect("text");
    assert!(message.contains(&address), "{message}");
    drop(directory);
}
