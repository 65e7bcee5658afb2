//! How much a namespace and the store may hold. Pure.
//!
//! An entry counts the bytes of its namespace, its key and its value, and [`ENTRY_BYTES`]: what it takes on
//! the disk, near enough, so that many empty ones are not free. Only growth is refused: what makes a namespace
//! smaller, or replaces a value by one that is not longer, always goes on, also when a quota was lowered
//! below what is there.
//!
//! An *owner* is the first part of a namespace's name: `lamp` owns `lamp` and all that begin with `lamp.`. All
//! of an owner's namespaces together are bounded by the quota of the one that has its name, and their number
//! by [`MAX_NAMESPACES`]: whoever may make namespaces gains no room by it. So keys are bounded too, and with
//! them what a key takes beyond its bytes.
//!
//! Quotas of single namespaces are kept in the store itself, under `quota/<namespace>` in the
//! namespace `core`, which only the core writes: so they survive, are copied and restored with the
//! data that they bound, and need nothing of an engine.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::names::{Key, Namespace};

/// The core's own namespace.
pub(super) const CORE_NAMESPACE: &str = "core";
const KEY_PREFIX: &str = "quota/";
/// What each entry counts beside its namespace, key and value: its revision, its times, its row and its place
/// in the index of expiries. SQLite's rows take 30 to 60 bytes more than their texts.
pub const ENTRY_BYTES: u64 = 64;
/// Most namespaces of one owner that hold anything.
pub const MAX_NAMESPACES: u64 = 256;

/// Bounds of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Most keys.
    pub keys: u64,
    /// Most bytes.
    pub bytes: u64,
}

/// What was set for one namespace. None: the default counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnQuota {
    /// Most keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Most bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What a namespace, or the store, holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Keys.
    pub keys: u64,
    /// Bytes, as they are counted.
    pub bytes: u64,
}

/// What all namespaces of one owner hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Namespaces that hold anything.
    pub namespaces: u64,
    /// What they hold together.
    pub usage: Usage,
}

/// What a write adds and takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Keys.
    pub keys: i64,
    /// Bytes, as they are counted.
    pub bytes: i64,
}

/// Which bound a write would have gone beyond.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverQuota {
    /// Keys of the namespace.
    #[error("the namespace may hold {limit} keys")]
    Keys {
        /// The bound.
        limit: u64,
    },
    /// Bytes of the namespace.
    #[error("the namespace may hold {limit} bytes")]
    Bytes {
        /// The bound.
        limit: u64,
    },
    /// Keys of all namespaces of an owner.
    #[error("\"{owner}\" and the namespaces below it may hold {limit} keys together")]
    OwnerKeys {
        /// The owner.
        owner: String,
        /// The bound.
        limit: u64,
    },
    /// Bytes of all namespaces of an owner.
    #[error("\"{owner}\" and the namespaces below it may hold {limit} bytes together")]
    OwnerBytes {
        /// The owner.
        owner: String,
        /// The bound.
        limit: u64,
    },
    /// Namespaces of an owner.
    #[error("there may be {limit} namespaces below \"{owner}\", itself included")]
    Namespaces {
        /// The owner.
        owner: String,
        /// The bound.
        limit: u64,
    },
    /// Bytes of the whole store.
    #[error("the whole store may hold {limit} bytes")]
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
        self.kept(namespace.as_str())
    }

    /// The bounds of all namespaces together that have the owner of this one. The core has none but the
    /// store's.
    #[must_use]
    pub fn of_owner(&self, namespace: &Namespace) -> Quota {
        match owner(namespace) {
            CORE_NAMESPACE => Quota {
                keys: u64::MAX,
                bytes: u64::MAX,
            },
            owner => self.kept(owner),
        }
    }

    fn kept(&self, name: &str) -> Quota {
        let own = self.own.get(name).copied().unwrap_or_default();
        Quota {
            keys: own.keys.unwrap_or(self.default.keys),
            bytes: own.bytes.unwrap_or(self.default.bytes),
        }
    }

    /// Whether a write may be: what the namespace, all of its owner and the store hold before it, and what
    /// it adds.
    ///
    /// # Errors
    /// The bound that it would go beyond.
    pub fn admit(
        &self,
        namespace: &Namespace,
        before: Usage,
        owned: Owned,
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
        if owner(namespace) != CORE_NAMESPACE {
            self.admit_owner(namespace, before, owned, growth)?;
        }
        if beyond(store.bytes, growth.bytes, self.store_bytes) {
            let limit = self.store_bytes;
            return Err(OverQuota::StoreBytes { limit });
        }
        Ok(())
    }

    fn admit_owner(
        &self,
        namespace: &Namespace,
        before: Usage,
        owned: Owned,
        growth: Growth,
    ) -> Result<(), OverQuota> {
        let (owner, quota) = (owner(namespace).to_owned(), self.of_owner(namespace));
        let beyond = |held: u64, growth: i64, limit: u64| {
            growth > 0 && held.saturating_add_signed(growth) > limit
        };
        if before.keys == 0 && growth.keys > 0 && owned.namespaces >= MAX_NAMESPACES {
            let limit = MAX_NAMESPACES;
            return Err(OverQuota::Namespaces { owner, limit });
        }
        let limit = quota.keys;
        if beyond(owned.usage.keys, growth.keys, limit) {
            return Err(OverQuota::OwnerKeys { owner, limit });
        }
        let limit = quota.bytes;
        if beyond(owned.usage.bytes, growth.bytes, limit) {
            return Err(OverQuota::OwnerBytes { owner, limit });
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

/// The first part of a namespace's name.
pub(super) fn owner(namespace: &Namespace) -> &str {
    let name = namespace.as_str();
    name.split_once('.').map_or(name, |(owner, _)| owner)
}

/// Those of a map by namespace that have the owner of this one, in order.
pub(super) fn of_owner<'a, T>(
    all: &'a BTreeMap<Namespace, T>,
    namespace: &'a Namespace,
) -> impl Iterator<Item = (&'a Namespace, &'a T)> {
    let owner = owner(namespace);
    let below = format!("{owner}.");
    let first = all.get_key_value(owner);
    let from = Bound::Included(below.as_str());
    let rest = all.range::<str, _>((from, Bound::Unbounded));
    first
        .into_iter()
        .chain(rest.take_while(move |(name, _)| name.as_str().starts_with(&below)))
}

impl Owned {
    /// Adds a namespace.
    pub(super) fn add(&mut self, usage: Usage) {
        self.namespaces += u64::from(usage.keys > 0);
        self.usage.keys = self.usage.keys.saturating_add(usage.keys);
        self.usage.bytes = self.usage.bytes.saturating_add(usage.bytes);
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
    /// Adds what one entry counts, with its value's bytes before and after. None: absent.
    pub(super) fn note(
        &mut self,
        namespace: &Namespace,
        key: &Key,
        before: Option<usize>,
        after: Option<usize>,
    ) {
        let names = namespace.as_str().len() + key.as_str().len();
        let size = |value: Option<usize>| {
            value.map_or(0, |value| {
                let bytes = (names + value) as u64 + ENTRY_BYTES;
                i64::try_from(bytes).unwrap_or(i64::MAX)
            })
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
            let judged = quotas().admit(&namespace("a"), full, all(full), full, growth);
            assert_eq!(judged, expected, "{growth:?}");
        }
        let over = Usage {
            keys: 30,
            bytes: 1_000,
        };
        let shrink = Growth { keys: 0, bytes: -1 };
        assert_eq!(
            quotas().admit(&namespace("a"), over, all(over), over, shrink),
            Ok(())
        );
        let store = Usage {
            keys: 9,
            bytes: 150,
        };
        let growth = Growth { keys: 1, bytes: 1 };
        assert_eq!(
            quotas().admit(
                &namespace("b"),
                Usage::default(),
                Owned::default(),
                store,
                growth
            ),
            Err(OverQuota::StoreBytes { limit: 150 })
        );
    }

    fn all(usage: Usage) -> Owned {
        let mut owned = Owned::default();
        owned.add(usage);
        owned
    }

    #[test]
    fn namespaces_below_a_name_share_its_bounds() {
        let mut quotas = quotas();
        let below = namespace("a.x");
        let owned = Owned {
            namespaces: 2,
            usage: Usage { keys: 3, bytes: 90 },
        };
        let judge = |quotas: &Quotas, owned, (keys, bytes)| {
            let growth = Growth { keys, bytes };
            quotas.admit(&below, Usage::default(), owned, Usage::default(), growth)
        };
        let owner = || "a".to_owned();
        let keys = OverQuota::OwnerKeys {
            owner: owner(),
            limit: 3,
        };
        assert_eq!(judge(&quotas, owned, (1, 1)), Err(keys));
        let bytes = OverQuota::OwnerBytes {
            owner: owner(),
            limit: 100,
        };
        assert_eq!(judge(&quotas, owned, (0, 11)), Err(bytes));
        assert_eq!(judge(&quotas, owned, (0, 10)), Ok(()));
        let many = Owned {
            namespaces: MAX_NAMESPACES,
            ..Owned::default()
        };
        let namespaces = OverQuota::Namespaces {
            owner: owner(),
            limit: MAX_NAMESPACES,
        };
        assert_eq!(judge(&quotas, many, (1, 1)), Err(namespaces));
        // More for the owner is more for all of them.
        quotas.learn(&key_of(&namespace("a")), Some(r#"{"keys":4}"#));
        assert_eq!(judge(&quotas, owned, (1, 1)), Ok(()));
    }

    #[test]
    fn an_owner_has_what_begins_with_its_name_and_a_dot() {
        let names = [
            "lamp", "lamp-x", "lamp.a", "lamp.a.b", "lamp_x", "lamps", "z.lamp",
        ];
        let all: BTreeMap<_, _> = names.map(|name| (namespace(name), ())).into();
        for name in ["lamp", "lamp.a", "lamp.new"] {
            let of = namespace(name);
            let found: Vec<_> = of_owner(&all, &of)
                .map(|(name, ())| name.as_str())
                .collect();
            assert_eq!(found, ["lamp", "lamp.a", "lamp.a.b"]);
        }
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
    fn growth_counts_whole_entries() {
        let (namespace, key) = (namespace("ab"), Key::parse("abc").expect("good"));
        let of = |before, after| {
            let mut growth = Growth::default();
            growth.note(&namespace, &key, before, after);
            (growth.keys, growth.bytes)
        };
        assert_eq!(of(None, Some(5)), (1, 64 + 2 + 3 + 5));
        assert_eq!(of(Some(5), Some(2)), (0, -3));
        assert_eq!(of(Some(2), None), (-1, -(64 + 2 + 3 + 2)));
        assert_eq!(of(None, None), (0, 0));
    }
}
