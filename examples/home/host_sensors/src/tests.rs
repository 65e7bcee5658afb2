use std::path::Path;

use plugin_sdk::testing::TestRuntime;

use super::*;

fn manifest() -> toml::Table {
    include_str!("../plugin.toml")
        .parse()
        .expect("plugin.toml is TOML")
}

#[test]
fn the_manifest_names_the_plugin_and_shows_the_defaults() {
    let manifest = manifest();
    assert_eq!(
        manifest["name"].as_str(),
        Some(HostSensors::new().into_plugin().name())
    );
    let config: Config = manifest["config"].clone().try_into().expect("it fits");
    assert_eq!(config, Config::default());
}

#[tokio::test(start_paused = true)]
async fn each_turn_is_published_and_kept() {
    let core = TestRuntime::start(HostSensors::new())
        .await
        .expect("starts");
    let events = core
        .wait_published("host_sensors.sample", 3)
        .await
        .expect("three turns");
    let sample: Sample = events[2].parse().expect("a sample");
    assert!(
        sample.load.is_some() && sample.memory.is_some(),
        "{sample:?}"
    );
    let latest = core.state("host_sensors.latest").expect("in the state");
    Sample::deserialize(latest).expect("a sample");
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_reading_is_taken_when_asked_for() {
    let config = json!({ "interval_ms": 3_600_000, "thresholds": { "memory_percent": 0.0 } });
    let core = TestRuntime::start_with_config(HostSensors::new(), &config)
        .await
        .expect("starts");
    let sample: Sample = core.call("host_sensors.read", &()).await.expect("a sample");
    assert!(sample.uptime_seconds > Some(0.0));
    let kinds: Vec<_> = sample
        .warnings
        .iter()
        .map(|warning| warning.kind.as_str())
        .collect();
    assert!(
        kinds.contains(&"memory"),
        "a threshold of 0 is always reached: {kinds:?}"
    );
    core.shutdown().await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_configuration_is_refused_by_name() {
    let config = json!({ "thresholds": { "memory_percent": "much" } });
    let error = TestRuntime::start_with_config(HostSensors::new(), &config)
        .await
        .expect_err("refused");
    assert_eq!(error.metadata("field"), Some("thresholds.memory_percent"));
}

#[test]
fn a_failing_source_degrades_the_plugin_and_no_more() {
    let root = tempfile::tempdir().expect("a directory");
    let sample = Machine::at(root.path()).measure(Path::new("/"));
    let Health::Degraded(text) = health(&sample) else {
        panic!("nothing can be read: {sample:?}");
    };
    assert!(
        text.starts_with("load: /proc/loadavg: No such file"),
        "{text}"
    );
    assert_eq!(health(&Sample::default()), Health::Ok);
}
