//! 03, 04, 05, 22, and part of 09: the default numbers, on a simulated clock. The rows drive the core's
//! own state machine, which decides everything; only what happens to the process is made up here.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use core_server::plugin_manager::{RestartPolicy, Timeouts};
use core_server::supervisor::lifecycle::{
    Action, Event, Exit, Origin, Phase, PluginState, RunEvent, Settings, State, Topic, step,
};
use tokio::time::Instant;

use crate::report::Row;

/// Jitter differs from seed to seed; each row is played with so many.
const SEEDS: u64 = 64;

/// One plugin and its clock.
struct Play {
    state: State,
    begin: Instant,
    now: Instant,
    spawns: Vec<Instant>,
    alerts: usize,
}

impl Play {
    /// A child with the default policy that is wanted STARTED.
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let settings = Settings {
            origin: Origin::Hosted,
            restart: RestartPolicy::default(),
            timeouts: Timeouts::default(),
        };
        let mut play = Self {
            state: State::new(settings, PluginState::Started, seed, now),
            begin: now,
            now,
            spawns: Vec::new(),
            alerts: 0,
        };
        play.feed(Event::Dependencies(None));
        play
    }

    fn feed(&mut self, event: Event) {
        let (state, actions) = step(&self.state, event, self.now);
        self.state = state;
        for action in actions {
            match action {
                Action::Spawn => self.spawns.push(self.now),
                Action::Announce(Topic::CrashLoop) => self.alerts += 1,
                _ => {}
            }
        }
    }

    fn run(&mut self, event: RunEvent) {
        self.feed(Event::Run(self.state.generation(), event));
    }

    /// Lets time pass to this moment, ticking at every deadline on the way.
    fn wait_until(&mut self, moment: Instant) {
        while let Some(at) = self.state.next_deadline().filter(|at| *at <= moment) {
            self.now = self.now.max(at);
            self.feed(Event::Tick);
        }
        self.now = moment;
    }

    fn wait(&mut self, time: Duration) {
        self.wait_until(self.now + time);
    }

    /// To the next deadline; how long that took.
    fn wait_for_deadline(&mut self) -> Result<Duration> {
        let at = self.state.next_deadline().context("a deadline")?;
        let waited = at.saturating_duration_since(self.now);
        self.wait_until(at);
        Ok(waited)
    }

    /// Its turn has come: the process runs.
    fn spawn(&mut self) -> Result<()> {
        ensure!(self.state.wants_slot(), "in phase {:?}", self.state.phase());
        self.feed(Event::Slot);
        self.run(RunEvent::Spawned);
        Ok(())
    }

    /// It spawns, and is ready at once.
    fn become_ready(&mut self) -> Result<()> {
        self.spawn()?;
        self.feed(Event::Opened {
            ready: true,
            resumable: true,
        });
        ensure!(
            self.state.phase() == Phase::Ready,
            "in phase {:?}",
            self.state.phase()
        );
        Ok(())
    }

    fn exit(&mut self, code: i32) {
        self.run(RunEvent::Exited(Exit {
            code: Some(code),
            ..Exit::default()
        }));
    }

    fn elapsed(&self) -> Duration {
        self.now - self.begin
    }
}

pub(crate) async fn crash_on_start(row: Row) -> Result<()> {
    row.note("simulated clock, default numbers");
    let (mut trips, mut slow, mut spawns) = (Vec::new(), Vec::new(), Vec::new());
    for seed in seeds(&row) {
        let mut play = Play::new(seed);
        let mut delays = Vec::new();
        for failure in 1..=8 {
            play.spawn()?;
            play.exit(1);
            let expected = if failure < 8 {
                Phase::Backoff
            } else {
                Phase::CrashLoop
            };
            let phase = play.state.phase();
            row.require(
                phase == expected,
                format!("failure {failure}: {expected:?}, not {phase:?}"),
            );
            if failure < 8 {
                delays.push(play.wait_for_deadline()?);
            }
        }
        trips.push(play.elapsed().as_secs_f64());
        for (index, delay) in delays.iter().enumerate() {
            let base = Duration::from_millis(250 << index);
            let allowed = base..=base.mul_f64(1.25);
            row.require(
                allowed.contains(delay),
                format!("delay {index} doubles: {delay:?} is not in {allowed:?}"),
            );
        }
        slow.push(play.wait_for_deadline()?.as_secs_f64());
        // Ten minutes of the same.
        let end = play.begin + Duration::from_secs(600);
        while play.now < end {
            if play.state.wants_slot() {
                play.spawn()?;
                play.exit(1);
            }
            let next = play.state.next_deadline().context("it is tried for ever")?;
            play.wait_until(next.min(end));
        }
        row.require(play.alerts == 1, format!("one alert, not {}", play.alerts));
        spawns.push(play.spawns.len());
    }
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    row.at_most("crash_loop at the latest", most(&trips), "s", 39.7);
    row.at_least("crash_loop at the earliest", least(&trips), "s", 31.75);
    row.at_least("slow retry at the earliest", least(&slow), "s", 300.0);
    row.at_most("slow retry at the latest", most(&slow), "s", 375.0);
    let most_spawns = spawns.iter().max().copied().unwrap_or_default();
    // Eight, and one or two of the slow ones.
    row.between("spawns in 10 min", number(most_spawns), "", 9.0, 10.0);
    Ok(())
}

pub(crate) async fn slow_crasher(row: Row) -> Result<()> {
    row.note("simulated clock, default numbers");
    let mut spawns = 0;
    for seed in seeds(&row) {
        let mut play = Play::new(seed);
        for failure in 1..=8 {
            play.become_ready()?;
            play.wait(Duration::from_secs(20));
            play.exit(1);
            let counted = play.state.failures();
            row.require(
                counted == failure,
                format!("failure {failure} is counted as {counted}"),
            );
            let phase = play.state.phase();
            if failure < 8 {
                row.require(phase == Phase::Backoff, format!("{failure}: {phase:?}"));
                play.wait_for_deadline()?;
            } else {
                row.require(
                    phase == Phase::CrashLoop,
                    format!("at the eighth: {phase:?}"),
                );
            }
        }
        row.require(play.alerts == 1, "one alert");
        spawns = play.spawns.len();
    }
    row.exactly("spawns before the crash loop", spawns, "", 8);
    Ok(())
}

pub(crate) async fn recovers(row: Row) -> Result<()> {
    row.note("simulated clock, default numbers");
    let mut delays = Vec::new();
    for seed in seeds(&row) {
        let mut play = Play::new(seed);
        for _ in 0..5 {
            play.spawn()?;
            play.exit(1);
            play.wait_for_deadline()?;
        }
        play.become_ready()?;
        play.wait(Duration::from_millis(59_900));
        row.require(play.state.failures() == 5, "not yet stable after 59.9 s");
        play.wait(Duration::from_millis(100));
        let failures = play.state.failures();
        row.require(
            failures == 0,
            format!("after 60 s ready nothing counts, not {failures}"),
        );
        play.exit(1);
        delays.push(play.wait_for_deadline()?.as_secs_f64() * 1000.0);
    }
    let worst = delays.iter().copied().fold(0.0, f64::max);
    let least = delays.iter().copied().fold(f64::INFINITY, f64::min);
    row.between("longest delay after the reset", worst, "ms", 250.0, 312.5);
    row.at_least("shortest delay after the reset", least, "ms", 250.0);
    Ok(())
}

pub(crate) async fn dependency_away(row: Row) -> Result<()> {
    row.note("simulated clock, default numbers");
    const AWAY: Duration = Duration::from_secs(300);
    let missing = || Event::Dependencies(Some("waits for devices".to_owned()));
    let mut waited = Duration::ZERO;
    for seed in seeds(&row) {
        // One that was ready and is told; one that restarts with it; one that crashes for want of it;
        // one that had not begun.
        let mut notified = Play::new(seed);
        notified.become_ready()?;
        notified.feed(missing());

        let mut restarted = Play::new(seed);
        restarted.become_ready()?;
        restarted.feed(missing());
        restarted.feed(Event::RestartForDependency);
        restarted.run(RunEvent::Drained);
        restarted.exit(0);

        let mut stopped = Play::new(seed);
        stopped.become_ready()?;
        stopped.feed(missing());
        stopped.feed(Event::StopForDependency);
        stopped.run(RunEvent::Drained);

        let mut crashed = Play::new(seed);
        crashed.become_ready()?;
        crashed.feed(missing());
        crashed.exit(1);

        let mut fresh = Play::new(seed);
        fresh.feed(missing());

        for (name, play) in [
            ("notified", &mut notified),
            ("restarted", &mut restarted),
            ("stopped", &mut stopped),
            ("crashed", &mut crashed),
            ("fresh", &mut fresh),
        ] {
            let spawned = play.spawns.len();
            play.wait(AWAY);
            row.require(
                play.spawns.len() == spawned,
                format!("{name}: nothing is tried while the dependency is away"),
            );
            let back = play.now;
            play.feed(Event::Dependencies(None));
            // At once: no wait is left over.
            if play.state.wants_slot() {
                play.become_ready()?;
            }
            waited = waited.max(play.now - back);
            let (phase, failures) = (play.state.phase(), play.state.failures());
            row.require(
                phase == Phase::Ready,
                format!("{name}: ready again unaided, not {phase:?}"),
            );
            row.require(
                failures == 0,
                format!("{name}: its own budget is uncharged, not {failures}"),
            );
        }
    }
    row.at_most(
        "back after its return",
        waited.as_secs_f64() * 1000.0,
        "ms",
        0.0,
    );
    Ok(())
}

/// How long a plugin lives that asks for more time for its first hook without end.
pub(crate) fn extended_hook_lives() -> Duration {
    let mut play = Play::new(1);
    if play.spawn().is_err() {
        return Duration::ZERO;
    }
    play.feed(Event::Opened {
        ready: false,
        resumable: true,
    });
    let begin = play.now;
    while let Some(hook_id) = play.state.awaited_hook() {
        play.run(RunEvent::Extend {
            hook_id,
            by: Duration::from_secs(30),
        });
        play.wait(Duration::from_secs(1));
        if play.now - begin > Duration::from_secs(3_600) {
            break;
        }
    }
    play.now - begin
}

fn seeds(row: &Row) -> impl Iterator<Item = u64> {
    let first = row.seed();
    (0..SEEDS).map(move |index| first.wrapping_add(index))
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
