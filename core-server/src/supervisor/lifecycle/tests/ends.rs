//! How a run ends, and what that counts as.

use super::*;

/// A run of a remote plugin that nobody could come back to.
fn minimal() -> Play {
    let mut play = Play::new(Origin::Remote, PluginState::Started);
    play.feed(Event::Opened {
        ready: true,
        resumable: false,
    });
    play.expect(PluginState::Started, Phase::Ready);
    play.out.clear();
    play
}

fn over_limit() -> RunEvent {
    RunEvent::OverLimit {
        reason: "memory_limit",
        message: "too much".to_owned(),
    }
}

fn credential_over() -> RunEvent {
    RunEvent::CredentialOver("revoked".to_owned())
}

fn out_of_memory() -> RunEvent {
    RunEvent::Exited(Exit {
        signal: Some(9),
        message: Some("out of memory".to_owned()),
        reason: Some("memory_limit"),
        ..Exit::default()
    })
}

/// All that can end a run that is well.
fn ends() -> Vec<(&'static str, Vec<RunEvent>)> {
    let lifeless = RunEvent::Lifeless(Lifeless::Silent(Duration::from_secs(15)));
    vec![
        ("exit", vec![exit(1)]),
        ("early exit", vec![exit(0)]),
        ("configuration", vec![exit(78)]),
        ("out of memory", vec![out_of_memory()]),
        ("bye", vec![RunEvent::Bye("enough".to_owned()), exit(1)]),
        ("bye, well", vec![RunEvent::Bye(String::new()), exit(0)]),
        ("credential", vec![credential_over(), exit(143)]),
        ("over limit", vec![over_limit(), exit(143)]),
        ("lifeless", vec![lifeless, exit(143)]),
    ]
}

#[test]
fn an_end_that_was_asked_for_is_no_failure_however_it_comes() {
    let operator = |request| Event::Request(request);
    let renewed = || Event::Renewed(settings(Origin::Hosted), Some(("reload", "new".to_owned())));
    let asked: [(Event, &str, Phase); 4] = [
        (operator(Request::Unload), "operator", Phase::Idle),
        (operator(Request::Restart), "start_slot", Phase::Spawning),
        (Event::RestartForDependency, "start_slot", Phase::Spawning),
        (renewed(), "start_slot", Phase::Spawning),
    ];
    for mode in [
        RestartMode::Always,
        RestartMode::OnFailure,
        RestartMode::Never,
    ] {
        for (event, reason, phase) in &asked {
            for (how, end) in ends() {
                for drained in [false, true] {
                    let why = format!("{event:?}, {how}, {mode:?}, drained: {drained}");
                    let mut play = Play::started(Origin::Hosted);
                    let mut own = settings(Origin::Hosted);
                    own.restart.mode = mode;
                    play.feed(Event::Renewed(own, None)).feed(event.clone());
                    if drained {
                        play.run(RunEvent::Drained);
                    }
                    for event in end.clone() {
                        play.run(event);
                    }
                    assert_eq!(play.state.phase(), *phase, "{why}");
                    assert_eq!(play.state.explain().0, *reason, "{why}");
                    assert_eq!(play.state.failures(), 0, "{why}");
                    let crashed = Action::Announce(Topic::Crashed);
                    assert!(!play.take().contains(&crashed), "{why}");
                }
            }
        }
    }
}

#[test]
fn a_plugin_that_closes_its_stream_while_its_unload_drains_has_not_failed() {
    for request in [Request::Unload, Request::Restart] {
        let mut play = minimal();
        play.feed(Event::Request(request))
            .run(RunEvent::ChannelLost);
        let phase = match request {
            Request::Unload => Phase::Idle,
            _ => Phase::Connecting,
        };
        play.expect(PluginState::Unloaded, phase);
        assert_eq!(play.state.failures(), 0);
        assert!(!play.take().contains(&Action::Announce(Topic::Crashed)));
    }
    // A stop keeps the run: without its channel it is lost.
    let mut play = minimal();
    play.feed(Event::Request(Request::Stop))
        .run(RunEvent::ChannelLost);
    play.expect(PluginState::Unloaded, Phase::Backoff);
    assert_eq!(play.state.explain().0, "channel_lost");
}

#[test]
fn a_failed_stop_hook_is_the_reason_whatever_ends_the_run_then() {
    for (how, end) in ends() {
        let mut play = Play::started(Origin::Hosted);
        play.feed(Event::Request(Request::Stop))
            .run(RunEvent::Drained)
            .hook(Err("no".to_owned()));
        for event in end {
            play.run(event);
        }
        play.expect(PluginState::Unloaded, Phase::Idle);
        assert_eq!(play.state.explain().0, "hook_failed", "{how}");
        assert_eq!(play.state.failures(), 1, "{how}");
        assert_eq!(play.state.next_deadline(), None, "{how}: no run follows");
    }
}

#[test]
fn who_is_stopped_while_a_run_ends_for_another_reason_is_shown_as_stopped() {
    let renewed = Event::Renewed(settings(Origin::Hosted), Some(("reload", "new".to_owned())));
    for event in [
        Event::Request(Request::Restart),
        Event::Request(Request::Unload),
        Event::RestartForDependency,
        renewed,
    ] {
        let why = format!("{event:?}");
        let mut play = Play::started(Origin::Hosted);
        play.feed(event).run(RunEvent::Drained);
        play.hook(Ok(())).hook(Ok(()));
        play.feed(Event::Request(Request::Stop)).run(exit(0));
        play.expect(PluginState::Unloaded, Phase::Idle);
        let stopped = ("operator", "it was stopped by request".to_owned());
        assert_eq!(play.state.explain(), stopped, "{why}");
        assert_eq!(play.state.failures(), 0, "{why}");
    }
}

#[test]
fn who_says_bye_is_told_nothing_more() {
    let mut play = Play::started(Origin::Hosted);
    play.feed(Event::Request(Request::Restart))
        .run(RunEvent::Bye("enough".to_owned()));
    let out = play.take();
    assert!(out.contains(&Action::CloseChannel(Farewell::Clean)));
    assert!(
        !out.contains(&Action::Terminate),
        "it may leave by itself first"
    );
}

#[test]
fn a_refused_handshake_is_told_and_kept_like_any_other_end() {
    for (event, reason) in [
        (
            Event::Run(
                Generation(1),
                RunEvent::IdentityRefused("another user".to_owned()),
            ),
            "identity",
        ),
        (
            Event::Incompatible("update the core".to_owned()),
            "wire_version",
        ),
    ] {
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        play.feed(Event::Slot).run(RunEvent::Spawned).feed(event);
        assert!(
            !play.take().contains(&Action::Announce(Topic::Crashed)),
            "when it is over"
        );
        play.run(exit(77));
        play.expect(PluginState::Unloaded, Phase::Incompatible);
        assert_eq!(play.take(), [Action::Announce(Topic::Crashed)]);
        assert_eq!(play.state.explain().0, reason);
        assert_eq!(play.state.failures(), 0);
        // The next that goes well has recovered from it.
        play.feed(Event::Changed).start();
        assert!(play.take().contains(&Action::Announce(Topic::Recovered)));
    }
}

#[test]
fn a_remote_plugin_that_knocks_again_and_again_is_told_of_once_per_change() {
    let refused = || Event::Incompatible("update the core".to_owned());
    let crashed = [Action::Announce(Topic::Crashed)];
    let mut play = Play::new(Origin::Remote, PluginState::Started);
    for _ in 0..2 {
        play.feed(refused());
        play.expect(PluginState::Unloaded, Phase::Incompatible);
        assert_eq!(play.take(), crashed);
        let report = play.state.last_exit().cloned().expect("reported");
        assert_eq!(report.message, "update the core");
        assert!(!report.forced);
        play.now += Duration::from_secs(1);
        play.feed(refused()).feed(refused());
        assert_eq!(play.take(), []);
        assert_eq!(play.state.last_exit(), Some(&report));
        play.feed(Event::Changed);
        play.expect(PluginState::Unloaded, Phase::Connecting);
        play.take();
    }
    // Nobody wants it: nobody is told.
    let mut play = Play::new(Origin::Remote, PluginState::Unloaded);
    play.feed(refused())
        .expect(PluginState::Unloaded, Phase::Idle);
    assert_eq!((play.take(), play.state.last_exit()), (vec![], None));
}

#[test]
fn what_the_kernel_ended_is_neither_signalled_nor_called_forced() {
    let mut play = Play::started(Origin::Hosted);
    play.run(out_of_memory());
    play.expect(PluginState::Unloaded, Phase::Backoff);
    let out = play.take();
    assert!(!out.contains(&Action::Terminate) && !out.contains(&Action::Kill));
    assert!(out.contains(&Action::Announce(Topic::Crashed)));
    let said = ("memory_limit", "out of memory".to_owned());
    assert_eq!(play.state.explain(), said);
    let report = play.state.last_exit().expect("reported");
    assert!(!report.forced);
    assert_eq!((report.exit.signal, &report.message), (Some(9), &said.1));
    assert_eq!(play.state.failures(), 1);

    // Its leader may have outlived the others of its group and say what it likes.
    for code in [0, 75, 78] {
        let mut play = Play::started(Origin::Hosted);
        play.now += Duration::from_secs(10);
        play.run(RunEvent::Exited(Exit {
            code: Some(code),
            reason: Some("memory_limit"),
            ..Exit::default()
        }));
        play.expect(PluginState::Unloaded, Phase::Backoff);
        assert_eq!(play.state.failures(), 1);
    }
    // One that lives is told to end.
    let mut play = Play::started(Origin::Hosted);
    play.run(over_limit());
    assert!(play.take().contains(&Action::Terminate));
    play.run(exit(143));
    assert_eq!(play.state.explain().0, "memory_limit");
    assert!(play.state.last_exit().expect("reported").forced);
}

#[test]
fn a_start_lasts_its_own_time_where_the_longest_is_no_longer() {
    for (start, start_max, lasts) in [(30, 300, 300), (30, 40, 40), (30, 30, 30), (30, 3, 30)] {
        let mut own = settings(Origin::Hosted);
        own.timeouts.start = Duration::from_secs(start);
        own.timeouts.start_max = Duration::from_secs(start_max);
        let mut play = Play::new(Origin::Hosted, PluginState::Started);
        play.feed(Event::Renewed(own.clone(), None)).open();
        let begin = play.now;
        // Half the way it is in the other hook: the two share it all.
        let mut passed = false;
        while let Some(hook_id) = play.state.awaited_hook() {
            if !passed && play.now - begin >= Duration::from_secs(lasts / 2) {
                passed = true;
                play.hook(Ok(()));
                continue;
            }
            play.run(RunEvent::Extend {
                hook_id,
                by: Duration::from_secs(30),
            });
            play.now += Duration::from_secs(1);
            play.feed(Event::Tick);
        }
        assert_eq!(play.now - begin, own.timeouts.longest_start());
        assert_eq!((play.now - begin).as_secs(), lasts);
        assert_eq!(play.state.explain().0, "hook_timeout");
    }
}

#[test]
fn a_remote_run_whose_credential_is_over_has_not_failed_and_the_next_may_come_at_once() {
    for mode in [RestartMode::Always, RestartMode::Never] {
        let mut play = minimal();
        let mut own = settings(Origin::Remote);
        own.restart.mode = mode;
        play.feed(Event::Renewed(own, None)).run(credential_over());
        play.expect(PluginState::Unloaded, Phase::Connecting);
        let why = ("credential", "revoked".to_owned());
        assert_eq!(play.state.explain(), why, "{mode:?}");
        assert_eq!(play.state.failures(), 0, "{mode:?}");
        let out = play.take();
        assert!(!out.contains(&Action::Announce(Topic::Crashed)), "{out:?}");
        let report = play.state.last_exit().expect("its run ended");
        assert_eq!(report.message, "revoked");
        play.run(RunEvent::ChannelLost);
        play.feed(Event::Opened {
            ready: true,
            resumable: false,
        });
        play.expect(PluginState::Started, Phase::Ready);
        assert_eq!((play.state.restarts(), play.state.explain().0), (0, ""));
    }
}
