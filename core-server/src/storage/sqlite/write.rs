//! Writing: one transaction for a batch, and checkpoints.

use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};

use super::fault;
use crate::error::Outcome;
use crate::storage::adapter::{Applied, Commit, CommitFault, Op, Rejection};
use crate::storage::error::Fault;
use crate::storage::names::{Key, Namespace};
use crate::types::Revision;

const FIND: &str = "SELECT revision FROM entry WHERE namespace = ?1 AND key = ?2";
const SET: &str = "REPLACE INTO entry (namespace, key, value, revision, updated_at) \
                   VALUES (?1, ?2, ?3, ?4, ?5)";
const DELETE: &str = "DELETE FROM entry WHERE namespace = ?1 AND key = ?2";
const ADVANCE: &str = "UPDATE store SET revision = ?1 WHERE id = 1";

/// Why a transaction is not on disk, or may not be.
pub(super) enum Failure {
    /// No room. It was rolled back; the connection is good.
    Full(rusqlite::Error),
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
            Failure::Other { fault, outcome } => Self { fault, outcome },
        }
    }
}

/// What became of each item, and the store's revision afterwards.
pub(super) type Done = (Vec<Result<Applied, Rejection>>, Revision);

/// Applies the items in order and commits them together. Not one is on disk if it fails before
/// COMMIT; afterwards it depends.
pub(super) fn transaction(
    connection: &Connection,
    revision: Revision,
    batch: &[Commit],
    at: SystemTime,
) -> Result<Done, Failure> {
    let done = fill(connection, revision, batch, at)
        .map_err(|error| abandon(connection, error, Outcome::NotApplied))?;
    run(connection, "COMMIT").map_err(|error| abandon(connection, error, Outcome::Unknown))?;
    Ok(done)
}

fn fill(
    connection: &Connection,
    before: Revision,
    batch: &[Commit],
    at: SystemTime,
) -> rusqlite::Result<Done> {
    run(connection, "BEGIN IMMEDIATE")?;
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    let mut revision = before;
    let mut results = Vec::with_capacity(batch.len());
    for commit in batch {
        let result = apply(connection, commit, revision, micros)?;
        if let Ok(applied) = &result {
            revision = applied.revision;
        }
        results.push(result);
    }
    if revision != before {
        connection
            .prepare_cached(ADVANCE)?
            .execute([number(revision)])?;
    }
    Ok((results, revision))
}

fn apply(
    connection: &Connection,
    commit: &Commit,
    before: Revision,
    micros: i64,
) -> rusqlite::Result<Result<Applied, Rejection>> {
    let namespace = &commit.namespace;
    for check in &commit.checks {
        let current = find(connection, namespace, &check.key)?.unwrap_or_default();
        if current != check.revision {
            let key = check.key.clone();
            return Ok(Err(Rejection::RevisionMismatch { key, current }));
        }
    }
    let next = Revision(before.0 + 1);
    let mut changed = false;
    let mut existed = Vec::with_capacity(commit.ops.len());
    for op in &commit.ops {
        existed.push(match op {
            Op::Set { key, value } => {
                changed = true;
                let before = find(connection, namespace, key)?;
                connection.prepare_cached(SET)?.execute(params![
                    namespace.as_str(),
                    key.as_str(),
                    value.as_str(),
                    number(next),
                    micros
                ])?;
                before.is_some()
            }
            Op::Delete { key } => {
                let mut statement = connection.prepare_cached(DELETE)?;
                let removed = statement.execute(params![namespace.as_str(), key.as_str()])?;
                changed |= removed > 0;
                removed > 0
            }
        });
    }
    let revision = if changed { next } else { before };
    Ok(Ok(Applied { revision, existed }))
}

fn find(
    connection: &Connection,
    namespace: &Namespace,
    key: &Key,
) -> rusqlite::Result<Option<Revision>> {
    let mut statement = connection.prepare_cached(FIND)?;
    let found: Option<i64> = statement
        .query_row(params![namespace.as_str(), key.as_str()], |row| row.get(0))
        .optional()?;
    Ok(found.map(|number| Revision(u64::try_from(number).unwrap_or_default())))
}

fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).expect("one write a nanosecond for three hundred years")
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
    Failure::Other {
        fault: fault(error),
        outcome,
    }
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
