//! The fake's storage: an ordered map with revisions.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use core_proto::v1;
use core_proto::v1::storage_change::Kind;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use super::tables::{check_json, check_key, check_revision, deadline, page};
use crate::error::{Error, Result};

const MAX_VALUE_BYTES: usize = 256 << 10;
/// Of one `GetMany`.
const MAX_GET_KEYS: usize = 100;
/// Of what one `GetMany` answers, if it is more than one entry, and of what one `Apply` writes.
const MAX_BYTES: usize = 1 << 20;
/// Of writes, and of checks, of one `Apply`.
const MAX_OPS: usize = 128;
/// Of events of one `Apply`.
pub(super) const MAX_APPLY_EVENTS: usize = 16;
/// There is only one.
const EPOCH: u64 = 1;

pub(super) struct Store {
    /// Held for one operation.
    content: Mutex<Content>,
    /// How many changes there have been.
    pub(super) changes: watch::Sender<usize>,
}

#[derive(Default)]
struct Content {
    revision: u64,
    entries: BTreeMap<(String, String), Entry>,
    /// With their namespaces. All that there ever were: a test ends soon.
    changes: Vec<(String, v1::StorageChange)>,
}

#[derive(Clone)]
struct Entry {
    value: Bytes,
    revision: u64,
    updated_at: SystemTime,
    /// When it is gone. Looked at when the store is used.
    deadline: Option<(Instant, SystemTime)>,
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
        updated_at: Some(entry.updated_at.into()),
        expires_at: entry.deadline.map(|(_, at)| at.into()),
    }
}

fn change(kind: Kind, entry: v1::StorageEntry) -> v1::StorageChange {
    v1::StorageChange {
        kind: kind.into(),
        entry: Some(entry),
        conflated: false,
    }
}

fn gone(key: String, revision: u64) -> v1::StorageEntry {
    v1::StorageEntry {
        key,
        revision,
        ..Default::default()
    }
}

fn revision_of(change: &v1::StorageChange) -> u64 {
    change.entry.as_ref().map_or(0, |entry| entry.revision)
}

fn cursor(revision: u64) -> v1::StorageCursor {
    v1::StorageCursor {
        epoch: EPOCH,
        revision,
    }
}

fn wants(prefixes: &[String], key: &str) -> bool {
    prefixes.is_empty() || prefixes.iter().any(|prefix| key.starts_with(prefix))
}

pub(super) fn check_count(field: &str, count: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&count) {
        return Ok(());
    }
    let text = format!("{field}: {least} to {most} are allowed, not {count}");
    Err(Error::invalid_argument(text)
        .with_reason("BAD_FIELD")
        .with_metadata("field", field))
}

fn check_size(field: &str, bytes: usize) -> Result<()> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    let text = format!("{field}: {bytes} bytes together; at most {MAX_BYTES} are allowed");
    Err(Error::invalid_argument(text)
        .with_reason("TOO_LARGE")
        .with_metadata("field", field)
        .with_metadata("size_bytes", bytes.to_string())
        .with_metadata("limit_bytes", MAX_BYTES.to_string()))
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            content: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn get(&self, request: v1::StorageGetRequest) -> Result<v1::StorageGetResponse> {
        check_key(&request.key)?;
        let content = self.fresh();
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
        check_count("keys", request.keys.len(), 1, MAX_GET_KEYS)?;
        let content = self.fresh();
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
        let bytes = entries
            .iter()
            .map(|entry| entry.key.len() + entry.value.len());
        if entries.len() > 1 {
            check_size("keys", bytes.sum())?;
        }
        Ok(v1::StorageGetManyResponse {
            entries,
            revision: content.revision,
        })
    }

    pub(super) fn set(&self, request: v1::StorageSetRequest) -> Result<v1::StorageSetResponse> {
        let place = (request.namespace, request.key);
        let before = self.fresh().revision_of(&place);
        check_revision(&place.1, before, request.if_revision)?;
        let op = v1::storage_op::Op::Set(v1::StorageOpSet {
            key: place.1,
            value: request.value,
            ttl: request.ttl,
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
        let before = self.fresh().revision_of(&place);
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
        check_count("ops", ops.len(), 1, MAX_OPS)?;
        check_count("checks", checks.len(), 0, MAX_OPS)?;
        let place = |key: &str| (namespace.to_owned(), key.to_owned());
        let mut content = self.fresh();
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
        let bytes = ops.iter().map(|op| match op {
            Op::Set(set) => set.key.len() + set.value.len(),
            Op::Delete(delete) => delete.key.len(),
        });
        check_size("ops", bytes.sum())?;
        let deadlines = ops.iter().map(|op| match op {
            Op::Set(set) => deadline(set.ttl),
            Op::Delete(_) => Ok(None),
        });
        let deadlines = deadlines.collect::<Result<Vec<_>>>()?;
        let revision = content.revision + 1;
        let mut changes = Vec::new();
        let mut existed = Vec::new();
        for (op, deadline) in ops.into_iter().zip(deadlines) {
            match op {
                Op::Set(set) => {
                    let entry = Entry {
                        value: set.value,
                        revision,
                        updated_at: SystemTime::now(),
                        deadline,
                    };
                    changes.push(change(Kind::Put, stored(&set.key, &entry)));
                    existed.push(content.entries.insert(place(&set.key), entry).is_some());
                }
                Op::Delete(delete) => {
                    let removed = content.entries.remove(&place(&delete.key));
                    existed.push(removed.is_some());
                    let gone = || change(Kind::Deleted, gone(delete.key, revision));
                    changes.extend(removed.map(|_| gone()));
                }
            }
        }
        if !changes.is_empty() {
            content.revision = revision;
        }
        let changes = changes.into_iter();
        content
            .changes
            .extend(changes.map(|change| (namespace.to_owned(), change)));
        self.changes.send_replace(content.changes.len());
        Ok((content.revision, existed))
    }

    /// The content without what has expired.
    fn fresh(&self) -> MutexGuard<'_, Content> {
        let mut content = self.content.lock();
        let now = Instant::now();
        let expired = content.entries.iter();
        let expired = expired.filter(|(_, entry)| entry.deadline.is_some_and(|(at, _)| at <= now));
        let expired: Vec<_> = expired.map(|(place, _)| place.clone()).collect();
        for place in expired {
            content.entries.remove(&place);
            content.revision += 1;
            let gone = change(Kind::Expired, gone(place.1, content.revision));
            content.changes.push((place.0, gone));
        }
        self.changes.send_replace(content.changes.len());
        content
    }

    pub(super) fn usage(
        &self,
        request: v1::StorageUsageRequest,
    ) -> Result<v1::StorageUsageResponse> {
        let content = self.fresh();
        let name = request.namespace;
        let owner = name.split('.').next().unwrap_or_default();
        let mut usage = v1::StorageNamespaceUsage {
            max_keys: 100_000,
            max_bytes: 64 << 20,
            ..Default::default()
        };
        let mut owned = v1::StorageOwnerUsage {
            name: owner.to_owned(),
            max_keys: usage.max_keys,
            max_bytes: usage.max_bytes,
            ..Default::default()
        };
        let mut namespaces = std::collections::BTreeSet::new();
        for ((namespace, key), entry) in &content.entries {
            if namespace.split('.').next() != Some(owner) {
                continue;
            }
            let bytes = (namespace.len() + key.len() + entry.value.len() + 64) as u64;
            namespaces.insert(namespace);
            owned.keys += 1;
            owned.bytes += bytes;
            if *namespace == name {
                usage.keys += 1;
                usage.bytes += bytes;
            }
        }
        owned.namespaces = namespaces.len() as u64;
        (usage.namespace, usage.owner) = (name, Some(owned));
        Ok(v1::StorageUsageResponse { usage: Some(usage) })
    }

    /// What a watch begins with, and how many changes that includes.
    pub(super) fn begin_watch(
        &self,
        request: &v1::StorageWatchRequest,
    ) -> Result<(Vec<v1::StorageWatchResponse>, usize)> {
        let content = self.fresh();
        let mut first = v1::StorageWatchResponse {
            snapshot_end: true,
            cursor: Some(cursor(content.revision)),
            ..Default::default()
        };
        let mut seen = content.changes.len();
        match request.from {
            Some(from) if from.epoch != EPOCH || from.revision > content.revision => {
                let text = "changes after this place are not kept";
                return Err(Error::out_of_range(text).with_reason("COMPACTED"));
            }
            Some(from) => {
                first.cursor = Some(from);
                seen = content
                    .changes
                    .partition_point(|(_, change)| revision_of(change) <= from.revision);
            }
            None if request.include_initial => {
                let wanted = content.entries.iter().filter(|((namespace, key), _)| {
                    *namespace == request.namespace && wants(&request.prefixes, key)
                });
                let initial = wanted.map(|((_, key), entry)| stored(key, entry));
                first.changes = initial.map(|entry| change(Kind::Initial, entry)).collect();
            }
            None => {}
        }
        Ok((vec![first], seen))
    }

    /// Changes from this one on.
    pub(super) fn changes_from(
        &self,
        first: usize,
        request: &v1::StorageWatchRequest,
    ) -> (v1::StorageWatchResponse, usize) {
        let content = self.content.lock();
        let unseen = content.changes.get(first..).unwrap_or_default();
        let wanted = unseen.iter().filter(|(namespace, change)| {
            let key = change.entry.as_ref().map_or("", |entry| entry.key.as_str());
            *namespace == request.namespace && wants(&request.prefixes, key)
        });
        let message = v1::StorageWatchResponse {
            changes: wanted.map(|(_, change)| change.clone()).collect(),
            cursor: Some(cursor(content.revision)),
            snapshot_end: false,
        };
        (message, content.changes.len())
    }

    pub(super) fn scan(&self, request: v1::StorageScanRequest) -> Result<v1::StorageScanResponse> {
        let content = self.fresh();
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
