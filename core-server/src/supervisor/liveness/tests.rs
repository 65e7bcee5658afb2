use proptest::prelude::*;

use super::*;

/// A plugin on a clock that moves in steps of 100 ms, looked at whenever that is due and once a
/// second.
struct Play {
    liveness: Liveness,
    begin: Instant,
    now: Instant,
    seen: Seen,
    /// It answers so long after a ping; `None`: never.
    answers_after: Option<Duration>,
    /// Its connections answer whatever is sent, HTTP/2's pings every 5 s among it.
    connections_live: bool,
    /// The core hands a ping to the transport so long after it was queued.
    handed_after: Duration,
    pings: Vec<(u64, Instant)>,
    degraded: Vec<(f64, bool)>,
    ended: Option<(f64, Lifeless)>,
}

impl Play {
    fn new() -> Self {
        let begin = Instant::now();
        Self {
            liveness: Liveness::new(Times::default(), 0, begin),
            begin,
            now: begin,
            seen: Seen::default(),
            answers_after: Some(Duration::from_millis(100)),
            connections_live: true,
            handed_after: Duration::ZERO,
            pings: Vec::new(),
            degraded: Vec::new(),
            ended: None,
        }
    }

    fn at(&self) -> f64 {
        (self.now - self.begin).as_secs_f64()
    }

    fn run(&mut self, until: f64) -> &mut Self {
        while self.ended.is_none() && self.at() < until {
            self.now += Duration::from_millis(100);
            let elapsed_ms = (self.now - self.begin).as_millis();
            if self.connections_live && elapsed_ms.is_multiple_of(5_000) {
                self.seen.heard = Some(self.now);
            }
            for (nonce, queued) in &self.pings {
                let handed = *queued + self.handed_after;
                if handed <= self.now {
                    self.seen.handed = Some((*nonce, handed));
                    if self.connections_live {
                        self.seen.heard = self.seen.heard.max(Some(handed));
                    }
                    let pong = self.answers_after.map(|after| handed + after);
                    if let Some(pong) = pong.filter(|pong| *pong <= self.now)
                        && self.seen.pong.is_none_or(|(last, _)| last < *nonce)
                    {
                        self.seen.pong = Some((*nonce, pong));
                        self.seen.heard = self.seen.heard.max(Some(pong));
                    }
                }
            }
            let whole_second = elapsed_ms.is_multiple_of(1_000);
            let due = self.liveness.next_deadline();
            if whole_second || due.is_some_and(|due| due <= self.now) {
                self.look();
            }
        }
        self
    }

    fn look(&mut self) {
        let beat = self.liveness.look(&self.seen, self.now);
        if let Some(nonce) = beat.ping {
            self.pings.push((nonce, self.now));
        }
        let at = self.at();
        self.degraded
            .extend(beat.degraded.map(|degraded| (at, degraded)));
        self.ended = beat.lifeless.map(|lifeless| (at, lifeless));
    }
}

#[test]
fn an_idle_healthy_plugin_is_pinged_every_five_seconds_and_left_alone() {
    let mut play = Play::new();
    play.run(3_600.0);
    assert_eq!((play.ended, play.degraded.len()), (None, 0));
    assert!((700..=720).contains(&play.pings.len()));
}

#[test]
fn a_stopped_process_is_degraded_within_15_s_and_ended_after_15_s_of_silence() {
    // Wherever between two pings it is stopped.
    for stopped_at in [20.2, 21.0, 23.0, 24.9] {
        let mut play = Play::new();
        play.run(stopped_at);
        play.answers_after = None;
        play.connections_live = false;
        play.run(120.0);
        let (degraded_at, degraded) = play.degraded[0];
        assert!(degraded && degraded_at - stopped_at <= 15.0);
        let (ended_at, why) = play.ended.expect("ended");
        assert_eq!(why, Lifeless::Silent(Duration::from_secs(15)));
        let last_byte = 20.1;
        assert!(
            ended_at - last_byte <= 15.2 && ended_at - stopped_at <= 15.2,
            "{ended_at}"
        );
    }
}

#[test]
fn a_deadlocked_dispatch_is_degraded_within_15_s_and_ended_within_65_s() {
    for locked_at in [20.2, 23.0, 24.9] {
        let mut play = Play::new();
        play.run(locked_at);
        play.answers_after = None;
        play.run(200.0);
        assert!(play.degraded[0].0 - locked_at <= 15.0);
        let (ended_at, why) = play.ended.expect("ended");
        assert_eq!(why, Lifeless::Unresponsive(Duration::from_secs(60)));
        assert!((55.0..=65.0).contains(&(ended_at - locked_at)));
    }
}

#[test]
fn a_plugin_that_answers_late_is_never_ended() {
    for late in [3_000, 6_000, 12_000, 40_000] {
        let mut play = Play::new();
        play.answers_after = Some(Duration::from_millis(late));
        play.run(1_800.0);
        assert_eq!(play.ended, None, "{late} ms late");
        if late < 9_000 {
            assert_eq!(play.degraded, [], "{late} ms late");
        }
        if late < 20_000 {
            // Its pongs come as often as its pings once it is under way.
            assert!(play.degraded.len() <= 2, "{late}: {:?}", play.degraded);
        }
    }
}

#[test]
fn a_pong_clears_and_pongs_of_pings_that_were_not_sent_are_none() {
    let mut play = Play::new();
    play.answers_after = None;
    play.run(20.0);
    assert_eq!(play.degraded, [(14.0, true)]);
    for nonce in [0, 99, u64::MAX] {
        play.seen.pong = Some((nonce, play.now));
        play.look();
        assert_eq!(play.degraded.len(), 1, "{nonce}");
    }
    play.seen.pong = Some((play.liveness.sent(), play.now));
    play.look();
    assert!(!play.degraded[1].1);
    // Said again it is no news: it degrades once more.
    let twice = play.now;
    play.run(60.0);
    assert!(play.degraded[2].1, "{:?} after {twice:?}", play.degraded);
}

#[test]
fn what_waits_inside_the_core_is_not_held_against_the_plugin() {
    let mut play = Play::new();
    play.handed_after = Duration::from_secs(30);
    play.run(900.0);
    assert_eq!((play.ended, play.degraded.len()), (None, 0));
    assert!(play.pings.len() > 20, "one at a time, but they go on");
}

#[test]
fn a_stopped_process_that_cannot_even_be_pinged_is_ended_too() {
    let mut play = Play::new();
    play.run(20.2);
    play.handed_after = Duration::from_secs(3_600);
    play.connections_live = false;
    play.run(60.0);
    let (ended_at, why) = play.ended.expect("ended");
    assert_eq!(why, Lifeless::Silent(Duration::from_secs(15)));
    assert!(ended_at - 20.2 <= 16.0, "{ended_at}");
}

#[test]
fn a_lost_channel_does_not_make_silence_forgotten() {
    let mut play = Play::new();
    play.run(20.2);
    play.answers_after = None;
    play.connections_live = false;
    play.run(32.0);
    play.liveness.unlink();
    play.run(60.0);
    let (ended_at, why) = play.ended.expect("ended");
    assert_eq!(why, Lifeless::Silent(Duration::from_secs(15)));
    assert!(ended_at <= 35.3, "{ended_at}");

    // Of a plugin that was well until then nothing is said: its run has a deadline of its own.
    let mut play = Play::new();
    play.run(21.0);
    play.liveness.unlink();
    play.run(600.0);
    assert_eq!(play.ended, None);
}

impl Play {
    /// Another channel of the same run.
    fn come_back(&mut self) {
        let patience = Duration::from_secs(10);
        let before = &self.liveness;
        self.liveness = Liveness::resumed(Times::default(), Some(before), patience, self.now);
        self.look();
    }
}

#[test]
fn a_channel_that_comes_back_is_pinged_at_once_and_proves_itself_by_the_answer() {
    let mut play = Play::new();
    play.run(21.0);
    let pings = play.pings.len();
    play.liveness.unlink();
    play.run(24.0);
    play.come_back();
    assert_eq!(play.pings.len(), pings + 1);
    // What was sent over the channel before proves nothing.
    play.seen.pong = Some((play.liveness.sent() - 1, play.now));
    play.look();
    assert!(play.liveness.unproven.is_some());
    play.run(25.0);
    assert!(play.liveness.unproven.is_none());
    play.run(600.0);
    assert_eq!((play.ended, play.degraded.len()), (None, 0));
}

#[test]
fn channels_that_come_back_again_and_again_but_do_not_hear_end_the_run() {
    let mut play = Play::new();
    play.run(21.0);
    play.answers_after = None;
    // Its own side is heard all the time.
    while play.ended.is_none() && play.at() < 100.0 {
        play.liveness.unlink();
        play.run(play.at() + 1.0);
        play.come_back();
        play.run(play.at() + 6.0);
    }
    let (ended_at, why) = play.ended.expect("ended");
    assert_eq!(why, Lifeless::Unresponsive(Duration::from_secs(10)));
    assert!((32.0..=32.2).contains(&ended_at), "{ended_at}");
}

#[test]
fn a_stall_of_the_core_gives_a_channel_that_came_back_its_whole_time() {
    let mut play = Play::new();
    play.answers_after = None;
    play.run(1.0);
    play.come_back();
    play.run(10.0);
    play.now += Duration::from_secs(300);
    play.liveness.re_arm(play.now);
    let woken = play.at();
    play.run(woken + 60.0);
    let (ended_at, _) = play.ended.expect("ended");
    assert!((10.0..=10.3).contains(&(ended_at - woken)), "{ended_at}");
}

#[test]
fn after_a_stall_of_the_core_everything_begins_anew() {
    let mut play = Play::new();
    play.answers_after = None;
    play.connections_live = false;
    play.run(14.5);
    assert_eq!(play.degraded.len(), 1);
    play.now += Duration::from_secs(300);
    play.liveness.re_arm(play.now);
    let resumed = play.at();
    play.run(resumed + 100.0);
    let (ended_at, _) = play.ended.expect("ended");
    assert!(
        (15.0..=15.3).contains(&(ended_at - resumed)),
        "{ended_at} {resumed}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the order of looks: no verdict without the silence, or the lack of pongs, that it
    /// states; no degradation without 8 s without a pong; and a deadline that has come is used up.
    #[test]
    fn verdicts_are_never_early(
        steps in prop::collection::vec((0..4_000_u64, 0..4_u8, any::<bool>()), 1..200),
    ) {
        let begin = Instant::now();
        let times = Times::default();
        let mut liveness = Liveness::new(times, 0, begin);
        let mut seen = Seen::default();
        let (mut now, mut queued) = (begin, None::<u64>);
        let (mut heard, mut ponged) = (begin, begin);
        for (wait, what, stall) in steps {
            now += Duration::from_millis(wait);
            match what {
                0 => {
                    if let Some(nonce) = queued.take() {
                        seen.handed = Some((nonce, now));
                    }
                }
                1 => {
                    if let Some((nonce, _)) = seen.handed
                        && seen.pong.is_none_or(|(last, _)| last < nonce)
                    {
                        seen.pong = Some((nonce, now));
                        (heard, ponged) = (now, now);
                    }
                }
                2 => {
                    seen.heard = Some(now);
                    heard = now;
                }
                _ if stall && wait > 2_000 => {
                    liveness.re_arm(now);
                    (heard, ponged) = (now, now);
                }
                _ => {}
            }
            let beat = liveness.look(&seen, now);
            queued = beat.ping.or(queued);
            if beat.degraded == Some(true) {
                prop_assert!(now - ponged >= Duration::from_secs(8));
            }
            match beat.lifeless {
                Some(Lifeless::Silent(after)) => {
                    prop_assert!(now - heard >= after);
                    break;
                }
                Some(Lifeless::Unresponsive(after)) => {
                    prop_assert!(now - ponged >= after);
                    break;
                }
                None => prop_assert!(liveness.next_deadline().is_none_or(|at| at > now)),
            }
        }
    }
}
