//! A call across links: from its caller to the provider's channel and back.
//!
//! Owns: calls from acceptance to their one end, places at providers, deadlines, cancellation. Does
//! not own: which services exist (`service_registry/`), whether a provider may be called (it is told,
//! [`Router::set_availability`]), channels (`channel/`).
//!
//! Invariants
//! - Every call ends exactly once: whoever takes it out of its provider's table ends it.
//! - Calls to different providers share no lock that anyone holds long; one slow call blocks none.
//! - A call is dispatched only over the link its provider had at that moment. A lost link ends the
//!   calls on it as `PROVIDER_LOST`, but for those that go back in line: what was never sent, and what
//!   is declared idempotent, at most twice, inside the deadline (`repeat`). There they wait as any other
//!   caller of an absent provider does, or end as it would, `PROVIDER_LOST` if they may have taken effect.
//! - A place is freed by the provider's answer, or 5 s after the caller gave up.
//!
//! When full: 256 places per provider (the plugin may say otherwise), then a line of 1,024, then
//! `PROVIDER_BUSY`; 1,024 calls in flight per caller, then `CALLER_BUSY`. All counted.

mod call;
mod deadlines;
mod error;
mod loss;
mod provider;
mod repeat;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use call::{Call, OnEnd};
pub use error::Error;
pub use provider::Availability;

use crate::channel::{CallFrame, ChannelId, Outbound};
use crate::error::{ApplicationFailure, Failure};
use crate::service_registry::ServiceRegistry;
use crate::types::{Cause, Payload, PluginName, Source};
use call::Accepted;
use deadlines::{Deadlines, Expiry, Timer};
use provider::Provider;

/// Bounds of routing.
#[derive(Clone, Debug)]
pub struct Config {
    /// Deadline of a call that has none.
    pub default_timeout: Duration,
    /// Longest deadline.
    pub max_timeout: Duration,
    /// Deepest nesting.
    pub max_depth: u32,
    /// Calls that may wait for a place, per provider.
    pub max_waiting: usize,
    /// How long a suspended provider's callers wait.
    pub suspended_wait: Duration,
    /// When a place is freed that a cancelled or expired call holds.
    pub abandoned_place: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_timeout: Duration::from_secs(10),
            max_timeout: Duration::from_secs(300),
            max_depth: 16,
            max_waiting: 1_024,
            suspended_wait: Duration::from_secs(3),
            abandoned_place: Duration::from_secs(5),
        }
    }
}

/// What routing counts, from the start of the core.
#[derive(Debug, Default)]
pub struct Stats {
    /// Calls that were handed to a provider.
    pub dispatched: AtomicU64,
    /// Calls refused because places and line were full.
    pub refused_busy: AtomicU64,
    /// Calls that ended by their deadline.
    pub expired: AtomicU64,
    /// Calls whose caller gave up.
    pub cancelled: AtomicU64,
    /// Calls whose provider went away.
    pub lost: AtomicU64,
    /// Calls that went back in line because their link was lost.
    pub repeated: AtomicU64,
    /// Answers that nobody waited for: second, late or foreign ones.
    pub answers_dropped: AtomicU64,
}

/// Routes calls to their providers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Router {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    registry: ServiceRegistry,
    /// Grows by the plugins that the core knows or has met; never by what messages say.
    providers: RwLock<HashMap<PluginName, Arc<Provider>>>,
    deadlines: Deadlines,
    next_call_id: AtomicU64,
    /// The core is stopping: operators' calls are refused, those between plugins go on until their
    /// providers are stopped.
    stopping: AtomicBool,
    stats: Stats,
}

impl Router {
    /// A router over a registry. Its deadlines pass only while [`Router::run`] is polled.
    #[must_use]
    pub fn new(config: Config, registry: ServiceRegistry) -> Self {
        let shared = Shared {
            config,
            registry,
            providers: RwLock::default(),
            deadlines: Deadlines::default(),
            next_call_id: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            stats: Stats::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Ends calls whose time has run out, until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                expiry = self.shared.deadlines.next() => self.expire(&expiry),
            }
        }
    }

    /// What routing has counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Accepts a call. `on_end` is called exactly once, perhaps before this returns, never under a
    /// lock. The ticket cancels the call when it is dropped, unless the call has ended.
    pub fn call(&self, call: Call, on_end: OnEnd) -> CallTicket {
        let call_id = self.shared.next_call_id.fetch_add(1, Ordering::Relaxed);
        match self.accept(call_id, call) {
            Ok((accepted, provider)) => {
                self.submit(&provider, accepted, on_end);
                CallTicket {
                    router: self.clone(),
                    call: Some((provider, call_id)),
                }
            }
            Err(error) => {
                on_end(Err(error.into()));
                CallTicket {
                    router: self.clone(),
                    call: None,
                }
            }
        }
    }

    /// Calls and waits. Cancel safe: dropping the future cancels the call.
    ///
    /// # Errors
    /// [`Failure`]: the system's or the application's.
    pub async fn call_and_wait(&self, call: Call) -> Result<Payload, Failure> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let ticket = self.call(
            call,
            Box::new(move |result| {
                // The receiver is gone only when the caller is, and then nobody wants the answer.
                let _gone = sender.send(result);
            }),
        );
        let result = receiver
            .await
            .unwrap_or_else(|_| Err(Error::Cancelled { dispatched: true }.into()));
        ticket.forget();
        result
    }

    /// Everything that can be refused before a provider's table is touched.
    fn accept(&self, call_id: u64, call: Call) -> Result<(Accepted, Arc<Provider>), Error> {
        let config = &self.shared.config;
        let now = Instant::now();
        if call.caller_plugin().is_none() && self.shared.stopping.load(Ordering::Relaxed) {
            return Err(Error::ShuttingDown);
        }
        let service = self
            .shared
            .registry
            .find(&call.service)
            .map_err(Error::NoSuchService)?;
        let default = service
            .description
            .default_timeout
            .unwrap_or(config.default_timeout);
        let timeout = call.timeout.unwrap_or(default).min(config.max_timeout);
        let mut deadline = now + timeout;
        let mut depth = 1;
        let mut traceparent = call.traceparent;
        if let (Some(Cause::Call(parent)), Source::Plugin(plugin)) = (call.cause, &call.caller)
            && let Some(parent) = self.provider(plugin).in_flight(parent)
        {
            depth = parent.depth + 1;
            deadline = deadline.min(parent.deadline);
            if traceparent.is_empty() {
                traceparent = parent.traceparent.as_deref().unwrap_or_default().to_owned();
            }
        }
        if depth > config.max_depth {
            return Err(Error::TooDeep {
                limit: config.max_depth,
            });
        }
        if deadline <= now {
            return Err(Error::Expired {
                service: service.name.clone(),
                dispatched: false,
            });
        }
        let provider = self.provider(&service.provider);
        let frame = CallFrame {
            call_id,
            service: service.name.shared(),
            arguments: call.arguments,
            deadline,
            caller: call.caller,
            depth,
            cause: call.cause,
            traceparent,
        };
        let wait_for_ready = call.wait_for_ready;
        Ok((
            Accepted {
                frame,
                service,
                wait_for_ready,
                slot: call.slot,
                accepted_at: now,
            },
            provider,
        ))
    }

    fn submit(&self, provider: &Arc<Provider>, accepted: Accepted, on_end: OnEnd) {
        let call_id = accepted.frame.call_id;
        let deadline = accepted.frame.deadline;
        let step = provider.submit(accepted, on_end, &self.shared.config);
        if step.ended.is_empty() {
            // After the call stands in the table: a timer that fired before would find nothing.
            let expiry = Expiry::Call {
                provider: Arc::downgrade(provider),
                call_id,
            };
            let timer = self.shared.deadlines.insert(expiry, deadline);
            self.drop_timer(provider.arm(call_id, timer));
        }
        self.perform(provider, step);
    }

    /// Does what a provider's table decided, outside its lock.
    fn perform(&self, provider: &Arc<Provider>, mut step: provider::Step) {
        let Shared {
            config,
            deadlines,
            stats,
            ..
        } = &*self.shared;
        while !step.is_empty() {
            let mut next = provider::Step::default();
            if step.repeated > 0 {
                stats.repeated.fetch_add(step.repeated, Ordering::Relaxed);
            }
            for timer in step.timers {
                deadlines.remove(timer);
            }
            if let Some(until) = step.suspended_until {
                // Never taken back: if the suspension ends early, it finds nothing to do.
                let expiry = Expiry::Suspended {
                    provider: Arc::downgrade(provider),
                };
                deadlines.insert(expiry, until);
            }
            if let Some((link, call_id)) = step.cancel {
                if link.outbox.cancel_call(call_id) {
                    next.merge(provider.free_place(call_id));
                } else {
                    let expiry = Expiry::Place {
                        provider: Arc::downgrade(provider),
                        call_id,
                    };
                    let timer = deadlines.insert(expiry, Instant::now() + config.abandoned_place);
                    self.drop_timer(provider.arm_place(call_id, timer));
                }
            }
            for (link, frame) in step.dispatch {
                let call_id = frame.call_id;
                stats.dispatched.fetch_add(1, Ordering::Relaxed);
                let push = link.outbox.push(Outbound::Call(frame));
                next.merge(provider.pushed(&link, call_id, push));
            }
            for ended in step.ended {
                stats.count(&ended.result);
                ended.finish();
            }
            step = next;
        }
    }

    fn drop_timer(&self, timer: Option<Timer>) {
        if let Some(timer) = timer {
            self.shared.deadlines.remove(timer);
        }
    }

    fn expire(&self, expiry: &Expiry) {
        let (provider, step) = match expiry {
            Expiry::Call { provider, call_id } => {
                let Some(provider) = provider.upgrade() else {
                    return;
                };
                let step = provider.give_up(*call_id, provider::Why::Expired);
                (provider, step)
            }
            Expiry::Place { provider, call_id } => {
                let Some(provider) = provider.upgrade() else {
                    return;
                };
                let step = provider.free_place(*call_id);
                (provider, step)
            }
            Expiry::Suspended { provider } => {
                let Some(provider) = provider.upgrade() else {
                    return;
                };
                let step = provider.suspension_over(Instant::now());
                (provider, step)
            }
        };
        self.perform(&provider, step);
    }

    /// A provider answered. `channel` is the one it answered on.
    pub fn complete(
        &self,
        plugin: &PluginName,
        channel: ChannelId,
        call_id: u64,
        result: Result<Payload, ApplicationFailure>,
    ) {
        let provider = self.provider(plugin);
        match provider.answer(channel, call_id, result) {
            Some(step) => self.perform(&provider, step),
            None => {
                self.shared
                    .stats
                    .answers_dropped
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Notes whether calls to a plugin are dispatched from now on. Calls in flight go on; those that
    /// wait are dispatched, go on waiting or end, as the availability says.
    pub fn set_availability(&self, plugin: &PluginName, availability: Availability) {
        let provider = self.provider(plugin);
        let ready = matches!(availability, Availability::Ready(_));
        let step = provider.set_availability(availability, &self.shared.config, Instant::now());
        self.shared.registry.set_available(plugin, ready);
        self.perform(&provider, step);
    }

    /// Refuses operators' calls from now on: the core is stopping.
    pub fn begin_shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Ends the calls in flight on a channel as `PROVIDER_LOST`, but for those that may be dispatched
    /// again, and the dispatch on it: callers wait until the next availability is told.
    pub fn link_lost(&self, plugin: &PluginName, channel: ChannelId) {
        let provider = self.provider(plugin);
        let step = provider.link_lost(channel, &self.shared.config, Instant::now());
        self.perform(&provider, step);
    }

    /// Waits until no call is in flight at a plugin. Cancel safe.
    pub async fn drained(&self, plugin: &PluginName) {
        self.provider(plugin).drained().await;
    }

    /// Calls at a plugin now, and those that wait for it.
    #[must_use]
    pub fn load(&self, plugin: &PluginName) -> (usize, usize) {
        self.provider(plugin).load()
    }

    /// Entries in the deadline table: one per call, place or suspension that is timed.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.shared.deadlines.len()
    }

    fn provider(&self, plugin: &PluginName) -> Arc<Provider> {
        if let Some(provider) = self.shared.providers.read().get(plugin) {
            return Arc::clone(provider);
        }
        let mut providers = self.shared.providers.write();
        let provider = providers
            .entry(plugin.clone())
            .or_insert_with(|| Arc::new(Provider::new(plugin.clone())));
        Arc::clone(provider)
    }
}

impl Stats {
    fn count(&self, result: &Result<Payload, Failure>) {
        use crate::error::Reason;
        let Err(Failure::System(failure)) = result else {
            return;
        };
        let counter = match failure.reason {
            Reason::Deadline => &self.expired,
            Reason::Cancelled => &self.cancelled,
            Reason::ProviderLost => &self.lost,
            Reason::ProviderBusy => &self.refused_busy,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A call that may be cancelled. Dropping it cancels, unless the call has ended.
#[derive(Debug)]
#[must_use = "dropping a ticket cancels its call"]
pub struct CallTicket {
    router: Router,
    call: Option<(Arc<Provider>, u64)>,
}

impl CallTicket {
    /// The call has ended or shall go on: nothing is cancelled.
    pub fn forget(mut self) {
        self.call = None;
    }
}

impl Drop for CallTicket {
    fn drop(&mut self) {
        if let Some((provider, call_id)) = self.call.take() {
            let step = provider.give_up(call_id, provider::Why::Cancelled);
            self.router.perform(&provider, step);
        }
    }
}

#[cfg(test)]
mod tests;
