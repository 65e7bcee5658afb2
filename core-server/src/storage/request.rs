//! What callers ask, and the rules that need no engine to be checked. Pure.

use std::collections::HashSet;

use super::adapter::{Check, Commit, Op};
use super::clock::MAX_TTL;
use super::error::Error;
use super::names::{Direction, Key, Namespace, check_key_part};
use crate::types::Revision;

/// Most writes, and most checks, of one `Apply`.
pub const MAX_OPS: usize = 128;
/// Most bytes of keys and values of one `Apply`.
pub const MAX_APPLY_BYTES: usize = 1 << 20;
/// Most keys of one `GetMany`.
pub const MAX_GET_KEYS: usize = 100;
/// Longest page.
pub const MAX_PAGE_SIZE: usize = 1_000;
/// Length of a page when nothing is said.
pub const DEFAULT_PAGE_SIZE: usize = 100;
/// A page of entries ends before it passes this; a `GetMany` that would is refused.
pub const MAX_PAGE_BYTES: usize = 1 << 20;

/// Runs after the commit, on the writer's thread, before the answer. See [`Apply::after_commit`].
pub type AfterCommit = Box<dyn FnOnce(Revision) + Send>;

/// Checks and writes that take effect together or not at all.
pub struct Apply {
    /// Where.
    pub namespace: Namespace,
    /// All must hold, before any write. At most [`MAX_OPS`].
    pub checks: Vec<Check>,
    /// 1 to [`MAX_OPS`] writes, each key at most once, together at most [`MAX_APPLY_BYTES`].
    pub ops: Vec<Op>,
    /// Called once with the revision after the commit, in the order of revisions, before the answer;
    /// dropped uncalled if it does not commit. It holds up every other write: it must be quick and
    /// must not wait for storage.
    pub after_commit: Option<AfterCommit>,
    /// What it holds in memory; it counts as the write's own bytes do while both wait.
    pub after_commit_bytes: usize,
}

impl Apply {
    /// Checks what needs no engine, and splits off what the engine does not see.
    pub(super) fn check(
        self,
        max_value_bytes: usize,
    ) -> Result<(Commit, Option<AfterCommit>), Error> {
        if self.ops.is_empty() || self.ops.len() > MAX_OPS {
            return Err(bad_field("ops", "1 to 128 writes are allowed"));
        }
        if self.checks.len() > MAX_OPS {
            return Err(bad_field("checks", "at most 128 conditions are allowed"));
        }
        let mut seen = HashSet::with_capacity(self.ops.len());
        let mut total = 0;
        for op in &self.ops {
            if let Op::Set { key, value, .. } = op
                && value.bytes().len() > max_value_bytes
            {
                return Err(Error::TooLarge {
                    field: "value",
                    what: format!("the value of \"{key}\""),
                    size_bytes: value.bytes().len(),
                    limit_bytes: max_value_bytes,
                });
            }
            if let Op::Set { ttl: Some(ttl), .. } = op
                && (ttl.is_zero() || *ttl > MAX_TTL)
            {
                return Err(bad_field(
                    "ttl",
                    "more than nothing and at most 10 years are allowed",
                ));
            }
            if self.ops.len() > 1 && !seen.insert(op.key()) {
                return Err(Error::DuplicateKey {
                    key: op.key().to_string(),
                });
            }
            total += op.size_bytes();
        }
        if total > MAX_APPLY_BYTES {
            return Err(Error::TooLarge {
                field: "ops",
                what: "all writes of one Apply together".to_owned(),
                size_bytes: total,
                limit_bytes: MAX_APPLY_BYTES,
            });
        }
        let commit = Commit {
            namespace: self.namespace,
            checks: self.checks,
            ops: self.ops,
        };
        Ok((commit, self.after_commit))
    }
}

/// What an unconditional or conditional single write becomes.
pub(super) fn single(namespace: &Namespace, op: Op, if_revision: Option<Revision>) -> Apply {
    let check = if_revision.map(|revision| Check {
        key: op.key().clone(),
        revision,
    });
    Apply {
        namespace: namespace.clone(),
        checks: check.into_iter().collect(),
        ops: vec![op],
        after_commit: None,
        after_commit_bytes: 0,
    }
}

/// Which keys or entries to read, a page at a time.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where.
    pub namespace: Namespace,
    /// Only keys that begin so; empty: all.
    pub prefix: String,
    /// Only keys after this one, in the direction of reading; empty: from the beginning.
    pub start_after: String,
    /// In which order.
    pub direction: Direction,
    /// 1 to [`MAX_PAGE_SIZE`]; 0: [`DEFAULT_PAGE_SIZE`].
    pub page_size: u32,
    /// From the page before, with the other fields unchanged (but `page_size`, which may change);
    /// empty: the first page.
    pub page_token: String,
}

impl Query {
    /// All keys of a namespace, from the beginning.
    #[must_use]
    pub fn all(namespace: Namespace) -> Self {
        Self {
            namespace,
            prefix: String::new(),
            start_after: String::new(),
            direction: Direction::Ascending,
            page_size: 0,
            page_token: String::new(),
        }
    }

    pub(super) fn check(&self) -> Result<usize, Error> {
        check_key_part(&self.prefix)?;
        check_key_part(&self.start_after)?;
        match self.page_size as usize {
            0 => Ok(DEFAULT_PAGE_SIZE),
            size if size <= MAX_PAGE_SIZE => Ok(size),
            _ => Err(bad_field("page_size", "0 to 1,000 are allowed")),
        }
    }
}

/// One page of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// In the order asked for.
    pub items: Vec<T>,
    /// For the next page; empty: this was the last one.
    pub next_page_token: String,
    /// The store's revision of this page's snapshot.
    pub revision: Revision,
}

/// What became of a `Set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Revision of this write.
    pub revision: Revision,
    /// The key was absent before.
    pub created: bool,
}

/// What became of a `Delete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Revision of this write; if the key did not exist, the store's.
    pub revision: Revision,
    /// The key was there.
    pub existed: bool,
}

pub(super) fn check_keys(keys: &[Key]) -> Result<(), Error> {
    if keys.is_empty() || keys.len() > MAX_GET_KEYS {
        return Err(bad_field("keys", "1 to 100 keys are allowed"));
    }
    Ok(())
}

fn bad_field(field: &'static str, rule: &'static str) -> Error {
    Error::BadField { field, rule }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::json::Json;

    fn set(key: &str, bytes: usize) -> Op {
        let text = format!("\"{}\"", "x".repeat(bytes - 2));
        Op::Set {
            key: Key::parse(key).expect("good"),
            value: Json::parse(Bytes::from(text)).expect("good"),
            ttl: None,
        }
    }

    fn check(ops: Vec<Op>) -> Result<(), Error> {
        let apply = Apply {
            namespace: Namespace::parse("test").expect("good"),
            checks: Vec::new(),
            ops,
            after_commit: None,
            after_commit_bytes: 0,
        };
        apply.check(256 << 10).map(|_| ())
    }

    #[test]
    fn a_time_to_live_is_neither_nothing_nor_for_ever() {
        use std::time::Duration;
        let lasting = |time| check(vec![set("a", 2).lasting(Some(time))]);
        for good in [Duration::from_nanos(1), Duration::from_secs(1), MAX_TTL] {
            assert!(lasting(good).is_ok(), "{good:?}");
        }
        for bad in [
            Duration::ZERO,
            MAX_TTL + Duration::from_nanos(1),
            Duration::MAX,
        ] {
            let refused = lasting(bad);
            assert!(
                matches!(refused, Err(Error::BadField { field: "ttl", .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_bounds_of_an_apply_are_checked_before_the_engine_sees_it() {
        assert!(matches!(
            check(Vec::new()),
            Err(Error::BadField { field: "ops", .. })
        ));
        let many = |count| {
            (0..count)
                .map(|index| set(&format!("k{index}"), 2))
                .collect()
        };
        assert!(check(many(128)).is_ok());
        assert!(matches!(
            check(many(129)),
            Err(Error::BadField { field: "ops", .. })
        ));
        assert!(check(vec![set("a", 256 << 10)]).is_ok());
        assert!(matches!(
            check(vec![set("a", (256 << 10) + 1)]),
            Err(Error::TooLarge { limit_bytes, .. }) if limit_bytes == 256 << 10
        ));
        let large = (0..4).map(|index| set(&format!("k{index}"), 256 << 10));
        assert!(matches!(
            check(large.collect()),
            Err(Error::TooLarge {
                limit_bytes: MAX_APPLY_BYTES,
                ..
            })
        ));
        let twice = vec![
            set("a", 2),
            Op::Delete {
                key: Key::parse("a").expect("good"),
            },
        ];
        assert!(matches!(check(twice), Err(Error::DuplicateKey { key }) if key == "a"));
    }
}
