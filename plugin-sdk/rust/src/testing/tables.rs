//! The fake's state: an ordered map with revisions; and what it shares with the storage.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use core_proto::v1;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::bus::{check_topic, matches};
use crate::error::{Error, Result};

const MAX_STATE_BYTES: usize = 64 << 10;

#[derive(Clone)]
struct Entry {
    value: Bytes,
    revision: u64,
    writer: String,
    changed_at: SystemTime,
    reported_at: SystemTime,
    /// When it is gone. Looked at when the table is used.
    deadline: Option<(Instant, SystemTime)>,
    owned: bool,
    stale: bool,
}

pub(super) fn check_json(key: &str, value: &[u8], limit: usize) -> Result<()> {
    if value.len() > limit {
        let text = format!(
            "{key:?}: the value has {} bytes, at most {limit} are allowed",
            value.len()
        );
        return Err(Error::invalid_argument(text).with_reason("TOO_LARGE"));
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(value).map_err(|error| {
        Error::invalid_argument(format!("{key:?}: the value is not JSON: {error}"))
            .with_reason("NOT_JSON")
            .with_metadata("key", key)
    })?;
    Ok(())
}

pub(super) fn check_key(key: &str) -> Result<()> {
    match (1..=512).contains(&key.len()) && !key.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(Error::invalid_argument(format!("{key:?} is no key")).with_reason("BAD_KEY")),
    }
}

pub(super) fn check_revision(key: &str, current: u64, wanted: Option<u64>) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != current => Err(Error::aborted(format!(
            "{key:?} has revision {current}, not {wanted}"
        ))
        .with_reason("REVISION_MISMATCH")
        .with_metadata("key", key)
        .with_metadata("current_revision", current.to_string())),
        _ => Ok(()),
    }
}

/// A page of keys: those asked for and the token of the next page.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next: String,
}

pub(super) fn page<T>(all: impl Iterator<Item = (String, T)>, size: u32) -> Page<(String, T)> {
    let size = match size {
        0 => 100,
        size => size.min(1000) as usize,
    };
    let mut items: Vec<_> = all.take(size + 1).collect();
    let more = items.len() > size;
    items.truncate(size);
    let next = match (more, items.last()) {
        (true, Some((key, _))) => key.clone(),
        _ => String::new(),
    };
    Page { items, next }
}

pub(super) struct Table {
    /// Held for one operation.
    content: Mutex<TableContent>,
    /// How many changes there have been.
    pub(super) changes: watch::Sender<usize>,
}

#[derive(Default)]
struct TableContent {
    revision: u64,
    entries: BTreeMap<String, Entry>,
    changes: Vec<v1::StateChange>,
}

fn held(key: &str, entry: &Entry) -> v1::StateEntry {
    v1::StateEntry {
        key: key.to_owned(),
        value: entry.value.clone(),
        revision: entry.revision,
        writer: entry.writer.clone(),
        changed_at: Some(entry.changed_at.into()),
        reported_at: Some(entry.reported_at.into()),
        expires_at: entry.deadline.map(|(_, at)| at.into()),
        owned: entry.owned,
        stale: entry.stale,
    }
}

/// When something is gone that lasts so long.
pub(super) fn deadline(
    ttl: Option<prost_types::Duration>,
) -> Result<Option<(Instant, SystemTime)>> {
    let bad = |text: String| Error::invalid_argument(text).with_reason("BAD_FIELD");
    let Some(ttl) = ttl else {
        return Ok(None);
    };
    let ttl = Duration::try_from(ttl).map_err(|error| bad(format!("ttl: {error}")))?;
    if ttl.is_zero() {
        return Err(bad("ttl: it must be more than nothing".to_owned()));
    }
    Ok(Some((Instant::now() + ttl, SystemTime::now() + ttl)))
}

/// A key that was removed.
fn gone(key: &str, old: &Entry, revision: u64, writer: &str) -> v1::StateEntry {
    v1::StateEntry {
        value: Bytes::new(),
        revision,
        writer: writer.to_owned(),
        expires_at: None,
        owned: false,
        stale: false,
        ..held(key, old)
    }
}

fn check_state_key(key: &str) -> Result<()> {
    check_topic(key).map_err(|_| {
        Error::invalid_argument(format!("{key:?} is no state key"))
            .with_reason("BAD_STATE_KEY")
            .with_metadata("key", key)
    })
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            content: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn get(
        &self,
        request: &v1::StateEngineGetRequest,
    ) -> Result<v1::StateEngineGetResponse> {
        check_state_key(&request.key)?;
        let content = self.fresh();
        let entry = content.entries.get(&request.key);
        Ok(v1::StateEngineGetResponse {
            entry: entry.map(|entry| held(&request.key, entry)),
        })
    }

    pub(super) fn set(
        &self,
        writer: &str,
        cause: &str,
        request: v1::StateEngineSetRequest,
    ) -> Result<v1::StateEngineSetResponse> {
        let key = request.key;
        check_state_key(&key)?;
        check_json(&key, &request.value, MAX_STATE_BYTES)?;
        let deadline = deadline(request.ttl)?;
        let mut content = self.fresh();
        let current = content.entries.get(&key).map_or(0, |entry| entry.revision);
        check_revision(&key, current, request.if_revision)?;
        let now = SystemTime::now();
        if let Some(entry) = content.entries.get_mut(&key)
            && entry.value == request.value
        {
            entry.reported_at = now;
            (entry.deadline, entry.owned) = (deadline, request.owned);
            let was_stale = std::mem::take(&mut entry.stale);
            let (revision, after) = (entry.revision, held(&key, entry));
            if was_stale {
                let kind = v1::state_change::Kind::Live;
                self.changed(&mut content, kind, after, request.value, cause);
            }
            return Ok(v1::StateEngineSetResponse {
                revision,
                changed: false,
            });
        }
        content.revision += 1;
        let entry = Entry {
            value: request.value,
            revision: content.revision,
            writer: writer.to_owned(),
            changed_at: now,
            reported_at: now,
            deadline,
            owned: request.owned,
            stale: false,
        };
        let revision = entry.revision;
        let after = held(&key, &entry);
        let old = content.entries.insert(key, entry);
        let old_value = old.map(|entry| entry.value).unwrap_or_default();
        self.changed(
            &mut content,
            v1::state_change::Kind::Set,
            after,
            old_value,
            cause,
        );
        Ok(v1::StateEngineSetResponse {
            revision,
            changed: true,
        })
    }

    pub(super) fn delete(
        &self,
        writer: &str,
        cause: &str,
        request: &v1::StateEngineDeleteRequest,
    ) -> Result<v1::StateEngineDeleteResponse> {
        check_state_key(&request.key)?;
        let mut content = self.fresh();
        let current = content
            .entries
            .get(&request.key)
            .map_or(0, |entry| entry.revision);
        check_revision(&request.key, current, request.if_revision)?;
        let Some(old) = content.entries.remove(&request.key) else {
            return Ok(v1::StateEngineDeleteResponse { existed: false });
        };
        content.revision += 1;
        let after = gone(&request.key, &old, content.revision, writer);
        let kind = v1::state_change::Kind::Deleted;
        self.changed(&mut content, kind, after, old.value, cause);
        Ok(v1::StateEngineDeleteResponse { existed: true })
    }

    /// The content without what has expired.
    fn fresh(&self) -> parking_lot::MutexGuard<'_, TableContent> {
        let mut content = self.content.lock();
        let now = Instant::now();
        let expired = content.entries.iter();
        let expired = expired.filter(|(_, entry)| entry.deadline.is_some_and(|(at, _)| at <= now));
        let expired: Vec<_> = expired.map(|(key, _)| key.clone()).collect();
        for key in expired {
            let Some(old) = content.entries.remove(&key) else {
                continue;
            };
            content.revision += 1;
            let after = gone(&key, &old, content.revision, "core");
            let kind = v1::state_change::Kind::Expired;
            self.changed(&mut content, kind, after, old.value, "");
        }
        content
    }

    /// The run of the plugin has ended.
    pub(super) fn end_run(&self) {
        let mut content = self.fresh();
        let owned = content.entries.iter_mut();
        let owned = owned.filter(|(_, entry)| entry.owned && !entry.stale);
        let stale = owned.map(|(key, entry)| {
            entry.stale = true;
            (held(key, entry), entry.value.clone())
        });
        let stale: Vec<_> = stale.collect();
        for (after, value) in stale {
            let kind = v1::state_change::Kind::Stale;
            self.changed(&mut content, kind, after, value, "");
        }
    }

    fn changed(
        &self,
        content: &mut TableContent,
        kind: v1::state_change::Kind,
        entry: v1::StateEntry,
        old_value: Bytes,
        cause: &str,
    ) {
        content.changes.push(v1::StateChange {
            kind: kind.into(),
            entry: Some(entry),
            old_value,
            cause: cause.to_owned(),
            conflated: false,
        });
        self.changes.send_replace(content.changes.len());
    }

    pub(super) fn list(
        &self,
        request: &v1::StateEngineListRequest,
    ) -> Result<v1::StateEngineListResponse> {
        let content = self.fresh();
        let wanted = content
            .entries
            .iter()
            .filter(|(key, _)| key.starts_with(&request.prefix) && **key > request.page_token)
            .map(|(key, entry)| (key.clone(), held(key, entry)));
        let found = page(wanted, request.page_size);
        Ok(v1::StateEngineListResponse {
            entries: found.items.into_iter().map(|(_, entry)| entry).collect(),
            next_page_token: found.next,
            revision: content.revision,
        })
    }

    /// What is there, and how many changes that includes.
    pub(super) fn snapshot(&self, patterns: &[String]) -> (v1::StateEngineWatchResponse, usize) {
        let content = self.fresh();
        let wanted = |key: &str| patterns.iter().any(|pattern| matches(pattern, key));
        let initial = content.entries.iter().filter(|(key, _)| wanted(key));
        let changes = initial.map(|(key, entry)| v1::StateChange {
            kind: v1::state_change::Kind::Initial.into(),
            entry: Some(held(key, entry)),
            ..Default::default()
        });
        let response = v1::StateEngineWatchResponse {
            changes: changes.collect(),
            snapshot_end: true,
            revision: content.revision,
        };
        (response, content.changes.len())
    }

    /// Changes from this one on.
    pub(super) fn changes_from(&self, first: usize, patterns: &[String]) -> Vec<v1::StateChange> {
        let content = self.content.lock();
        let wanted = |change: &&v1::StateChange| {
            let key = change.entry.as_ref().map_or("", |entry| entry.key.as_str());
            patterns.iter().any(|pattern| matches(pattern, key))
        };
        let unseen = content.changes.get(first..).unwrap_or_default();
        unseen.iter().filter(wanted).cloned().collect()
    }
}
