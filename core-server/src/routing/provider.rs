//! One provider's table of calls. Every method takes the lock once, decides, and returns a [`Step`]
//! for the router to perform outside it: no callback, no push and no timer under the lock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::call::{Accepted, Ended};
use super::deadlines::Timer;
use super::repeat::Tries;
use super::{Config, Error, OnEnd};
use crate::channel::{CallFrame, ChannelId, Link, Push, Slot};
use crate::error::{ApplicationFailure, Failure};
use crate::service_registry::Service;
use crate::types::{Payload, PluginName};

/// Whether calls to a plugin are dispatched.
#[derive(Clone, Debug)]
pub enum Availability {
    /// Not STARTED: `NO_PROVIDER`, with this advice.
    Absent {
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// The channel is lost and may come back: callers wait up to 3 s inside their deadline.
    Suspended,
    /// It misses heartbeats: `PROVIDER_DEGRADED`.
    Degraded,
    /// STARTED and healthy: calls go over this link.
    Ready(Link),
}

/// Why a caller gives up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    Expired,
    Cancelled,
}

/// Nearly always nothing or one: then it needs no memory of its own.
pub(super) type Few<T> = smallvec::SmallVec<[T; 1]>;

/// What is to be done after a decision.
#[derive(Default)]
pub(super) struct Step {
    /// Calls that have ended.
    pub(super) ended: Few<Ended>,
    /// Calls to push, in order.
    pub(super) dispatch: Few<(Link, Box<CallFrame>)>,
    /// A call that its caller gave up while the provider has it, or soon will.
    pub(super) cancel: Option<(Link, u64)>,
    /// Timers that are not needed any more.
    pub(super) timers: Few<Timer>,
    /// Waiting callers are to be answered then.
    pub(super) suspended_until: Option<Instant>,
    /// How many calls went back in line.
    pub(super) repeated: u64,
}

impl Step {
    pub(super) fn is_empty(&self) -> bool {
        self.ended.is_empty()
            && self.dispatch.is_empty()
            && self.cancel.is_none()
            && self.timers.is_empty()
            && self.suspended_until.is_none()
            && self.repeated == 0
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.ended.extend(other.ended);
        self.dispatch.extend(other.dispatch);
        self.timers.extend(other.timers);
        if other.cancel.is_some() {
            debug_assert!(self.cancel.is_none(), "one decision cancels one call");
            self.cancel = other.cancel;
        }
        self.suspended_until = self.suspended_until.or(other.suspended_until);
        self.repeated += other.repeated;
    }
}

/// Facts of a call in flight, for calls nested in it.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) depth: u32,
    pub(super) deadline: Instant,
    /// Its trace context, if it has one.
    pub(super) traceparent: Option<Arc<str>>,
}

pub(super) struct Entry {
    pub(super) place: Place,
    /// `None` once the caller has been answered and only the place is held.
    pub(super) caller: Option<Caller>,
    /// Of the caller's deadline; once the caller is gone, of the place.
    timer: Option<Timer>,
    parent: Parent,
    pub(super) service: Arc<Service>,
    pub(super) tries: Tries,
    /// Of a call that its provider has and that may be dispatched again: what to dispatch.
    pub(super) copy: Option<Box<CallFrame>>,
}

pub(super) enum Place {
    /// In line; the frame is still here.
    Waiting(Box<CallFrame>),
    /// At the provider, over this link.
    Taken(Link),
}

pub(super) struct Caller {
    on_end: OnEnd,
    accepted_at: Instant,
    slot: Option<Slot>,
    wait_for_ready: bool,
}

pub(super) struct Table {
    pub(super) availability: Availability,
    pub(super) suspended_until: Option<Instant>,
    pub(super) calls: HashMap<u64, Entry>,
    pub(super) line: VecDeque<u64>,
    taken: usize,
}

/// A plugin as the provider of its services.
pub(super) struct Provider {
    pub(super) plugin: PluginName,
    /// Guards the table. Invariant: `taken` counts the entries whose place is taken; `line` holds the
    /// others in order of arrival.
    pub(super) table: Mutex<Table>,
    idle: Notify,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Provider")
            .field("plugin", &self.plugin)
            .finish_non_exhaustive()
    }
}

impl Provider {
    pub(super) fn new(plugin: PluginName) -> Self {
        let table = Table {
            availability: Availability::Absent { retry_after: None },
            suspended_until: None,
            calls: HashMap::new(),
            line: VecDeque::new(),
            taken: 0,
        };
        Self {
            plugin,
            table: Mutex::new(table),
            idle: Notify::new(),
        }
    }

    pub(super) fn submit(&self, accepted: Accepted, on_end: OnEnd, config: &Config) -> Step {
        let Accepted {
            frame,
            service,
            wait_for_ready,
            slot,
            accepted_at,
        } = accepted;
        let parent = Parent {
            depth: frame.depth,
            deadline: frame.deadline,
            traceparent: Some(frame.traceparent.as_str())
                .filter(|trace| !trace.is_empty())
                .map(Arc::from),
        };
        let caller = Caller {
            on_end,
            accepted_at,
            slot,
            wait_for_ready,
        };
        let call_id = frame.call_id;
        let mut step = Step::default();
        let mut table = self.table.lock();
        let refusal = match &table.availability {
            Availability::Ready(_) if service.run.is_none() => Some(Error::TakenBack {
                service: service.name.clone(),
                plugin: self.plugin.clone(),
            }),
            // A closed link's loss is about to be told: until then callers wait.
            Availability::Ready(link)
                if table.taken < link.max_calls_in_flight && !link.outbox.is_closed() =>
            {
                let link = link.clone();
                table.taken += 1;
                let place = Place::Taken(link.clone());
                service.stats.began();
                let copy = copy_of(&frame, &service);
                let entry = Entry {
                    place,
                    caller: Some(caller),
                    timer: None,
                    parent,
                    service,
                    tries: Tries::default(),
                    copy,
                };
                table.calls.insert(call_id, entry);
                step.dispatch.push((link, Box::new(frame)));
                return step;
            }
            _ if wait_for_ready => None,
            Availability::Ready(_) => None,
            Availability::Suspended
                if table
                    .suspended_until
                    .is_some_and(|until| until > Instant::now()) =>
            {
                None
            }
            Availability::Degraded => Some(Error::Degraded {
                service: service.name.clone(),
                plugin: self.plugin.clone(),
            }),
            Availability::Absent { .. } | Availability::Suspended => {
                Some(self.no_provider(&table, &service))
            }
        };
        let limit = config.max_waiting;
        let refusal = refusal.or_else(|| {
            let waiting = table.calls.len() - table.taken;
            (waiting >= limit).then(|| Error::ProviderBusy {
                plugin: self.plugin.clone(),
                limit,
            })
        });
        if let Some(error) = refusal {
            step.ended.push(caller.end(service, Err(error.into())));
            return step;
        }
        let place = Place::Waiting(Box::new(frame));
        let entry = Entry {
            place,
            caller: Some(caller),
            timer: None,
            parent,
            service,
            tries: Tries::default(),
            copy: None,
        };
        table.calls.insert(call_id, entry);
        table.line.push_back(call_id);
        step
    }

    pub(super) fn no_provider(&self, table: &Table, service: &Service) -> Error {
        let retry_after = match table.availability {
            Availability::Absent { retry_after } => retry_after,
            _ => Some(Duration::from_millis(250)),
        };
        Error::NoProvider {
            service: service.name.clone(),
            plugin: self.plugin.clone(),
            retry_after,
        }
    }

    /// What the outbox of this link said of a call that was dispatched over it.
    pub(super) fn pushed(&self, link: &Link, call_id: u64, push: Push) -> Step {
        let mut step = Step::default();
        if push == Push::Queued {
            return step;
        }
        let mut table = self.table.lock();
        // Not so when the loss of the link has been told already.
        if !table
            .calls
            .get(&call_id)
            .is_some_and(|entry| entry.is_over(link.channel))
        {
            return step;
        }
        if push == Push::Full {
            if let Some(entry) = self.remove(&mut table, call_id) {
                let error = Error::ProviderNotReading {
                    plugin: self.plugin.clone(),
                };
                entry.end(&mut step, Err(error.into()));
            }
            // The place is free again, and nothing else would offer it to those that wait.
            step.merge(self.fill(&mut table));
            return step;
        }
        let unsent = link.outbox.take_call(call_id);
        self.lose(&mut table, &mut step, call_id, unsent);
        step.merge(self.look_after_line(&mut table, Instant::now()));
        step
    }

    /// The provider answered. `None`: nobody waits for that answer.
    pub(super) fn answer(
        &self,
        channel: ChannelId,
        call_id: u64,
        result: Result<Payload, ApplicationFailure>,
    ) -> Option<Step> {
        let mut table = self.table.lock();
        table
            .calls
            .get(&call_id)
            .filter(|entry| entry.is_over(channel))?;
        let entry = self.remove(&mut table, call_id)?;
        let mut step = self.fill(&mut table);
        // When its caller gave up, the answer only frees the place.
        entry.end(
            &mut step,
            result.map_err(|failure| Failure::Application(Arc::new(failure))),
        );
        Some(step)
    }

    /// Notes the timer of a call's deadline; gives it back if the call has ended.
    pub(super) fn arm(&self, call_id: u64, timer: Timer) -> Option<Timer> {
        match self.table.lock().calls.get_mut(&call_id) {
            Some(entry) if entry.caller.is_some() => entry.timer.replace(timer),
            _ => Some(timer),
        }
    }

    /// The caller gives up: it is answered now. A place that is taken stays so until the provider
    /// acknowledges, or for 5 s.
    pub(super) fn give_up(&self, call_id: u64, why: Why) -> Step {
        let mut step = Step::default();
        let mut table = self.table.lock();
        let Some(entry) = table.calls.get_mut(&call_id) else {
            return step;
        };
        let Some(caller) = entry.caller.take() else {
            return step;
        };
        let service = Arc::clone(&entry.service);
        step.timers.extend(entry.timer.take());
        // One that waits to be dispatched again may have taken effect before.
        let mut dispatched = entry.tries.reached;
        match &entry.place {
            Place::Taken(link) => {
                step.cancel = Some((link.clone(), call_id));
                entry.copy = None;
                dispatched = true;
            }
            Place::Waiting(_) => {
                self.remove(&mut table, call_id);
                table.line.retain(|waiting| *waiting != call_id);
            }
        }
        let error = match why {
            Why::Expired => Error::Expired {
                service: service.name.clone(),
                dispatched,
            },
            Why::Cancelled => Error::Cancelled { dispatched },
        };
        step.ended.push(caller.end(service, Err(error.into())));
        step
    }

    /// Notes the timer of a place whose caller gave up; gives it back if the place is free.
    pub(super) fn arm_place(&self, call_id: u64, timer: Timer) -> Option<Timer> {
        match self.table.lock().calls.get_mut(&call_id) {
            Some(entry) => entry.timer.replace(timer),
            None => Some(timer),
        }
    }

    /// Frees the place of a call that its caller gave up.
    pub(super) fn free_place(&self, call_id: u64) -> Step {
        let mut table = self.table.lock();
        if table
            .calls
            .get(&call_id)
            .is_none_or(|entry| entry.caller.is_some())
        {
            return Step::default();
        }
        self.remove(&mut table, call_id);
        self.fill(&mut table)
    }

    pub(super) fn set_availability(
        &self,
        availability: Availability,
        config: &Config,
        now: Instant,
    ) -> Step {
        let mut table = self.table.lock();
        let mut step = Step::default();
        table.suspended_until = match (&availability, table.suspended_until) {
            (Availability::Suspended, None) => {
                step.suspended_until = Some(now + config.suspended_wait);
                step.suspended_until
            }
            (Availability::Suspended, until) => until,
            _ => None,
        };
        table.availability = availability;
        match &table.availability {
            Availability::Ready(_) => step.merge(self.fill(&mut table)),
            Availability::Suspended => {}
            Availability::Absent { .. } | Availability::Degraded => {
                step.merge(self.refuse_waiting(&mut table));
            }
        }
        step
    }

    /// A suspension has lasted longer than callers wait for it.
    pub(super) fn suspension_over(&self, now: Instant) -> Step {
        let mut table = self.table.lock();
        if table.suspended_until.is_some_and(|until| until <= now) {
            return self.refuse_waiting(&mut table);
        }
        Step::default()
    }

    /// Ends the waiting calls that did not ask to wait for a provider.
    pub(super) fn refuse_waiting(&self, table: &mut Table) -> Step {
        let mut step = Step::default();
        let line = std::mem::take(&mut table.line);
        for call_id in line {
            let Some(entry) = table.calls.get(&call_id) else {
                continue;
            };
            if entry
                .caller
                .as_ref()
                .is_some_and(|caller| caller.wait_for_ready)
            {
                table.line.push_back(call_id);
                continue;
            }
            let error = match table.availability {
                _ if entry.tries.reached => self.lost(&entry.service),
                Availability::Degraded => Error::Degraded {
                    service: entry.service.name.clone(),
                    plugin: self.plugin.clone(),
                },
                _ => self.no_provider(table, &entry.service),
            };
            if let Some(entry) = self.remove(table, call_id) {
                entry.end(&mut step, Err(error.into()));
            }
        }
        step
    }

    /// Gives free places to those that wait, in order of arrival.
    pub(super) fn fill(&self, table: &mut Table) -> Step {
        let mut step = Step::default();
        let Availability::Ready(link) = &table.availability else {
            return step;
        };
        if link.outbox.is_closed() {
            // Its loss is about to be told: those that wait go on waiting, as the next availability says.
            return step;
        }
        let link = link.clone();
        while table.taken < link.max_calls_in_flight
            && let Some(call_id) = table.line.pop_front()
        {
            let Some(entry) = table.calls.get_mut(&call_id) else {
                continue;
            };
            let taken = Place::Taken(link.clone());
            if let Place::Waiting(frame) = std::mem::replace(&mut entry.place, taken) {
                entry.copy = copy_of(&frame, &entry.service);
                entry.service.stats.began();
                table.taken += 1;
                step.dispatch.push((link.clone(), frame));
            }
        }
        step
    }

    pub(super) fn remove(&self, table: &mut Table, call_id: u64) -> Option<Entry> {
        let entry = table.calls.remove(&call_id)?;
        if matches!(entry.place, Place::Taken(_)) {
            entry.service.stats.left();
            table.taken -= 1;
            if table.taken == 0 {
                self.idle.notify_waiters();
            }
        }
        Some(entry)
    }

    /// The call of this id that the provider works on.
    pub(super) fn in_flight(&self, call_id: u64) -> Option<Parent> {
        self.table
            .lock()
            .calls
            .get(&call_id)
            .map(|entry| entry.parent.clone())
    }

    pub(super) fn load(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.taken, table.calls.len() - table.taken)
    }

    pub(super) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Registered before the look, so that no change falls between.
            idle.as_mut().enable();
            if self.table.lock().taken == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Caller {
    fn end(self, service: Arc<Service>, result: Result<Payload, Failure>) -> Ended {
        let Self {
            on_end,
            accepted_at,
            slot,
            ..
        } = self;
        Ended {
            on_end,
            result,
            service,
            accepted_at,
            slot,
        }
    }
}

/// What is kept of a call that goes to its provider, in case it must be dispatched again.
fn copy_of(frame: &CallFrame, service: &Service) -> Option<Box<CallFrame>> {
    service
        .description
        .idempotent
        .then(|| Box::new(frame.clone()))
}

impl Entry {
    /// It was dispatched over this channel and has not left it.
    fn is_over(&self, channel: ChannelId) -> bool {
        matches!(&self.place, Place::Taken(link) if link.channel == channel)
    }

    /// Ends a call that has left the table: its caller, unless answered already, and its timer.
    pub(super) fn end(self, step: &mut Step, result: Result<Payload, Failure>) {
        step.timers.extend(self.timer);
        let service = self.service;
        step.ended
            .extend(self.caller.map(|caller| caller.end(service, result)));
    }
}
