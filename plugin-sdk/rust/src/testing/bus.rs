//! The fake's log of events and its subscribers' cursors.

use std::time::SystemTime;

use core_proto::v1;
use core_proto::v1::event_bus_subscribe_request::Start;
use core_proto::v1::event_bus_subscribe_response::Control;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{Error, Result};

pub(super) struct Bus {
    /// Held only to look or to append.
    log: Mutex<Log>,
    /// Rises with each event.
    pub(super) head: watch::Sender<u64>,
}

struct Log {
    epoch: u64,
    /// Seq of `events[0]`.
    first_seq: u64,
    events: Vec<v1::Event>,
}

impl Log {
    fn next_seq(&self) -> u64 {
        self.first_seq + self.events.len() as u64
    }
}

/// Where a subscriber stands.
pub(super) struct Cursor {
    request: v1::EventBusSubscribeRequest,
    pub(super) next_seq: u64,
}

impl Bus {
    pub(super) fn new() -> Self {
        let log = Log {
            epoch: 1,
            first_seq: 1,
            events: Vec::new(),
        };
        Self {
            log: Mutex::new(log),
            head: watch::Sender::new(0),
        }
    }

    pub(super) fn publish(
        &self,
        source: &str,
        parent: &str,
        event: v1::NewEvent,
    ) -> Result<(u64, u64)> {
        check_topic(&event.topic)?;
        let mut log = self.log.lock();
        let (epoch, seq) = (log.epoch, log.next_seq());
        log.events.push(v1::Event {
            topic: event.topic,
            source: source.to_owned(),
            subject: event.subject,
            content_type: event.content_type,
            data: event.data,
            id: event.id,
            time: Some(SystemTime::now().into()),
            cause: match event.parent.is_empty() {
                true => parent.to_owned(),
                false => event.parent,
            },
            traceparent: event.traceparent,
            epoch,
            seq,
        });
        drop(log);
        self.head.send_modify(|head| *head += 1);
        Ok((epoch, seq))
    }

    /// All events, oldest first.
    pub(super) fn events(&self) -> Vec<v1::Event> {
        self.log.lock().events.clone()
    }

    /// Forgets all events: whoever has not got them learns of a gap.
    pub(super) fn forget(&self) {
        let mut log = self.log.lock();
        log.first_seq = log.next_seq();
        log.events.clear();
    }

    /// A new incarnation, empty.
    pub(super) fn restart(&self) {
        let mut log = self.log.lock();
        log.epoch += 1;
        log.first_seq = 1;
        log.events.clear();
    }

    /// Begins a subscription: its cursor, and what is said first.
    pub(super) fn subscribe(
        &self,
        request: v1::EventBusSubscribeRequest,
    ) -> Result<(Cursor, Vec<Control>)> {
        if request.patterns.is_empty() || request.patterns.len() > 64 {
            return Err(Error::invalid_argument("1 to 64 patterns are needed")
                .with_reason("BAD_FIELD")
                .with_metadata("field", "patterns"));
        }
        for pattern in &request.patterns {
            check_pattern(pattern)?;
        }
        let log = self.log.lock();
        let (oldest, next) = (log.first_seq, log.next_seq());
        let (begin, gap) = match &request.start {
            None => (next, None),
            Some(Start::Oldest(_)) => (oldest, None),
            Some(Start::Since(time)) => {
                let time = SystemTime::try_from(*time).unwrap_or(SystemTime::UNIX_EPOCH);
                let at_or_after = |event: &v1::Event| {
                    event
                        .time
                        .and_then(|at| SystemTime::try_from(at).ok())
                        .is_some_and(|at| at >= time)
                };
                let place = log.events.iter().position(at_or_after);
                (place.map_or(next, |place| oldest + place as u64), None)
            }
            Some(Start::After(at)) if at.epoch != log.epoch => {
                let gap = (v1::gap::Reason::EpochChanged, 1, oldest.saturating_sub(1));
                (oldest, Some(gap))
            }
            Some(Start::After(at)) if at.seq + 1 < oldest => (
                oldest,
                Some((v1::gap::Reason::TooOld, at.seq + 1, oldest - 1)),
            ),
            Some(Start::After(at)) => (at.seq + 1, None),
        };
        let mut first = vec![Control::Subscribed(v1::Subscribed {
            epoch: log.epoch,
            next_seq: begin,
            oldest_seq: oldest,
        })];
        first.extend(gap.map(|(reason, from_seq, to_seq)| {
            Control::Gap(v1::Gap {
                reason: reason.into(),
                from_seq,
                to_seq,
            })
        }));
        let cursor = Cursor {
            request,
            next_seq: begin,
        };
        Ok((cursor, first))
    }

    /// The events that the cursor has not seen yet.
    pub(super) fn read(&self, cursor: &mut Cursor, plugin: &str) -> Vec<v1::Event> {
        let log = self.log.lock();
        let from = cursor.next_seq.saturating_sub(log.first_seq);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        cursor.next_seq = log.next_seq();
        let request = &cursor.request;
        let wanted = |event: &&v1::Event| {
            request
                .patterns
                .iter()
                .any(|pattern| matches(pattern, &event.topic))
                && (request.source.is_empty() || request.source == event.source)
                && (request.subject.is_empty() || request.subject == event.subject)
                && !(request.exclude_own && event.source == plugin)
        };
        let unseen = log.events.get(from..).unwrap_or_default();
        unseen.iter().filter(wanted).cloned().collect()
    }

    /// Jumps to the end; the gap that says what was passed over, if anything was.
    pub(super) fn skip(&self, cursor: &mut Cursor) -> Option<v1::Gap> {
        let next = self.log.lock().next_seq();
        let from_seq = std::mem::replace(&mut cursor.next_seq, next);
        (from_seq < next).then(|| v1::Gap {
            reason: v1::gap::Reason::Stopped.into(),
            from_seq,
            to_seq: next - 1,
        })
    }
}

fn tokens_are_good(text: &str, allowed: impl Fn(&str, bool) -> bool) -> bool {
    let tokens: Vec<_> = text.split('.').collect();
    let last = tokens.len() - 1;
    text.len() <= 255
        && tokens.len() <= 16
        && tokens
            .iter()
            .enumerate()
            .all(|(place, token)| allowed(token, place == last))
}

fn is_token(token: &str) -> bool {
    (1..=64).contains(&token.len())
        && token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

pub(super) fn check_topic(topic: &str) -> Result<()> {
    match tokens_are_good(topic, |token, _| is_token(token)) {
        true => Ok(()),
        false => Err(Error::invalid_argument(format!("{topic:?} is no topic"))
            .with_reason("BAD_TOPIC")
            .with_metadata("topic", topic)),
    }
}

pub(super) fn check_pattern(pattern: &str) -> Result<()> {
    let allowed = |token: &str, last| is_token(token) || token == "*" || (token == ">" && last);
    match tokens_are_good(pattern, allowed) {
        true => Ok(()),
        false => Err(
            Error::invalid_argument(format!("{pattern:?} is no pattern"))
                .with_reason("BAD_PATTERN")
                .with_metadata("pattern", pattern),
        ),
    }
}

pub(super) fn matches(pattern: &str, topic: &str) -> bool {
    let mut topic = topic.split('.');
    for token in pattern.split('.') {
        match (token, topic.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_contract_says() {
        for (pattern, topic, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*.b", "a.b", true),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
        check_pattern("a.>.b").expect_err("only last");
        check_topic("a..b").expect_err("an empty token");
        check_topic("a.*").expect_err("a wildcard");
    }
}
