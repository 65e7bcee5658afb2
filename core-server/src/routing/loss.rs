//! The end of a provider's link: which of its calls end by it, and which go back in line (`repeat` says).

use std::collections::HashMap;

use tokio::time::Instant;

use super::provider::{Availability, Place, Provider, Step, Table};
use super::{Config, Error};
use crate::channel::{CallFrame, ChannelId};
use crate::service_registry::Service;

impl Provider {
    /// Ends the calls on a link, or puts them back in line (see `repeat`). Until the next availability
    /// is told, nothing more is dispatched on it, and callers wait as for a provider that may come back.
    pub(super) fn link_lost(&self, channel: ChannelId, config: &Config, now: Instant) -> Step {
        let mut table = self.table.lock();
        let mut step = Step::default();
        if matches!(&table.availability, Availability::Ready(link) if link.channel == channel) {
            step.suspended_until = Some(now + config.suspended_wait);
            table.suspended_until = step.suspended_until;
            table.availability = Availability::Suspended;
        }
        let mut lost = Vec::new();
        let mut outbox = None;
        for (call_id, entry) in &table.calls {
            if let Place::Taken(link) = &entry.place
                && link.channel == channel
            {
                lost.push(*call_id);
                outbox.get_or_insert_with(|| link.outbox.clone());
            }
        }
        let unsent = outbox.map(|outbox| outbox.take_calls()).unwrap_or_default();
        let mut unsent: HashMap<_, _> = unsent
            .into_iter()
            .map(|frame| (frame.call_id, frame))
            .collect();
        // From the last on: each goes in front of those that came later.
        lost.sort_unstable_by(|a, b| b.cmp(a));
        for call_id in lost {
            let unsent = unsent.remove(&call_id);
            self.lose(&mut table, &mut step, call_id, unsent);
        }
        step.merge(self.look_after_line(&mut table, now));
        step
    }

    /// The link of a call is lost: back in line, in front, or ended. `unsent`: its frame, when it
    /// never left the core. The line may grow beyond its bound by this, but by no more than there
    /// are places.
    pub(super) fn lose(
        &self,
        table: &mut Table,
        step: &mut Step,
        call_id: u64,
        unsent: Option<Box<CallFrame>>,
    ) {
        let Some(mut entry) = self.remove(table, call_id) else {
            return;
        };
        let sent = unsent.is_none();
        let idempotent = entry.service.description.idempotent;
        let again = entry.tries.again(sent, idempotent);
        let frame = unsent.or_else(|| entry.copy.take());
        // Nobody waits for one whose caller gave up.
        if let (Some(again), Some(frame), Some(_)) = (again, frame, &entry.caller) {
            entry.tries = again;
            entry.place = Place::Waiting(frame);
            entry.copy = None;
            table.calls.insert(call_id, entry);
            table.line.push_front(call_id);
            step.repeated += 1;
            return;
        }
        let error = if sent || entry.tries.reached {
            self.lost(&entry.service)
        } else {
            self.no_provider(table, &entry.service)
        };
        entry.end(step, Err(error.into()));
    }

    pub(super) fn lost(&self, service: &Service) -> Error {
        Error::ProviderLost {
            service: service.name.clone(),
            plugin: self.plugin.clone(),
        }
    }

    /// After calls went back in line: what the availability says of those that wait.
    pub(super) fn look_after_line(&self, table: &mut Table, now: Instant) -> Step {
        match &table.availability {
            Availability::Ready(_) => self.fill(table),
            Availability::Suspended if table.suspended_until.is_some_and(|until| until > now) => {
                Step::default()
            }
            _ => self.refuse_waiting(table),
        }
    }
}
