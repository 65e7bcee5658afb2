//! HTTP/2's timers, patient with the core's own lateness.
//!
//! hyper closes a connection whose keepalive ping was not answered when its timer fires. After the core
//! was stopped for a while every such timer fires at once, before the answers that lie in the sockets
//! are read, and would close all connections, healthy ones too. So a timer that fires late begins anew,
//! for its original time: by its next end the answer has been read, if there is one.

#![expect(clippy::disallowed_types, reason = "hyper's trait names std's Instant")]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

use crate::stall::Patience;

/// Timers of tokio's clock that begin anew when they fire late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PatientTimer;

impl Timer for PatientTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(PatientSleep(Patience::new(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.now()))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<PatientSleep>() {
            Some(sleep) => sleep.get_mut().0.reset(new_deadline.into()),
            None => *sleep = self.sleep_until(new_deadline),
        }
    }
}

#[derive(Debug)]
struct PatientSleep(Patience);

impl Future for PatientSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl Sleep for PatientSleep {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_is_reset_in_place_and_begins_anew_when_it_is_late() {
        let second = Duration::from_secs(1);
        let begin = tokio::time::Instant::now();
        let mut sleep = PatientTimer.sleep(second);
        PatientTimer.reset(&mut sleep, PatientTimer.now() + 10 * second);
        assert!(futures_util::poll!(sleep.as_mut()).is_pending());
        tokio::time::advance(30 * second).await;
        sleep.await;
        assert_eq!(begin.elapsed(), 40 * second);
    }
}
