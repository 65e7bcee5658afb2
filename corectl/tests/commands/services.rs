//! services: list, describe, call.

use serde_json::json;

use crate::fake::FakeCore;
use crate::program::{corectl, corectl_with_stdin, words};

#[test]
fn services_are_listed_across_pages_and_by_pattern() {
    let core = FakeCore::start();
    let lines = words(&corectl(&core, &["services", "list"]).ok());
    assert_eq!(
        lines,
        [
            "NAME PROVIDER AVAILABLE CALLS ERRORS SUMMARY",
            "camera.picture camera no 4 1 A picture",
            "devices.fail devices yes 4 1 Says no",
            "devices.slow devices yes 4 1 Never answers",
            "devices.turn_on devices yes 4 1 Turns a lamp on",
        ]
    );
    let names = corectl(&core, &["services", "list", "camera.>", "-q"]).ok();
    assert_eq!(names, "camera.picture\n");
    let list = corectl(&core, &["services", "list", "--json"]).json();
    let service = &list["services"][0];
    assert_eq!(service["name"], "camera.picture");
    assert_eq!(service["available"], false);
    assert_eq!(service["input_schema"], json!({"type": "object"}));
    assert_eq!(service["output_schema"], json!(null));
    assert_eq!(service["stats"]["total_seconds"], 0.01);
    let bucket = &service["stats"]["latency"][0];
    assert_eq!(
        (&bucket["at_most_seconds"], &bucket["calls"]),
        (&0.0025.into(), &4.into())
    );
}

#[test]
fn a_described_service_shows_how_to_call_it() {
    let core = FakeCore::start();
    let lines = words(&corectl(&core, &["services", "describe", "devices.turn_on"]).ok());
    for expected in [
        "provider devices",
        "available yes",
        "parameters id",
        "idempotent yes",
        "read only no",
        "arguments {\"type\":\"object\"}",
        "average 2.5 ms",
    ] {
        assert!(
            lines.iter().any(|line| line == expected),
            "{expected}: {lines:?}"
        );
    }
    let service = corectl(
        &core,
        &["services", "describe", "devices.turn_on", "--json"],
    )
    .json();
    assert_eq!(service["parameters"], json!(["id"]));
}

#[test]
fn an_unknown_service_is_exit_code_3_with_the_one_meant() {
    let core = FakeCore::start();
    for verb in ["describe", "call"] {
        let stderr = corectl(&core, &["services", verb, "devices.turn_of"]).failed(3);
        assert!(
            stderr.contains("did you mean \"devices.turn_on\"?"),
            "{stderr}"
        );
    }
}

#[test]
fn arguments_travel_as_they_were_written() {
    let core = FakeCore::start();
    let call = |arguments: &[&str]| {
        let command = [&["services", "call", "devices.turn_on"], arguments].concat();
        corectl(&core, &command).ok()
    };
    assert_eq!(
        call(&["id=kitchen", "level:=12345678901234567890", "on:=true"]),
        "{\"id\":\"kitchen\",\"level\":12345678901234567890,\"on\":true}\n"
    );
    assert_eq!(call(&["--args", "[1, 2]"]), "[1, 2]\n");
    assert_eq!(call(&["--args", "-5"]), "[-5]\n");
    assert_eq!(call(&[]), "");
    let echoed = corectl_with_stdin(
        &core,
        &["services", "call", "devices.turn_on", "-"],
        "{\"id\": 1.50}\n",
    );
    assert_eq!(echoed.ok(), "{\"id\": 1.50}\n");
}

#[test]
fn results_are_embedded_in_json_and_marked_when_they_are_none() {
    let core = FakeCore::start();
    let call = |name, more: &[&str]| {
        let command = [&["services", "call", "--json", name], more].concat();
        corectl(&core, &command).json()
    };
    assert_eq!(
        call("devices.turn_on", &["id:=1"]),
        json!({
            "service": "devices.turn_on",
            "content_type": "application/json",
            "result_encoding": "json",
            "result": {"id": 1},
        })
    );
    let picture = call("devices.picture", &[]);
    assert_eq!(picture["result"], "iVBORw==");
    assert_eq!(picture["result_encoding"], "base64");
    assert_eq!(picture["content_type"], "image/png");
    let nothing = call("devices.nothing", &[]);
    assert_eq!(nothing["result"], json!(null));
    assert_eq!(nothing["result_encoding"], "empty");
}

#[test]
fn a_provider_s_own_error_is_exit_code_7() {
    let core = FakeCore::start();
    let stderr = corectl(&core, &["services", "call", "devices.fail"]).failed(7);
    let expected = "error: devices.fail answered with an error: no lamp 9 (NOT_FOUND)\n";
    assert_eq!(stderr, expected);
    let stderr = corectl(&core, &["services", "call", "devices.fail", "--json"]).failed(7);
    let error: serde_json::Value = serde_json::from_str(&stderr).expect("JSON on stderr");
    assert_eq!(error["error"]["origin"], "provider");
    assert_eq!(error["error"]["code"], "NOT_FOUND");
    assert_eq!(error["error"]["exit_code"], 7);
}

#[test]
fn a_call_that_takes_too_long_is_exit_code_6() {
    let core = FakeCore::start();
    let arguments = ["services", "call", "devices.slow", "--timeout", "200ms"];
    let stderr = corectl(&core, &arguments).failed(6);
    assert!(
        stderr.contains("no answer within 200ms: devices.slow"),
        "{stderr}"
    );
    assert!(stderr.contains("hint: --timeout"), "{stderr}");
}

#[test]
fn an_absent_provider_is_exit_code_1_and_can_be_waited_for() {
    let core = FakeCore::start();
    let stderr = corectl(&core, &["services", "call", "camera.picture"]).failed(1);
    assert!(stderr.contains("--wait"), "{stderr}");
    assert!(stderr.contains("another try in 250ms"), "{stderr}");
    let stdout = corectl(&core, &["services", "call", "camera.picture", "--wait"]).ok();
    assert_eq!(stdout, "\"waited\"\n");
}

#[test]
fn bad_arguments_are_exit_code_2_before_anything_is_asked() {
    let core = FakeCore::start();
    for (arguments, hint) in [
        (&["id"][..], "key=value"),
        (&["id:=seven"], "id=seven"),
        (&["{\"id\":1}"], "--args"),
        (&["--args", "[1,"], "quote JSON"),
        (&["id=1", "--args", "[]"], "--help"),
    ] {
        let command = [&["services", "call", "devices.turn_on"], arguments].concat();
        let stderr = corectl(&core, &command).failed(2);
        assert!(stderr.contains(hint), "{arguments:?}: {stderr}");
    }
}
