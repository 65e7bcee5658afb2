//! Storage.

use core_proto::v1;

use super::time_to_proto;
use crate::storage::{Change, Cursor, Entry, NamespaceUsage, OwnerUsage, WatchItem, What};
use crate::types::{Epoch, Revision};

pub(in crate::grpc) fn entry(entry: Entry) -> v1::StorageEntry {
    v1::StorageEntry {
        key: entry.key.as_str().to_owned(),
        value: entry.value.into_bytes(),
        revision: entry.revision.0,
        updated_at: Some(time_to_proto(entry.updated_at)),
        expires_at: entry.expires_at.map(time_to_proto),
    }
}

fn change(change: Change) -> v1::StorageChange {
    use v1::storage_change::Kind;
    let (key, revision) = (change.key, change.revision);
    let gone = || v1::StorageEntry {
        key: key.as_str().to_owned(),
        revision: revision.0,
        ..v1::StorageEntry::default()
    };
    let (kind, after) = match change.what {
        What::Initial(after) => (Kind::Initial, entry(after)),
        What::Put(after) => (Kind::Put, entry(after)),
        What::Deleted => (Kind::Deleted, gone()),
        What::Expired => (Kind::Expired, gone()),
    };
    v1::StorageChange {
        kind: kind.into(),
        entry: Some(after),
        conflated: change.conflated,
    }
}

pub(in crate::grpc) fn watch_item(item: WatchItem) -> v1::StorageWatchResponse {
    match item {
        WatchItem::Changes(changes, at) => v1::StorageWatchResponse {
            changes: changes.into_iter().map(change).collect(),
            snapshot_end: false,
            cursor: at.map(cursor),
        },
        WatchItem::SnapshotEnd(at) => v1::StorageWatchResponse {
            snapshot_end: true,
            cursor: Some(cursor(at)),
            ..v1::StorageWatchResponse::default()
        },
        WatchItem::Progress(at) => v1::StorageWatchResponse {
            cursor: Some(cursor(at)),
            ..v1::StorageWatchResponse::default()
        },
    }
}

fn cursor(cursor: Cursor) -> v1::StorageCursor {
    v1::StorageCursor {
        epoch: cursor.epoch.0,
        revision: cursor.revision.0,
    }
}

pub(in crate::grpc) fn cursor_from(cursor: v1::StorageCursor) -> Cursor {
    Cursor {
        epoch: Epoch(cursor.epoch),
        revision: Revision(cursor.revision),
    }
}

pub(in crate::grpc) fn usage(usage: &NamespaceUsage) -> v1::StorageNamespaceUsage {
    v1::StorageNamespaceUsage {
        namespace: usage.namespace.as_str().to_owned(),
        keys: usage.usage.keys,
        bytes: usage.usage.bytes,
        max_keys: usage.quota.keys,
        max_bytes: usage.quota.bytes,
        owner: Some(owner_usage(&usage.owned)),
    }
}

pub(in crate::grpc) fn owner_usage(owned: &OwnerUsage) -> v1::StorageOwnerUsage {
    v1::StorageOwnerUsage {
        name: owned.owner.clone(),
        namespaces: owned.held.namespaces,
        keys: owned.held.usage.keys,
        bytes: owned.held.usage.bytes,
        max_keys: owned.quota.keys,
        max_bytes: owned.quota.bytes,
    }
}
