//! Two instances of one remote plugin: a second copy is refused while the first lives, and what comes up in
//! the place of one that fell silent is not kept waiting for it.

use std::time::{Duration, Instant};

use core_proto::contract::FEATURE_HEARTBEAT;
use core_tests::{
    Declared, Faults, Hello, Outsider, Proxy, RawPlugin, TestCore, Told, Way, eventually, signal,
};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use super::ECHO;

/// What another instance waits for one that is silent: for its answer, and the back-off after a lost run.
/// On a free machine 3 s; liveness alone takes 15 s.
const SOON: Duration = Duration::from_secs(6);

async fn core() -> TestCore {
    TestCore::builder()
        .tcp()
        .plugin(Declared::remote("lamp"))
        .start()
        .await
}

/// Starts another instance, and sees it in the place of `old`.
async fn replaces(core: &TestCore, old: &Outsider) -> Outsider {
    let before = core.operator().plugin("lamp").await;
    let begin = Instant::now();
    let new = Outsider::start(ECHO, &core.tcp_address().into(), core.token("lamp"), "lamp");
    let operator = core.operator();
    let after = operator.until("lamp", "the next run is ready", |lamp| {
        lamp.generation > before.generation && lamp.phase == "ready"
    });
    let after = after.await;
    let took = begin.elapsed();
    assert!(took < SOON, "{took:?}");
    assert_eq!(after.generation, before.generation + 1);
    let pid = operator.call("lamp.pid", json!({})).await;
    assert_eq!(pid.expect("it answers"), json!(new.pid()));
    assert_ne!(new.pid(), old.pid());
    new
}

#[tokio::test]
async fn one_that_stands_still_gives_way_and_is_the_second_copy_when_it_goes_on() {
    let core = core().await;
    let operator = core.operator();
    let network = Proxy::before(core.tcp_address(), 0).await;
    let old = Outsider::start(ECHO, &network.address().into(), core.token("lamp"), "lamp");
    let before = operator.until_phase("lamp", "ready").await;
    let connections = network.accepted();
    signal(old.pid(), Signal::STOP);
    let new = replaces(&core, &old).await;
    let ended = operator.plugin("lamp").await.last_exit.expect("an end");
    assert_eq!(
        ended.message,
        "another instance came, and it gave no sign of life for 2 s"
    );

    signal(old.pid(), Signal::CONT);
    // It comes again, and is refused.
    network.reset();
    eventually!(network.accepted() > connections);
    let pid = operator.call("lamp.pid", json!({})).await;
    assert_eq!(pid.expect("it answers"), json!(new.pid()));
    let after = operator.plugin("lamp").await;
    assert_eq!(after.generation, before.generation + 1);
    core.shutdown().await;
}

#[tokio::test]
async fn one_whose_network_is_cut_gives_way() {
    let core = core().await;
    let network = Proxy::before(core.tcp_address(), 0).await;
    let old = Outsider::start(ECHO, &network.address().into(), core.token("lamp"), "lamp");
    core.operator().until_phase("lamp", "ready").await;
    // Nobody is told of its end, as of a machine whose power failed.
    network.set(Faults::both(Way::held()));
    replaces(&core, &old).await;
    core.shutdown().await;
}

#[tokio::test]
async fn one_that_was_killed_gives_way() {
    let core = core().await;
    let old = Outsider::start(ECHO, &core.tcp_address().into(), core.token("lamp"), "lamp");
    core.operator().until_phase("lamp", "ready").await;
    signal(old.pid(), Signal::KILL);
    core.operator().until_phase("lamp", "suspended").await;
    replaces(&core, &old).await;
    core.shutdown().await;
}

#[tokio::test]
async fn one_that_lives_keeps_its_run_though_its_network_is_slow() {
    let core = core().await;
    let operator = core.operator();
    let network = Proxy::before(core.tcp_address(), 0).await;
    let old = Outsider::start(ECHO, &network.address().into(), core.token("lamp"), "lamp");
    let before = operator.until_phase("lamp", "ready").await;
    for latency in [0, 300] {
        network.set(Faults::both(Way {
            latency: Duration::from_millis(latency),
            ..Way::default()
        }));
        // More often than one SDK would: any of these is a chance to be taken for dead.
        for _ in 0..5 {
            let hello = Hello::ready().feature(FEATURE_HEARTBEAT);
            let refused = RawPlugin::open(&core.remote("lamp").another_connection(), hello).await;
            let told = Told::by(&refused.expect_err("a second copy"));
            told.is(Code::AlreadyExists, "ALREADY_CONNECTED")
                .says("lamp");
            assert!(told.retry, "{told:?}");
        }
    }
    let pid = operator.call("lamp.pid", json!({})).await;
    assert_eq!(pid.expect("it answers"), json!(old.pid()));
    let after = operator.plugin("lamp").await;
    assert_eq!(
        (after.generation, after.phase),
        (before.generation, before.phase)
    );
    core.shutdown().await;
}
