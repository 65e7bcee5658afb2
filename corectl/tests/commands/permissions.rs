//! `plugins permissions`, `grant`, `revoke`, and what an invitation grants.

use core_proto::v1::{Permission, PermissionInfo};
use serde_json::json;

use crate::fake::FakeCore;
use crate::program::{corectl, words};

fn standing(text: &str, asked: &str, by: &[&str], denied: bool) -> PermissionInfo {
    let (action, resource) = text.split_once('=').expect("two parts");
    PermissionInfo {
        permission: Some(Permission {
            action: action.to_owned(),
            resource: resource.to_owned(),
            optional: asked == "optional",
        }),
        asked: !asked.is_empty(),
        granted_by: by.iter().map(|&who| who.to_owned()).collect(),
        denied,
        granted_at: None,
    }
}

fn with_permissions() -> FakeCore {
    let core = FakeCore::start();
    core.with(|world| {
        world.permissions = vec![
            standing("publish=home.>", "yes", &[], false),
            standing("publish=shed.x", "yes", &["manifest"], true),
            standing("call=geo.lookup", "yes", &["manifest"], false),
            standing("call=notify.send", "optional", &[], false),
        ];
    });
    core
}

#[test]
fn permissions_show_who_grants_and_what_is_missing() {
    let core = with_permissions();
    let shown = corectl(&core, &["plugins", "permissions", "devices"]);
    assert!(
        shown.stderr.contains("corectl plugins grant devices"),
        "{}",
        shown.stderr
    );
    let lines = words(&shown.ok());
    assert_eq!(
        lines,
        [
            "PERMISSION ASKED STATUS BY",
            "publish=home.> yes missing -",
            "publish=shed.x yes denied configuration",
            "call=geo.lookup yes granted manifest",
            "call=notify.send optional not granted -",
        ]
    );
    let json = corectl(&core, &["plugins", "permissions", "devices", "--json"]).json();
    assert_eq!(json["plugin"], "devices");
    assert_eq!(
        json["permissions"][0],
        json!({
            "permission": "publish=home.>", "action": "publish", "resource": "home.>",
            "asked": true, "optional": false, "status": "missing", "granted_by": [],
            "granted_at": null,
        })
    );
    let described = words(&corectl(&core, &["plugins", "describe", "devices"]).ok());
    for fact in [
        "granted call=geo.lookup",
        "denied publish=shed.x",
        "missing publish=home.>",
    ] {
        assert!(described.iter().any(|line| line == fact), "{described:?}");
    }
    let names = corectl(&core, &["plugins", "permissions", "devices", "-q"]).ok();
    assert_eq!(names.lines().next(), Some("publish=home.>"));
    let refused = corectl(&core, &["plugins", "permissions", "device"]).failed(3);
    assert!(refused.contains("did you mean \"devices\""), "{refused}");
}

#[test]
fn grant_without_a_name_grants_what_is_asked_for_and_not_decided_and_says_what() {
    let core = with_permissions();
    let granted = corectl(&core, &["plugins", "grant", "devices"]).ok();
    assert_eq!(
        words(&granted),
        ["granted publish=home.>", "granted call=notify.send"]
    );
    let again = corectl(&core, &["plugins", "grant", "devices"]);
    assert!(
        again.stderr.contains("nothing new was granted"),
        "{}",
        again.stderr
    );
    assert_eq!(again.ok(), "");
    let one = ["plugins", "grant", "devices", "env=PROXY", "--json"];
    let json = corectl(&core, &one).json();
    assert_eq!(json["granted"], json!(["env=PROXY"]));
    assert!(json.get("revoked").is_none());
    let bad = corectl(&core, &["plugins", "grant", "devices", "publish"]).failed(2);
    assert!(bad.contains("ACTION=RESOURCE"), "{bad}");
}

#[test]
fn revoke_says_what_is_not_an_operator_s_to_take_back() {
    let core = with_permissions();
    corectl(&core, &["plugins", "grant", "devices", "publish=home.>"]).ok();
    let revoked = corectl(&core, &["plugins", "revoke", "devices"]);
    assert!(
        revoked
            .stderr
            .contains("still grants call=geo.lookup; [plugins.devices.deny]"),
        "{}",
        revoked.stderr
    );
    assert_eq!(words(&revoked.ok()), ["revoked publish=home.>"]);
    let json = corectl(&core, &["plugins", "revoke", "devices", "--json"]).json();
    assert_eq!(json["revoked"], json!([]));
}

#[test]
fn an_invitation_carries_what_is_to_be_granted() {
    let core = with_permissions();
    let grants = ["--grant", "publish=home.>", "--grant", "call=geo.lookup"];
    let invite = [&["plugins", "invite", "shed"][..], &grants].concat();
    let invited = corectl(&core, &invite).ok();
    assert_eq!(invited, "corejoin1 shed publish=home.> call=geo.lookup\n");
}
