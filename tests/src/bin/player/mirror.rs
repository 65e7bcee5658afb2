//! A copy of the plugin's storage in memory, kept by a watch alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plugin_sdk::prelude::*;
use plugin_sdk::{StorageChange, StorageEntry};
use serde_json::{Value, json};

/// Before a watch that could not be begun is tried again.
const PACE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Copy {
    content: BTreeMap<String, Value>,
    /// All that was there has been told.
    whole: bool,
    /// Of the newest change.
    revision: u64,
    /// Revisions that did not rise.
    out_of_order: Vec<u64>,
}

impl Copy {
    fn forget(&mut self) {
        let out_of_order = std::mem::take(&mut self.out_of_order);
        *self = Self {
            out_of_order,
            ..Self::default()
        };
    }

    fn put(&mut self, entry: &StorageEntry) {
        let value = entry.parse().unwrap_or(Value::Null);
        self.content.insert(entry.key.clone(), value);
    }

    fn apply(&mut self, change: StorageChange) {
        match change {
            StorageChange::Restarted => self.forget(),
            StorageChange::Initial(entry) => self.put(&entry),
            StorageChange::SnapshotEnd => self.whole = true,
            StorageChange::Put { entry, .. } => {
                self.note(entry.revision);
                self.put(&entry);
            }
            StorageChange::Deleted { key, revision } | StorageChange::Expired { key, revision } => {
                self.note(revision);
                self.content.remove(&key);
            }
            _ => {}
        }
    }

    fn note(&mut self, revision: u64) {
        if revision <= self.revision {
            self.out_of_order.push(revision);
        }
        self.revision = revision;
    }
}

pub(crate) fn mirror(name: &str) -> Plugin {
    let copy: Arc<Mutex<Copy>> = Arc::default();
    let shown = Arc::clone(&copy);
    let content = move |_: Ctx, (): ()| {
        let shown = Arc::clone(&shown);
        async move {
            let copy = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let content = copy.whole.then_some(&copy.content);
            Ok(json!({ "content": content, "out_of_order": copy.out_of_order }))
        }
    };
    Plugin::builder(name)
        .service(Service::new("content").handle(content))
        .task("watch", move |ctx: Ctx| {
            let copy = Arc::clone(&copy);
            async move {
                let mut watch = loop {
                    match ctx.storage().watch("").await {
                        Ok(watch) => break watch,
                        Err(_) => tokio::time::sleep(PACE).await,
                    }
                };
                // Each run begins with a watch of its own.
                copy.lock().unwrap_or_else(PoisonError::into_inner).forget();
                while let Some(change) = watch.next().await? {
                    let mut copy = copy.lock().unwrap_or_else(PoisonError::into_inner);
                    copy.apply(change);
                }
                Ok(())
            }
        })
        .build()
}
