//! The machine alone: named stories, and random sequences of events against its invariants.

use std::time::Duration;

mod ends;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::channel::{Gate, Hook};
use crate::plugin_manager::RestartMode;

fn settings(origin: Origin) -> Settings {
    Settings {
        origin,
        restart: RestartPolicy::default(),
        timeouts: Timeouts::default(),
    }
}

/// A machine and its clock.
#[derive(Clone)]
struct Play {
    state: State,
    now: Instant,
    out: Vec<Action>,
}

impl Play {
    fn new(origin: Origin, desired: PluginState) -> Self {
        let now = Instant::now();
        let state = State::new(settings(origin), desired, 7, now);
        let mut play = Self {
            state,
            now,
            out: Vec::new(),
        };
        play.feed(Event::Dependencies(None));
        play
    }

    fn feed(&mut self, event: Event) -> &mut Self {
        let (state, out) = step(&self.state, event, self.now);
        assert!(
            is_legal(state.state(), state.phase()),
            "{:?} {:?}",
            state.state(),
            state.phase()
        );
        self.state = state;
        self.out.extend(out);
        self
    }

    fn run(&mut self, event: RunEvent) -> &mut Self {
        let generation = self.state.generation();
        self.feed(Event::Run(generation, event))
    }

    fn hook(&mut self, result: Result<(), String>) -> &mut Self {
        let hook_id = self.state.awaited_hook().expect("a hook runs");
        self.run(RunEvent::HookDone { hook_id, result })
    }

    /// Lets time pass to the next deadline.
    fn wait(&mut self) -> Duration {
        let at = self.state.next_deadline().expect("a deadline");
        let waited = at.saturating_duration_since(self.now);
        self.now = self.now.max(at);
        self.feed(Event::Tick);
        waited
    }

    fn open(&mut self) -> &mut Self {
        if self.state.wants_slot() {
            self.feed(Event::Slot).run(RunEvent::Spawned);
        }
        self.feed(Event::Opened {
            ready: false,
            resumable: true,
        })
    }

    fn started(origin: Origin) -> Self {
        let mut play = Self::new(origin, PluginState::Started);
        play.open().hook(Ok(())).hook(Ok(()));
        play.expect(PluginState::Started, Phase::Ready);
        play.out.clear();
        play
    }

    fn expect(&self, state: PluginState, phase: Phase) {
        assert_eq!((self.state.state(), self.state.phase()), (state, phase));
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }
}

fn exit(code: i32) -> RunEvent {
    RunEvent::Exited(Exit {
        code: Some(code),
        ..Exit::default()
    })
}

#[test]
fn a_child_is_spawned_loaded_and_started_in_this_order() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    play.expect(PluginState::Unloaded, Phase::Spawning);
    play.feed(Event::Slot);
    assert_eq!(play.take(), [Action::Spawn]);
    play.run(RunEvent::Spawned)
        .expect(PluginState::Unloaded, Phase::Connecting);
    play.open().expect(PluginState::Unloaded, Phase::Loading);
    assert!(matches!(
        play.take()[..],
        [Action::RunHook {
            hook: Hook::Load,
            ..
        }]
    ));
    play.hook(Ok(()))
        .expect(PluginState::Loaded, Phase::Starting);
    let out = play.take();
    assert!(matches!(
        out[..],
        [
            Action::Announce(Topic::Loaded),
            Action::RunHook {
                hook: Hook::Start,
                ..
            }
        ]
    ));
    play.hook(Ok(())).expect(PluginState::Started, Phase::Ready);
    assert_eq!(
        play.take(),
        [
            Action::Gate(Gate::Open),
            Action::Route(Route::Open),
            Action::Announce(Topic::Started)
        ]
    );
}

#[test]
fn a_ready_plugin_skips_hooks_but_unload() {
    let mut play = Play::new(Origin::Remote, PluginState::Started);
    play.expect(PluginState::Unloaded, Phase::Connecting);
    play.feed(Event::Opened {
        ready: true,
        resumable: false,
    });
    play.expect(PluginState::Started, Phase::Ready);
    let announced = |topic| Action::Announce(topic);
    let out = play.take();
    assert!(out.contains(&announced(Topic::Loaded)) && out.contains(&announced(Topic::Started)));
    assert!(
        !out.iter()
            .any(|action| matches!(action, Action::RunHook { .. }))
    );
    play.feed(Event::Request(Request::Stop))
        .run(RunEvent::Drained);
    play.expect(PluginState::Stopped, Phase::Idle);
    play.take();
    play.feed(Event::Request(Request::Unload));
    assert!(matches!(
        play.take()[..],
        [Action::RunHook {
            hook: Hook::Unload,
            ..
        }]
    ));
    play.run(RunEvent::ChannelLost);
    play.expect(PluginState::Unloaded, Phase::Idle);
    assert_eq!(
        play.take(),
        [
            Action::Announce(Topic::Unloaded),
            Action::CloseChannel(Farewell::Clean),
            Action::EndRun
        ]
    );
}

#[test]
fn stop_closes_the_route_drains_and_keeps_process_and_channel() {
    let mut play = Play::started(Origin::Hosted);
    play.feed(Event::Request(Request::Stop));
    assert_eq!(play.take(), [Action::Route(Route::Closed), Action::Drain]);
    assert_eq!(
        play.wait(),
        Duration::from_secs(2),
        "calls in flight get two seconds"
    );
    let out = play.take();
    assert_eq!(out[0], Action::Gate(Gate::Closed));
    assert!(matches!(
        out[1..],
        [Action::RunHook {
            hook: Hook::Stop,
            ..
        }]
    ));
    play.hook(Ok(())).expect(PluginState::Stopped, Phase::Idle);
    assert_eq!(play.take(), [Action::Announce(Topic::Stopped)]);
    play.feed(Event::Request(Request::Start)).hook(Ok(()));
    play.expect(PluginState::Started, Phase::Ready);
}

#[test]
fn a_plugin_that_ignores_everything_is_killed_nine_seconds_after_the_request() {
    let mut play = Play::started(Origin::Hosted);
    play.feed(Event::Request(Request::Unload));
    let begin = play.now;
    let mut terminated = None;
    for _ in 0..10 {
        play.wait();
        let out = play.take();
        if out.contains(&Action::Terminate) {
            terminated = Some(play.now - begin);
        }
        if out.contains(&Action::Kill) {
            break;
        }
    }
    assert_eq!(terminated, Some(Duration::from_secs(7)));
    assert_eq!(play.now - begin, Duration::from_secs(9));
    play.expect(PluginState::Unloaded, Phase::Unloading);
    assert!(!play.state.is_hung(), "it has a second to go");
    play.wait();
    assert!(play.state.is_hung());
    play.run(RunEvent::Exited(Exit {
        signal: Some(9),
        ..Exit::default()
    }));
    play.expect(PluginState::Unloaded, Phase::Idle);
    assert!(play.state.last_exit().expect("reported").forced);
    assert_eq!(
        play.state.failures(),
        0,
        "an operator's action is no failure"
    );
}

#[test]
fn a_crash_backs_off_and_comes_back_and_says_so() {
    let mut play = Play::started(Origin::Hosted);
    play.run(exit(1));
    play.expect(PluginState::Unloaded, Phase::Backoff);
    assert_eq!(
        play.take(),
        [
            Action::Route(Route::Closed),
            Action::Announce(Topic::Unloaded),
            Action::CloseChannel(Farewell::RunEnded("its process has ended".to_owned())),
            Action::EndRun,
            Action::Announce(Topic::Crashed)
        ]
    );
    assert_eq!(play.state.explain(), ("exited", "exit code 1".to_owned()));
    let waited = play.wait();
    assert!((250..=313).contains(&waited.as_millis()), "{waited:?}");
    play.open().hook(Ok(())).hook(Ok(()));
    play.expect(PluginState::Started, Phase::Ready);
    assert!(play.take().contains(&Action::Announce(Topic::Recovered)));
    assert_eq!((play.state.restarts(), play.state.failures()), (1, 1));
    assert_eq!(
        play.wait(),
        Duration::from_secs(60),
        "stable after 60 s ready"
    );
    assert_eq!(play.state.failures(), 0);
}

#[test]
fn the_eighth_failure_alerts_once_and_then_tries_slowly() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    let mut alerts = 0;
    for failure in 1..=10 {
        play.feed(Event::Slot).run(RunEvent::Spawned).run(exit(1));
        let phase = if failure < 8 {
            Phase::Backoff
        } else {
            Phase::CrashLoop
        };
        play.expect(PluginState::Unloaded, phase);
        let alert = Action::Announce(Topic::CrashLoop);
        alerts += play
            .take()
            .iter()
            .filter(|action| **action == alert)
            .count();
        play.wait();
    }
    assert_eq!(alerts, 1);
    play.feed(Event::Slot)
        .run(exit(1))
        .feed(Event::Request(Request::Start));
    play.expect(PluginState::Unloaded, Phase::Spawning);
    assert_eq!(
        play.state.failures(),
        0,
        "an operator's start resets the count"
    );
}

#[test]
fn final_ends_are_not_retried_until_somebody_asks() {
    let spawn_failed = RunEvent::SpawnFailed {
        lasting: true,
        message: "no such file".to_owned(),
    };
    for (event, phase) in [
        (exit(78), Phase::ConfigError),
        (spawn_failed, Phase::ConfigError),
    ] {
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        play.feed(Event::Slot).run(event);
        play.expect(PluginState::Unloaded, phase);
        assert_eq!(play.state.next_deadline(), None);
    }
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    play.feed(Event::Slot).run(RunEvent::Spawned);
    play.feed(Event::Incompatible("update the core".to_owned()))
        .run(exit(0));
    play.expect(PluginState::Unloaded, Phase::Incompatible);
    let mut other = Play::new(Origin::Hosted, PluginState::Started);
    other
        .feed(Event::Slot)
        .run(RunEvent::Spawned)
        .run(RunEvent::IdentityRefused("another user".to_owned()))
        .run(exit(77));
    other.expect(PluginState::Unloaded, Phase::Incompatible);
    assert_eq!(
        other.state.explain(),
        ("identity", "another user".to_owned())
    );
    assert_eq!(other.state.next_deadline(), None);
    play.feed(Event::Request(Request::Start))
        .expect(PluginState::Unloaded, Phase::Spawning);
}

#[test]
fn a_lost_channel_may_come_back_for_ten_seconds_and_hooks_are_sent_again() {
    let mut play = Play::started(Origin::Remote);
    play.run(RunEvent::ChannelLost)
        .expect(PluginState::Started, Phase::Suspended);
    assert_eq!(play.take(), [Action::Route(Route::Suspended)]);
    play.run(RunEvent::Resumed)
        .expect(PluginState::Started, Phase::Ready);
    assert_eq!(play.take(), [Action::Route(Route::Open)]);
    play.run(RunEvent::Resumed);
    assert_eq!(
        play.take(),
        [Action::Route(Route::Open)],
        "calls move to the newest channel"
    );
    play.run(RunEvent::ChannelLost);
    assert_eq!(play.wait(), Duration::from_secs(10));
    play.expect(PluginState::Unloaded, Phase::Backoff);
    assert_eq!(play.state.explain().0, "channel_lost");

    let mut play = Play::new(Origin::Remote, PluginState::Started);
    play.open();
    let hook = play.take();
    play.run(RunEvent::ChannelLost).run(RunEvent::Resumed);
    assert_eq!(play.take(), hook, "the same hook under the same id");
}

#[test]
fn a_run_that_nobody_can_come_back_to_ends_at_once() {
    let mut play = Play::new(Origin::Remote, PluginState::Started);
    play.feed(Event::Opened {
        ready: true,
        resumable: false,
    })
    .run(RunEvent::ChannelLost);
    play.expect(PluginState::Unloaded, Phase::Backoff);
}

#[test]
fn hooks_that_fail_or_are_late_end_the_run() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    play.open().take();
    play.hook(Err("no sensor".to_owned()))
        .expect(PluginState::Unloaded, Phase::Unloading);
    let out = play.take();
    assert!(out.contains(&Action::EndRun) && out.contains(&Action::Terminate));
    play.run(exit(0))
        .expect(PluginState::Unloaded, Phase::Backoff);
    assert_eq!(play.state.explain().1, "on_load failed: no sensor");

    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    play.open();
    assert_eq!(play.wait(), Duration::from_secs(30));
    assert_eq!(play.state.explain().0, "hook_timeout");
}

#[test]
fn time_is_extended_in_steps_of_thirty_seconds_and_five_minutes_in_all() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    play.open();
    let begin = play.now;
    for _ in 0..100 {
        let hook_id = play.state.awaited_hook().expect("runs");
        play.run(RunEvent::Extend {
            hook_id,
            by: Duration::from_secs(3600),
        });
        play.now += Duration::from_secs(10);
        play.feed(Event::Tick);
        if play.state.awaited_hook().is_none() {
            break;
        }
    }
    let lived = play.now - begin;
    assert_eq!(lived, Duration::from_secs(300), "the first 30 s included");
}

#[test]
fn a_plugin_waits_for_its_dependencies_before_it_begins_and_before_it_starts() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    let missing = || Event::Dependencies(Some("waits for devices".to_owned()));
    play.feed(missing())
        .expect(PluginState::Unloaded, Phase::WaitingDependency);
    assert_eq!(
        play.state.explain(),
        ("dependency", "waits for devices".to_owned())
    );
    assert_eq!(play.state.next_deadline(), None, "waiting costs nothing");
    play.feed(Event::Dependencies(None))
        .open()
        .feed(missing())
        .hook(Ok(()));
    play.expect(PluginState::Loaded, Phase::WaitingDependency);
    play.feed(Event::Dependencies(None)).hook(Ok(()));
    play.expect(PluginState::Started, Phase::Ready);
}

#[test]
fn a_child_waits_for_a_grant_before_it_begins_and_goes_on_by_itself() {
    let ungranted = || Event::Grants(Some("it asks for publish=home.>".to_owned()));
    let missing = || Event::Dependencies(Some("waits for devices".to_owned()));
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    play.feed(ungranted())
        .expect(PluginState::Unloaded, Phase::WaitingGrant);
    assert_eq!(
        play.state.explain(),
        ("not_granted", "it asks for publish=home.>".to_owned())
    );
    assert_eq!(play.state.next_deadline(), None, "waiting costs nothing");
    assert!(!play.state.wants_slot());
    // Whoever asked for it hears of it at once; to be unloaded it is.
    let cause = "it asks for publish=home.>".to_owned();
    let failed = Progress::Failed { cause };
    assert_eq!(play.state.progress(PluginState::Started), failed);
    // Nothing else brings it on.
    for event in [
        Event::Changed,
        Event::DependencyReady,
        missing(),
        Event::Dependencies(None),
    ] {
        play.feed(event)
            .expect(PluginState::Unloaded, Phase::WaitingGrant);
    }
    play.feed(Event::Request(Request::Start))
        .expect(PluginState::Unloaded, Phase::WaitingGrant);
    assert!(!play.take().contains(&Action::Spawn));
    // What is granted first is asked first, then comes what it requires.
    play.feed(missing())
        .feed(Event::Grants(None))
        .expect(PluginState::Unloaded, Phase::WaitingDependency);
    play.feed(ungranted())
        .expect(PluginState::Unloaded, Phase::WaitingGrant);
    play.feed(Event::Grants(None))
        .feed(Event::Dependencies(None));
    assert!(play.state.wants_slot());
    play.feed(ungranted())
        .feed(Event::Request(Request::Unload))
        .expect(PluginState::Unloaded, Phase::Idle);
}

#[test]
fn a_remote_plugin_waits_for_a_grant_with_its_channel_open_and_no_run_ends_for_one_taken_back() {
    let ungranted = || Event::Grants(Some("it asks for publish=home.>".to_owned()));
    let mut play = Play::new(Origin::Remote, PluginState::Started);
    play.feed(ungranted())
        .expect(PluginState::Unloaded, Phase::Connecting);
    play.open()
        .expect(PluginState::Unloaded, Phase::WaitingGrant);
    assert!(play.state.has_run() && play.state.next_deadline().is_none());
    play.take();
    play.feed(Event::Grants(None))
        .expect(PluginState::Unloaded, Phase::Loading);
    play.feed(ungranted()).hook(Ok(())).hook(Ok(()));
    play.expect(PluginState::Started, Phase::Ready);
    play.feed(Event::Request(Request::Stop))
        .run(RunEvent::Drained);
    play.hook(Ok(()));
    play.feed(Event::Request(Request::Start)).hook(Ok(()));
    play.expect(PluginState::Started, Phase::Ready);
    // The next run waits.
    play.run(RunEvent::Bye("done".to_owned()));
    play.wait();
    play.open()
        .expect(PluginState::Unloaded, Phase::WaitingGrant);
}

#[test]
fn a_dependencys_return_skips_the_wait_and_resets_the_count() {
    let mut play = Play::started(Origin::Hosted);
    play.feed(Event::Dependencies(Some("waits for devices".to_owned())))
        .run(exit(1));
    play.expect(PluginState::Unloaded, Phase::Backoff);
    play.feed(Event::Dependencies(None))
        .expect(PluginState::Unloaded, Phase::Spawning);
    assert_eq!(play.state.failures(), 0);
}

#[test]
fn a_change_skips_every_wait_but_a_finished_task_and_counts_from_zero() {
    let lasting = |lasting| RunEvent::SpawnFailed {
        lasting,
        message: "no such file".to_owned(),
    };
    let policy = |mode, give_up| RestartPolicy {
        mode,
        give_up,
        max_failures: 2,
        ..RestartPolicy::default()
    };
    use RestartMode::{Always, Never, OnFailure};
    for (policy, ends, phase, retried) in [
        (policy(Always, false), vec![exit(1)], Phase::Backoff, true),
        (
            policy(Always, false),
            vec![exit(1); 2],
            Phase::CrashLoop,
            true,
        ),
        (policy(Always, true), vec![exit(1); 2], Phase::GivenUp, true),
        (policy(Never, false), vec![exit(1)], Phase::GivenUp, true),
        (
            policy(Always, false),
            vec![exit(78)],
            Phase::ConfigError,
            true,
        ),
        (
            policy(Always, false),
            vec![lasting(true)],
            Phase::ConfigError,
            true,
        ),
        (
            policy(OnFailure, false),
            vec![exit(0)],
            Phase::Completed,
            false,
        ),
    ] {
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        play.state = State::new(
            Settings {
                restart: policy,
                ..settings(Origin::Hosted)
            },
            PluginState::Started,
            7,
            play.now,
        );
        play.feed(Event::Dependencies(None));
        for end in ends {
            if !play.state.wants_slot() {
                play.wait();
            }
            play.feed(Event::Slot);
            play.now += Duration::from_secs(10);
            play.run(end);
        }
        play.expect(PluginState::Unloaded, phase);
        // The return of a dependency cures what waits, and nothing that is final.
        let mut other = Play {
            state: play.state.clone(),
            now: play.now,
            out: Vec::new(),
        };
        other.feed(Event::DependencyReady);
        let waits = matches!(phase, Phase::Backoff | Phase::CrashLoop);
        assert_eq!(other.state.wants_slot(), waits, "{phase:?}");
        play.feed(Event::Changed);
        assert_eq!(play.state.wants_slot(), retried, "{phase:?}");
        assert_eq!(play.state.failures(), 0);
    }
}

#[test]
fn a_change_during_the_end_of_a_run_is_not_lost() {
    let mut play = Play::started(Origin::Hosted);
    play.run(RunEvent::Bye("enough".to_owned()));
    play.expect(PluginState::Unloaded, Phase::Unloading);
    play.feed(Event::Changed).run(exit(78));
    play.expect(PluginState::Unloaded, Phase::Spawning);
}

#[test]
fn the_loss_of_a_dependency_restarts_or_stops_at_no_cost() {
    let missing = || Event::Dependencies(Some("waits for devices".to_owned()));
    let mut play = Play::started(Origin::Hosted);
    play.feed(missing())
        .feed(Event::StopForDependency)
        .run(RunEvent::Drained)
        .hook(Ok(()));
    play.expect(PluginState::Stopped, Phase::WaitingDependency);
    play.feed(Event::Dependencies(None)).hook(Ok(()));
    play.expect(PluginState::Started, Phase::Ready);

    play.feed(missing())
        .feed(Event::RestartForDependency)
        .run(RunEvent::Drained);
    play.hook(Ok(())).hook(Ok(())).run(exit(0));
    play.expect(PluginState::Unloaded, Phase::WaitingDependency);
    play.feed(Event::Dependencies(None))
        .open()
        .hook(Ok(()))
        .hook(Ok(()));
    assert_eq!((play.state.restarts(), play.state.failures()), (1, 0));
}

#[test]
fn a_run_under_stopped_is_brought_to_loaded_and_that_counts() {
    let mut play = Play::new(Origin::Hosted, PluginState::Stopped);
    play.open().hook(Ok(()));
    play.expect(PluginState::Loaded, Phase::Idle);
    assert_eq!(play.state.progress(PluginState::Stopped), Progress::Reached);
    assert_eq!(
        play.state.permits(Request::Stop),
        Ok(()),
        "repeating what is so is OK"
    );
}

/// A plugin in each way of having no run.
fn at_rest() -> Vec<(&'static str, Play)> {
    let failed = |exits: &[i32]| {
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        for code in exits {
            play.feed(Event::Slot)
                .run(RunEvent::Spawned)
                .run(exit(*code));
            if play.state.next_attempt_at().is_some() && exits.len() > 1 {
                play.wait();
            }
        }
        play
    };
    let mut crash_loop = failed(&[1; 7]);
    crash_loop
        .feed(Event::Slot)
        .run(RunEvent::Spawned)
        .run(exit(1));
    crash_loop.expect(PluginState::Unloaded, Phase::CrashLoop);
    let mut waiting = Play::new(Origin::Hosted, PluginState::Started);
    waiting.feed(Event::Dependencies(Some("waits for devices".to_owned())));
    vec![
        ("backoff", failed(&[1])),
        ("config_error", failed(&[78])),
        ("crash_loop", crash_loop),
        ("waiting", waiting),
        ("queued", Play::new(Origin::Hosted, PluginState::Started)),
    ]
}

#[test]
fn who_is_stopped_without_a_run_gets_none_until_something_else_is_wanted() {
    for stop in [Event::Request(Request::Stop), Event::StopAll] {
        for (what, mut play) in at_rest() {
            assert_eq!(play.state.permits(Request::Stop), Ok(()), "{what}");
            play.take();
            play.feed(stop.clone());
            play.expect(PluginState::Unloaded, Phase::Idle);
            assert_eq!(play.state.progress(PluginState::Stopped), Progress::Reached);
            assert_eq!(play.state.next_deadline(), None, "{what}");
            // Nothing that skips a wait brings it back.
            for event in [
                Event::Changed,
                Event::DependencyReady,
                Event::Dependencies(None),
            ] {
                play.feed(event);
                play.expect(PluginState::Unloaded, Phase::Idle);
                assert!(!play.state.wants_slot(), "{what}");
            }
            assert!(!play.take().contains(&Action::Spawn), "{what}");
            assert!(
                play.state
                    .explain()
                    .1
                    .starts_with("it was stopped by request")
            );
            play.feed(Event::Request(Request::Start));
            assert!(play.state.wants_slot(), "{what}");
        }
    }
}

#[test]
fn a_run_that_is_on_its_way_when_it_is_stopped_is_loaded_or_fails_for_good() {
    let mut good = Play::new(Origin::Hosted, PluginState::Started);
    good.feed(Event::Slot).feed(Event::Request(Request::Stop));
    let mut bad = good.clone();
    good.run(RunEvent::Spawned).open().hook(Ok(()));
    good.expect(PluginState::Loaded, Phase::Idle);
    assert_eq!(bad.state.progress(PluginState::Stopped), Progress::Pending);
    bad.run(RunEvent::Spawned).run(exit(1));
    bad.expect(PluginState::Unloaded, Phase::Idle);
    assert_eq!(bad.state.progress(PluginState::Stopped), Progress::Reached);
    assert!(bad.take().contains(&Action::Announce(Topic::Crashed)));
    // So does one that was stopped in order and leaves later.
    let mut later = Play::started(Origin::Hosted);
    later
        .feed(Event::Request(Request::Stop))
        .run(RunEvent::Drained)
        .hook(Ok(()))
        .run(exit(1));
    later.expect(PluginState::Unloaded, Phase::Idle);
    assert_eq!(later.state.next_deadline(), None);
}

#[test]
fn a_remote_plugin_that_is_stopped_is_awaited_as_before() {
    let mut play = Play::new(Origin::Remote, PluginState::Started);
    play.feed(Event::Request(Request::Stop));
    play.expect(PluginState::Unloaded, Phase::Connecting);
    assert_eq!(play.state.progress(PluginState::Stopped), Progress::Reached);
    play.open().hook(Ok(()));
    play.expect(PluginState::Loaded, Phase::Idle);
}

#[test]
fn a_start_slot_is_held_until_ready_and_for_ten_seconds_at_most() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    assert_eq!(play.state.slot_until(), None, "it waits for one");
    play.feed(Event::Slot);
    let until = Some(play.now + Duration::from_secs(10));
    assert_eq!(play.state.slot_until(), until);
    play.now += Duration::from_secs(4);
    play.open().hook(Ok(()));
    play.expect(PluginState::Loaded, Phase::Starting);
    assert_eq!(play.state.slot_until(), until, "from its begin");
    play.hook(Ok(()));
    assert_eq!(play.state.slot_until(), None, "it is ready");
}

#[test]
fn only_impossible_requests_are_refused() {
    use Request::{Load, Restart, Start, Stop, Unload};
    let refused = |play: &Play| -> Vec<Request> {
        Request::ALL
            .iter()
            .copied()
            .filter(|r| play.state.permits(*r).is_err())
            .collect()
    };
    let mut play = Play::new(Origin::Hosted, PluginState::Unloaded);
    assert_eq!(refused(&play), [Stop]);
    play.feed(Event::Request(Load)).open().hook(Ok(()));
    play.expect(PluginState::Loaded, Phase::Idle);
    assert_eq!(refused(&play), [Stop]);
    assert_eq!(
        play.state.permits(Stop),
        Err(&["load", "start", "unload", "restart"][..])
    );
    play.feed(Event::Request(Start)).hook(Ok(()));
    assert_eq!(refused(&play), [Load]);
    play.feed(Event::Request(Stop))
        .run(RunEvent::Drained)
        .hook(Ok(()));
    assert_eq!(refused(&play), [Load]);
    play.feed(Event::Request(Restart));
    assert_eq!(play.state.progress(PluginState::Started), Progress::Pending);
    play.hook(Ok(()))
        .run(exit(0))
        .open()
        .hook(Ok(()))
        .hook(Ok(()));
    assert_eq!(play.state.progress(PluginState::Started), Progress::Reached);
    assert_eq!(play.state.generation(), Generation(2));
    play.feed(Event::Request(Unload))
        .run(RunEvent::Drained)
        .hook(Ok(()))
        .hook(Ok(()));
    assert_eq!(
        play.state.progress(PluginState::Unloaded),
        Progress::Pending,
        "it still exits"
    );
    play.run(exit(0));
    assert_eq!(
        play.state.progress(PluginState::Unloaded),
        Progress::Reached
    );
}

#[test]
fn missed_heartbeats_degrade_and_a_pong_clears() {
    let mut play = Play::started(Origin::Hosted);
    play.run(RunEvent::Heartbeat { missed: true });
    play.expect(PluginState::Started, Phase::Degraded);
    assert_eq!(
        play.take(),
        [
            Action::Route(Route::Degraded),
            Action::Announce(Topic::Degraded)
        ]
    );
    play.run(RunEvent::Heartbeat { missed: false });
    assert_eq!(
        play.take(),
        [
            Action::Route(Route::Open),
            Action::Announce(Topic::Recovered)
        ]
    );
    play.run(RunEvent::Health(Some("no gateway".to_owned())));
    play.expect(PluginState::Started, Phase::Degraded);
    assert_eq!(
        play.take(),
        [Action::Announce(Topic::Degraded)],
        "routing goes on"
    );
}

#[test]
fn a_lifeless_run_is_ended_and_counted_with_its_reason() {
    for (how, reason, message) in [
        (
            RunEvent::Lifeless(Lifeless::Silent(Duration::from_secs(15))),
            "silent",
            "nothing was heard of it for 15 s",
        ),
        (
            RunEvent::Lifeless(Lifeless::Unresponsive(Duration::from_secs(60))),
            "unresponsive",
            "it answered no ping for 60 s",
        ),
        (
            RunEvent::GaveWay(Duration::from_secs(2)),
            "gave_way",
            "another instance came, and it gave no sign of life for 2 s",
        ),
    ] {
        let mut play = Play::started(Origin::Hosted);
        play.run(RunEvent::Heartbeat { missed: true });
        play.take();
        play.run(how);
        // A stopped process is continued by it, and heeds it or is killed.
        let out = play.take();
        assert!(out.contains(&Action::EndRun) && out.contains(&Action::Terminate));
        assert_eq!(play.wait(), Duration::from_secs(2));
        assert_eq!(play.take(), [Action::Kill]);
        play.run(RunEvent::Exited(Exit {
            signal: Some(9),
            ..Exit::default()
        }));
        play.expect(PluginState::Unloaded, Phase::Backoff);
        assert_eq!(play.state.explain(), (reason, message.to_owned()));
        assert_eq!(play.state.failures(), 1);
        let exit = play.state.last_exit().expect("reported");
        assert!(exit.forced);
        assert_eq!(exit.message, message);
        assert!(play.take().contains(&Action::Announce(Topic::Crashed)));
    }
    // Where its end was asked for anyway, it is no failure.
    let mut play = Play::started(Origin::Hosted);
    play.feed(Event::Request(Request::Unload))
        .run(RunEvent::Lifeless(Lifeless::Silent(Duration::from_secs(
            15,
        ))))
        .run(exit(0));
    play.expect(PluginState::Unloaded, Phase::Idle);
    assert_eq!(play.state.failures(), 0);
}

#[test]
fn the_cores_own_lateness_moves_every_deadline_of_a_run() {
    let late = Duration::from_secs(3_600);
    type Begin = fn() -> Play;
    let stages: [(&str, Begin); 6] = [
        ("connecting", || {
            let mut play = Play::new(Origin::Hosted, PluginState::Started);
            play.feed(Event::Slot).run(RunEvent::Spawned);
            play
        }),
        ("loading", || {
            let mut play = Play::new(Origin::Hosted, PluginState::Started);
            play.open();
            play
        }),
        ("suspended", || {
            let mut play = Play::started(Origin::Remote);
            play.run(RunEvent::ChannelLost);
            play
        }),
        ("draining", || {
            let mut play = Play::started(Origin::Hosted);
            play.feed(Event::Request(Request::Unload));
            play
        }),
        ("stopping", || {
            let mut play = Play::started(Origin::Hosted);
            play.feed(Event::Request(Request::Unload))
                .run(RunEvent::Drained);
            play
        }),
        ("ending", || {
            let mut play = Play::started(Origin::Hosted);
            play.run(RunEvent::Bye("enough".to_owned()));
            play
        }),
    ];
    for (stage, begin) in stages {
        let mut play = begin();
        let before = play.state.next_deadline().expect("a deadline");
        let phase = play.state.phase();
        play.take();
        play.now += late;
        play.feed(Event::Late(late)).feed(Event::Tick);
        assert_eq!(play.state.next_deadline(), Some(before + late), "{stage}");
        assert_eq!(
            (play.state.phase(), play.take()),
            (phase, vec![]),
            "{stage}"
        );
    }
    // The try that is due is made: it harms nobody.
    let mut play = Play::started(Origin::Hosted);
    play.run(exit(1));
    play.now += late;
    play.feed(Event::Late(late)).feed(Event::Tick);
    play.expect(PluginState::Unloaded, Phase::Spawning);
    // The end of the core is bounded by the clock.
    let mut play = Play::started(Origin::Hosted);
    play.feed(Event::Shutdown(Budget {
        drain: Duration::from_secs(1),
        hooks: Duration::from_secs(1),
        term: Duration::from_secs(1),
    }));
    let before = play.state.next_deadline();
    play.feed(Event::Late(late));
    assert_eq!(play.state.next_deadline(), before);
}

#[test]
fn shutdown_ends_everything_within_its_budget_and_nothing_begins_after_it() {
    let ms = Duration::from_millis;
    let budget = Budget {
        drain: ms(200),
        hooks: ms(500),
        term: ms(200),
    };
    let mut play = Play::started(Origin::Hosted);
    let begin = play.now;
    play.feed(Event::Freeze).feed(Event::Shutdown(budget));
    while !play.take().contains(&Action::Kill) {
        play.wait();
    }
    assert_eq!(play.now - begin, ms(900));
    play.run(RunEvent::Exited(Exit::default()));
    play.expect(PluginState::Unloaded, Phase::Idle);
    assert_eq!(
        play.state.desired(),
        PluginState::Started,
        "the desire outlives the core"
    );
}

#[test]
fn the_documented_table_is_the_table_in_the_code() {
    let page = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/reference/lifecycle.md"
    ));
    let rows: Vec<(String, Vec<String>)> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split('|').map(str::trim);
            let state = cells.next()?.to_owned();
            let phases = cells.next()?.split(", ").map(|word| word.replace('`', ""));
            LEGAL
                .iter()
                .any(|(legal, _)| legal.as_str() == state)
                .then(|| (state, phases.collect()))
        })
        .collect();
    let code: Vec<(String, Vec<String>)> = LEGAL
        .iter()
        .map(|(state, phases)| {
            let phases = phases.iter().map(|phase| phase.as_str().to_owned());
            (state.as_str().to_owned(), phases.collect())
        })
        .collect();
    assert_eq!(rows, code);
    for phase in Phase::ALL {
        assert!(
            page.contains(&format!("`{}`", phase.as_str())),
            "{phase:?} is not explained"
        );
    }
}

// ---- the fault table, with the default numbers

impl Play {
    /// From waiting for a slot to ready.
    fn start(&mut self) -> &mut Self {
        self.open().hook(Ok(())).hook(Ok(()));
        self.expect(PluginState::Started, Phase::Ready);
        self
    }

    /// Waits for the next try; how long it took.
    fn retry(&mut self) -> Duration {
        let waited = self.wait();
        assert!(self.state.wants_slot(), "{:?}", self.state.phase());
        waited
    }
}

/// Row 03: crash on start, for ever.
#[test]
fn a_crash_on_start_trips_after_31_75_to_39_7_seconds_and_is_tried_every_five_minutes_then() {
    for seed in 0..64 {
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        play.state = State::new(
            settings(Origin::Hosted),
            PluginState::Started,
            seed,
            play.now,
        );
        play.feed(Event::Dependencies(None));
        let (begin, mut spawns, mut tripped) = (play.now, 0, None);
        let mut delays = Vec::new();
        while play.now - begin <= Duration::from_secs(600) {
            play.feed(Event::Slot);
            spawns += 1;
            play.run(exit(1));
            if play.state.phase() == Phase::CrashLoop && tripped.is_none() {
                tripped = Some((play.now - begin).as_secs_f64());
            }
            delays.push(play.retry().as_secs_f64());
        }
        let tripped = tripped.expect("a crash loop");
        assert!((31.75..=39.7).contains(&tripped), "{tripped}");
        for (failure, delay) in delays.iter().enumerate() {
            let least = if failure < 7 {
                0.25 * 2.0_f64.powi(i32::try_from(failure).expect("small"))
            } else {
                300.0
            };
            assert!((least..=least * 1.25).contains(delay), "{failure}: {delay}");
        }
        assert!((9..=10).contains(&spawns), "{spawns} in 10 min");
    }
}

/// Row 04: it dies every 20 s, long after `min_uptime` and long before it is stable.
#[test]
fn a_slow_crasher_is_never_stable_and_trips_at_the_eighth_failure() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    for failure in 1..=8 {
        play.start();
        play.now += Duration::from_secs(20);
        play.feed(Event::Tick).run(exit(1));
        assert_eq!(play.state.failures(), failure);
        let expected = if failure < 8 {
            Phase::Backoff
        } else {
            Phase::CrashLoop
        };
        play.expect(PluginState::Unloaded, expected);
        play.retry();
    }
}

/// Row 05: it recovers after five crashes.
#[test]
fn a_minute_ready_makes_five_crashes_forgotten() {
    let mut play = Play::new(Origin::Hosted, PluginState::Started);
    for _ in 0..5 {
        play.feed(Event::Slot).run(exit(1)).retry();
    }
    assert_eq!(play.state.failures(), 5);
    play.start();
    // Being unwell, by its own word or by pings, is not being ready.
    for unwell in [
        RunEvent::Health(Some("no gateway".to_owned())),
        RunEvent::Heartbeat { missed: true },
    ] {
        play.now += Duration::from_secs(59);
        play.feed(Event::Tick).run(unwell);
        assert_eq!(play.state.next_deadline(), None);
        play.now += Duration::from_secs(3_600);
        play.feed(Event::Tick);
        assert_eq!(play.state.failures(), 5);
        play.run(RunEvent::Health(None))
            .run(RunEvent::Heartbeat { missed: false });
    }
    assert_eq!(play.wait(), Duration::from_secs(60));
    assert_eq!(play.state.failures(), 0);
    let delay = play.run(exit(1)).retry().as_millis();
    assert!((250..=312).contains(&delay), "{delay} ms");
}

/// Row 22: a dependency fails for five minutes; dependents that run, that crash and that were stopped
/// for it come back at once, and pay nothing.
#[test]
fn a_dependencys_long_absence_costs_its_dependents_nothing() {
    let gone = || Event::Dependencies(Some("waits for devices".to_owned()));
    let five_minutes = Duration::from_secs(300);
    // It runs on.
    let mut play = Play::started(Origin::Hosted);
    play.feed(gone());
    play.now += five_minutes;
    play.feed(Event::Tick).feed(Event::Dependencies(None));
    play.expect(PluginState::Started, Phase::Ready);
    assert_eq!((play.state.failures(), play.state.restarts()), (0, 0));
    // It cannot bear it: it crashes once, and is not tried while nothing has changed.
    let mut play = Play::started(Origin::Hosted);
    play.feed(gone()).run(exit(1));
    play.wait();
    play.expect(PluginState::Unloaded, Phase::WaitingDependency);
    assert_eq!(play.state.next_deadline(), None);
    play.now += five_minutes;
    play.feed(Event::Tick).feed(Event::Dependencies(None));
    assert!(play.state.wants_slot(), "at once");
    assert_eq!(play.state.failures(), 0);
    // It ends or stops by its policy.
    for event in [Event::RestartForDependency, Event::StopForDependency] {
        let mut play = Play::started(Origin::Hosted);
        let restarts = matches!(event, Event::RestartForDependency);
        play.feed(gone())
            .feed(event)
            .run(RunEvent::Drained)
            .hook(Ok(()));
        if restarts {
            play.hook(Ok(())).run(exit(0));
        }
        assert_eq!(play.state.phase(), Phase::WaitingDependency);
        play.now += five_minutes;
        play.feed(Event::Tick).feed(Event::Dependencies(None));
        if restarts {
            play.start();
        } else {
            play.hook(Ok(()));
        }
        play.expect(PluginState::Started, Phase::Ready);
        assert_eq!(play.state.failures(), 0);
    }
}

/// Row 52, as far as it is policy: the core sleeps for an hour, whatever its plugins are doing.
#[test]
fn an_hour_of_sleep_restarts_nobody() {
    let hour = Duration::from_secs(3_600);
    for steps in 0..8 {
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        for step in 0..steps {
            match step {
                0 => play.feed(Event::Slot),
                1 => play.run(RunEvent::Spawned),
                2 => play.open(),
                3 | 4 => play.hook(Ok(())),
                5 => play.run(RunEvent::ChannelLost),
                _ => play.run(RunEvent::Resumed),
            };
        }
        let (generation, phase) = (play.state.generation(), play.state.phase());
        play.now += hour;
        play.feed(Event::Late(hour)).feed(Event::Tick);
        assert_eq!(
            (play.state.generation(), play.state.phase()),
            (generation, phase)
        );
        assert_eq!(play.state.failures(), 0);
    }
}

// ---- every event in every state

/// A machine in each kind of situation that there is, with a name.
fn situations() -> Vec<(String, Play)> {
    let mut found: Vec<(String, Play)> = Vec::new();
    let budget = Budget {
        drain: Duration::from_secs(1),
        hooks: Duration::from_secs(2),
        term: Duration::from_secs(1),
    };
    let mut seen = std::collections::HashSet::new();
    let policies = [
        RestartPolicy::default(),
        // One failure is enough for what else takes eight, and no time for what else takes some.
        RestartPolicy {
            max_failures: 1,
            ..RestartPolicy::default()
        },
        RestartPolicy {
            mode: RestartMode::OnFailure,
            max_failures: 1,
            give_up: true,
            min_uptime: Duration::ZERO,
            ..RestartPolicy::default()
        },
    ];
    for origin in [Origin::Hosted, Origin::Remote] {
        for policy in &policies {
            let mut play = Play::new(origin, PluginState::Started);
            let settings = Settings {
                restart: policy.clone(),
                ..settings(origin)
            };
            play.state = State::new(settings, PluginState::Started, 7, play.now);
            play.feed(Event::Dependencies(None));
            found.push((format!("{origin:?}"), play));
        }
    }
    // What leads from one to another; breadth first, each new combination once.
    let mut index = 0;
    while index < found.len() && found.len() < 20_000 {
        let (name, play) = (found[index].0.clone(), found[index].1.clone());
        index += 1;
        for event in all_events(&play.state, budget) {
            if !possible(&play.state, &event) {
                continue;
            }
            let mut next = play.clone();
            let text = format!("{event:?}");
            if matches!(event, Event::Tick) {
                let Some(at) = next.state.next_deadline() else {
                    continue;
                };
                next.now = next.now.max(at);
            }
            next.feed(event);
            next.out.clear();
            let state = &next.state;
            let key = (
                (state.settings.origin == Origin::Hosted, state.desired()),
                (
                    state.settings.restart.max_failures,
                    state.settings.restart.give_up,
                ),
                (state.state(), state.phase(), state.explain().0),
                (state.missing.is_some(), state.held_by_loss),
                (state.frozen, state.shutdown.is_some()),
                (state.is_hung(), state.awaited_hook().is_some()),
                (state.next_deadline().is_some(), state.target()),
            );
            if seen.insert(key) {
                found.push((format!("{name} > {text}"), next));
            }
        }
    }
    found
}

fn all_events(state: &State, budget: Budget) -> Vec<Event> {
    let of_run = |event| Event::Run(state.generation(), event);
    let stale = |event| Event::Run(Generation(state.generation().0 + 7), event);
    let hook_id = state.awaited_hook().unwrap_or(9);
    let mut events = vec![
        Event::Tick,
        Event::StopAll,
        Event::Dependencies(None),
        Event::Dependencies(Some("waits for devices".to_owned())),
        Event::Grants(None),
        Event::Grants(Some("it asks for publish=home.>".to_owned())),
        Event::RestartForDependency,
        Event::StopForDependency,
        Event::Changed,
        Event::DependencyReady,
        Event::Slot,
        Event::Late(Duration::from_secs(60)),
        Event::Incompatible("update".to_owned()),
        Event::Freeze,
        Event::Shutdown(budget),
        Event::KillNow,
    ];
    events.extend(Request::ALL.iter().map(|request| Event::Request(*request)));
    for (ready, resumable) in [(true, true), (true, false), (false, true), (false, false)] {
        events.push(Event::Opened { ready, resumable });
    }
    let no = || "no".to_owned();
    let run_events = [
        RunEvent::Spawned,
        RunEvent::SpawnFailed {
            lasting: true,
            message: no(),
        },
        RunEvent::SpawnFailed {
            lasting: false,
            message: no(),
        },
        RunEvent::Resumed,
        RunEvent::HookDone {
            hook_id,
            result: Ok(()),
        },
        RunEvent::HookDone {
            hook_id,
            result: Err(no()),
        },
        RunEvent::HookDone {
            hook_id: hook_id + 1,
            result: Ok(()),
        },
        RunEvent::Extend {
            hook_id,
            by: Duration::from_secs(20),
        },
        RunEvent::Drained,
        RunEvent::ChannelLost,
        RunEvent::Bye(no()),
        RunEvent::CredentialOver(no()),
        exit(0),
        exit(1),
        exit(75),
        exit(78),
        RunEvent::Heartbeat { missed: true },
        RunEvent::Heartbeat { missed: false },
        RunEvent::Lifeless(Lifeless::Silent(Duration::from_secs(15))),
        RunEvent::Lifeless(Lifeless::Unresponsive(Duration::from_secs(60))),
        RunEvent::GaveWay(Duration::from_secs(2)),
        RunEvent::IdentityRefused(no()),
        RunEvent::OverLimit {
            reason: "memory_limit",
            message: no(),
        },
        RunEvent::Health(Some(no())),
        RunEvent::Health(None),
    ];
    events.extend(run_events.iter().cloned().map(stale));
    events.extend(run_events.into_iter().map(of_run));
    events
}

/// A process that is not there does not end.
fn possible(state: &State, event: &Event) -> bool {
    let ends = matches!(
        event,
        Event::Run(generation, RunEvent::Exited(_) | RunEvent::SpawnFailed { .. })
            if *generation == state.generation()
    );
    !ends || (state.origin() == Origin::Hosted && !state.is_resting())
}

#[test]
fn every_event_has_an_answer_in_every_situation() {
    let budget = Budget {
        drain: Duration::from_secs(1),
        hooks: Duration::from_secs(2),
        term: Duration::from_secs(1),
    };
    let situations = situations();
    let (mut pairs, mut shown) = (0, std::collections::BTreeSet::new());
    for (name, play) in &situations {
        let before = &play.state;
        shown.insert((before.state(), before.phase()));
        for event in all_events(before, budget) {
            if !possible(before, &event) {
                continue;
            }
            pairs += 1;
            let why = || format!("{name} > {event:?}");
            let (after, out) = step(before, event.clone(), play.now);
            assert!(is_legal(after.state(), after.phase()), "{}", why());
            let count = |wanted: fn(&Action) -> bool| out.iter().filter(|a| wanted(a)).count();
            let ended = count(|action| matches!(action, Action::EndRun));
            let spawned = count(|action| matches!(action, Action::Spawn));
            // A run ends once; the next one never begins in the same breath as a process's.
            let began = usize::from(after.generation() != before.generation());
            let had = usize::from(before.has_run());
            assert_eq!(
                had + began,
                ended + usize::from(after.has_run()),
                "{}",
                why()
            );
            assert!(spawned <= 1 && spawned <= began, "{}", why());
            assert!(
                spawned == 0 || before.is_resting(),
                "a process may still live: {}",
                why()
            );
            // Words of other runs change nothing.
            if let Event::Run(generation, _) = &event
                && *generation != before.generation()
            {
                assert!(
                    out.is_empty() && after.phase() == before.phase(),
                    "{}",
                    why()
                );
            }
            // Nothing that is under way waits for ever.
            let patient = matches!(
                after.phase(),
                Phase::Idle
                    | Phase::WaitingDependency
                    | Phase::WaitingGrant
                    | Phase::GivenUp
                    | Phase::ConfigError
                    | Phase::Incompatible
                    | Phase::Completed
                    | Phase::Ready
                    | Phase::Degraded
            ) || after.is_resting()
                && matches!(after.phase(), Phase::Connecting | Phase::Spawning)
                || after.is_hung();
            assert!(
                patient || after.next_deadline().is_some(),
                "no deadline in {:?}: {}",
                after.phase(),
                why()
            );
        }
    }
    let legal: usize = LEGAL.iter().map(|(_, phases)| phases.len()).sum();
    assert!(situations.len() > 1_000, "{}", situations.len());
    assert!(pairs > 50_000, "{pairs}");
    let missing: Vec<_> = LEGAL
        .iter()
        .flat_map(|(state, phases)| phases.iter().map(move |phase| (*state, *phase)))
        .filter(|pair| !shown.contains(pair))
        .collect();
    assert_eq!(
        (shown.len(), missing),
        (legal, vec![]),
        "each pair is reached"
    );
}

// ---- random sequences

fn run_event() -> impl Strategy<Value = RunEvent> {
    let result = prop_oneof![9 => Just(Ok(())), 1 => Just(Err("no".to_owned()))];
    prop_oneof![
        2 => Just(RunEvent::Spawned),
        1 => any::<bool>().prop_map(|lasting| RunEvent::SpawnFailed {
            lasting,
            message: "no".to_owned()
        }),
        1 => Just(RunEvent::Resumed),
        // 0 stands for the hook that is awaited.
        6 => (prop_oneof![9 => Just(0_u64), 1 => 1..9_u64], result)
            .prop_map(|(hook_id, result)| RunEvent::HookDone { hook_id, result }),
        1 => (0..9_u64, 0..100_u64).prop_map(|(hook_id, by)| RunEvent::Extend {
            hook_id,
            by: Duration::from_secs(by)
        }),
        2 => Just(RunEvent::Drained),
        2 => Just(RunEvent::ChannelLost),
        1 => Just(RunEvent::Bye("enough".to_owned())),
        1 => Just(RunEvent::CredentialOver("revoked".to_owned())),
        3 => prop_oneof![Just(0), Just(1), Just(75), Just(78)].prop_map(exit),
        1 => any::<bool>().prop_map(|missed| RunEvent::Heartbeat { missed }),
        1 => Just(RunEvent::Lifeless(Lifeless::Silent(Duration::from_secs(15)))),
        1 => any::<bool>().prop_map(|bad| RunEvent::Health(bad.then(|| "ill".to_owned()))),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let budget = Budget {
        drain: Duration::from_secs(1),
        hooks: Duration::from_secs(2),
        term: Duration::from_secs(1),
    };
    prop_oneof![
        6 => Just(Event::Tick),
        4 => (0..Request::ALL.len()).prop_map(|index| Event::Request(Request::ALL[index])),
        1 => Just(Event::StopAll),
        3 => any::<bool>().prop_map(|ready| Event::Dependencies((!ready).then(String::new))),
        1 => Just(Event::RestartForDependency),
        1 => Just(Event::StopForDependency),
        1 => Just(Event::Changed),
        1 => (0..100_u64).prop_map(|by| Event::Late(Duration::from_secs(by))),
        1 => Just(Event::DependencyReady),
        5 => Just(Event::Slot),
        6 => (any::<bool>(), any::<bool>())
            .prop_map(|(ready, resumable)| Event::Opened { ready, resumable }),
        1 => Just(Event::Incompatible("wire".to_owned())),
        // Runs of the current generation (0) and of others.
        20 => (prop_oneof![9 => Just(0_u64), 1 => 1..4_u64], run_event())
            .prop_map(|(back, event)| Event::Run(Generation(back), event)),
        1 => prop_oneof![
            Just(Event::Freeze),
            Just(Event::Shutdown(budget)),
            Just(Event::KillNow)
        ],
    ]
}

/// Gives the placeholders of the strategy their meaning.
fn resolve(event: Event, state: &State) -> Event {
    match event {
        Event::Run(Generation(back), event) => {
            let generation = Generation(state.generation().0.saturating_sub(back));
            let event = match event {
                RunEvent::HookDone { hook_id: 0, result } => RunEvent::HookDone {
                    hook_id: state.awaited_hook().unwrap_or(0),
                    result,
                },
                event => event,
            };
            Event::Run(generation, event)
        }
        event => event,
    }
}

fn of_a_run(action: &Action) -> bool {
    matches!(
        action,
        Action::RunHook { .. }
            | Action::Gate(_)
            | Action::Drain
            | Action::CloseChannel(_)
            | Action::EndRun
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_events_reach_legal_pairs_only_and_ended_runs_are_left_alone(
        remote in any::<bool>(),
        desired in prop_oneof![Just(PluginState::Started), Just(PluginState::Unloaded)],
        events in prop::collection::vec((event(), 0..20_u64), 1..120),
    ) {
        let origin = if remote { Origin::Remote } else { Origin::Hosted };
        let mut now = Instant::now();
        let mut state = State::new(settings(origin), desired, 3, now);
        let (mut run_lives, mut has_process) = (false, false);
        for (event, seconds) in events {
            let event = resolve(event, &state);
            if matches!(event, Event::Tick) {
                now += Duration::from_secs(seconds);
            }
            if remote && matches!(event, Event::Run(_, RunEvent::Exited(_) | RunEvent::SpawnFailed { .. })) {
                continue;
            }
            let current = matches!(&event, Event::Run(generation, _) if *generation == state.generation());
            let gone = matches!(&event, Event::Run(_, RunEvent::Exited(_) | RunEvent::SpawnFailed { .. }));
            // A process ends once, and not before it was begun.
            if gone && current && !has_process {
                continue;
            }
            if gone && current {
                has_process = false;
            }
            let opens = matches!(event, Event::Opened { .. }) && !state.has_run() && state.awaits_channel();
            let (next, out) = step(&state, event, now);
            prop_assert!(is_legal(next.state(), next.phase()));
            if opens {
                run_lives = true;
            }
            for action in &out {
                match action {
                    Action::Spawn => {
                        prop_assert!(!run_lives && !has_process, "two runs at once");
                        run_lives = true;
                        has_process = true;
                    }
                    Action::Terminate | Action::Kill => prop_assert!(has_process),
                    Action::EndRun => {
                        prop_assert!(run_lives);
                        run_lives = false;
                    }
                    action if of_a_run(action) => prop_assert!(run_lives, "{action:?}"),
                    _ => {}
                }
            }
            prop_assert_eq!(run_lives, next.has_run());
            if let Some(at) = next.next_deadline() {
                // Time that has come is used up by a tick, or the driver would spin.
                let (ticked, _) = step(&next, Event::Tick, at.max(now));
                prop_assert!(ticked.next_deadline().is_none_or(|later| later > at || at < now));
            }
            state = next;
        }
    }

    #[test]
    fn without_faults_a_wanted_plugin_becomes_ready_from_anywhere(
        remote in any::<bool>(),
        events in prop::collection::vec((event(), 0..20_u64), 0..60),
    ) {
        let origin = if remote { Origin::Remote } else { Origin::Hosted };
        let mut play = Play::new(origin, PluginState::Started);
        for (event, seconds) in events {
            if matches!(event, Event::Freeze | Event::Shutdown(_) | Event::KillNow) {
                continue;
            }
            play.now += Duration::from_secs(seconds);
            let event = resolve(event, &play.state);
            play.feed(event);
        }
        play.feed(Event::Dependencies(None)).feed(Event::Request(Request::Start));
        for _ in 0..40 {
            match play.state.phase() {
                Phase::Ready => break,
                Phase::Spawning => { play.feed(Event::Slot).run(RunEvent::Spawned); }
                Phase::Connecting => {
                    play.feed(Event::Opened { ready: false, resumable: true });
                }
                Phase::Suspended => { play.run(RunEvent::Resumed); }
                Phase::Degraded => {
                    play.run(RunEvent::Heartbeat { missed: false }).run(RunEvent::Health(None));
                }
                Phase::Unloading if !play.state.has_run() => { play.run(exit(0)); }
                Phase::Stopping if play.state.awaited_hook().is_none() => {
                    play.run(RunEvent::Drained);
                }
                Phase::Backoff | Phase::CrashLoop => { play.wait(); }
                // The end of a run that began before the request.
                Phase::Incompatible | Phase::ConfigError => {
                    play.feed(Event::Request(Request::Start));
                }
                _ => { play.hook(Ok(())); }
            }
        }
        play.expect(PluginState::Started, Phase::Ready);
    }
}
