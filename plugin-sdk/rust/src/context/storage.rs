//! Storage, as a plugin uses it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use core_proto::v1;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::storage_watch::StorageWatch;
use super::{Ctx, NewEvent};
use crate::arguments;
use crate::error::Result;

/// Durable data: keys with JSON values up to 256 KiB in a namespace. A write is answered when it is on
/// disk.
#[derive(Clone, Debug)]
pub struct Storage {
    ctx: Ctx,
    namespace: String,
}

/// One stored key.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StorageEntry {
    /// Its key.
    pub key: String,
    /// JSON, as written.
    pub value: Bytes,
    /// For compare-and-set.
    pub revision: u64,
    /// When it was written.
    pub updated_at: Option<SystemTime>,
    /// When its time has passed; `None`: never.
    pub expires_at: Option<SystemTime>,
}

impl StorageEntry {
    /// The value as a type of your own.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with the path at which it did not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        arguments::json(&self.value)
    }
}

impl From<v1::StorageEntry> for StorageEntry {
    fn from(entry: v1::StorageEntry) -> Self {
        let time = |time: Option<prost_types::Timestamp>| {
            time.and_then(|time| SystemTime::try_from(time).ok())
        };
        Self {
            key: entry.key,
            value: entry.value,
            revision: entry.revision,
            updated_at: time(entry.updated_at),
            expires_at: time(entry.expires_at),
        }
    }
}

/// What a namespace holds, and may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageUsage {
    /// Keys.
    pub keys: u64,
    /// Bytes: of each entry its namespace, its key and its value, and 64.
    pub bytes: u64,
    /// Most keys; more are refused with `QUOTA_KEYS`.
    pub max_keys: u64,
    /// Most bytes; more are refused with `QUOTA_BYTES`.
    pub max_bytes: u64,
}

/// Which keys to list. A text is a prefix: `storage.list_keys("lamp.")`.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Range {
    prefix: String,
    start_after: String,
    limit: Option<usize>,
    reverse: bool,
}

impl Range {
    /// All keys that begin with this; `""` for all.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            ..Self::default()
        }
    }

    /// Only keys after this one (before it, with [`Self::reverse`]).
    pub fn after(mut self, key: impl Into<String>) -> Self {
        self.start_after = key.into();
        self
    }

    /// At most this many.
    pub fn limit(mut self, keys: usize) -> Self {
        self.limit = Some(keys);
        self
    }

    /// In descending order.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// The size of the next page, when so many have been read; 0 when that is enough.
    fn page_size(&self, read: usize) -> u32 {
        let wanted = self.limit.map_or(1000, |limit| limit.saturating_sub(read));
        u32::try_from(wanted.min(1000)).expect("at most 1000")
    }
}

impl<T: Into<String>> From<T> for Range {
    fn from(prefix: T) -> Self {
        Self::prefix(prefix)
    }
}

/// Writes of one namespace that happen together or not at all: at most 128, at most 1 MiB.
#[derive(Clone, Debug, Default)]
#[must_use = "a batch does nothing until it is applied"]
pub struct Batch {
    request: v1::StorageApplyRequest,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if the key's revision is this; 0 = if it is absent.
    pub fn check(mut self, key: impl Into<String>, revision: u64) -> Self {
        let key = key.into();
        self.request.checks.push(v1::StorageCheck { key, revision });
        self
    }

    /// Writes a key.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the value cannot be written as JSON.
    pub fn set(
        mut self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<Self> {
        self.push_set(key.into(), arguments::encode_json(value)?, None);
        Ok(self)
    }

    /// Writes a key that is absent after this time.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the value cannot be written as JSON, or for a time that is too long.
    pub fn set_for(
        mut self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        ttl: Duration,
    ) -> Result<Self> {
        let ttl = arguments::duration(ttl)?;
        self.push_set(key.into(), arguments::encode_json(value)?, ttl);
        Ok(self)
    }

    fn push_set(&mut self, key: String, value: Bytes, ttl: Option<prost_types::Duration>) {
        let op = v1::storage_op::Op::Set(v1::StorageOpSet { key, value, ttl });
        self.request.ops.push(v1::StorageOp { op: Some(op) });
    }

    /// Removes a key.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        let key = key.into();
        let op = v1::storage_op::Op::Delete(v1::StorageOpDelete { key });
        self.request.ops.push(v1::StorageOp { op: Some(op) });
        self
    }

    /// Publishes an event after the commit, and never without it. At most 16; one that may not be
    /// published refuses the whole batch.
    pub fn event(mut self, event: NewEvent) -> Self {
        self.request.events.push(event.event);
        self
    }
}

impl Storage {
    pub(super) fn new(ctx: Ctx, namespace: String) -> Self {
        Self { ctx, namespace }
    }

    /// Another namespace: the plugin's own ones begin with its name and a dot, others need a grant.
    #[must_use]
    pub fn namespace(&self, namespace: impl Into<String>) -> Self {
        Self::new(self.ctx.clone(), namespace.into())
    }

    /// Reads a key; `None` if there is none.
    ///
    /// # Errors
    /// `BAD_KEY`, `NOT_GRANTED`, `STORAGE_FAILED`; `INVALID_ARGUMENT` if the value is of another type.
    pub async fn get<T: DeserializeOwned>(&self, key: impl Into<String>) -> Result<Option<T>> {
        let entry = self.entry(key).await?;
        entry.map(|entry| entry.parse()).transpose()
    }

    /// Reads a key with its revision.
    ///
    /// # Errors
    /// `BAD_KEY`, `NOT_GRANTED`, `STORAGE_FAILED`.
    pub async fn entry(&self, key: impl Into<String>) -> Result<Option<StorageEntry>> {
        let request = v1::StorageGetRequest {
            namespace: self.namespace.clone(),
            key: key.into(),
        };
        let answer: v1::StorageGetResponse = self.ctx.ask("Storage/Get", request).await?;
        Ok(answer.entry.map(StorageEntry::from))
    }

    /// Reads up to 100 keys from one snapshot: those that exist, in the order asked for.
    ///
    /// # Errors
    /// As [`Self::entry`]; `BAD_FIELD` for no keys or more than 100; `TOO_LARGE` if they have more than 1 MiB
    /// together: ask for fewer.
    pub async fn get_many<K: Into<String>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<StorageEntry>> {
        let request = v1::StorageGetManyRequest {
            namespace: self.namespace.clone(),
            keys: keys.into_iter().map(Into::into).collect(),
        };
        let answer: v1::StorageGetManyResponse = self.ctx.ask("Storage/GetMany", request).await?;
        Ok(answer.entries.into_iter().map(StorageEntry::from).collect())
    }

    /// Writes a key; returns its revision.
    ///
    /// # Errors
    /// As [`Self::entry`], and `TOO_LARGE`, `QUEUE_FULL`, `DISK_LOW`, `QUOTA_KEYS`, `QUOTA_BYTES`.
    pub async fn set(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<u64> {
        self.write(key.into(), value, None, None).await
    }

    /// Writes a key that is absent after this time; returns its revision. Setting the clock of the core's
    /// machine does not make the time pass.
    ///
    /// # Errors
    /// As [`Self::set`]; `BAD_FIELD` for no time at all or more than 10 years.
    pub async fn set_for(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        ttl: Duration,
    ) -> Result<u64> {
        let ttl = arguments::duration(ttl)?;
        self.write(key.into(), value, None, ttl).await
    }

    /// Writes a key only if its revision is this; 0 = only if it is absent.
    ///
    /// # Errors
    /// `ABORTED` `REVISION_MISMATCH` if it is another; else as [`Self::set`].
    pub async fn set_if(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        revision: u64,
    ) -> Result<u64> {
        self.write(key.into(), value, Some(revision), None).await
    }

    async fn write(
        &self,
        key: String,
        value: &(impl Serialize + ?Sized),
        if_revision: Option<u64>,
        ttl: Option<prost_types::Duration>,
    ) -> Result<u64> {
        let request = v1::StorageSetRequest {
            namespace: self.namespace.clone(),
            key,
            value: arguments::encode_json(value)?,
            if_revision,
            ttl,
        };
        let answer: v1::StorageSetResponse = self.ctx.ask("Storage/Set", request).await?;
        Ok(answer.revision)
    }

    /// Removes a key; true if it was there.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool> {
        let request = v1::StorageDeleteRequest {
            namespace: self.namespace.clone(),
            key: key.into(),
            if_revision: None,
        };
        let answer: v1::StorageDeleteResponse = self.ctx.ask("Storage/Delete", request).await?;
        Ok(answer.existed)
    }

    /// Watches all keys that begin with this: first what is there, then every change, in order.
    ///
    /// # Errors
    /// `BAD_KEY`, `NOT_GRANTED`.
    pub async fn watch(&self, prefix: impl Into<String>) -> Result<StorageWatch> {
        let namespace = self.namespace.clone();
        StorageWatch::begin(&self.ctx, namespace, prefix.into()).await
    }

    /// What the namespace holds, and may hold.
    ///
    /// # Errors
    /// `BAD_NAMESPACE`, `NOT_GRANTED`, `STORAGE_FAILED`.
    pub async fn usage(&self) -> Result<StorageUsage> {
        let request = v1::StorageUsageRequest {
            namespace: self.namespace.clone(),
        };
        let answer: v1::StorageUsageResponse = self.ctx.ask("Storage/Usage", request).await?;
        let usage = answer.usage.unwrap_or_default();
        Ok(StorageUsage {
            keys: usage.keys,
            bytes: usage.bytes,
            max_keys: usage.max_keys,
            max_bytes: usage.max_bytes,
        })
    }

    /// Applies a batch: all or nothing; returns the revision of its writes.
    ///
    /// # Errors
    /// As [`Self::set`], and `DUPLICATE_KEY`; `ABORTED` `REVISION_MISMATCH` if a check fails.
    pub async fn apply(&self, batch: Batch) -> Result<u64> {
        let request = v1::StorageApplyRequest {
            namespace: self.namespace.clone(),
            ..batch.request
        };
        let answer: v1::StorageApplyResponse = self.ctx.ask("Storage/Apply", request).await?;
        Ok(answer.revision)
    }

    /// Lists keys in byte order, page after page. Each page is a snapshot, the whole is not.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub async fn list_keys(&self, range: impl Into<Range>) -> Result<Vec<String>> {
        let range = range.into();
        let mut request = v1::StorageListKeysRequest {
            namespace: self.namespace.clone(),
            prefix: range.prefix.clone(),
            start_after: range.start_after.clone(),
            reverse: range.reverse,
            page_size: range.page_size(0),
            page_token: String::new(),
        };
        let mut keys = Vec::new();
        while request.page_size > 0 {
            let page: v1::StorageListKeysResponse =
                self.ctx.ask("Storage/ListKeys", request.clone()).await?;
            keys.extend(page.keys);
            if page.next_page_token.is_empty() || range.page_size(keys.len()) == 0 {
                break;
            }
            request.page_token = page.next_page_token;
        }
        keys.truncate(range.limit.unwrap_or(usize::MAX));
        Ok(keys)
    }

    /// As [`Self::list_keys`], with the values.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub async fn scan(&self, range: impl Into<Range>) -> Result<Vec<StorageEntry>> {
        let range = range.into();
        let mut request = v1::StorageScanRequest {
            namespace: self.namespace.clone(),
            prefix: range.prefix.clone(),
            start_after: range.start_after.clone(),
            reverse: range.reverse,
            page_size: range.page_size(0),
            page_token: String::new(),
        };
        let mut entries = Vec::new();
        while request.page_size > 0 {
            let page: v1::StorageScanResponse =
                self.ctx.ask("Storage/Scan", request.clone()).await?;
            entries.extend(page.entries.into_iter().map(StorageEntry::from));
            if page.next_page_token.is_empty() || range.page_size(entries.len()) == 0 {
                break;
            }
            request.page_token = page.next_page_token;
        }
        entries.truncate(range.limit.unwrap_or(usize::MAX));
        Ok(entries)
    }
}
