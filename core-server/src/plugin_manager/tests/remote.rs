//! Channels of remote plugins: admission, hooks, resuming, heartbeats.

use super::*;
use crate::channel::LastRead;
use crate::channel::handshake::WireVersionMismatch;
use crate::error::{Classify as _, Reason};
use crate::service_registry::ServiceDescription;
use crate::types::ServiceName;

impl Home {
    /// A ready plugin with heartbeats, and the connection that it is heard by.
    pub(super) async fn pinged(&self, plugin: &str) -> (Link, LastRead) {
        self.phase(plugin, Phase::Connecting).await;
        let hello = Hello {
            ready: true,
            heartbeat: true,
            ..hello(plugin)
        };
        let link = self.open(plugin, hello).await.expect("admitted");
        let connection = LastRead::new(Instant::now());
        link.run.came_over(&connection);
        self.phase(plugin, Phase::Ready).await;
        (link, connection)
    }
}

/// A connection that HTTP/2 keeps alive, until this is dropped.
fn keep_alive(scope: &TaskScope, connection: &LastRead) -> tokio::sync::oneshot::Sender<()> {
    let (keep, mut dropped) = tokio::sync::oneshot::channel();
    let connection = connection.clone();
    scope.spawn_droppable("keep-alive", async move {
        while dropped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            connection.note(Instant::now());
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    keep
}

#[tokio::test(start_paused = true)]
async fn a_life_runs_from_welcome_to_the_end_in_order() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let mut link = home.open("lamp", hello("i")).await.expect("admitted");
    link.hook(Hook::Load).await;
    link.hook(Hook::Start).await;
    home.phase("lamp", Phase::Ready).await;
    assert_eq!(home.said(), ["lamp loaded", "lamp started"]);
    let stop = home.manager.stop("lamp", soon());
    let (stopped, ()) = tokio::join!(stop, link.hook(Hook::Stop));
    assert_eq!(stopped.expect("stopped").state, PluginState::Stopped);
    let unload = home.manager.unload("lamp", soon());
    let (unloaded, end) = tokio::join!(unload, async {
        link.hook(Hook::Unload).await;
        link.end().await
    });
    assert!(end.is_none(), "a clean end: {end:?}");
    let info = unloaded.expect("unloaded");
    assert_eq!(
        (info.state, info.phase, info.run),
        (PluginState::Unloaded, Phase::Idle, None)
    );
    assert_eq!(home.said(), ["lamp stopped", "lamp unloaded"]);
    let refused = home.open("lamp", hello("i")).await.err().expect("refused");
    assert_eq!(refused.reason(), Reason::NotWanted);
    assert!(refused.retry_after().is_some());
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn welcome_tells_the_run_and_which_services_were_refused() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let service = |text| {
        Ok(ServiceDescription::bare(
            ServiceName::parse(text).expect("good"),
        ))
    };
    let hello = Hello {
        ready: true,
        heartbeat: true,
        services: vec![service("lamp.turn_on"), service("other.turn_on")],
        ..hello("i")
    };
    let credential = Credential::of_remote(&name("lamp"));
    let (outbox, reader) = Outbox::new(1 << 20);
    let admitted = home
        .manager
        .open(credential, hello, outbox)
        .await
        .expect("admitted");
    let (run, channel) = (admitted.run, admitted.channel);
    let mut link = Link {
        manager: home.manager.clone(),
        run,
        channel,
        reader,
    };
    let welcome = welcome(link.next().await);
    assert_eq!(
        (welcome.run.as_str(), welcome.generation.0),
        (link.run.id().as_str(), 1)
    );
    assert_eq!(
        (welcome.resumed, welcome.config.as_ref()),
        (false, b"{}".as_slice())
    );
    assert_eq!(welcome.heartbeat_interval, Some(Duration::from_secs(5)));
    assert_eq!(welcome.refused.len(), 1);
    assert_eq!(welcome.refused[0].name, "other.turn_on");
    let info = home.phase("lamp", Phase::Ready).await;
    assert_eq!(info.services, ["lamp.turn_on"]);
    assert!(
        home.registry
            .describe("lamp.turn_on")
            .expect("there")
            .available
    );
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_process_resumes_and_another_one_is_refused() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let mut first = home.open("lamp", hello("one")).await.expect("admitted");
    first.hook(Hook::Load).await;
    first.hook(Hook::Start).await;
    home.phase("lamp", Phase::Ready).await;
    for other in ["two", ""] {
        let refused = home
            .open("lamp", hello(other))
            .await
            .err()
            .expect("refused");
        assert_eq!(refused.reason(), Reason::AlreadyConnected);
        assert!(refused.retry_after().is_some());
    }
    assert_eq!(
        home.pair("lamp"),
        (PluginState::Started, Phase::Ready),
        "unharmed"
    );

    let second = home.open("lamp", hello("one")).await.expect("resumed");
    assert_eq!(second.run.id(), first.run.id());
    let Some(Failure::System(why)) = first.end().await else {
        panic!("no reason")
    };
    assert_eq!(why.reason, Reason::ChannelReplaced);
    // What the replaced channel says and how it ends changes nothing.
    home.manager
        .bye(&first.run, first.channel, "old".to_owned());
    first.lose().await;
    assert_eq!(home.manager.dropped_reports(), 1);
    assert_eq!(home.pair("lamp"), (PluginState::Started, Phase::Ready));

    second.lose().await;
    home.phase("lamp", Phase::Suspended).await;
    let third = home.open("lamp", hello("one")).await.expect("resumed");
    let info = home.phase("lamp", Phase::Ready).await;
    assert_eq!((info.generation.0, info.restarts), (1, 0));
    third.lose().await;
    let info = home.phase("lamp", Phase::Backoff).await;
    assert_eq!(
        (info.reason, info.last_exit.expect("known").message.as_str()),
        ("channel_lost", "channel lost for 10 s")
    );
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_resumes_is_told_how_those_stand_that_it_looks_at() {
    let mut lamp = remote("lamp", &["devices"]);
    lamp.wants.push(name("panel"));
    let home = Home::new(vec![lamp, remote("devices", &[]), remote("panel", &[])]);
    home.phase("devices", Phase::Connecting).await;
    let _devices = home.obedient("devices").await;
    home.phase("devices", Phase::Ready).await;
    let mut link = home.open("lamp", hello("one")).await.expect("admitted");
    link.hook(Hook::Load).await;
    link.hook(Hook::Start).await;
    home.phase("lamp", Phase::Ready).await;
    link.lose().await;
    home.phase("lamp", Phase::Suspended).await;
    // Nobody can tell it now.
    let stopped = home.manager.stop("devices", soon()).await;
    stopped.expect("it obeys");
    let mut link = home.open("lamp", hello("one")).await.expect("resumed");
    for expected in ["devices", "panel"] {
        match link.next().await {
            Outbound::DependencyChanged { name, available } => {
                assert_eq!((name.as_str(), available), (expected, false));
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn eight_lost_runs_are_a_crash_loop_and_opens_are_told_to_wait() {
    let home = Home::new(vec![remote("lamp", &[])]);
    for run in 1..=8 {
        home.phase("lamp", Phase::Connecting).await;
        let raw = Hello {
            ready: true,
            ..Hello::default()
        };
        home.open("lamp", raw).await.expect("admitted").lose().await;
        let phase = if run < 8 {
            Phase::Backoff
        } else {
            Phase::CrashLoop
        };
        let info = home
            .until("lamp", |info| {
                info.phase == phase && info.generation.0 == run
            })
            .await;
        assert!(info.next_attempt_at.is_some());
        let refused = home.open("lamp", hello("i")).await.err().expect("refused");
        assert_eq!(refused.reason(), Reason::Backoff);
        let retry = refused.retry_after().expect("advice");
        if run == 8 {
            assert!((300..=375).contains(&retry.as_secs()), "{retry:?}");
        } else {
            tokio::time::advance(retry).await;
        }
    }
    let alerts = home
        .said()
        .iter()
        .filter(|said| *said == "lamp crash_loop")
        .count();
    assert_eq!(alerts, 1);
    // An operator skips the wait.
    let (info, link) = tokio::join!(home.manager.start("lamp", soon()), async {
        home.phase("lamp", Phase::Connecting).await;
        home.open(
            "lamp",
            Hello {
                ready: true,
                ..hello("i")
            },
        )
        .await
        .expect("admitted")
    });
    assert_eq!(info.expect("started").phase, Phase::Ready);
    assert!(home.said().contains(&"lamp recovered".to_owned()));
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_wire_version_is_refused_and_shown() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let newer = Hello {
        wire_versions: (7, 9),
        ..hello("i")
    };
    let error = home.open("lamp", newer).await.err().expect("refused");
    assert!(matches!(
        &error,
        Error::WireVersion(WireVersionMismatch { plugin: (7, 9), .. })
    ));
    assert!(
        home.phase("lamp", Phase::Incompatible)
            .await
            .message
            .contains("update the core")
    );
    let link = home
        .open(
            "lamp",
            Hello {
                ready: true,
                ..hello("i")
            },
        )
        .await
        .expect("updated");
    home.phase("lamp", Phase::Ready).await;
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_fails_ends_the_run_with_its_text() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let link = home.open("lamp", hello("i")).await.expect("admitted");
    let mut plugin = Obedient::new(&home.scope, link, |_| Err("no gateway".to_owned()));
    let info = home.phase("lamp", Phase::Backoff).await;
    assert_eq!(
        (info.reason, info.message.as_str()),
        ("hook_failed", "on_load failed: no gateway")
    );
    plugin.ended().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn unknown_and_repeated_hook_answers_change_nothing() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let mut link = home.open("lamp", hello("i")).await.expect("admitted");
    let Outbound::RunHook {
        hook: Hook::Load,
        hook_id,
        ..
    } = link.next().await
    else {
        panic!("no hook")
    };
    for _ in 0..10_000 {
        home.manager
            .hook_done(&link.run, link.channel, hook_id + 100, Ok(()));
    }
    assert_eq!(home.manager.dropped_reports(), 10_000);
    assert_eq!(home.pair("lamp").1, Phase::Loading);
    home.manager
        .hook_done(&link.run, link.channel, hook_id, Ok(()));
    link.hook(Hook::Start).await;
    home.phase("lamp", Phase::Ready).await;
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_misses_pings_is_degraded_until_it_answers() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (link, connection) = home.pinged("lamp").await;
    let keep = keep_alive(&home.scope, &connection);
    let (run, channel) = (Arc::clone(&link.run), link.channel);
    // It reads its pings and answers none.
    let lamp = Obedient::new(&home.scope, link, |_| Ok(()));
    let begin = Instant::now();
    let info = home.phase("lamp", Phase::Degraded).await;
    let took = begin.elapsed();
    assert!(took <= Duration::from_secs(15), "{took:?}");
    assert_eq!(info.reason, "heartbeat");
    run.note_pong(2, Instant::now());
    home.phase("lamp", Phase::Ready).await;
    home.manager
        .health(&run, channel, Some("no gateway".to_owned()));
    let info = home.phase("lamp", Phase::Degraded).await;
    assert_eq!(
        (info.reason, info.message.as_str()),
        ("health", "no gateway")
    );
    lamp.lose().await;
    drop(keep);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_plugin_is_ended_after_fifteen_seconds_although_its_channel_was_lost() {
    for lost_meanwhile in [false, true] {
        let home = Home::new(vec![remote("lamp", &[])]);
        let (link, connection) = home.pinged("lamp").await;
        connection.note(Instant::now());
        let begin = Instant::now();
        let run = Arc::clone(&link.run);
        let lamp = Obedient::new(&home.scope, link, |_| Ok(()));
        home.phase("lamp", Phase::Degraded).await;
        let _lamp = if lost_meanwhile {
            lamp.lose().await;
            home.phase("lamp", Phase::Suspended).await;
            None
        } else {
            Some(lamp)
        };
        let info = home.phase("lamp", Phase::Backoff).await;
        let took = begin.elapsed().as_secs_f64();
        assert!((14.9..=16.0).contains(&took), "{took}");
        assert_eq!(info.reason, "silent");
        assert!(run.ended().is_cancelled());
        home.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_is_heard_but_answers_no_ping_is_ended_after_a_minute() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (link, connection) = home.pinged("lamp").await;
    let keep = keep_alive(&home.scope, &connection);
    let _lamp = Obedient::new(&home.scope, link, |_| Ok(()));
    let begin = Instant::now();
    home.phase("lamp", Phase::Degraded).await;
    // Longer than other waits of these tests.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let info = home.phase("lamp", Phase::Backoff).await;
    let took = begin.elapsed().as_secs_f64();
    assert!((59.0..=65.0).contains(&took), "{took}");
    assert_eq!(info.reason, "unresponsive");
    drop(keep);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_core_ends_and_degrades_nobody() {
    let home = Home::new(vec![
        remote("lamp", &[]),
        remote("slow", &[]),
        remote("lost", &[]),
        remote("stuck", &[]),
    ]);
    let (lamp, connection) = home.pinged("lamp").await;
    let lamp = Obedient::new(&home.scope, lamp, |_| Ok(()));
    connection.note(Instant::now());
    // One in `on_load`, one whose channel is lost, one whose channel is not read.
    home.phase("slow", Phase::Connecting).await;
    let mut slow = home.open("slow", hello("slow")).await.expect("admitted");
    home.phase("lost", Phase::Connecting).await;
    home.open("lost", hello("lost"))
        .await
        .expect("admitted")
        .lose()
        .await;
    home.phase("stuck", Phase::Connecting).await;
    let _stuck = home.open("stuck", hello("stuck")).await.expect("admitted");
    home.phase("lost", Phase::Suspended).await;
    // As after SIGSTOP and SIGCONT: nobody ran meanwhile.
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(300)).await;
        // What comes first afterwards must not be judged by the old deadlines.
        home.manager
            .extend(&slow.run, slow.channel, 1, Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(home.pair("lamp"), (PluginState::Started, Phase::Ready));
        assert_eq!(home.pair("slow").1, Phase::Loading);
        assert_eq!(home.pair("lost").1, Phase::Suspended);
        assert_eq!(home.pair("stuck").1, Phase::Loading);
    }
    // And then the clock runs as ever.
    slow.hook(Hook::Load).await;
    slow.hook(Hook::Start).await;
    home.phase("slow", Phase::Ready).await;
    home.phase("lost", Phase::Backoff).await;
    home.phase("lamp", Phase::Degraded).await;
    lamp.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_not_read_is_closed_after_fifteen_seconds() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let mut link = home.open("lamp", hello("i")).await.expect("admitted");
    let begin = Instant::now();
    home.phase("lamp", Phase::Suspended).await;
    let waited = begin.elapsed().as_secs();
    assert!((14..=17).contains(&waited), "{waited}");
    let Some(Failure::System(why)) = link.end().await else {
        panic!("no reason")
    };
    assert_eq!(why.reason, Reason::ChannelStalled);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_bye_ends_the_run_at_once() {
    let home = Home::new(vec![remote("lamp", &[])]);
    home.phase("lamp", Phase::Connecting).await;
    let mut link = home
        .open(
            "lamp",
            Hello {
                ready: true,
                ..hello("i")
            },
        )
        .await
        .expect("admitted");
    home.phase("lamp", Phase::Ready).await;
    tokio::time::advance(Duration::from_secs(6)).await;
    home.manager.bye(&link.run, link.channel, "done".to_owned());
    let info = home.phase("lamp", Phase::Backoff).await;
    assert_eq!(
        (info.reason, info.message.as_str()),
        ("bye", "it left: done")
    );
    assert!(link.run.ended().is_cancelled());
    link.end().await;
    home.phase("lamp", Phase::Connecting).await;
    home.close().await;
}
