use plugin_sdk::testing::TestRuntime;

use super::*;

/// Nobody moves by himself.
fn quiet() -> Value {
    json!({ "rooms": ["hall", "kitchen"], "motion_every_ms": 0 })
}

async fn start() -> TestRuntime {
    TestRuntime::start_with_config(Devices::default(), &quiet())
        .await
        .expect("starts")
}

#[test]
fn the_manifest_names_the_plugin_and_shows_the_defaults() {
    let manifest: toml::Table = include_str!("../plugin.toml")
        .parse()
        .expect("plugin.toml is TOML");
    assert_eq!(
        manifest["name"].as_str(),
        Some(Devices::default().into_plugin().name())
    );
    let config: Config = manifest["config"].clone().try_into().expect("it fits");
    assert_eq!(config, Config::default());
}

#[tokio::test(start_paused = true)]
async fn a_lamp_that_is_switched_is_stored_shown_and_told_of() {
    let core = start().await;
    let lamp: Lamp = core
        .call(
            "devices.turn_on",
            &json!({ "device_id": "lamp_hall", "level": 40 }),
        )
        .await
        .expect("switched");
    assert_eq!(lamp, Lamp::new("hall").turned_on(Some(40)));
    let told = core.published("devices.changed");
    assert_eq!((told.len(), told[0].subject()), (1, "lamp_hall"));
    for seen in [
        core.stored("devices", "lamp/lamp_hall"),
        core.state("devices.lamp_hall"),
        told[0].json().ok(),
    ] {
        assert_eq!(
            Lamp::deserialize(seen.expect("a lamp")).expect("a lamp"),
            lamp
        );
    }
    let lamps: Vec<Lamp> = core.call("devices.list", &()).await.expect("a list");
    assert_eq!(lamps, [lamp, Lamp::new("kitchen")]);
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn switching_what_is_switched_already_is_no_change() {
    let core = start().await;
    for _ in 0..2 {
        // A lone argument may travel by position.
        core.call::<Lamp>("devices.turn_on", "lamp_hall")
            .await
            .expect("switched");
    }
    core.call::<Lamp>("devices.turn_off", "lamp_kitchen")
        .await
        .expect("it was off");
    assert_eq!(core.published("devices.changed").len(), 1);
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn lamps_survive_a_restart() {
    let core = start().await;
    core.call::<Lamp>("devices.turn_on", &json!(["lamp_hall", 70]))
        .await
        .expect("switched");
    core.unload().await.expect("unloaded");
    core.start_again().await.expect("started");
    let lamps: Vec<Lamp> = core.call("devices.list", &()).await.expect("a list");
    assert_eq!(lamps[0], Lamp::new("hall").turned_on(Some(70)));
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_said_and_changes_nothing() {
    let core = start().await;
    for (service, arguments, code) in [
        (
            "devices.turn_on",
            json!({ "device_id": "lamp_attic" }),
            Code::NotFound,
        ),
        (
            "devices.turn_on",
            json!({ "device_id": "lamp_hall", "level": 101 }),
            Code::InvalidArgument,
        ),
        (
            "devices.turn_on",
            json!({ "device_id": "lamp_hall", "level": "bright" }),
            Code::InvalidArgument,
        ),
        (
            "devices.simulate_motion",
            json!({ "room": "attic" }),
            Code::NotFound,
        ),
    ] {
        let error = core
            .call::<()>(service, &arguments)
            .await
            .expect_err("refused");
        assert_eq!(error.code(), code, "{arguments}: {error}");
    }
    assert!(core.published("devices.>").is_empty());
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_lamp_that_cannot_be_stored_is_not_switched() {
    let core = start().await;
    core.fail_storage(Some(Error::unavailable("no disk")));
    core.call::<Lamp>("devices.turn_on", "lamp_hall")
        .await
        .expect_err("not stored");
    core.fail_storage(None);
    let lamps: Vec<Lamp> = core.call("devices.list", &()).await.expect("a list");
    assert!(!lamps[0].on);
    assert!(core.published("devices.changed").is_empty());
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn people_walk_about_and_can_be_made_to() {
    let config = json!({ "rooms": ["hall"], "motion_every_ms": 4000, "seed": 7 });
    let core = TestRuntime::start_with_config(Devices::default(), &config)
        .await
        .expect("starts");
    let events = core
        .wait_published("devices.motion", 3)
        .await
        .expect("three moves");
    assert_eq!(
        events[0].parse::<Motion>().expect("a motion"),
        Motion::in_room("hall")
    );
    core.shutdown().await.expect("ends");

    let core = start().await;
    let motion: Motion = core
        .call("devices.simulate_motion", "kitchen")
        .await
        .expect("moved");
    let event = core
        .wait_published("devices.motion", 1)
        .await
        .expect("told")
        .remove(0);
    assert_eq!(
        (event.subject(), event.parse().ok()),
        ("motion_kitchen", Some(motion))
    );
    core.shutdown().await.expect("ends");
}
