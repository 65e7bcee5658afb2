//! Another configuration while plugins run.

use serde_json::json;

use super::*;
use crate::channel::Verdict;

const CONFIG_TIME: Duration = Duration::from_secs(5);

fn configured(manifest: &Manifest, port: u16) -> Manifest {
    let mut manifest = manifest.clone();
    manifest.config.insert("port".to_owned(), json!(port));
    manifest
}

fn kinds(reloaded: &Reloaded) -> Vec<(&str, ChangeKind)> {
    let changes = reloaded.changes.iter();
    changes
        .map(|change| (change.name.as_str(), change.kind))
        .collect()
}

fn live(instance: &str) -> Hello {
    Hello {
        live_config: true,
        ..hello(instance)
    }
}

impl Home {
    async fn reload(&self, manifests: &[Manifest]) -> Reloaded {
        let reload = self.manager.reload(manifests.to_vec());
        timeout(PATIENCE, reload)
            .await
            .expect("an answer")
            .expect("reloaded")
    }

    /// A plugin that takes configurations live, brought to ready; hooks are answered.
    async fn live(&self, plugin: &str) -> Link {
        let mut link = self.open(plugin, live(plugin)).await.expect("admitted");
        link.hook(Hook::Load).await;
        link.hook(Hook::Start).await;
        self.phase(plugin, Phase::Ready).await;
        link
    }
}

impl Link {
    /// The next frame is a changed configuration: its revision and text.
    async fn changed(&mut self) -> (u64, String) {
        match self.next().await {
            Outbound::ConfigChanged { revision, config } => {
                (revision, String::from_utf8_lossy(&config).into_owned())
            }
            other => panic!("expected ConfigChanged, got {other:?}"),
        }
    }

    fn answer(&self, revision: u64, verdict: Verdict) {
        self.manager
            .config_result(&self.run, self.channel, revision, verdict);
    }
}

#[tokio::test(start_paused = true)]
async fn new_plugins_appear_removed_ones_go_and_the_rest_is_untouched() {
    let (sun, lamp) = (remote("sun", &[]), remote("lamp", &[]));
    let home = Home::new(vec![sun.clone(), lamp]);
    let mut kept = home.obedient("sun").await;
    let mut gone = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    home.phase("sun", Phase::Ready).await;
    let mut watch = std::pin::pin!(home.manager.watch());
    while watch.next().await.expect("goes on") != WatchItem::SnapshotEnd {}
    let fan = remote("fan", &["sun"]);
    let reloaded = home.reload(&[sun.clone(), fan.clone()]).await;
    let expected = [("fan", ChangeKind::Added), ("lamp", ChangeKind::Removed)];
    assert_eq!(kinds(&reloaded), expected);
    assert_eq!(reloaded.unchanged, 1);
    gone.ended().await;
    assert_eq!(gone.got(), ["on_load", "on_start", "on_stop", "on_unload"]);
    let removed = async {
        loop {
            match watch.next().await.expect("goes on") {
                WatchItem::Removed(name) => break name,
                _ => continue,
            }
        }
    };
    let removed = timeout(PATIENCE, removed).await.expect("told");
    assert_eq!(removed.as_str(), "lamp");
    assert!(matches!(
        home.manager.get("lamp"),
        Err(Error::NoSuchPlugin { .. })
    ));
    assert!(home.manager.logs("lamp", LogQuery::default()).is_err());
    assert!(home.said().contains(&"lamp removed".to_owned()));
    assert!(matches!(
        home.open("lamp", hello("x")).await,
        Err(Error::BadCredential { .. })
    ));
    let _fan = home.obedient("fan").await;
    home.phase("fan", Phase::Ready).await;
    assert_eq!(kept.got(), ["on_load", "on_start"]);
    assert!(!*kept.ended.borrow_and_update());
    // Put back, it is a plugin like any other: its removal was no wish about it.
    let reloaded = home.reload(&[sun, fan, remote("lamp", &[])]).await;
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Added)]);
    let info = home.phase("lamp", Phase::Connecting).await;
    assert_eq!(info.desired, PluginState::Started);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_manifest_begins_another_run_that_counts_as_asked_for() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut first = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    let newer = Manifest {
        version: "2".to_owned(),
        ..lamp
    };
    let reloaded = home.reload(&[newer]).await;
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Restarted)]);
    first.ended().await;
    let _second = home.obedient("lamp").await;
    let info = home.phase("lamp", Phase::Ready).await;
    assert_eq!((info.version.as_str(), info.restarts), ("2", 0));
    assert_eq!(info.generation.0, 2);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_replaced_is_none_any_more() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let Kind::Remote { token: Some(old) } = &lamp.kind else {
        unreachable!("it is remote")
    };
    let new = Token::random();
    let rotated = Manifest {
        kind: Kind::Remote {
            token: Some(new.clone()),
        },
        ..lamp.clone()
    };
    home.reload(&[rotated]).await;
    assert!(home.credentials.verify(old.reveal()).is_none());
    assert!(home.credentials.verify(new.reveal()).is_some());
    home.reload(&[]).await;
    assert!(home.credentials.verify(new.reveal()).is_none());
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_alone_is_sent_and_taken_without_a_restart() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut link = home.live("lamp").await;
    assert_eq!(home.info("lamp").config_revision, 1);
    let newer = [configured(&lamp, 2)];
    let answer = async {
        let (revision, config) = link.changed().await;
        assert_eq!((revision, config.as_str()), (2, r#"{"port":2}"#));
        // Of another revision: nothing.
        link.answer(1, Verdict::Rejected("no".to_owned()));
        link.answer(revision, Verdict::Applied);
    };
    let (reloaded, ()) = tokio::join!(home.reload(&newer), answer);
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Reconfigured)]);
    let info = home.info("lamp");
    assert_eq!((info.config_revision, info.generation.0), (2, 1));
    assert_eq!(info.phase, Phase::Ready);
    assert!(home.reload(&newer).await.changes.is_empty());
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_rejected_configuration_leaves_the_old_one_in_force() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut link = home.live("lamp").await;
    let newer = [configured(&lamp, 2)];
    let answer = async {
        let (revision, _) = link.changed().await;
        link.answer(revision, Verdict::Rejected("port 2 is taken".to_owned()));
    };
    let (reloaded, ()) = tokio::join!(home.reload(&newer), answer);
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Rejected)]);
    assert_eq!(reloaded.changes[0].message, "port 2 is taken");
    let info = home.info("lamp");
    assert_eq!(info.config_rejected, "port 2 is taken");
    assert_eq!((info.config_revision, info.generation.0), (1, 1));
    // Asked again, it may think better of it.
    let answer = async {
        let (revision, _) = link.changed().await;
        link.answer(revision, Verdict::Applied);
    };
    let (reloaded, ()) = tokio::join!(home.reload(&newer), answer);
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Reconfigured)]);
    assert_eq!(home.info("lamp").config_rejected, "");
    assert_eq!(home.info("lamp").config_revision, 3);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn silence_and_a_wish_for_it_end_in_a_restart_with_the_new_configuration() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    for (port, silent) in [(2, true), (3, false)] {
        let mut link = home.live("lamp").await;
        let newer = [configured(&lamp, port)];
        let began = Instant::now();
        let play = async {
            let (revision, _) = link.changed().await;
            if !silent {
                link.answer(revision, Verdict::RestartNeeded("new port".to_owned()));
            }
        };
        let (reloaded, ()) = tokio::join!(home.reload(&newer), play);
        assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Restarted)]);
        assert_eq!(began.elapsed() >= CONFIG_TIME, silent);
        link.hook(Hook::Stop).await;
        link.hook(Hook::Unload).await;
        link.end().await;
        link.lose().await;
        home.phase("lamp", Phase::Connecting).await;
        assert_eq!(home.info("lamp").config_revision, u64::from(port));
    }
    let (outbox, mut reader) = Outbox::new(1 << 20);
    let credential = Credential::of_remote(&name("lamp"));
    home.manager
        .open(credential, hello("x"), outbox)
        .await
        .expect("admitted");
    let frame = reader.next().await.expect("a frame").expect("no error");
    let welcome = welcome(frame);
    assert_eq!(&welcome.config[..], br#"{"port":3}"#);
    assert_eq!(welcome.config_revision, 3);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_feature_a_changed_configuration_restarts() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut first = home.obedient("lamp").await;
    home.phase("lamp", Phase::Ready).await;
    let reloaded = home.reload(&[configured(&lamp, 2)]).await;
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Restarted)]);
    first.ended().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ends_over_its_new_configuration_is_followed_by_one_that_has_it() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut link = home.live("lamp").await;
    let newer = [configured(&lamp, 2)];
    let die = async {
        link.changed().await;
        home.manager
            .bye(&link.run, link.channel, "too much".to_owned());
    };
    let (reloaded, ()) = tokio::join!(home.reload(&newer), die);
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Restarted)]);
    assert_eq!(home.info("lamp").config_revision, 2);
    // It crashed with the old one.
    home.phase("lamp", Phase::Backoff).await;
    let crashed = home.recorder.crashes.lock().pop().expect("announced");
    assert_eq!(crashed["config_revision"], 1);
    assert_eq!(home.manager.crash_reports("lamp")[0].config_revision, 1);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_comes_back_brings_what_is_on_offer_once_more() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    for (port, cut_before) in [(2, false), (3, true)] {
        let mut link = match port {
            2 => home.live("lamp").await,
            _ => home.open("lamp", live("lamp")).await.expect("resumed"),
        };
        let newer = [configured(&lamp, port)];
        let mut reload = std::pin::pin!(home.reload(&newer));
        if !cut_before {
            tokio::select! {
                _ = &mut reload => panic!("it is not answered yet"),
                _ = link.changed() => {}
            }
        }
        link.lose().await;
        home.phase("lamp", Phase::Suspended).await;
        let resume = async {
            home.until("lamp", |info| info.phase == Phase::Suspended)
                .await;
            let mut link = home.open("lamp", live("lamp")).await.expect("resumed");
            let (revision, _) = link.changed().await;
            link.answer(revision, Verdict::Applied);
            link
        };
        let (reloaded, link) = tokio::join!(reload, resume);
        assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Reconfigured)]);
        let info = home.phase("lamp", Phase::Ready).await;
        assert_eq!((info.config_revision, info.generation.0), (port.into(), 1));
        // Answered, it is not sent again.
        link.lose().await;
        home.phase("lamp", Phase::Suspended).await;
        let mut link = home.open("lamp", live("lamp")).await.expect("resumed");
        let next = timeout(Duration::from_secs(1), link.reader.next());
        assert!(next.await.is_err(), "nothing to say");
        link.lose().await;
        home.phase("lamp", Phase::Suspended).await;
    }
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_cores_lateness_moves_an_offers_deadline_once() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut link = home.live("lamp").await;
    let newer = [configured(&lamp, 2)];
    // Moved twice, the answer would come after the test's patience.
    let late = Duration::from_secs(15);
    let began = Instant::now();
    let stall = async {
        link.changed().await;
        tokio::time::advance(late).await;
    };
    let (reloaded, ()) = tokio::join!(home.reload(&newer), stall);
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Restarted)]);
    let waited = began.elapsed().saturating_sub(late);
    assert!(waited <= CONFIG_TIME + Duration::from_secs(2), "{waited:?}");
    assert!(waited + Duration::from_secs(1) >= CONFIG_TIME, "{waited:?}");
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_circle_is_refused_and_changes_nothing_and_an_old_one_can_be_mended() {
    let (a, b) = (remote("a", &["b"]), remote("b", &[]));
    let home = Home::new(vec![a.clone(), b.clone()]);
    let mut playing = home.obedient("b").await;
    home.phase("b", Phase::Ready).await;
    let bad = Manifest {
        requires: vec![name("a")],
        version: "2".to_owned(),
        ..b.clone()
    };
    let refused = home.manager.reload(vec![a.clone(), bad.clone()]).await;
    assert!(matches!(refused, Err(Error::DependencyCycle { .. })));
    assert_eq!(home.info("b").version, "");
    assert!(!*playing.ended.borrow_and_update());
    home.close().await;

    let home = Home::new(vec![a.clone(), bad.clone()]);
    home.phase("a", Phase::ConfigError).await;
    let sun = remote("sun", &[]);
    let reloaded = home.reload(&[a.clone(), bad, sun.clone()]).await;
    assert_eq!(reloaded.changes.len(), 3, "tried again, added");
    assert_eq!(home.info("a").phase, Phase::ConfigError);
    home.reload(&[a, b, sun]).await;
    home.phase("b", Phase::Connecting).await;
    home.phase("a", Phase::Connecting).await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_after_a_failure_is_tried_now_changed_or_not() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp.clone()]);
    let mut generation = 0;
    for newer in [lamp.clone(), configured(&lamp, 2)] {
        // It comes and goes until there is a long wait.
        for _ in 0..4 {
            home.phase("lamp", Phase::Connecting).await;
            let link = home.open("lamp", hello("")).await.expect("admitted");
            link.lose().await;
            generation += 1;
            home.phase("lamp", Phase::Backoff).await;
        }
        let before = Instant::now();
        home.reload(&[newer]).await;
        let info = home.phase("lamp", Phase::Connecting).await;
        assert_eq!(info.generation.0, generation);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_manifest_wants_holds_until_somebody_asked_for_something_else() {
    let lamp = remote("lamp", &[]);
    let idle = Manifest {
        autostart: false,
        ..lamp.clone()
    };
    let home = Home::new(vec![lamp.clone()]);
    let desired = || home.info("lamp").desired;
    let reloaded = home.reload(std::slice::from_ref(&idle)).await;
    assert_eq!(kinds(&reloaded), [("lamp", ChangeKind::Updated)]);
    assert_eq!(desired(), PluginState::Unloaded);
    home.reload(std::slice::from_ref(&lamp)).await;
    assert_eq!(desired(), PluginState::Started);
    home.reload(std::slice::from_ref(&idle)).await;
    let ask = home.manager.load("lamp", Instant::now());
    assert!(ask.await.is_err(), "nobody connects");
    home.reload(&[lamp]).await;
    assert_eq!(desired(), PluginState::Loaded, "an operator's word stands");
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn plugins_on_their_way_out_are_ended_by_the_cores_own_end() {
    let lamp = remote("lamp", &[]);
    let home = Home::new(vec![lamp]);
    let mut link = home.live("lamp").await;
    home.reload(&[]).await;
    link.hook(Hook::Stop).await;
    // It does not answer `on_unload`.
    let report = home.manager.shutdown(soon()).await;
    assert!(report.survivors.is_empty(), "{report:?}");
    assert!(matches!(
        home.manager.reload(Vec::new()).await,
        Err(Error::ShuttingDown)
    ));
    home.close().await;
}
