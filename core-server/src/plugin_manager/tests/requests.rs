//! Requests, dependencies, requests for all, shutdown.

use super::*;
use crate::error::{Classify as _, Reason};

#[tokio::test(start_paused = true)]
async fn dependents_start_after_what_they_require_and_learn_of_its_loss() {
    let home = Home::new(vec![remote("lamp", &["devices"]), remote("devices", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let lamp = home.obedient("lamp").await;
    let info = home.phase("lamp", Phase::WaitingDependency).await;
    assert_eq!(info.message, "waits for devices (connecting)");
    let devices = home.obedient("devices").await;
    home.phase("lamp", Phase::Ready).await;
    assert_eq!(lamp.got(), ["devices true", "on_load", "on_start"]);
    assert_eq!(
        home.said(),
        [
            "devices loaded",
            "devices started",
            "lamp loaded",
            "lamp started"
        ]
    );
    devices.lose().await;
    home.phase("devices", Phase::Backoff).await;
    home.until("lamp", |info| info.phase == Phase::Ready).await;
    assert_eq!(lamp.got(), ["devices false"], "told, and left alone");
    lamp.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_loss_stops_or_restarts_where_the_manifest_says_so() {
    for (on_loss, expected) in [
        (OnLoss::Stop, vec!["devices false", "on_stop"]),
        (
            OnLoss::Restart,
            vec!["devices false", "on_stop", "on_unload"],
        ),
    ] {
        let mut lamp = remote("lamp", &["devices"]);
        lamp.on_loss.insert(name("devices"), on_loss);
        let home = Home::new(vec![lamp, remote("devices", &[])]);
        home.phase("devices", Phase::Connecting).await;
        let devices = home.obedient("devices").await;
        let lamp = home.obedient("lamp").await;
        home.phase("lamp", Phase::Ready).await;
        lamp.got();
        devices.lose().await;
        match on_loss {
            OnLoss::Stop => {
                home.until("lamp", |info| info.state == PluginState::Stopped)
                    .await
            }
            _ => {
                home.until("lamp", |info| info.state == PluginState::Unloaded)
                    .await
            }
        };
        assert_eq!(lamp.got(), expected);
        // Everything that is wanted comes back unaided.
        let lamp = match on_loss {
            OnLoss::Stop => lamp,
            _ => home.obedient("lamp").await,
        };
        home.phase("devices", Phase::Connecting).await;
        let devices = home.obedient("devices").await;
        let info = home.phase("lamp", Phase::Ready).await;
        assert_eq!(info.desired, PluginState::Started);
        devices.lose().await;
        drop(lamp);
        home.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn several_levels_that_restart_end_from_the_outside_in_and_begin_from_the_inside_out() {
    let restarting = |plugin: &str, required: &str| {
        let mut manifest = remote(plugin, &[required]);
        manifest.on_loss.insert(name(required), OnLoss::Restart);
        manifest
    };
    let home = Home::new(vec![
        remote("hub", &[]),
        restarting("devices", "hub"),
        restarting("lamp", "devices"),
        remote("panel", &["devices"]),
    ]);
    home.phase("hub", Phase::Connecting).await;
    let hub = home.obedient("hub").await;
    let devices = home.obedient("devices").await;
    let lamp = home.obedient("lamp").await;
    let panel = home.obedient("panel").await;
    home.phase("lamp", Phase::Ready).await;
    home.phase("panel", Phase::Ready).await;
    home.said();
    devices.got();
    let begin = Instant::now();
    // Its process says that it goes: the run ends at once.
    let run = home.info("hub").run.expect("a run");
    hub.lose().await;
    home.until("hub", |info| info.run.as_ref() != Some(&run))
        .await;
    let lost_after = begin.elapsed();
    home.until("devices", |info| info.run.is_none()).await;
    assert!(
        begin.elapsed() - lost_after < Duration::from_millis(100),
        "told at once"
    );
    assert_eq!(
        home.said(),
        [
            "hub unloaded",
            "hub crashed",
            "lamp stopped",
            "lamp unloaded",
            "devices stopped",
            "devices unloaded"
        ]
    );
    assert_eq!(devices.got(), ["hub false", "on_stop", "on_unload"]);
    assert_eq!(
        home.pair("panel"),
        (PluginState::Started, Phase::Ready),
        "told, and left alone"
    );
    // They come back in any order and begin in theirs.
    home.phase("lamp", Phase::Connecting).await;
    let _lamp = home.obedient("lamp").await;
    let waits = home.phase("lamp", Phase::WaitingDependency).await;
    assert_eq!(waits.message, "waits for devices (connecting)");
    let _devices = home.obedient("devices").await;
    home.phase("hub", Phase::Connecting).await;
    let _hub = home.obedient("hub").await;
    let info = home.phase("lamp", Phase::Ready).await;
    let started: Vec<_> = home
        .said()
        .into_iter()
        .filter(|said| said.ends_with("started"))
        .collect();
    assert_eq!(started, ["hub started", "devices started", "lamp started"]);
    assert_eq!((info.generation.0, info.restarts), (2, 1));
    drop((lamp, panel));
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_circle_is_refused_with_its_path_and_others_are_not_harmed() {
    let home = Home::new(vec![
        remote("a", &["b"]),
        remote("b", &["a"]),
        remote("c", &["a"]),
        remote("lamp", &[]),
    ]);
    home.phase("lamp", Phase::Connecting).await;
    let error = home.manager.start("a", soon()).await.expect_err("refused");
    assert_eq!(error.reason(), Reason::DependencyCycle);
    assert!(
        error
            .metadata()
            .contains(&("path", "a -> b -> a".to_owned())),
        "{error}"
    );
    let info = home.info("b");
    assert_eq!(
        (info.phase, info.reason),
        (Phase::ConfigError, "dependency_cycle")
    );
    let lamp = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    let c = home.obedient("c").await;
    assert_eq!(
        home.phase("c", Phase::WaitingDependency).await.message,
        "waits for a (config_error)"
    );
    drop((lamp, c));
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_dependency_is_waited_for_visibly() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let requires = vec![name("ghost")];
    let hello = Hello {
        requires,
        ..hello("i")
    };
    let link = home.open("lamp", hello).await.expect("admitted");
    let info = home.phase("lamp", Phase::WaitingDependency).await;
    assert_eq!(info.message, "waits for ghost (not installed)");
    assert_eq!(info.requires, [name("ghost")]);
    let deadline = Instant::now() + Duration::from_secs(2);
    let error = home
        .manager
        .start("lamp", deadline)
        .await
        .expect_err("late");
    assert_eq!(error.reason(), Reason::Deadline);
    assert!(error.to_string().contains("ghost"), "{error}");
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn impossible_requests_name_state_request_and_what_is_possible() {
    let home = Home::new(vec![Manifest {
        autostart: false,
        ..remote("lamp", &[])
    }]);
    let error = home
        .manager
        .stop("lamp", soon())
        .await
        .expect_err("refused");
    assert_eq!(error.reason(), Reason::WrongState);
    let facts = error.metadata();
    assert!(facts.contains(&("state", "UNLOADED".to_owned())));
    assert!(facts.contains(&("request", "stop".to_owned())));
    assert!(facts.contains(&("allowed", "load,start,unload,restart".to_owned())));
    let error = home
        .manager
        .start("lapm", soon())
        .await
        .expect_err("unknown");
    assert!(
        error.to_string().ends_with("did you mean \"lamp\"?"),
        "{error}"
    );
    assert_eq!(
        home.manager
            .unload("lamp", soon())
            .await
            .map(|info| info.phase),
        Ok(Phase::Idle)
    );
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_request_wins() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let (start, again, unload) = tokio::join!(
        home.manager.start("lamp", soon()),
        home.manager.start("lamp", soon()),
        async {
            tokio::task::yield_now().await;
            home.manager.unload("lamp", soon()).await
        }
    );
    for start in [start, again] {
        assert_eq!(start.expect_err("superseded").reason(), Reason::Superseded);
    }
    assert_eq!(unload.expect("unloaded").desired, PluginState::Unloaded);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_answered_with_its_cause() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let (start, plugin) = tokio::join!(home.manager.start("lamp", soon()), async {
        let link = home.open("lamp", hello("i")).await.expect("admitted");
        Obedient::new(&home.scope, link, |hook| match hook {
            Hook::Start => Err("no gateway".to_owned()),
            _ => Ok(()),
        })
    });
    let error = start.expect_err("failed");
    assert_eq!(error.reason(), Reason::PluginFailed);
    assert!(error.metadata().contains(&("phase", "backoff".to_owned())));
    assert!(
        error.to_string().contains("on_start failed: no gateway"),
        "{error}"
    );
    drop(plugin);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_ends_the_run_and_waits_for_the_next() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let mut lamp = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    let (info, again) = tokio::join!(home.manager.restart("lamp", soon()), async {
        lamp.ended().await;
        home.obedient("lamp").await
    });
    let info = info.expect("restarted");
    assert_eq!(
        (info.generation.0, info.phase, info.restarts),
        (2, Phase::Ready, 0)
    );
    assert_eq!(lamp.got(), ["on_load", "on_start", "on_stop", "on_unload"]);
    drop(again);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_outlives_the_core() {
    let manifests = || vec![remote("lamp", &[]), remote("geo", &[])];
    let home = Home::new(manifests());
    home.manager.unload("lamp", soon()).await.expect("unloaded");
    let data = Arc::clone(&home.data);
    home.close().await;
    let home = Home::build(manifests(), HashMap::new(), data);
    assert_eq!(home.info("lamp").desired, PluginState::Unloaded);
    assert_eq!(home.info("geo").desired, PluginState::Started);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn all_start_in_order_and_stop_in_reverse_and_absent_ones_are_not_waited_for() {
    let home = Home::new(vec![
        remote("a", &[]),
        remote("b", &["a"]),
        remote("c", &["b"]),
        remote("absent", &[]),
        remote("behind", &["absent"]),
    ]);
    home.phase("a", Phase::Connecting).await;
    let plugins = [
        home.obedient("c").await,
        home.obedient("behind").await,
        home.obedient("b").await,
        home.obedient("a").await,
    ];
    let begin = Instant::now();
    let results = home.manager.start_all(soon()).await.expect("answered");
    assert!(begin.elapsed() < Duration::from_secs(1), "nobody waited");
    let failed: Vec<_> = results
        .iter()
        .filter_map(|(info, result)| result.as_ref().err().map(|_| info.name.as_str()))
        .collect();
    assert_eq!(failed, ["absent", "behind"]);
    let started = |said: Vec<String>| -> Vec<String> {
        said.into_iter()
            .filter(|said| said.ends_with(" started"))
            .collect()
    };
    assert_eq!(
        started(home.said()),
        ["a started", "b started", "c started"]
    );

    let begin = Instant::now();
    let results = home.manager.stop_all(soon()).await.expect("answered");
    assert!(
        results.iter().all(|(_, result)| result.is_ok()),
        "{results:?}"
    );
    assert_eq!(home.said(), ["c stopped", "b stopped", "a stopped"]);
    assert_eq!(
        begin.elapsed(),
        Duration::ZERO,
        "the next is told at once, not when the worker wakes for something else"
    );
    assert_eq!(home.info("a").desired, PluginState::Stopped);
    home.manager.start_all(soon()).await.expect("answered");
    assert_eq!(
        started(home.said()),
        ["a started", "b started", "c started"]
    );
    drop(plugins);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_goes_level_by_level_and_ends_in_time_with_a_hung_plugin() {
    let home = Home::new(vec![
        remote("a", &[]),
        remote("b", &["a"]),
        remote("c", &["b"]),
    ]);
    home.phase("a", Phase::Connecting).await;
    let (a, c) = (home.obedient("a").await, home.obedient("c").await);
    let mut b = home.open("b", hello("i")).await.expect("admitted");
    b.hook(Hook::Load).await;
    b.hook(Hook::Start).await;
    home.phase("c", Phase::Ready).await;
    home.said();
    let begin = Instant::now();
    let report = home.manager.shutdown(begin + Duration::from_secs(9)).await;
    assert!(
        begin.elapsed() <= Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
    assert!(report.survivors.is_empty(), "{report:?}");
    let order: Vec<_> = home
        .said()
        .into_iter()
        .filter(|said| said.ends_with(" unloaded"))
        .collect();
    assert_eq!(order, ["c unloaded", "b unloaded", "a unloaded"]);
    assert_eq!(
        a.got().last().map(String::as_str),
        Some("on_unload"),
        "the last had its time"
    );
    let Some(Failure::System(why)) = b.end().await else {
        panic!("no reason")
    };
    assert_eq!(why.reason, Reason::ShuttingDown);
    let error = home.manager.start("a", soon()).await.expect_err("refused");
    assert_eq!(error.reason(), Reason::ShuttingDown);
    let error = home.open("a", hello("i")).await.err().expect("refused");
    assert_eq!(error.reason(), Reason::ShuttingDown);
    assert_eq!(
        home.info("a").desired,
        PluginState::Started,
        "wanted again after the next boot"
    );
    drop(c);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_shutdown_in_more_of_a_hurry_skips_all_grace() {
    let home = Home::new(vec![remote("a", &[]), remote("b", &["a"])]);
    home.phase("a", Phase::Connecting).await;
    let mut links = Vec::new();
    for plugin in ["a", "b"] {
        let mut link = home.open(plugin, hello("i")).await.expect("admitted");
        link.hook(Hook::Load).await;
        link.hook(Hook::Start).await;
        home.phase(plugin, Phase::Ready).await;
        links.push(link);
    }
    let begin = Instant::now();
    let (first, second) = tokio::join!(
        home.manager.shutdown(begin + Duration::from_secs(60)),
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            home.manager.shutdown(begin + Duration::from_secs(2)).await
        }
    );
    assert_eq!(first, second);
    assert!(
        begin.elapsed() <= Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_all_is_no_success_before_it_is_on_the_disk_even_of_plugins_at_rest() {
    let home = Home::new(vec![remote("a", &[]), remote("b", &["a"])]);
    home.phase("a", Phase::Connecting).await;
    // Nothing can take its place.
    std::fs::create_dir(home.data.path().join("desired.json")).expect("made");
    let results = home.manager.stop_all(soon()).await.expect("answered");
    let reasons = results.iter().map(|(info, result)| {
        let error = result.as_ref().expect_err("not kept");
        (info.name.as_str(), error.reason())
    });
    let expected = [("a", Reason::NotKept), ("b", Reason::NotKept)];
    assert_eq!(reasons.collect::<Vec<_>>(), expected);
    assert_eq!(home.info("a").desired, PluginState::Stopped, "in force");
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_with_a_snapshot() {
    let home = Home::new(vec![remote("a", &[]), remote("b", &[])]);
    home.phase("b", Phase::Connecting).await;
    let mut items = std::pin::pin!(home.manager.watch());
    let mut names = Vec::new();
    while let Some(WatchItem::Plugin(info)) = items.next().await {
        names.push(info.name.to_string());
    }
    names.sort();
    assert_eq!(names, ["a", "b"]);
    home.manager.unload("a", soon()).await.expect("unloaded");
    let next = timeout(PATIENCE, items.next())
        .await
        .expect("in time")
        .expect("an item");
    assert!(matches!(next, WatchItem::Plugin(info) if info.name.as_str() == "a"));
    home.close().await;
}
