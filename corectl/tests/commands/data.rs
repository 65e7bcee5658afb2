//! state and storage, but for the watches.

use serde_json::json;

use crate::fake::FakeCore;
use crate::program::{corectl, corectl_with_stdin, words};

#[test]
fn state_is_written_read_and_removed() {
    let core = FakeCore::start();
    let set = ["state", "set", "lamp.kitchen", "{\"on\": true}"];
    assert_eq!(
        words(&corectl(&core, &set).ok()),
        ["lamp.kitchen revision 1"]
    );
    assert_eq!(
        words(&corectl(&core, &set).ok()),
        ["lamp.kitchen revision 1 unchanged"]
    );
    assert_eq!(
        corectl(&core, &["state", "get", "lamp.kitchen"]).ok(),
        "{\"on\": true}\n"
    );
    let entry = corectl(&core, &["state", "get", "lamp.kitchen", "--json"]).json();
    assert_eq!(entry["value"], json!({"on": true}));
    assert_eq!(entry["revision"], 1);
    assert_eq!(entry["writer"], "operator");
    assert!(entry["changed_at"].is_string(), "{entry}");
    assert_eq!(
        corectl(&core, &["state", "delete", "lamp.kitchen", "--json"]).json(),
        json!({"key": "lamp.kitchen", "existed": true})
    );
    assert_eq!(
        words(&corectl(&core, &["state", "delete", "lamp.kitchen"]).ok()),
        ["lamp.kitchen was not there"]
    );
}

#[test]
fn state_is_listed_across_pages() {
    let core = FakeCore::start();
    for (key, value) in [("a.x", "1"), ("b.x", "-2.50"), ("b.y", "\"three\"")] {
        corectl(&core, &["state", "set", key, value]).ok();
    }
    let stdout = corectl(&core, &["state", "list"]).ok();
    let lines = words(&stdout);
    assert_eq!(lines[0], "KEY REVISION WRITER CHANGED VALUE");
    assert!(lines[2].starts_with("b.x 2 operator "), "{stdout}");
    assert!(lines[2].ends_with(" ago -2.50"), "{stdout}");
    assert_eq!(
        corectl(&core, &["state", "list", "b.", "-q"]).ok(),
        "b.x\nb.y\n"
    );
    let list = corectl(&core, &["state", "list", "--json"]).json();
    assert_eq!(list["entries"].as_array().map(Vec::len), Some(3));
    assert_eq!(list["entries"][2]["value"], "three");
    assert_eq!(list["revision"], 3);
    let outcome = corectl(&core, &["state", "list", "nobody."]);
    assert_eq!(outcome.stderr, "no keys\n");
    assert_eq!(outcome.ok(), "");
}

#[test]
fn absent_keys_are_exit_code_3_with_the_one_meant() {
    let core = FakeCore::start();
    corectl(&core, &["state", "set", "lamp.kitchen", "1"]).ok();
    corectl(&core, &["storage", "set", "devices", "lamp/kitchen", "1"]).ok();
    let stderr = corectl(&core, &["state", "get", "lamp.kitchne"]).failed(3);
    assert!(
        stderr.contains("did you mean \"lamp.kitchen\"?"),
        "{stderr}"
    );
    let stderr = corectl(&core, &["storage", "get", "devices", "lamp/kitchne"]).failed(3);
    assert!(
        stderr.contains("did you mean \"lamp/kitchen\"?"),
        "{stderr}"
    );
    let stderr = corectl(&core, &["storage", "get", "nobody", "x"]).failed(3);
    assert!(stderr.contains("corectl storage list nobody"), "{stderr}");
}

#[test]
fn a_lost_race_is_exit_code_8_and_tells_the_revision() {
    let core = FakeCore::start();
    corectl(&core, &["state", "set", "mode", "1"]).ok();
    corectl(&core, &["storage", "set", "devices", "mode", "1"]).ok();
    for arguments in [
        &["state", "set", "mode", "2", "--if-revision", "0"][..],
        &["state", "delete", "mode", "--if-revision", "9"],
    ] {
        let stderr = corectl(&core, arguments).failed(8);
        assert!(stderr.contains("the revision is 1 now"), "{stderr}");
    }
    for arguments in [
        &[
            "storage",
            "set",
            "devices",
            "mode",
            "2",
            "--if-revision",
            "0",
        ][..],
        &["storage", "delete", "devices", "mode", "--if-revision", "9"],
    ] {
        let stderr = corectl(&core, arguments).failed(8);
        assert!(stderr.contains("the revision is 2 now"), "{stderr}");
    }
    corectl(&core, &["state", "set", "mode", "2", "--if-revision", "1"]).ok();
}

#[test]
fn values_that_are_no_json_are_exit_code_2_unless_meant_as_text() {
    let core = FakeCore::start();
    let stderr = corectl(&core, &["state", "set", "mode", "away"]).failed(2);
    assert!(stderr.contains("--string"), "{stderr}");
    corectl(&core, &["state", "set", "mode", "away", "--string"]).ok();
    assert_eq!(corectl(&core, &["state", "get", "mode"]).ok(), "\"away\"\n");
    let stderr = corectl(&core, &["state", "get", "no..key"]).failed(2);
    assert!(stderr.contains("no..key"), "{stderr}");
}

#[test]
fn storage_is_written_read_listed_and_removed() {
    let core = FakeCore::start();
    let set = ["storage", "set", "devices", "lamp/1", "{\"n\": 1.0}"];
    let stdout = corectl(&core, &set).ok();
    assert_eq!(words(&stdout), ["lamp/1 revision 1 created"]);
    let written = corectl_with_stdin(
        &core,
        &["storage", "set", "devices", "lamp/2", "-", "--json"],
        " [2]\n",
    );
    assert_eq!(
        written.json(),
        json!({"namespace": "devices", "key": "lamp/2", "revision": 2, "created": true})
    );
    corectl(
        &core,
        &["storage", "set", "devices", "motion/1", "null", "-q"],
    )
    .ok();
    assert_eq!(
        corectl(&core, &["storage", "get", "devices", "lamp/1"]).ok(),
        "{\"n\": 1.0}\n"
    );
    let entry = corectl(&core, &["storage", "get", "devices", "lamp/2", "--json"]).json();
    assert_eq!(entry["value"], json!([2]));
    assert_eq!(entry["namespace"], "devices");

    let list = |more: &[&str]| corectl(&core, &[&["storage", "list", "devices"], more].concat());
    assert_eq!(list(&[]).ok(), "KEY\nlamp/1\nlamp/2\nmotion/1\n");
    assert_eq!(list(&["lamp/", "-q"]).ok(), "lamp/1\nlamp/2\n");
    assert_eq!(
        list(&["--json"]).json(),
        json!({"namespace": "devices", "keys": ["lamp/1", "lamp/2", "motion/1"]})
    );
    let lines = words(&list(&["--values"]).ok());
    assert_eq!(lines[0], "KEY REVISION UPDATED VALUE");
    assert!(lines[1].starts_with("lamp/1 1 "), "{lines:?}");
    assert!(lines[1].ends_with(" ago {\"n\":1.0}"), "{lines:?}");
    let entries = list(&["--values", "--json"]).json();
    assert_eq!(entries["entries"][2]["value"], json!(null));
    assert_eq!(entries["entries"].as_array().map(Vec::len), Some(3));

    let stdout = corectl(&core, &["storage", "delete", "devices", "lamp/1"]).ok();
    assert_eq!(words(&stdout), ["lamp/1 deleted"]);
    assert_eq!(
        corectl(&core, &["storage", "rm", "devices", "lamp/1", "--json"]).json(),
        json!({"namespace": "devices", "key": "lamp/1", "existed": false, "revision": 4})
    );
}

#[test]
fn a_time_to_live_has_a_unit() {
    let core = FakeCore::start();
    corectl(
        &core,
        &["storage", "set", "notes", "a", "1", "--ttl", "10m"],
    )
    .ok();
    corectl(&core, &["state", "set", "lamp.a", "1", "--ttl", "90s"]).ok();
    let outcome = corectl(&core, &["storage", "set", "notes", "a", "1", "--ttl", "10"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("10s?"), "{}", outcome.stderr);
}

#[test]
fn the_storage_is_watched() {
    let core = FakeCore::start();
    corectl(&core, &["storage", "set", "notes", "a", "1"]).ok();
    let watched = corectl(&core, &["storage", "watch", "notes", "--count", "3"]).ok();
    let expected = [
        "initial a 1 revision 1",
        "put a 1 revision 1 (changes between were left out)",
        "expired a revision 9",
    ];
    assert_eq!(words(&watched), expected);
    let lines = corectl(
        &core,
        &["storage", "watch", "notes", "--count", "2", "--json"],
    )
    .ok();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines[0]["kind"], "initial");
    assert_eq!(lines[1], json!({"type": "snapshot_end", "revision": 7}));
    assert_eq!(lines[2]["conflated"], true);
}

#[test]
fn usage_and_quotas_are_shown_and_set() {
    let core = FakeCore::start();
    let all = corectl(&core, &["storage", "usage"]).ok();
    let expected = [
        "NAMESPACE KEYS OF BYTES OF OWNER",
        "core 2 - 30 100 core: 5 of 5 keys, 90 of - bytes",
        "lamp 2 9 30 100 lamp: 5 of 5 keys, 90 of - bytes",
        "notes 2 7 30 100 notes: 5 of 5 keys, 90 of - bytes",
    ];
    assert_eq!(words(&all), expected);
    let one = corectl(&core, &["storage", "usage", "mine", "--json"]).json();
    assert_eq!(one["namespaces"][0]["namespace"], "mine");
    let set = corectl(&core, &["storage", "quota", "mine", "--keys", "5"]).ok();
    assert_eq!(words(&set), ["mine 5 keys 67108864 bytes"]);
    let below = ["storage", "quota", "mine.a", "--keys", "1000"];
    let set = corectl(&core, &below).ok();
    let expected = [
        "mine.a 1000 keys 67108864 bytes",
        "all of its owner together mine: 5 of 5 keys, 90 of - bytes",
    ];
    assert_eq!(words(&set), expected);
    let set = corectl(&core, &[&below[..], &["--json"]].concat()).json();
    assert_eq!(
        (&set["max_keys"], &set["owner"]["max_keys"]),
        (&json!(1_000), &json!(5))
    );
}

#[test]
fn a_namespace_is_dropped_by_who_means_it() {
    let core = FakeCore::start();
    corectl(&core, &["storage", "set", "notes", "a", "1"]).ok();
    let outcome = corectl(&core, &["storage", "drop", "notes"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("--yes"), "{}", outcome.stderr);
    let dropped = corectl(&core, &["storage", "drop", "notes", "--yes", "--json"]).json();
    assert_eq!(dropped, json!({"namespace": "notes", "removed": 1}));
}

#[test]
fn backups_and_checks_say_what_came_of_them() {
    let core = FakeCore::start();
    let made = corectl(&core, &["storage", "backup", "/b.db"]).ok();
    assert_eq!(words(&made), ["/b.db 4096 bytes revision 7 in 2s"]);
    let outcome = corectl(&core, &["storage", "backup", "/taken.db"]);
    assert_ne!(outcome.code, Some(0));
    assert!(
        outcome.stderr.contains("there already"),
        "{}",
        outcome.stderr
    );
    assert_eq!(
        corectl(&core, &["storage", "check"]).ok(),
        "the store is whole\n"
    );
    corectl(&core, &["storage", "set", "notes", "damage", "1"]).ok();
    let outcome = corectl(&core, &["storage", "check"]);
    assert_ne!(outcome.code, Some(0));
    assert_eq!(outcome.stdout, "a page is torn\n");
}

#[test]
fn a_home_is_backed_up_where_the_command_is_given() {
    let core = FakeCore::start();
    let outcome = corectl(&core, &["backup", "/house.tar"]);
    assert!(outcome.stderr.contains("CA's key"), "{}", outcome.stderr);
    let made = outcome.ok();
    assert_eq!(
        words(&made),
        ["/house.tar with home 4096 bytes revision 7 in 2s"]
    );
    let made = corectl(&core, &["backup", "house.tar", "--quiet"]).ok();
    let here = std::env::current_dir().expect("there").join("house.tar");
    assert_eq!(made, format!("{} with home\n", here.display()));
    let made = corectl(&core, &["backup", "--quiet"]).ok();
    assert_eq!(made, " with home\n", "the core chooses");
}

#[test]
fn lines_go_out_and_in() {
    let core = FakeCore::start();
    for key in ["a", "b"] {
        corectl(&core, &["storage", "set", "notes", key, "[1]"]).ok();
    }
    let lines = corectl(&core, &["storage", "export"]).ok();
    let expected = "{\"namespace\":\"notes\",\"key\":\"a\",\"value\":[1]}\n\
                    {\"namespace\":\"notes\",\"key\":\"b\",\"value\":[1]}\n";
    assert_eq!(lines, expected);
    let import = ["storage", "import", "-", "--json"];
    let done = corectl_with_stdin(&core, &import, &lines).json();
    assert_eq!(done, json!({"entries": 2, "expired": 0}));
    let outcome = corectl_with_stdin(&core, &["storage", "import", "-"], "bad\n");
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let outcome = corectl(&core, &["storage", "import", "/no/such/file"]);
    assert!(
        outcome.stderr.contains("/no/such/file"),
        "{}",
        outcome.stderr
    );
}
