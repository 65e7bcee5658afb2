//! Writing: one transaction for a batch, and checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, ffi, params};

use super::fault;
use super::read::{micros, time};
use crate::error::Outcome;
use crate::storage::adapter::{Applied, Commit, CommitFault, Op, Rejection, Terms, has_passed};
use crate::storage::error::Fault;
use crate::storage::names::{Key, Namespace};
use crate::storage::quota::{ENTRY_BYTES, Growth, Owned, Usage, of_owner};
use crate::types::Revision;

const FIND: &str = "SELECT revision, octet_length(value), expires_at FROM entry \
                    WHERE namespace = ?1 AND key = ?2";
const SET: &str = "REPLACE INTO entry (namespace, key, value, revision, updated_at, expires_at) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const DELETE: &str = "DELETE FROM entry WHERE namespace = ?1 AND key = ?2";
const TALLY: &str = "REPLACE INTO tally (namespace, keys, bytes, revision) VALUES (?1, ?2, ?3, ?4)";
const FORGET: &str = "DELETE FROM tally WHERE namespace = ?1";
/// `updated_at` is by the wall clock, which an unset clock's store time is too.
const LATEST_BEFORE: &str =
    "SELECT max(updated_at) FROM entry WHERE expires_at IS NOT NULL AND expires_at < ?1";
const SHIFT: &str = "UPDATE entry SET expires_at = expires_at + ?2 \
                     WHERE expires_at IS NOT NULL AND expires_at < ?1";

/// Where the store stands: what the table `tally` says.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub(super) revision: Revision,
    pub(super) total: Usage,
    pub(super) namespaces: BTreeMap<Namespace, Usage>,
}

/// Why a transaction is not on disk, or may not be.
pub(super) enum Failure {
    /// No room. It was rolled back; the connection is good.
    Full(rusqlite::Error),
    /// A write to the log was refused: SQLite's word also for a quota. It was rolled back.
    Unwritten {
        error: rusqlite::Error,
        outcome: Outcome,
    },
    /// The connection is to be given up.
    Other { fault: Fault, outcome: Outcome },
}

impl From<Failure> for CommitFault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Full(source) => Self {
                fault: Fault::DiskFull(Arc::new(source)),
                outcome: Outcome::NotApplied,
            },
            Failure::Unwritten { error, outcome } => Self {
                fault: fault(error),
                outcome,
            },
            Failure::Other { fault, outcome } => Self { fault, outcome },
        }
    }
}

/// What became of each item.
pub(super) type Done = Vec<Result<Applied, Rejection>>;

/// Applies the items in order and commits them together. Not one is on disk if it fails before
/// COMMIT; afterwards it depends. `standing` moves on if all is on disk.
pub(super) fn transaction(
    connection: &Connection,
    standing: &mut Standing,
    batch: &[Commit],
    terms: &Terms<'_>,
) -> Result<Done, Failure> {
    let mut filling = Filling {
        connection,
        terms,
        revision: standing.revision,
        total: standing.total,
        before: standing,
        touched: BTreeMap::new(),
    };
    let done = filling
        .fill(batch)
        .map_err(|error| abandon(connection, error, Outcome::NotApplied))?;
    let (revision, total, touched) = (filling.revision, filling.total, filling.touched);
    run(connection, "COMMIT").map_err(|error| abandon(connection, error, Outcome::Unknown))?;
    standing.revision = revision;
    standing.total = total;
    for (namespace, usage) in touched {
        if usage.keys == 0 {
            standing.namespaces.remove(&namespace);
        } else {
            standing.namespaces.insert(namespace, usage);
        }
    }
    Ok(done)
}

/// A transaction on its way.
struct Filling<'a> {
    connection: &'a Connection,
    terms: &'a Terms<'a>,
    before: &'a Standing,
    revision: Revision,
    total: Usage,
    /// What the namespaces hold that were written.
    touched: BTreeMap<Namespace, Usage>,
}

/// What lies under a key.
#[derive(Clone, Copy)]
struct Held {
    revision: Revision,
    bytes: usize,
    /// Its time has not passed.
    live: bool,
}

impl Filling<'_> {
    fn fill(&mut self, batch: &[Commit]) -> rusqlite::Result<Done> {
        run(self.connection, "BEGIN IMMEDIATE")?;
        let mut results = Vec::with_capacity(batch.len());
        for commit in batch {
            results.push(self.apply(commit)?);
        }
        if self.revision != self.before.revision {
            let mut statement = self.connection.prepare_cached(TALLY)?;
            let (revision, total) = (number(self.revision), self.total);
            statement.execute(params![
                "",
                signed(total.keys),
                signed(total.bytes),
                revision
            ])?;
            for (namespace, usage) in &self.touched {
                let name = namespace.as_str();
                if usage.keys == 0 {
                    self.connection.prepare_cached(FORGET)?.execute([name])?;
                } else {
                    let (keys, bytes) = (signed(usage.keys), signed(usage.bytes));
                    statement.execute(params![name, keys, bytes, 0])?;
                }
            }
        }
        Ok(results)
    }

    fn apply(&mut self, commit: &Commit) -> rusqlite::Result<Result<Applied, Rejection>> {
        let namespace = &commit.namespace;
        for check in &commit.checks {
            let held = self.find(namespace, &check.key)?;
            let held = held.filter(|held| held.live);
            let current = held.map_or(Revision::ABSENT, |held| held.revision);
            if current != check.revision {
                let key = check.key.clone();
                return Ok(Err(Rejection::RevisionMismatch { key, current }));
            }
        }
        // All is read before anything is written: each key is written once, so no write of this item
        // changes what another finds, and a refusal has nothing to take back.
        let mut growth = Growth::default();
        let mut found = Vec::with_capacity(commit.ops.len());
        for op in &commit.ops {
            let held = self.find(namespace, op.key())?;
            let before = held.map(|held| held.bytes);
            let after = match op {
                Op::Set { value, .. } => Some(value.bytes().len()),
                Op::Delete { .. } => before.filter(|_| held.is_some_and(|held| !held.live)),
                Op::Expire { .. } => before.filter(|_| held.is_some_and(|held| held.live)),
            };
            growth.note(namespace, op.key(), before, after);
            found.push(held);
        }
        let known = self.touched.get(namespace);
        let known = known.or_else(|| self.before.namespaces.get(namespace));
        let mut usage = known.copied().unwrap_or_default();
        let judged =
            self.terms
                .quotas
                .admit(namespace, usage, self.owned(namespace), self.total, growth);
        if let Err(over) = judged {
            return Ok(Err(Rejection::OverQuota(over)));
        }
        let next = Revision(self.revision.0 + 1);
        let mut changed = false;
        let mut existed = Vec::with_capacity(commit.ops.len());
        for (op, held) in commit.ops.iter().zip(found) {
            let was_live = held.is_some_and(|held| held.live);
            let goes = match op {
                Op::Set { key, value, ttl } => {
                    self.connection.prepare_cached(SET)?.execute(params![
                        namespace.as_str(),
                        key.as_str(),
                        value.as_str(),
                        number(next),
                        micros(self.terms.at),
                        self.terms.expiry(*ttl).map(micros),
                    ])?;
                    changed = true;
                    existed.push(was_live);
                    continue;
                }
                Op::Delete { .. } => was_live,
                Op::Expire { .. } => held.is_some() && !was_live,
            };
            if goes {
                let mut statement = self.connection.prepare_cached(DELETE)?;
                statement.execute(params![namespace.as_str(), op.key().as_str()])?;
            }
            changed |= goes;
            existed.push(goes);
        }
        if changed {
            self.revision = next;
            self.total.grow(growth);
            usage.grow(growth);
            self.touched.insert(namespace.clone(), usage);
        }
        let revision = self.revision;
        Ok(Ok(Applied { revision, existed }))
    }

    /// What the namespace's owner holds.
    fn owned(&self, namespace: &Namespace) -> Owned {
        let mut owned = Owned::default();
        for (name, usage) in of_owner(&self.before.namespaces, namespace) {
            owned.add(*self.touched.get(name).unwrap_or(usage));
        }
        for (name, usage) in of_owner(&self.touched, namespace) {
            if !self.before.namespaces.contains_key(name) {
                owned.add(*usage);
            }
        }
        owned
    }

    fn find(&self, namespace: &Namespace, key: &Key) -> rusqlite::Result<Option<Held>> {
        let mut statement = self.connection.prepare_cached(FIND)?;
        let found = statement.query_row(params![namespace.as_str(), key.as_str()], |row| {
            let expires_at: Option<i64> = row.get(2)?;
            Ok(Held {
                revision: Revision(u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default()),
                bytes: usize::try_from(row.get::<_, i64>(1)?).unwrap_or_default(),
                live: !has_passed(expires_at.map(time), self.terms.now),
            })
        });
        found.optional()
    }
}

/// Reads where the store stands.
pub(super) fn standing(connection: &Connection) -> rusqlite::Result<Standing> {
    let mut standing = Standing {
        revision: super::read::revision(connection)?,
        ..Standing::default()
    };
    for (name, usage) in super::read::tallies(connection)? {
        match Namespace::parse(&name) {
            Ok(namespace) => {
                standing.namespaces.insert(namespace, usage);
            }
            Err(_) => standing.total = usage,
        }
    }
    Ok(standing)
}

/// Sets the store's revision, for a database that was restored.
pub(super) fn raise_revision(connection: &Connection, revision: Revision) -> rusqlite::Result<()> {
    let sql = "UPDATE tally SET revision = ?1 WHERE namespace = ''";
    connection.execute(sql, [number(revision)]).map(|_| ())
}

/// Counts what each namespace and the store hold, for a copy whose counts may be wrong.
pub(super) fn count_anew(connection: &Connection) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(&format!(
        "DELETE FROM tally WHERE namespace <> '';
         INSERT INTO tally (namespace, keys, bytes, revision)
             SELECT namespace, count(*), sum(octet_length(namespace) + octet_length(key)
                 + octet_length(value) + {ENTRY_BYTES}), 0
             FROM entry GROUP BY namespace;
         UPDATE tally SET
             keys = (SELECT coalesce(sum(keys), 0) FROM tally WHERE namespace <> ''),
             bytes = (SELECT coalesce(sum(bytes), 0) FROM tally WHERE namespace <> '')
             WHERE namespace = '';"
    ))?;
    transaction.commit()
}

/// See [`StorageAdapter::rebase`](crate::storage::StorageAdapter::rebase).
pub(super) fn rebase(
    connection: &Connection,
    before: SystemTime,
    now: SystemTime,
) -> Result<u64, Failure> {
    let shift = || -> rusqlite::Result<Option<usize>> {
        let before = micros(before);
        let latest: Option<i64> =
            connection.query_row(LATEST_BEFORE, [before], |row| row.get(0))?;
        let Some(latest) = latest else {
            return Ok(None);
        };
        run(connection, "BEGIN IMMEDIATE")?;
        let by = (micros(now) - latest).max(0);
        connection.execute(SHIFT, [before, by]).map(Some)
    };
    let shifted = shift().map_err(|error| abandon(connection, error, Outcome::NotApplied))?;
    let Some(shifted) = shifted else {
        return Ok(0);
    };
    run(connection, "COMMIT").map_err(|error| abandon(connection, error, Outcome::Unknown))?;
    Ok(shifted as u64)
}

fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).expect("one write a nanosecond for three hundred years")
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

fn abandon(connection: &Connection, error: rusqlite::Error, outcome: Outcome) -> Failure {
    // Some errors have rolled back by themselves.
    let rolled_back = connection.is_autocommit() || run(connection, "ROLLBACK").is_ok();
    if rolled_back && error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return Failure::Full(error);
    }
    if rolled_back && is_refused_write(&error) {
        return Failure::Unwritten { error, outcome };
    }
    Failure::Other {
        fault: fault(error),
        outcome,
    }
}

/// Whether a write of a page was refused, and not a sync, a read or anything else.
pub(super) fn is_refused_write(error: &rusqlite::Error) -> bool {
    error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_WRITE)
}

/// The write-ahead log, in frames of one page each.
pub(super) struct Log {
    /// Readers kept the checkpoint from doing all that was asked.
    pub(super) busy: bool,
    /// All of it.
    pub(super) frames: i64,
    /// As much of it as is in the database too.
    pub(super) moved: i64,
}

impl Log {
    pub(super) fn outstanding(&self) -> i64 {
        self.frames - self.moved
    }
}

/// Runs a checkpoint and says what the log looks like then. `NOOP` only looks.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Log> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    statement.query_row([], |row| {
        Ok(Log {
            busy: row.get(0)?,
            frames: row.get(1)?,
            moved: row.get(2)?,
        })
    })
}
