//! Publish and subscribe between plugins.
//!
//! Owns: the log of events in memory, the subscriptions and where each of them stands. Does not own:
//! who may publish or subscribe (`security/`), the wire (`grpc/`; it lends the function that encodes),
//! nor anything durable.
//!
//! One mechanism: an append-only log of events, each encoded once, and a cursor per subscription.
//! Publishing encodes the event, takes the lock, gives it its seq, copies it into the log and into
//! each *lane* that selects it, and wakes who waits there after the lock is released. A lane is what
//! all subscriptions with the same patterns and filters share: the newest events that they select, in
//! segments that are ready to send. Nobody has a queue of its own.
//!
//! Invariants
//! - One commit point: `seq` rises by one with each event, without a hole, and every subscription sees
//!   its events in that order, each once.
//! - A publisher never waits: not for a subscriber, not for room. Subscribers do not meet each other
//!   either.
//! - At most once, and loss is always visible: a selected event is delivered or lies within a gap.
//! - A publish costs what matches it, not what there is: ten thousand other subscriptions are not
//!   looked at.
//!
//! When somebody is slow: 4,096 events or 4 MiB behind, an advisory `$core.slow_subscriber` and a
//! counter, once until it has caught up. When it falls off the log: a gap in place of what it missed,
//! or the end of the subscription, as it chose. When memory is full: the oldest events leave the log
//! (65,536 events or 64 MiB); lanes are bounded too, and who is lapped in a lane reads the log itself.
//! When a plugin is not STARTED: its gate says so (see [`Gate`]). Nothing runs in the background; the
//! bus has no task and needs no stop.
//!
//! Files: `event` (what is published), `log` (the ring), `trie` and `routes` (who selects it), `lane`
//! (what is shared), `fanout` (all of these under one lock; pure), `subscription` (the async side).

mod config;
mod error;
mod event;
mod fanout;
mod lane;
mod log;
mod routes;
mod subscription;
#[cfg(test)]
mod tests;
pub(crate) mod trie;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

pub use config::Config;
pub use error::Error;
pub use event::{
    BatchReceipt, Encode, Event, MAX_CONTENT_TYPE_BYTES, MAX_ID_BYTES, MAX_SUBJECT_BYTES,
    MAX_TRACEPARENT_BYTES, NewEvent,
};
pub use subscription::{Delivery, Gap, GapReason, Gate, Policy, Start, Subscribe, Subscription};

use crate::types::{Epoch, Pattern, Payload, PluginName, Position, Source, Topic};
use event::{Batch, Encoded, LARGE_ENTRY_BYTES, Placed};
use fanout::{Committed, Fanout, LaneBounds, Slow};
use log::Bounds;

/// Topic of the advisory about a subscription that is slow.
pub const SLOW_SUBSCRIBER: &str = "$core.slow_subscriber";
/// Most patterns of one subscription.
pub const MAX_PATTERNS: usize = 64;
/// Stands in an entry for the seq that is not known yet.
const SEQ_PLACEHOLDER: u64 = u64::MAX;
/// What an entry usually takes; batches are given so much room at first.
const USUAL_ENTRY_BYTES: usize = 192;

/// The EventBus's handle. Cheap to clone.
#[derive(Clone)]
pub struct EventBus {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    epoch: Epoch,
    encode: Encode,
    /// Guards the log and who reads it. Short: nothing is encoded, woken or awaited under it, and
    /// each read looks at a bounded number of events.
    fanout: Mutex<Fanout>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    delivered: AtomicU64,
    became_slow: AtomicU64,
    gaps: AtomicU64,
}

/// Counters since the core started, and levels now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Events published.
    pub published: u64,
    /// Events delivered, once for each subscription.
    pub delivered: u64,
    /// How often a subscription became slow.
    pub became_slow: u64,
    /// Gaps told, subscriptions ended for falling behind included.
    pub gaps: u64,
    /// Subscriptions now.
    pub subscriptions: usize,
    /// Of them slow.
    pub slow: usize,
    /// Events in the log.
    pub log_events: usize,
    /// Their bytes, as encoded.
    pub log_bytes: usize,
    /// Bytes waiting in lanes.
    pub lane_bytes: usize,
    /// The log's incarnation.
    pub epoch: Epoch,
    /// Seq of the oldest event in the log; the next seq if there is none.
    pub oldest_seq: u64,
    /// Seq that the next event gets.
    pub next_seq: u64,
}

impl EventBus {
    /// An empty bus with a new epoch.
    ///
    /// # Panics
    /// If `encode` does not keep its contract (see [`Encode`]): a defect of the program.
    #[must_use]
    pub fn new(config: Config, encode: Encode) -> Self {
        let bounds = Bounds {
            events: config.log_events,
            bytes: config.log_bytes,
            slow_events: config.slow_events,
            slow_bytes: config.slow_bytes,
        };
        let lane_bounds = LaneBounds {
            each: config.lane_bytes,
            all: config.all_lanes_bytes,
        };
        let bus = Self {
            shared: Arc::new(Shared {
                config,
                epoch: Epoch::random(),
                encode,
                fanout: Mutex::new(Fanout::new(bounds, lane_bounds)),
                counters: Counters::default(),
            }),
        };
        let topic = Topic::parse(SLOW_SUBSCRIBER).expect("it follows the grammar");
        let probe = NewEvent::new(topic, Payload::default());
        let probe = bus.encode(&Source::Core, vec![probe]);
        assert!(
            probe.entries.ends_with(&SEQ_PLACEHOLDER.to_le_bytes()),
            "an entry must end with the event's seq as eight little-endian bytes"
        );
        bus
    }

    /// The log's incarnation.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Publishes one event. Returns after the commit, not after delivery; never waits.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::BadField`].
    pub fn publish(&self, source: &Source, event: NewEvent) -> Result<Position, Error> {
        event.check(&self.shared.config)?;
        Ok(Position {
            epoch: self.shared.epoch,
            seq: self.commit(self.encode(source, vec![event])),
        })
    }

    /// Publishes events with contiguous seqs, in this order, and none of others between them. Those
    /// that are not valid are left out and named in the receipt.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`]: none was published.
    pub fn publish_batch(
        &self,
        source: &Source,
        events: Vec<NewEvent>,
    ) -> Result<BatchReceipt, Error> {
        let config = &self.shared.config;
        let bytes = events.iter().map(|event| event.payload.data.len()).sum();
        self.check_batch(events.len(), bytes)?;
        let mut good = Vec::with_capacity(events.len());
        let mut rejected = Vec::new();
        for (index, event) in events.into_iter().enumerate() {
            match event.check(config) {
                Ok(()) => good.push(event),
                Err(error) => rejected.push((index, error)),
            }
        }
        let count = good.len();
        Ok(BatchReceipt {
            epoch: self.shared.epoch,
            first_seq: match count {
                0 => 0,
                _ => self.commit(self.encode(source, good)),
            },
            count,
            rejected,
        })
    }

    /// Checks an event against the limits, as publishing it would.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::BadField`].
    pub fn check(&self, event: &NewEvent) -> Result<(), Error> {
        event.check(&self.shared.config)
    }

    /// Checks the size of a batch: so many events, so many bytes of data together.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`].
    pub fn check_batch(&self, events: usize, bytes: usize) -> Result<(), Error> {
        let (limit_events, limit_bytes) = (
            self.shared.config.max_batch_events,
            self.shared.config.max_batch_bytes,
        );
        if events > limit_events || bytes > limit_bytes {
            return Err(Error::BatchTooLarge {
                events,
                bytes,
                limit_events,
                limit_bytes,
            });
        }
        Ok(())
    }

    /// Everything but the seqs, before the lock.
    fn encode(&self, source: &Source, events: Vec<NewEvent>) -> Batch {
        let time = SystemTime::now();
        let mut entries = Vec::with_capacity(events.len() * USUAL_ENTRY_BYTES);
        let encode = |new: NewEvent| {
            let event = Event {
                new: &new,
                source,
                time,
                position: Position {
                    epoch: self.shared.epoch,
                    seq: SEQ_PLACEHOLDER,
                },
            };
            let start = entries.len();
            (self.shared.encode)(&event, &mut entries);
            Encoded {
                entry: match entries.len() - start {
                    large if large > LARGE_ENTRY_BYTES => Placed::Large(entries.split_off(start)),
                    _ => Placed::InBatch(entries.len()),
                },
                topic: new.topic,
                subject: new.subject,
            }
        };
        Batch {
            source: source.clone(),
            time,
            events: events.into_iter().map(encode).collect(),
            entries,
        }
    }

    /// Returns the first seq.
    fn commit(&self, batch: Batch) -> u64 {
        let counters = &self.shared.counters;
        add(&counters.published, batch.events.len());
        let Committed {
            first_seq,
            wakers,
            mut slow,
        } = self.shared.fanout.lock().commit(batch);
        wakers.into_iter().for_each(std::task::Waker::wake);
        // An advisory may itself make somebody slow. Each is slow once until it has caught up, so
        // this ends.
        while !slow.is_empty() {
            add(&counters.became_slow, slow.len());
            add(&counters.published, slow.len());
            let advisories = slow.iter().map(advisory).collect();
            let advisories = self.encode(&Source::Core, advisories);
            let committed = self.shared.fanout.lock().commit(advisories);
            committed
                .wakers
                .into_iter()
                .for_each(std::task::Waker::wake);
            slow = committed.slow;
        }
        first_seq
    }

    /// Subscribes. What is published after this returns is not missed.
    ///
    /// # Errors
    /// [`Error::BadField`] for no pattern or too many; with [`Policy::Disconnect`] and a start that is gone,
    /// [`Error::FellBehind`].
    pub fn subscribe(&self, subscribe: Subscribe) -> Result<Subscription, Error> {
        Subscription::open(Arc::clone(&self.shared), subscribe)
    }

    /// The patterns that a plugin subscribes to now: sorted, each once.
    #[must_use]
    pub fn list_subscriptions(&self, plugin: &PluginName) -> Vec<Pattern> {
        let owner = Source::Plugin(plugin.clone());
        let selections = self.shared.fanout.lock().selections_of(&owner);
        let mut patterns: Vec<_> = selections
            .iter()
            .flat_map(|selection| selection.patterns())
            .cloned()
            .collect();
        patterns.sort_unstable();
        patterns.dedup();
        patterns
    }

    /// Counters and levels.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let levels = self.shared.fanout.lock().levels();
        Stats {
            published: counters.published.load(Ordering::Relaxed),
            delivered: counters.delivered.load(Ordering::Relaxed),
            became_slow: counters.became_slow.load(Ordering::Relaxed),
            gaps: counters.gaps.load(Ordering::Relaxed),
            subscriptions: levels.subscriptions,
            slow: levels.slow,
            log_events: levels.events,
            log_bytes: levels.bytes,
            lane_bytes: levels.lane_bytes,
            epoch: self.shared.epoch,
            oldest_seq: levels.oldest_seq,
            next_seq: levels.next_seq,
        }
    }
}

impl fmt::Debug for EventBus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EventBus")
            .field("epoch", &self.shared.epoch)
            .finish_non_exhaustive()
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// What everybody may know of a subscription that became slow.
fn advisory(slow: &Slow) -> NewEvent {
    let patterns: Vec<_> = slow
        .selection
        .patterns()
        .iter()
        .map(Pattern::as_str)
        .collect();
    let data = serde_json::json!({
        "subscriber": slow.owner.as_str(),
        "patterns": patterns,
        "seq": slow.seq,
        "behind_events": slow.behind_events,
        "behind_bytes": slow.behind_bytes,
    });
    let payload = Payload {
        content_type: Arc::default(),
        data: Bytes::from(data.to_string()),
    };
    let topic = Topic::parse(SLOW_SUBSCRIBER).expect("it follows the grammar");
    let mut event = NewEvent::new(topic, payload);
    event.subject = slow.owner.as_str().into();
    event
}
