use std::time::Duration;

use tokio_stream::StreamExt as _;

use super::table::MAX_SERVICES_PER_PLUGIN;
use super::*;
use crate::types::Generation;

fn run(plugin: &str) -> Arc<Run> {
    Run::new(PluginName::parse(plugin).expect("good name"), Generation(1))
}

fn service(name: &str) -> ServiceDescription {
    ServiceDescription::bare(ServiceName::parse(name).expect("good name"))
}

#[test]
fn a_duplicate_is_refused_naming_the_owner() {
    let registry = ServiceRegistry::new();
    let (lamp, other) = (run("lamp"), run("other"));
    registry.register(&lamp, service("lamp.on")).expect("first");
    let error = registry
        .register(&other, service("lamp.on"))
        .expect_err("second");
    assert_eq!(
        error.to_string(),
        "service \"lamp.on\" is registered by plugin \"lamp\""
    );
    registry
        .register(&lamp, service("lamp.on"))
        .expect("the same run describes anew");
}

#[test]
fn a_registration_ends_with_its_run_and_stays_known() {
    let registry = ServiceRegistry::new();
    let lamp = run("lamp");
    registry
        .register(&lamp, service("lamp.on"))
        .expect("registered");
    registry.set_available(lamp.plugin(), true);
    assert!(registry.describe("lamp.on").expect("known").available);
    registry.end_run(lamp.id());
    let info = registry.describe("lamp.on").expect("still known");
    assert!(!info.available && info.registered_at.is_none());
    let next = run("lamp");
    registry
        .register(&next, service("lamp.on"))
        .expect("the next run takes it again");
    assert!(
        !registry.unregister(lamp.id(), "lamp.on"),
        "an ended run has nothing to take back"
    );
    assert!(registry.unregister(next.id(), "lamp.on"));
}

#[test]
fn an_unknown_service_suggests_the_nearest() {
    let registry = ServiceRegistry::new();
    registry
        .register(&run("devices"), service("devices.turn_off"))
        .expect("registered");
    let error = registry.find("devices.turn_of").expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "service \"devices.turn_of\" is not registered; did you mean \"devices.turn_off\"?"
    );
}

#[test]
fn names_per_plugin_are_bounded_and_known_ones_give_way() {
    let registry = ServiceRegistry::new();
    let first = run("lamp");
    for index in 0..MAX_SERVICES_PER_PLUGIN {
        registry
            .register(&first, service(&format!("lamp.s{index}")))
            .expect("within the limit");
    }
    let error = registry
        .register(&first, service("lamp.more"))
        .expect_err("one too many");
    assert!(matches!(error, Error::TooMany { .. }));
    registry.unregister(first.id(), "lamp.s7");
    registry
        .register(&first, service("lamp.more"))
        .expect("a known name gives way");
    assert!(registry.find("lamp.s7").is_err());
}

#[test]
fn lists_are_in_order_and_resume_after_a_name() {
    let registry = ServiceRegistry::new();
    let lamp = run("lamp");
    for name in ["lamp.c", "lamp.a", "lamp.b"] {
        registry.register(&lamp, service(name)).expect("registered");
    }
    let names = |list: Vec<ServiceInfo>| {
        list.into_iter()
            .map(|info| info.description.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(registry.list(None, None, 2)), ["lamp.a", "lamp.b"]);
    assert_eq!(names(registry.list(None, Some("lamp.b"), 2)), ["lamp.c"]);
    let pattern = Pattern::parse("*.b").expect("good");
    assert_eq!(names(registry.list(Some(&pattern), None, 9)), ["lamp.b"]);
}

#[tokio::test]
async fn a_watch_tells_the_snapshot_then_changes_newest_only() {
    let registry = ServiceRegistry::new();
    let lamp = run("lamp");
    registry
        .register(&lamp, service("lamp.on"))
        .expect("registered");
    let mut watch = registry.watch(None);
    assert!(matches!(watch.next().await, Some(WatchItem::Service(_))));
    assert!(matches!(watch.next().await, Some(WatchItem::SnapshotEnd)));
    registry.set_available(lamp.plugin(), true);
    registry.end_run(lamp.id());
    match watch.next().await {
        Some(WatchItem::Unregistered(name)) => assert_eq!(name.as_str(), "lamp.on"),
        other => panic!("unexpected {other:?}"),
    }
    let quiet = tokio::time::timeout(Duration::from_millis(1), watch.next()).await;
    assert!(quiet.is_err(), "both changes were one item");
}

#[test]
fn a_run_that_has_ended_registers_nothing() {
    let registry = ServiceRegistry::new();
    let lamp = run("lamp");
    lamp.ended().cancel();
    registry.end_run(lamp.id());
    assert!(matches!(
        registry.register(&lamp, service("lamp.on")),
        Err(Error::RunEnded { .. })
    ));
    assert!(registry.find("lamp.on").is_err());
}

#[test]
fn watchers_that_are_gone_leave_nothing_behind() {
    let registry = ServiceRegistry::new();
    let kept = registry.watch(None);
    for _ in 0..10_000 {
        drop(registry.watch(None));
    }
    assert!(registry.watchers.len() < 100, "{}", registry.watchers.len());
    drop(kept);
}

#[test]
fn each_call_counts_in_the_bucket_of_its_time() {
    let stats = ServiceStats::default();
    let micros = Duration::from_micros;
    for took in [0, 25, 26, 1_000, 1_001, 9_999_999, 10_000_000, 10_000_001] {
        stats.ended(micros(took), took == 26);
    }
    stats.ended(Duration::MAX, true);
    assert_eq!(
        stats.latency(),
        [
            (Some(micros(25)), 2),
            (Some(micros(50)), 1),
            (Some(micros(1_000)), 1),
            (Some(micros(2_500)), 1),
            (Some(micros(10_000_000)), 2),
            (None, 2),
        ]
    );
    let (calls, errors, in_flight, _) = stats.snapshot();
    assert_eq!((calls, errors, in_flight), (9, 2, 0));
}

#[test]
fn what_a_run_may_not_offer_is_withdrawn_and_comes_back_with_its_grant() {
    let registry = ServiceRegistry::new();
    let lamp = run("lamp");
    for name in ["lamp.on", "geo.lookup"] {
        registry.register(&lamp, service(name)).expect("registered");
    }
    registry.withhold(&lamp, service("geo.erase"));
    let own = |name: &str| name.starts_with("lamp.");
    let names = |names: &[ServiceName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let changed = registry.review(&lamp, own);
    assert_eq!(names(&changed.withdrawn), ["geo.lookup"]);
    assert_eq!(names(&registry.registered_by(lamp.id())), ["lamp.on"]);
    assert!(
        registry
            .describe("geo.lookup")
            .expect("known")
            .registered_at
            .is_none()
    );
    // What the plugin takes back meanwhile does not return.
    registry.withhold(&lamp, service("geo.other"));
    registry.unregister(lamp.id(), "geo.other");
    let changed = registry.review(&lamp, |_| true);
    assert_eq!(names(&changed.taken_in), ["geo.erase", "geo.lookup"]);
    assert!(changed.withdrawn.is_empty() && changed.refused.is_empty());
    assert_eq!(
        names(&registry.registered_by(lamp.id())),
        ["geo.erase", "geo.lookup", "lamp.on"]
    );
}

#[test]
fn a_name_that_another_took_meanwhile_is_told_and_an_ended_run_gets_nothing() {
    let registry = ServiceRegistry::new();
    let (lamp, other) = (run("lamp"), run("other"));
    registry
        .register(&lamp, service("geo.lookup"))
        .expect("registered");
    let _withdrawn = registry.review(&lamp, |_| false);
    registry
        .register(&other, service("geo.lookup"))
        .expect("free by now");
    let changed = registry.review(&lamp, |_| true);
    assert!(
        matches!(&changed.refused[..], [Error::Taken { .. }]),
        "{changed:?}"
    );
    registry.withhold(&lamp, service("geo.erase"));
    registry.end_run(lamp.id());
    assert!(registry.review(&lamp, |_| true).taken_in.is_empty());
}
