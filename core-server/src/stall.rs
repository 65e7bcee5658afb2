//! The core itself may be late: its machine slept, its process was stopped, or the box is overloaded.
//! Then everybody else seems late too, and nobody must be blamed for it.
//!
//! [`StallGuard`] notices it: whoever has deadlines to judge looks at the clock at least once a second,
//! and when the look comes more than [`TOLERANCE`] late, all deadlines are moved before any is judged.
//! [`Patience`] and [`timeout`] are for waits that stand alone: a timer that fires so late begins anew
//! for its whole time, because what it waited for may lie unread in a socket.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Lateness of the core that is daily life on a busy box. Deadlines of plugins are longer.
pub const TOLERANCE: Duration = Duration::from_secs(2);

/// Notices that the core was late: pure.
#[derive(Clone, Debug)]
pub struct StallGuard {
    promised: Instant,
}

impl StallGuard {
    /// How often it must be looked at.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// A guard that is looked at now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            promised: now + Self::INTERVAL,
        }
    }

    /// When the next look must be, at the latest.
    #[must_use]
    pub fn next_look(&self) -> Instant {
        self.promised
    }

    /// A look, before anything is judged. `Some`: the core was late; deadlines are to be moved by so
    /// much, which is the time since the last look: no deadline comes nearer by a stall.
    pub fn look(&mut self, now: Instant) -> Option<Duration> {
        let late = now.saturating_duration_since(self.promised);
        self.promised = now + Self::INTERVAL;
        (late > TOLERANCE).then(|| late + Self::INTERVAL)
    }
}

/// A sleep that begins anew when it fires too late.
#[derive(Debug)]
pub struct Patience {
    sleep: Pin<Box<Sleep>>,
    /// Its whole time.
    duration: Duration,
}

impl Patience {
    /// A sleep of this length.
    #[must_use]
    pub fn new(duration: Duration) -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep(duration)),
            duration,
        }
    }

    /// Makes it end at another time.
    pub fn reset(&mut self, deadline: Instant) {
        self.duration = deadline.saturating_duration_since(Instant::now());
        self.sleep.as_mut().reset(deadline);
    }
}

impl Future for Patience {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(context));
            let now = Instant::now();
            if now.saturating_duration_since(self.sleep.deadline()) <= TOLERANCE {
                return Poll::Ready(());
            }
            let again = now + self.duration;
            self.sleep.as_mut().reset(again);
        }
    }
}

/// The time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it did not end in time")]
pub struct Elapsed;

/// Waits for a future for at most `limit` of the time in which the core was not late itself.
///
/// # Errors
/// [`Elapsed`]; the future is dropped then.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut patience = Patience::new(limit);
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut patience).poll(context).map(|()| Err(Elapsed))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_a_look_that_comes_too_late_is_a_stall() {
        let begin = Instant::now();
        for (after_ms, moved) in [
            (0, None),
            (1_000, None),
            (2_999, None),
            (3_000, None),
            (3_001, Some(Duration::from_millis(3_001))),
            (3_600_000, Some(Duration::from_secs(3_600))),
        ] {
            let mut guard = StallGuard::new(begin);
            let now = begin + Duration::from_millis(after_ms);
            assert_eq!(guard.look(now), moved, "{after_ms} ms");
            assert_eq!(guard.next_look(), now + SECOND);
            assert_eq!(guard.look(now + SECOND), None, "it is over");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_fires_in_time_is_a_plain_timer() {
        let begin = Instant::now();
        Patience::new(5 * SECOND).await;
        assert_eq!(begin.elapsed(), 5 * SECOND);
        let never = timeout(3 * SECOND, std::future::pending::<()>()).await;
        assert_eq!((never, begin.elapsed()), (Err(Elapsed), 8 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_fires_late_begins_anew() {
        let begin = Instant::now();
        let mut patience = Patience::new(5 * SECOND);
        let mut polled = std::pin::pin!(&mut patience);
        assert!(futures_util::poll!(polled.as_mut()).is_pending());
        // As a stopped process does: time passes and nobody looks.
        tokio::time::advance(60 * SECOND).await;
        assert!(futures_util::poll!(polled.as_mut()).is_pending());
        polled.await;
        assert_eq!(begin.elapsed(), 65 * SECOND);
    }
}
