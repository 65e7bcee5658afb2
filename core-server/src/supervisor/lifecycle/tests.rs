//! The machine alone: named stories, and random sequences of events against its invariants.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::channel::{Gate, Hook};

fn settings(origin: Origin) -> Settings {
    Settings {
        origin,
        restart: RestartPolicy::default(),
        timeouts: Timeouts::default(),
    }
}

/// A machine and its clock.
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
    assert!((320..=340).contains(&lived.as_secs()), "{lived:?}");
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
        3 => prop_oneof![Just(0), Just(1), Just(75), Just(78)].prop_map(exit),
        1 => any::<bool>().prop_map(|missed| RunEvent::Heartbeat { missed }),
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
