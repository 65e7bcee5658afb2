//! Tests of the whole bus. Entries are encoded in a small format of their own, so that nothing here
//! depends on the wire.

mod gate;
mod loss;
mod model;
mod ordinary;

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;

/// No seqs.
const NOTHING: [u64; 0] = [];

/// What a subscriber reads of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    seq: u64,
    topic: String,
    source: String,
    subject: String,
    data: Bytes,
}

/// Length of the rest (u32), texts that each end with a zero byte, data, seq.
fn encode(event: &Event<'_>, entries: &mut Vec<u8>) {
    let mut entry = vec![0; 4];
    for text in [
        event.new.topic.as_str(),
        event.source.as_str(),
        &event.new.subject,
    ] {
        entry.extend_from_slice(text.as_bytes());
        entry.push(0);
    }
    entry.extend_from_slice(&event.new.payload.data);
    entry.extend_from_slice(&event.position.seq.to_le_bytes());
    let length = u32::try_from(entry.len() - 4).unwrap();
    entry[..4].copy_from_slice(&length.to_le_bytes());
    entries.extend(entry);
}

fn decode(pieces: &[Bytes]) -> Vec<Got> {
    let mut rest = pieces.concat();
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let tail = rest.split_off(4 + length);
        let entry = std::mem::replace(&mut rest, tail);
        let (texts, seq) = entry[4..].split_at(length - 8);
        let mut parts = texts.splitn(4, |byte| *byte == 0);
        let mut text = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
        events.push(Got {
            topic: text(),
            source: text(),
            subject: text(),
            seq: u64::from_le_bytes(seq.try_into().unwrap()),
            data: Bytes::copy_from_slice(parts.next().unwrap()),
        });
    }
    events
}

fn bus() -> EventBus {
    EventBus::new(Config::default(), encode)
}

fn small_bus(log_events: usize) -> EventBus {
    let config = Config {
        log_events,
        slow_events: log_events / 2,
        lane_bytes: 256,
        ..Config::default()
    };
    EventBus::new(config, encode)
}

fn plugin(name: &str) -> Source {
    Source::Plugin(PluginName::parse(name).unwrap())
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts
        .iter()
        .map(|text| Pattern::parse(text).unwrap())
        .collect()
}

fn event(topic: &str) -> NewEvent {
    NewEvent::new(Topic::parse(topic).unwrap(), Payload::default())
}

fn event_about(topic: &str, subject: &str) -> NewEvent {
    NewEvent {
        subject: subject.into(),
        ..event(topic)
    }
}

fn event_with(topic: &str, bytes: usize) -> NewEvent {
    let mut event = event(topic);
    event.payload.data = vec![b'x'; bytes].into();
    event
}

fn to(texts: &[&str]) -> Subscribe {
    Subscribe::new(plugin("listener"), patterns(texts))
}

/// The next item; every wait is bounded.
async fn next(subscription: &mut Subscription) -> Delivery {
    tokio::time::timeout(Duration::from_secs(60), subscription.next())
        .await
        .expect("an item within a minute")
        .expect("a live subscription")
        .expect("no error")
}

/// The next item if it is ready.
fn ready(subscription: &mut Subscription) -> Option<Delivery> {
    let item = subscription.next().now_or_never()?;
    Some(item.expect("a live subscription").expect("no error"))
}

/// The seqs of all events that are ready.
fn seqs(subscription: &mut Subscription) -> Vec<u64> {
    let mut seqs = Vec::new();
    while let Some(item) = ready(subscription) {
        match item {
            Delivery::Events(pieces) => seqs.extend(decode(&pieces).iter().map(|got| got.seq)),
            Delivery::Subscribed { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    seqs
}

fn publish(bus: &EventBus, topic: &str) -> u64 {
    bus.publish(&plugin("talker"), event(topic)).unwrap().seq
}

fn publish_many(bus: &EventBus, topic: &str, count: usize) {
    for _ in 0..count {
        publish(bus, topic);
    }
}
