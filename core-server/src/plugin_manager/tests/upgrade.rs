//! Upgrades of real child processes; their channels are played by the test. What happens after how long
//! is the business of `trial`.

use super::children::{IDLE, child};
use super::*;
use crate::config::{Replaced, Upgrade, UpgradeSource, Upgrades};
use crate::error::{Classify as _, Reason};
use crate::routing::Call;
use crate::service_registry::ServiceDescription;
use crate::types::{Payload, ServiceName, Source};

fn record(program: &str) -> Upgrade {
    Upgrade {
        source: UpgradeSource::Program(program.into()),
        replaces: Replaced::default(),
    }
}

fn version(data: &std::path::Path, version: &str, script: &str) -> Manifest {
    Manifest {
        version: version.to_owned(),
        ..child("lamp", script, data)
    }
}

struct Lamp {
    home: Home,
    old: Manifest,
}

impl Lamp {
    async fn ready() -> (Self, Obedient) {
        let data = Arc::new(tempfile::tempdir().expect("a directory"));
        let old = version(data.path(), "1", IDLE);
        let home = Home::build(vec![old.clone()], HashMap::new(), data);
        let playing = home.play("lamp", 1).await;
        home.phase("lamp", Phase::Ready).await;
        (Self { home, old }, playing)
    }

    fn new_version(&self, script: &str) -> Manifest {
        version(self.home.data.path(), "2", script)
    }

    async fn upgrade(&self, manifest: Manifest) -> Result<PluginInfo, Error> {
        let upgrade = self.home.manager.upgrade(manifest, record("/new"), soon());
        timeout(PATIENCE, upgrade).await.expect("an answer")
    }

    fn recorded(&self) -> bool {
        let upgrades = Upgrades::read(self.home.data.path()).expect("readable");
        upgrades.get(&name("lamp")) == Some(&record("/new"))
    }

    /// The record is written beside the manager's work: nothing tells when it is gone.
    async fn until_taken_back(&self) {
        let gone = async {
            while self.recorded() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, gone)
            .await
            .expect("it is not recorded any more");
    }

    async fn end(self) {
        self.home.manager.shutdown(soon()).await;
        self.home.close().await;
    }
}

#[tokio::test]
async fn a_good_version_takes_the_place_in_order_and_is_written_down_once_ready() {
    let (lamp, mut first) = Lamp::ready().await;
    let upgrade = lamp.upgrade(lamp.new_version(IDLE));
    let play = async {
        let playing = lamp.home.play("lamp", 2).await;
        assert!(!lamp.recorded(), "not before it is ready");
        playing
    };
    let (upgraded, _second) = tokio::join!(upgrade, play);
    let info = upgraded.expect("upgraded");
    assert_eq!((info.version.as_str(), info.phase), ("2", Phase::Ready));
    assert_eq!(first.got(), ["on_load", "on_start", "on_stop", "on_unload"]);
    first.ended().await;
    lamp.home.until("lamp", |_| lamp.recorded()).await;
    // What the configuration says is what runs: nothing is to be done.
    let same = lamp.home.manager.reload(vec![lamp.new_version(IDLE)]).await;
    assert!(same.expect("reloaded").changes.is_empty());
    lamp.end().await;
}

#[tokio::test]
async fn a_version_that_is_never_ready_is_taken_back() {
    let (lamp, _first) = Lamp::ready().await;
    let mut silent = lamp.new_version("exec sleep 1000");
    silent.timeouts.connect = Duration::from_millis(100);
    for (generation, bad) in [(3, silent), (5, lamp.new_version("exit 1"))] {
        let error = lamp.upgrade(bad).await.expect_err("taken back");
        assert_eq!(error.reason(), Reason::UpgradeRolledBack, "{error}");
        let _again = lamp.home.play("lamp", generation).await;
        let info = lamp.home.phase("lamp", Phase::Ready).await;
        assert_eq!(
            (info.version.as_str(), info.reason),
            ("1", "upgrade_rolled_back")
        );
        assert!(info.message.contains("runs again"), "{}", info.message);
        assert!(!lamp.recorded());
        assert!(lamp.home.said().contains(&"lamp crashed".to_owned()));
    }
    // The next change has its own story.
    let changed = Manifest {
        version: "1b".to_owned(),
        ..lamp.old.clone()
    };
    lamp.home.manager.reload(vec![changed]).await.expect("good");
    let _last = lamp.home.play("lamp", 6).await;
    let info = lamp.home.phase("lamp", Phase::Ready).await;
    assert_eq!(info.reason, "");
    lamp.end().await;
}

#[tokio::test]
async fn a_version_that_fails_soon_after_ready_is_taken_back_once() {
    let (lamp, _first) = Lamp::ready().await;
    let dies = "echo \"token=$CORE_TOKEN\"; while [ ! -e ../../die ]; do sleep 0.01; done; exit 3";
    let upgrade = lamp.upgrade(lamp.new_version(dies));
    let (upgraded, _second) = tokio::join!(upgrade, lamp.home.play("lamp", 2));
    assert_eq!(upgraded.expect("ready").version, "2");
    lamp.home.until("lamp", |_| lamp.recorded()).await;
    let die = lamp.home.data.path().join("die");
    std::fs::write(die, "").expect("written");
    let third = lamp.home.play("lamp", 3).await;
    let info = lamp.home.phase("lamp", Phase::Ready).await;
    assert_eq!(
        (info.version.as_str(), info.reason),
        ("1", "upgrade_rolled_back")
    );
    assert!(info.message.contains("exit code 3"), "{}", info.message);
    lamp.until_taken_back().await;
    // It fails too: the ordinary rules.
    drop(third);
    let pid = i32::try_from(info.pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let _fourth = lamp.home.play("lamp", 4).await;
    let info = lamp.home.phase("lamp", Phase::Ready).await;
    assert_eq!(info.version, "1");
    lamp.end().await;
}

#[tokio::test]
async fn a_failed_upgrade_of_an_upgraded_plugin_leaves_the_earlier_one_written_down() {
    let (lamp, _first) = Lamp::ready().await;
    let second = lamp.new_version(IDLE);
    let (upgraded, _second) = tokio::join!(lamp.upgrade(second.clone()), lamp.home.play("lamp", 2));
    upgraded.expect("upgraded");
    lamp.home.until("lamp", |_| lamp.recorded()).await;
    let third = version(lamp.home.data.path(), "3", "exit 1");
    let upgrade = lamp.home.manager.upgrade(third, record("/newest"), soon());
    let failed = timeout(PATIENCE, upgrade).await.expect("an answer");
    assert!(matches!(failed, Err(Error::RolledBack { .. })));
    let _again = lamp.home.play("lamp", 4).await;
    let info = lamp.home.phase("lamp", Phase::Ready).await;
    assert_eq!(info.version, "2");
    // What a reload reads: the second version, which runs.
    assert!(lamp.recorded());
    let reloaded = lamp.home.manager.reload(vec![second]).await;
    assert!(reloaded.expect("reloaded").changes.is_empty());
    assert_eq!(lamp.home.info("lamp").generation.0, 4);
    lamp.end().await;
}

#[tokio::test]
async fn going_back_is_announced_once_even_where_nothing_crashed() {
    let (lamp, _first) = Lamp::ready().await;
    let mut leaves = lamp.new_version("exit 0");
    leaves.restart.mode = RestartMode::OnFailure;
    leaves.restart.min_uptime = Duration::ZERO;
    for (generation, bad, reason) in [
        (3, leaves, "upgrade_rolled_back"),
        (5, lamp.new_version("exit 1"), "exited"),
    ] {
        lamp.home.recorder.crashes.lock().clear();
        let failed = lamp.upgrade(bad).await;
        assert!(matches!(failed, Err(Error::RolledBack { .. })));
        let _again = lamp.home.play("lamp", generation).await;
        lamp.home.phase("lamp", Phase::Ready).await;
        let crashes = lamp.home.recorder.crashes.lock().clone();
        let told = crashes.iter().map(|crash| {
            let field = |key: &str| crash[key].as_str().unwrap_or_default().to_owned();
            (
                field("reason"),
                field("plugin_version"),
                crash["generation"].as_u64(),
            )
        });
        let expected = (reason.to_owned(), "2".to_owned(), Some(generation - 1));
        assert_eq!(told.collect::<Vec<_>>(), [expected]);
    }
    lamp.end().await;
}

#[tokio::test]
async fn an_operators_word_and_a_newer_upgrade_take_an_upgrades_place() {
    let (lamp, _first) = Lamp::ready().await;
    let slow = || lamp.new_version("exec sleep 1000");
    let newer = async {
        lamp.home.until("lamp", |info| info.generation.0 == 2).await;
        lamp.upgrade(lamp.new_version(IDLE)).await
    };
    let (replaced, newer, _playing) =
        tokio::join!(lamp.upgrade(slow()), newer, lamp.home.play("lamp", 3));
    assert!(matches!(replaced, Err(Error::Superseded { .. })));
    newer.expect("upgraded");
    let unload = async {
        lamp.home.until("lamp", |info| info.generation.0 == 4).await;
        lamp.home.manager.unload("lamp", soon()).await
    };
    let (replaced, unloaded) = tokio::join!(lamp.upgrade(slow()), unload);
    assert!(matches!(replaced, Err(Error::Superseded { .. })));
    unloaded.expect("unloaded");
    // Not wanted to run, it is simply installed.
    let info = lamp
        .upgrade(lamp.new_version(IDLE))
        .await
        .expect("installed");
    assert_eq!(info.phase, Phase::Idle);
    lamp.end().await;
}

#[tokio::test]
async fn what_the_core_does_not_start_is_not_upgraded_by_it() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let refused = home.manager.upgradable("lamp").expect_err("remote");
    assert_eq!(refused.reason(), Reason::UpgradeRefused);
    let data = home.data.path().to_owned();
    let upgrade = home
        .manager
        .upgrade(version(&data, "2", IDLE), record("/new"), soon());
    let refused = upgrade.await.expect_err("remote");
    assert_eq!(refused.reason(), Reason::UpgradeRefused);
    home.close().await;
}

#[tokio::test]
async fn calls_in_the_gap_wait_for_the_new_version() {
    let (lamp, _first) = Lamp::ready().await;
    let service = ServiceName::parse("lamp.turn_on").expect("good");
    let describe = || ServiceDescription::bare(service.clone());
    let run = lamp.home.info("lamp").run.expect("a run");
    let first = lamp.home.runs.get("lamp").expect("live");
    assert_eq!(*first.id(), run);
    lamp.home
        .registry
        .register(&first, describe())
        .expect("registered");
    let call = || Call {
        service: service.to_string(),
        arguments: Payload::default(),
        timeout: Some(PATIENCE),
        wait_for_ready: false,
        caller: Source::Operator,
        slot: None,
        cause: None,
        traceparent: String::new(),
    };
    let upgrade = lamp.upgrade(lamp.new_version(IDLE));
    let gap = async {
        // The old version is gone, the new one is not there yet.
        lamp.home.until("lamp", |info| info.generation.0 == 2).await;
        lamp.home.router.call_and_wait(call()).await
    };
    let play = async {
        let credential = lamp.home.credential("lamp", 2).await;
        let hello = Hello {
            services: vec![Ok(describe())],
            ready: true,
            ..hello("i")
        };
        let mut link = lamp
            .home
            .open_as(credential, hello)
            .await
            .expect("admitted");
        loop {
            if let Outbound::Call(call) = link.next().await {
                let answer = Payload {
                    data: "2".into(),
                    ..Payload::default()
                };
                let router = &lamp.home.router;
                router.complete(&name("lamp"), link.channel, call.call_id, Ok(answer));
                break link;
            }
        }
    };
    let (upgraded, answered, _link) = tokio::join!(upgrade, gap, play);
    upgraded.expect("upgraded");
    assert_eq!(&answered.expect("answered").data[..], b"2");
    lamp.end().await;
}
