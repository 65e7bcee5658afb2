use std::sync::Arc;

use plugin_sdk::testing::TestRuntime;
use tokio::sync::mpsc;

use super::*;

/// A house in which every call is written down: service and arguments.
struct House {
    core: TestRuntime,
    calls: mpsc::Receiver<(String, Value)>,
    note: mpsc::Sender<(String, Value)>,
}

impl House {
    async fn start() -> Self {
        let core = TestRuntime::start(Automation::new()).await.expect("starts");
        let (note, calls) = mpsc::channel(64);
        let house = Self { core, calls, note };
        for service in ["devices.turn_on", "devices.turn_off", "notifications.send"] {
            house.answer(service, || Ok(()));
        }
        house
    }

    fn answer(&self, service: &str, answer: impl Fn() -> Result + Send + Sync + 'static) {
        let (note, name, answer) = (self.note.clone(), service.to_owned(), Arc::new(answer));
        self.core.stub(service, move |arguments| {
            let (note, name, answer) = (note.clone(), name.clone(), Arc::clone(&answer));
            async move {
                note.send((name, arguments)).await?;
                answer()
            }
        });
    }

    fn motion(&self, room: &str) {
        self.core
            .emit("devices.motion", json!({ "room": room }))
            .expect("a topic");
    }

    /// The next call that the automation makes.
    async fn call(&mut self) -> (String, Value) {
        let next = tokio::time::timeout(secs(300), self.calls.recv());
        next.await.expect("in time").expect("the sender is ours")
    }

    /// Waits until so many actions have been done; returns the history.
    async fn done(&self, actions: usize) -> Vec<Record> {
        self.core
            .wait_published("automation.done", actions)
            .await
            .expect("in time");
        self.core
            .call("automation.history", &())
            .await
            .expect("a list")
    }
}

fn call(service: &str, arguments: Value) -> (String, Value) {
    (service.to_owned(), arguments)
}

#[test]
fn the_manifest_names_the_plugin_and_shows_the_defaults() {
    let manifest: toml::Table = include_str!("../plugin.toml")
        .parse()
        .expect("plugin.toml is TOML");
    assert_eq!(
        manifest["name"].as_str(),
        Some(Automation::new().into_plugin().name())
    );
    let rules: Rules = manifest["config"].clone().try_into().expect("it fits");
    assert_eq!(rules, Rules::default());
}

#[tokio::test(start_paused = true)]
async fn motion_switches_a_lamp_on_and_later_off() {
    let mut house = House::start().await;
    house.motion("hall");
    let on = json!({ "device_id": "lamp_hall", "level": 100 });
    assert_eq!(house.call().await, call("devices.turn_on", on));
    let told = json!({ "text": "Somebody moved in the hall", "urgency": "info" });
    assert_eq!(house.call().await, call("notifications.send", told));
    let off = json!({ "device_id": "lamp_hall" });
    assert_eq!(house.call().await, call("devices.turn_off", off));

    let history = house.done(3).await;
    let numbers: Vec<_> = history.iter().map(|record| record.number).collect();
    assert_eq!(numbers, [3, 2, 1], "newest first");
    assert!(history[0].at >= history[2].at + 30_000, "{history:?}");
    house.core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn by_night_the_light_is_dim() {
    let mut house = House::start().await;
    house.core.stub("sunlight.now", |_| async {
        Ok(json!({ "hour": 23, "period": "night" }))
    });
    house.motion("hall");
    assert_eq!(
        house.call().await.1,
        json!({ "device_id": "lamp_hall", "level": 30 })
    );
    house.core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_slow_sun_does_not_keep_people_in_the_dark() {
    let mut house = House::start().await;
    house.core.stub("sunlight.now", |_| async {
        tokio::time::sleep(secs(3600)).await;
        Ok(())
    });
    house.motion("hall");
    assert_eq!(
        house.call().await.1,
        json!({ "device_id": "lamp_hall", "level": 100 })
    );
    house.core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn strain_is_reported_once() {
    let mut house = House::start().await;
    for _ in 0..3 {
        let sample =
            json!({ "cpus": 2, "warnings": [{ "kind": "load", "text": "the load is 9" }] });
        house
            .core
            .emit("host_sensors.sample", sample)
            .expect("a topic");
    }
    let warning = json!({ "text": "the load is 9", "urgency": "warning" });
    assert_eq!(house.call().await, call("notifications.send", warning));
    // Events come in order: the repeated warning has been seen, and passed over, before this one.
    house
        .core
        .emit(
            "host_sensors.sample",
            json!({ "warnings": [{ "kind": "disk", "text": "full" }] }),
        )
        .expect("a topic");
    assert_eq!(house.call().await.1["text"], "full");
    house.core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_lamp_that_failed_to_go_off_is_tried_again() {
    let mut house = House::start().await;
    house.answer("devices.turn_off", || Err(Error::unavailable("no bulb")));
    house.motion("hall");
    for expected in ["devices.turn_on", "notifications.send", "devices.turn_off"] {
        assert_eq!(house.call().await.0, expected);
    }
    let error = house.done(3).await.remove(0).error.expect("it failed");
    assert!(error.contains("no bulb"), "{error}");
    house.answer("devices.turn_off", || Ok(()));
    assert_eq!(house.call().await.0, "devices.turn_off");
    assert_eq!(house.done(4).await[0].error, None);
    house.core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_lamp_goes_off_also_after_a_restart() {
    let mut house = House::start().await;
    house.motion("hall");
    for expected in ["devices.turn_on", "notifications.send"] {
        assert_eq!(house.call().await.0, expected);
    }
    house.done(2).await;
    house.core.unload().await.expect("unloaded");
    house.core.start_again().await.expect("started");
    assert_eq!(house.call().await.0, "devices.turn_off");
    assert_eq!(house.done(3).await[0].number, 3);
    house.core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn the_rules_are_told_in_words() {
    let house = House::start().await;
    let rules: Vec<String> = house
        .core
        .call("automation.rules", &())
        .await
        .expect("a list");
    assert_eq!(rules.len(), 4);
    house.core.shutdown().await.expect("ends");
}
