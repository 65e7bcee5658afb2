//! State.

use core_proto::v1;

use super::time_to_proto;
use crate::state_engine::{Change, ChangeKind, Entry};

pub(in crate::grpc) fn entry(entry: &Entry) -> v1::StateEntry {
    v1::StateEntry {
        key: entry.key.as_str().to_owned(),
        value: entry.value.clone(),
        revision: entry.revision.0,
        writer: entry.writer.as_str().to_owned(),
        changed_at: Some(time_to_proto(entry.changed_at)),
        reported_at: Some(time_to_proto(entry.reported_at)),
        expires_at: entry.expires_at.map(time_to_proto),
        owned: entry.owner.is_some(),
        stale: entry.stale,
    }
}

pub(in crate::grpc) fn change(change: &Change) -> v1::StateChange {
    v1::StateChange {
        kind: match change.kind {
            ChangeKind::Initial => v1::state_change::Kind::Initial,
            ChangeKind::Set => v1::state_change::Kind::Set,
            ChangeKind::Deleted => v1::state_change::Kind::Deleted,
            ChangeKind::Reported => v1::state_change::Kind::Reported,
            ChangeKind::Stale => v1::state_change::Kind::Stale,
            ChangeKind::Live => v1::state_change::Kind::Live,
            ChangeKind::Expired => v1::state_change::Kind::Expired,
        }
        .into(),
        entry: Some(entry(&change.entry)),
        old_value: change.old_value.clone().unwrap_or_default(),
        cause: change
            .cause
            .map(|cause| cause.to_string())
            .unwrap_or_default(),
        conflated: change.conflated,
    }
}
