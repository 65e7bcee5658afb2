//! How much a namespace and the store may hold. Pure.
//!
//! Bytes are those of keys and values. Only growth is refused: what makes a namespace smaller, or
//! replaces a value by one that is not longer, always goes on, also when a quota was lowered below
//! what is there.
//!
//! Quotas of single namespaces are kept in the store itself, under `quota/<namespace>` in the
//! namespace `core`, which only the core writes: so they survive, are copied and restored with the
//! data that they bound, and need nothing of an engine.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::names::{Key, Namespace};

/// The core's own namespace.
pub(super) const CORE_NAMESPACE: &str = "core";
const KEY_PREFIX: &str = "quota/";

/// Bounds of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Most keys.
    pub keys: u64,
    /// Most bytes of keys and values.
    pub bytes: u64,
}

/// What was set for one namespace. None: the default counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnQuota {
    /// Most keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Most bytes of keys and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What a namespace, or the store, holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// What a write adds and takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Keys.
    pub keys: i64,
    /// Bytes of keys and values.
    pub bytes: i64,
}

/// Which bound a write would have gone beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverQuota {
    /// Keys of the namespace.
    #[error("the namespace may hold {limit} keys")]
    Keys {
        /// The bound.
        limit: u64,
    },
    /// Bytes of the namespace.
    #[error("the namespace may hold {limit} bytes of keys and values")]
    Bytes {
        /// The bound.
        limit: u64,
    },
    /// Bytes of the whole store.
    #[error("the whole store may hold {limit} bytes of keys and values")]
    StoreBytes {
        /// The bound.
        limit: u64,
    },
}

/// All bounds there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    default: Quota,
    store_bytes: u64,
    own: HashMap<Namespace, OwnQuota>,
}

impl Quotas {
    /// Bounds that count for every namespace, and one for all of them together.
    #[must_use]
    pub fn new(default: Quota, store_bytes: u64) -> Self {
        Self {
            default,
            store_bytes,
            own: HashMap::new(),
        }
    }

    /// No bounds, for tests of engines.
    #[must_use]
    pub fn none() -> Self {
        let quota = Quota {
            keys: u64::MAX,
            bytes: u64::MAX,
        };
        Self::new(quota, u64::MAX)
    }

    /// The bounds of a namespace. The core's own has none but the store's.
    #[must_use]
    pub fn of(&self, namespace: &Namespace) -> Quota {
        if namespace.as_str() == CORE_NAMESPACE {
            return Quota {
                keys: u64::MAX,
                bytes: u64::MAX,
            };
        }
        let own = self.own.get(namespace).copied().unwrap_or_default();
        Quota {
            keys: own.keys.unwrap_or(self.default.keys),
            bytes: own.bytes.unwrap_or(self.default.bytes),
        }
    }

    /// Whether a write may be: what the namespace and the store hold before it, and what it adds.
    ///
    /// # Errors
    /// The bound that it would go beyond.
    pub fn admit(
        &self,
        namespace: &Namespace,
        before: Usage,
        store: Usage,
        growth: Growth,
    ) -> Result<(), OverQuota> {
        let quota = self.of(namespace);
        let beyond = |held: u64, growth: i64, limit: u64| {
            growth > 0 && held.saturating_add_signed(growth) > limit
        };
        if beyond(before.keys, growth.keys, quota.keys) {
            return Err(OverQuota::Keys { limit: quota.keys });
        }
        if beyond(before.bytes, growth.bytes, quota.bytes) {
            return Err(OverQuota::Bytes { limit: quota.bytes });
        }
        if beyond(store.bytes, growth.bytes, self.store_bytes) {
            let limit = self.store_bytes;
            return Err(OverQuota::StoreBytes { limit });
        }
        Ok(())
    }

    /// Takes over what is kept under a key of the core's namespace; `None`: it was removed. What is no
    /// quota is passed by.
    pub(super) fn learn(&mut self, key: &Key, value: Option<&str>) {
        let Some(Ok(namespace)) = key.as_str().strip_prefix(KEY_PREFIX).map(Namespace::parse)
        else {
            return;
        };
        match value.map(serde_json::from_str::<OwnQuota>) {
            Some(Ok(own)) => {
                self.own.insert(namespace, own);
            }
            Some(Err(error)) => {
                tracing::warn!(%key, %error, "a kept quota cannot be read; the default counts");
                self.own.remove(&namespace);
            }
            None => {
                self.own.remove(&namespace);
            }
        }
    }
}

impl Usage {
    /// After a write.
    pub(super) fn grow(&mut self, growth: Growth) {
        self.keys = self.keys.saturating_add_signed(growth.keys);
        self.bytes = self.bytes.saturating_add_signed(growth.bytes);
    }
}

impl Growth {
    /// Adds what one entry takes: its key, and its value's bytes before and after. None: absent.
    pub(super) fn note(&mut self, key: &Key, before: Option<usize>, after: Option<usize>) {
        let key = key.as_str().len();
        let size = |value: Option<usize>| {
            value.map_or(0, |value| i64::try_from(key + value).unwrap_or(i64::MAX))
        };
        self.keys += i64::from(after.is_some()) - i64::from(before.is_some());
        self.bytes += size(after) - size(before);
    }
}

/// Whether an entry is one that [`key_of`] names.
pub(super) fn is_quota(namespace: &Namespace, key: &Key) -> bool {
    let of = key.as_str().strip_prefix(KEY_PREFIX);
    namespace.as_str() == CORE_NAMESPACE && of.is_some_and(|name| Namespace::parse(name).is_ok())
}

/// Where the quota of a namespace is kept.
pub(super) fn key_of(namespace: &Namespace) -> Key {
    Key::parse(&format!("{KEY_PREFIX}{namespace}")).expect("a namespace is short and plain")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(text: &str) -> Namespace {
        Namespace::parse(text).expect("good")
    }

    fn quotas() -> Quotas {
        Quotas::new(
            Quota {
                keys: 3,
                bytes: 100,
            },
            150,
        )
    }

    #[test]
    fn only_growth_beyond_a_bound_is_refused() {
        let full = Usage {
            keys: 3,
            bytes: 100,
        };
        let rows = [
            ((1, 10), Err(OverQuota::Keys { limit: 3 })),
            ((0, 1), Err(OverQuota::Bytes { limit: 100 })),
            ((0, 0), Ok(())),
            ((-1, 0), Ok(())),
            ((0, -1), Ok(())),
            ((-1, 1), Err(OverQuota::Bytes { limit: 100 })),
        ];
        for ((keys, bytes), expected) in rows {
            let growth = Growth { keys, bytes };
            let judged = quotas().admit(&namespace("a"), full, full, growth);
            assert_eq!(judged, expected, "{growth:?}");
        }
        let over = Usage {
            keys: 30,
            bytes: 1_000,
        };
        let shrink = Growth { keys: 0, bytes: -1 };
        assert_eq!(quotas().admit(&namespace("a"), over, over, shrink), Ok(()));
        let store = Usage {
            keys: 9,
            bytes: 150,
        };
        let growth = Growth { keys: 1, bytes: 1 };
        assert_eq!(
            quotas().admit(&namespace("b"), Usage::default(), store, growth),
            Err(OverQuota::StoreBytes { limit: 150 })
        );
    }

    #[test]
    fn a_kept_quota_counts_until_it_is_removed() {
        let mut quotas = quotas();
        let (lamp, key) = (namespace("lamp"), key_of(&namespace("lamp")));
        quotas.learn(&key, Some(r#"{"keys":7}"#));
        assert_eq!(
            quotas.of(&lamp),
            Quota {
                keys: 7,
                bytes: 100
            }
        );
        assert_eq!(quotas.of(&namespace("other")).keys, 3);
        quotas.learn(&key, Some("nonsense"));
        assert_eq!(quotas.of(&lamp).keys, 3);
        quotas.learn(&key, Some(r#"{"bytes":1}"#));
        quotas.learn(&key, None);
        assert_eq!(quotas.of(&lamp).bytes, 100);
        quotas.learn(&Key::parse("something/else").expect("good"), Some("{}"));
        assert_eq!(quotas.of(&namespace("core")).keys, u64::MAX);
    }

    #[test]
    fn growth_counts_keys_with_values() {
        let key = Key::parse("abc").expect("good");
        let of = |before, after| {
            let mut growth = Growth::default();
            growth.note(&key, before, after);
            (growth.keys, growth.bytes)
        };
        assert_eq!(of(None, Some(5)), (1, 8));
        assert_eq!(of(Some(5), Some(2)), (0, -3));
        assert_eq!(of(Some(2), None), (-1, -5));
        assert_eq!(of(None, None), (0, 0));
    }
}
