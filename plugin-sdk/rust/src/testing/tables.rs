//! The fake's storage and state: ordered maps with revisions.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use core_proto::v1;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::bus::{check_topic, matches};
use crate::error::{Error, Result};

const MAX_VALUE_BYTES: usize = 256 << 10;
const MAX_STATE_BYTES: usize = 64 << 10;

#[derive(Clone)]
struct Entry {
    value: Bytes,
    revision: u64,
    writer: String,
    changed_at: SystemTime,
    reported_at: SystemTime,
}

fn check_json(key: &str, value: &[u8], limit: usize) -> Result<()> {
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

fn check_key(key: &str) -> Result<()> {
    match (1..=512).contains(&key.len()) && !key.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(Error::invalid_argument(format!("{key:?} is no key")).with_reason("BAD_KEY")),
    }
}

fn check_revision(key: &str, current: u64, wanted: Option<u64>) -> Result<()> {
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
struct Page<T> {
    items: Vec<T>,
    next: String,
}

fn page<T>(all: impl Iterator<Item = (String, T)>, size: u32) -> Page<(String, T)> {
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

// ---- storage

#[derive(Default)]
pub(super) struct Store {
    /// Held for one operation.
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    revision: u64,
    entries: BTreeMap<(String, String), Entry>,
}

impl Content {
    fn revision_of(&self, place: &(String, String)) -> u64 {
        self.entries.get(place).map_or(0, |entry| entry.revision)
    }
}

fn stored(key: &str, entry: &Entry) -> v1::StorageEntry {
    v1::StorageEntry {
        key: key.to_owned(),
        value: entry.value.clone(),
        revision: entry.revision,
        updated_at: Some(entry.changed_at.into()),
    }
}

impl Store {
    pub(super) fn get(&self, request: v1::StorageGetRequest) -> Result<v1::StorageGetResponse> {
        check_key(&request.key)?;
        let content = self.content.lock();
        let place = (request.namespace, request.key);
        let entry = content.entries.get(&place);
        Ok(v1::StorageGetResponse {
            entry: entry.map(|entry| stored(&place.1, entry)),
        })
    }

    pub(super) fn get_many(
        &self,
        request: v1::StorageGetManyRequest,
    ) -> Result<v1::StorageGetManyResponse> {
        let content = self.content.lock();
        let mut entries = Vec::new();
        for key in request.keys {
            check_key(&key)?;
            let place = (request.namespace.clone(), key);
            entries.extend(
                content
                    .entries
                    .get(&place)
                    .map(|entry| stored(&place.1, entry)),
            );
        }
        Ok(v1::StorageGetManyResponse {
            entries,
            revision: content.revision,
        })
    }

    pub(super) fn set(&self, request: v1::StorageSetRequest) -> Result<v1::StorageSetResponse> {
        let place = (request.namespace, request.key);
        let before = self.content.lock().revision_of(&place);
        check_revision(&place.1, before, request.if_revision)?;
        let op = v1::storage_op::Op::Set(v1::StorageOpSet {
            key: place.1,
            value: request.value,
        });
        let (revision, _) = self.write(&place.0, &[], vec![op])?;
        Ok(v1::StorageSetResponse {
            revision,
            created: before == 0,
        })
    }

    pub(super) fn delete(
        &self,
        request: v1::StorageDeleteRequest,
    ) -> Result<v1::StorageDeleteResponse> {
        let place = (request.namespace, request.key);
        let before = self.content.lock().revision_of(&place);
        check_revision(&place.1, before, request.if_revision)?;
        let op = v1::storage_op::Op::Delete(v1::StorageOpDelete { key: place.1 });
        let (revision, existed) = self.write(&place.0, &[], vec![op])?;
        Ok(v1::StorageDeleteResponse {
            existed: existed == [true],
            revision,
        })
    }

    /// All or nothing; the revision, and for each op whether its key existed.
    pub(super) fn write(
        &self,
        namespace: &str,
        checks: &[v1::StorageCheck],
        ops: Vec<v1::storage_op::Op>,
    ) -> Result<(u64, Vec<bool>)> {
        use v1::storage_op::Op;
        let place = |key: &str| (namespace.to_owned(), key.to_owned());
        let mut content = self.content.lock();
        for check in checks {
            let current = content.revision_of(&place(&check.key));
            check_revision(&check.key, current, Some(check.revision))?;
        }
        let mut keys = std::collections::BTreeSet::new();
        for op in &ops {
            let key = match op {
                Op::Set(set) => {
                    check_json(&set.key, &set.value, MAX_VALUE_BYTES)?;
                    &set.key
                }
                Op::Delete(delete) => &delete.key,
            };
            check_key(key)?;
            if !keys.insert(key.clone()) {
                let text = format!("{key:?} stands twice in one Apply");
                return Err(Error::invalid_argument(text).with_reason("DUPLICATE_KEY"));
            }
        }
        content.revision += 1;
        let revision = content.revision;
        let now = SystemTime::now();
        let existed = ops.into_iter().map(|op| match op {
            Op::Set(set) => {
                let entry = Entry {
                    value: set.value,
                    revision,
                    writer: String::new(),
                    changed_at: now,
                    reported_at: now,
                };
                content.entries.insert(place(&set.key), entry).is_some()
            }
            Op::Delete(delete) => content.entries.remove(&place(&delete.key)).is_some(),
        });
        let existed = existed.collect();
        Ok((revision, existed))
    }

    pub(super) fn scan(&self, request: v1::StorageScanRequest) -> Result<v1::StorageScanResponse> {
        let content = self.content.lock();
        let after = match request.page_token.is_empty() {
            true => request.start_after,
            false => request.page_token,
        };
        let wanted = content
            .entries
            .iter()
            .filter(|((namespace, key), _)| {
                *namespace == request.namespace
                    && key.starts_with(&request.prefix)
                    && (after.is_empty() || (*key > after) != request.reverse && *key != after)
            })
            .map(|((_, key), entry)| (key.clone(), stored(key, entry)));
        let found = match request.reverse {
            true => page(wanted.rev(), request.page_size),
            false => page(wanted, request.page_size),
        };
        Ok(v1::StorageScanResponse {
            entries: found.items.into_iter().map(|(_, entry)| entry).collect(),
            next_page_token: found.next,
            revision: content.revision,
        })
    }

    pub(super) fn list_keys(
        &self,
        request: v1::StorageListKeysRequest,
    ) -> Result<v1::StorageListKeysResponse> {
        let found = self.scan(v1::StorageScanRequest {
            namespace: request.namespace,
            prefix: request.prefix,
            start_after: request.start_after,
            page_size: request.page_size,
            reverse: request.reverse,
            page_token: request.page_token,
        })?;
        Ok(v1::StorageListKeysResponse {
            keys: found.entries.into_iter().map(|entry| entry.key).collect(),
            next_page_token: found.next_page_token,
            revision: found.revision,
        })
    }
}

// ---- state

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
        let content = self.content.lock();
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
        let mut content = self.content.lock();
        let current = content.entries.get(&key).map_or(0, |entry| entry.revision);
        check_revision(&key, current, request.if_revision)?;
        let now = SystemTime::now();
        if let Some(entry) = content.entries.get_mut(&key)
            && entry.value == request.value
        {
            entry.reported_at = now;
            return Ok(v1::StateEngineSetResponse {
                revision: entry.revision,
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
        let mut content = self.content.lock();
        let current = content
            .entries
            .get(&request.key)
            .map_or(0, |entry| entry.revision);
        check_revision(&request.key, current, request.if_revision)?;
        let Some(old) = content.entries.remove(&request.key) else {
            return Ok(v1::StateEngineDeleteResponse { existed: false });
        };
        content.revision += 1;
        let after = v1::StateEntry {
            value: Bytes::new(),
            revision: content.revision,
            writer: writer.to_owned(),
            ..held(&request.key, &old)
        };
        let kind = v1::state_change::Kind::Deleted;
        self.changed(&mut content, kind, after, old.value, cause);
        Ok(v1::StateEngineDeleteResponse { existed: true })
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
        let content = self.content.lock();
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
        let content = self.content.lock();
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
