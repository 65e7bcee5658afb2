//! Room on the disk.
//!
//! A full disk must not take away the way out of it: deletes need a little room in the log, and the log's
//! content room in the database, before the log can begin anew. So a *reserve* lies beside the database,
//! a file without meaning that is given up when the disk is full, and made again when there is room. While
//! there is none, writes that set anything are refused without being tried: they would fill the room
//! that the deletes need.
//!
//! Pages of the database that deletes emptied are room too: what is written later goes there. What the log
//! holds is room once it is emptied. So deletes alone end the scarcity, with or without a reserve.
//!
//! A file system with quotas has free blocks that its user may not have, and SQLite calls the refusal an I/O
//! error like any other. So what a quota leaves is found by trying.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open, statvfs};
use rustix::io::Errno;

use super::lock::{beside, directory};

/// Size of the reserve: what the log may hold when the writer is idle, so that it fits the database.
const RESERVE_BYTES: u64 = 4 << 20;
/// Less is scarce.
const SCARCE_BYTES: u64 = 1 << 20;
/// So much must be free beside a new reserve before sets are tried again, and before there is one.
pub(super) const AMPLE_BYTES: u64 = 4 << 20;
/// With which sets are tried again.
const ENOUGH_BYTES: u64 = RESERVE_BYTES + AMPLE_BYTES;
/// So much of it must be free in any case: the log cannot use pages of the database.
const LEAST_BYTES: u64 = SCARCE_BYTES / 4;

/// What is known of the room. Used by the writer only.
pub(super) struct Room {
    reserve: PathBuf,
    low: bool,
    /// There is no reserve, because there was no room for it.
    lacks_reserve: bool,
}

/// Too little is free.
#[derive(Debug, thiserror::Error)]
#[error("{free_bytes} bytes are free in {directory}, or fewer by a quota")]
pub(super) struct Scarce {
    free_bytes: u64,
    directory: String,
}

/// Whether a quota refuses so many bytes more in this directory, which a file without a name tries. Where it
/// cannot be tried: no.
pub(super) fn is_over_quota(directory: &Path, bytes: u64) -> bool {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let tried = open(directory, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| fallocate(&file, FallocateFlags::empty(), 0, bytes));
    tried == Err(Errno::DQUOT)
}

impl Room {
    /// Makes the reserve, if it is missing and there is ample room.
    pub(super) fn new(database: &Path) -> Self {
        let mut room = Self {
            reserve: beside(database, ".reserve"),
            low: false,
            lacks_reserve: false,
        };
        room.set_aside();
        room
    }

    /// What the file system has left. Where it does not say: enough.
    pub(super) fn free_bytes(&self) -> u64 {
        statvfs(directory(&self.reserve)).map_or(u64::MAX, |found| {
            found.f_bavail.saturating_mul(found.f_frsize)
        })
    }

    /// Before the database is opened, which takes some room too: gives up the reserve if there is too little.
    pub(super) fn make_way(&mut self) {
        if self.is_low(|| 0).is_none() && self.is_over_quota(SCARCE_BYTES) {
            self.give_up();
        }
    }

    /// Whether only deletes are tried. Finds out by itself that there is room again. `reusable` says how many
    /// bytes of the database are empty pages.
    pub(super) fn is_low(&mut self, reusable: impl FnOnce() -> u64) -> Option<Scarce> {
        let free_bytes = self.free_bytes();
        if self.low {
            if self.is_enough(free_bytes, reusable) {
                self.low = false;
                // Perhaps there is too little for one: the pages of the database are no room for it.
                self.set_aside();
                tracing::info!(free_bytes, "there is room on the disk again");
            }
        } else if free_bytes < SCARCE_BYTES {
            if !self.is_enough(free_bytes, reusable) {
                self.give_up();
            }
        } else if self.lacks_reserve && free_bytes >= ENOUGH_BYTES {
            // Already at the start there was too little.
            self.set_aside();
        }
        self.low.then(|| self.scarce(free_bytes))
    }

    /// Whether what is free and what the database can use again are enough for sets.
    fn is_enough(&self, free_bytes: u64, reusable: impl FnOnce() -> u64) -> bool {
        if free_bytes >= ENOUGH_BYTES && !self.is_over_quota(ENOUGH_BYTES) {
            return true;
        }
        if free_bytes < LEAST_BYTES || self.is_over_quota(LEAST_BYTES) {
            return false;
        }
        // What a quota leaves is only known to be as much as was tried.
        let known_bytes = match self.is_over_quota(free_bytes.min(ENOUGH_BYTES)) {
            true => LEAST_BYTES,
            false => free_bytes,
        };
        known_bytes.saturating_add(reusable()) >= ENOUGH_BYTES
    }

    /// Whether the room that the log's file takes is to be given back. A file that is kept is room for the
    /// deletes that follow, of which nobody else can take anything: so only where it ends the scarcity, keeps
    /// it from coming, or makes a reserve possible.
    pub(super) fn wants_log_bytes(&self, log_bytes: u64, reusable: impl FnOnce() -> u64) -> bool {
        if log_bytes == 0 {
            return false;
        }
        let free_bytes = self.free_bytes();
        let then_bytes = free_bytes.saturating_add(log_bytes);
        if self.low {
            return then_bytes >= LEAST_BYTES
                && then_bytes.saturating_add(reusable()) >= ENOUGH_BYTES;
        }
        let makes_reserve =
            self.lacks_reserve && free_bytes < ENOUGH_BYTES && then_bytes >= ENOUGH_BYTES;
        free_bytes < 2 * SCARCE_BYTES || makes_reserve
    }

    /// After a write found no room: whether it is the disk that is full.
    pub(super) fn was_full(&mut self) -> Option<Scarce> {
        let free_bytes = self.free_bytes();
        if !self.low && free_bytes >= ENOUGH_BYTES && !self.is_over_quota(AMPLE_BYTES) {
            // Some other bound, that of the process's file size for one.
            return None;
        }
        self.give_up();
        Some(self.scarce(free_bytes))
    }

    /// Whether a quota refuses so many bytes more.
    pub(super) fn is_over_quota(&self, bytes: u64) -> bool {
        is_over_quota(directory(&self.reserve), bytes)
    }

    /// Whether the room is so little that the log should not grow to its usual length.
    pub(super) fn is_tight(&self, log_bytes: u64) -> bool {
        self.low || self.free_bytes() < log_bytes.saturating_mul(2) + AMPLE_BYTES
    }

    fn scarce(&self, free_bytes: u64) -> Scarce {
        Scarce {
            free_bytes,
            directory: directory(&self.reserve).display().to_string(),
        }
    }

    fn give_up(&mut self) {
        if self.low {
            return;
        }
        self.low = true;
        tracing::error!(
            directory = %directory(&self.reserve).display(),
            "the disk is full: only deletes are accepted until there is room"
        );
        self.remove();
    }

    /// It need not be there.
    fn remove(&self) {
        match std::fs::remove_file(&self.reserve) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the reserve could not be given up");
            }
            _ => {}
        }
    }

    /// Not having one is no failure: then deletes on a full disk may be refused too.
    fn set_aside(&mut self) {
        let has = std::fs::metadata(&self.reserve).is_ok_and(|found| found.len() >= RESERVE_BYTES);
        self.lacks_reserve = !has && self.free_bytes() < ENOUGH_BYTES;
        if has || self.lacks_reserve {
            return;
        }
        let made = || {
            use std::os::unix::fs::OpenOptionsExt as _;
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&self.reserve)?;
            fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).map_err(io::Error::from)
        };
        if let Err(error) = made() {
            tracing::warn!(path = %self.reserve.display(), %error, "no reserve could be set aside");
            // Part of one would take room and be none.
            self.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_database_count_as_room_but_the_log_needs_its_own() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut room = Room::new(&directory.path().join("runtime.db"));
        let rows = [
            (ENOUGH_BYTES, 0, true),
            (ENOUGH_BYTES - 1, 0, false),
            (ENOUGH_BYTES - 1, 1, true),
            (LEAST_BYTES, ENOUGH_BYTES - LEAST_BYTES, true),
            (LEAST_BYTES - 1, u64::MAX, false),
        ];
        for (free_bytes, reusable_bytes, enough) in rows {
            let judged = room.is_enough(free_bytes, || reusable_bytes);
            assert_eq!(judged, enough, "{free_bytes}, {reusable_bytes}");
        }
        // Without a reserve, as when it was removed by hand.
        std::fs::remove_file(&room.reserve).expect("there");
        room.give_up();
        assert!(room.low);
        assert!(room.is_low(|| 0).is_none(), "the test needs 8 MiB");
        assert!(room.reserve.exists());
    }

    #[test]
    fn a_start_that_was_short_of_room_gets_its_reserve_later() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let database = directory.path().join("runtime.db");
        let mut room = Room {
            reserve: beside(&database, ".reserve"),
            low: false,
            lacks_reserve: true,
        };
        assert!(room.is_low(|| 0).is_none(), "the test needs 8 MiB");
        let reserve = std::fs::metadata(&room.reserve).expect("made");
        assert_eq!(reserve.len(), RESERVE_BYTES);
        assert!(!room.lacks_reserve);
    }
}
