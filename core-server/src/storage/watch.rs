//! A watch: first what is there, if asked for, then every change.
//!
//! The watcher joins the ring of changes first and reads what is there afterwards, page by page. Each page
//! is a snapshot of its own revision; so of a change that lies in the ring it is known whether the page
//! with its key has it already. The snapshot's end is told when everything up to the newest page's
//! revision has been: what was told until then is exactly the store at that revision.

use std::future::poll_fn;
use std::task::Poll;

use super::Storage;
use super::adapter::Stretch;
use super::changes::{Change, Cursor, End, Taken, WatcherId, What};
use super::error::Error;
use super::names::{Direction, Key, KeyRange, Namespace, check_key_part};
use crate::types::Revision;

/// Most prefixes of one watch.
pub const MAX_PREFIXES: usize = 16;
/// A page of what is there.
const PAGE_ENTRIES: usize = 1_000;
const PAGE_BYTES: usize = 256 << 10;

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// Where.
    pub namespace: Namespace,
    /// Keys that begin with one of these, at most [`MAX_PREFIXES`]. None: all keys.
    pub prefixes: Vec<String>,
    /// Go on behind this place. None: from now on.
    pub from: Option<Cursor>,
    /// Begin with the entries that are there. Not together with `from`.
    pub include_initial: bool,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Never none: the initial ones in order of key, the others in order of revision. With the place
    /// behind them, if one may go on there.
    Changes(Vec<Change>, Option<Cursor>),
    /// The watch is live; everything up to here is told. Once.
    SnapshotEnd(Cursor),
    /// Nothing happened here for long; a place to go on from.
    Progress(Cursor),
}

/// A live watch. Dropping it ends it.
#[must_use = "dropping a watch ends it"]
pub struct Watch {
    storage: Storage,
    id: WatcherId,
    namespace: Namespace,
    stage: Stage,
}

enum Stage {
    /// The pages of these stretches, in order; those read so far are covered.
    Reading {
        left: Vec<KeyRange>,
        covered: Covered,
        joined: Cursor,
    },
    /// Up to the newest page's revision.
    CatchingUp {
        covered: Covered,
        cursor: Cursor,
    },
    /// The end of the snapshot is to be told.
    Ready(Cursor),
    Live,
}

/// For each page, in order of key, its last key and its revision.
#[derive(Default)]
struct Covered {
    /// `None`: to the end of its stretch, and of what is wanted up to the next.
    pages: Vec<(Option<Key>, KeyRange, Revision)>,
}

impl Covered {
    /// Whether a page has this change already.
    fn has(&self, change: &Change) -> bool {
        let key = change.key.as_str();
        let page = self.pages.iter().find(|(last, range, _)| {
            let inside =
                key >= range.from.as_str() && range.to.as_ref().is_none_or(|to| key < to.as_str());
            inside && last.as_ref().is_none_or(|last| change.key <= *last)
        });
        page.is_some_and(|(_, _, revision)| change.revision <= *revision)
    }

    fn newest(&self) -> Option<Revision> {
        self.pages.iter().map(|(_, _, revision)| *revision).max()
    }
}

impl Storage {
    /// Watches keys of a namespace, for nobody in particular.
    ///
    /// # Errors
    /// Those of [`Self::watch_for`].
    pub fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        self.watch_for("", request)
    }

    /// Watches keys of a namespace. What the core keeps for slow watches of one owner is bounded for all of
    /// them together.
    ///
    /// # Errors
    /// [`Error::BadField`], [`Error::BadKey`] (a prefix), [`Error::Compacted`], [`Error::ShuttingDown`].
    pub fn watch_for(&self, owner: &str, request: WatchRequest) -> Result<Watch, Error> {
        if request.prefixes.len() > MAX_PREFIXES {
            return Err(Error::BadField {
                field: "prefixes",
                rule: "at most 16 are allowed",
            });
        }
        if request.from.is_some() && request.include_initial {
            return Err(Error::BadField {
                field: "from",
                rule: "a cursor and include_initial exclude each other",
            });
        }
        for prefix in &request.prefixes {
            check_key_part(prefix)?;
        }
        let prefixes = outermost(request.prefixes);
        let mut changes = self.inner.shared.changes.lock();
        let (id, cursor) = changes
            .join(
                owner,
                request.namespace.clone(),
                prefixes.clone(),
                request.from,
            )
            .map_err(error)?;
        drop(changes);
        let all = [String::new()];
        let ranges = if prefixes.is_empty() {
            &all[..]
        } else {
            &prefixes
        };
        let stage = if request.include_initial {
            let ranges = ranges.iter().rev();
            Stage::Reading {
                left: ranges
                    .map(|prefix| KeyRange::new(prefix, None, Direction::Ascending))
                    .collect(),
                covered: Covered::default(),
                joined: cursor,
            }
        } else {
            Stage::Ready(cursor)
        };
        Ok(Watch {
            storage: self.clone(),
            id,
            namespace: request.namespace,
            stage,
        })
    }
}

/// Sorted, without those that begin with another: each key then lies in one stretch.
fn outermost(mut prefixes: Vec<String>) -> Vec<String> {
    prefixes.sort_unstable();
    let mut kept: Vec<String> = Vec::new();
    for prefix in prefixes {
        if kept.last().is_none_or(|last| !prefix.starts_with(last)) {
            kept.push(prefix);
        }
    }
    if kept.first().is_some_and(String::is_empty) {
        kept.clear();
    }
    kept
}

fn error(end: End) -> Error {
    match end {
        End::Compacted => Error::Compacted,
        End::Closed => Error::ShuttingDown,
    }
}

impl Watch {
    /// The next thing to be told. It never ends by itself.
    ///
    /// # Errors
    /// [`Error::Compacted`] when changes were lost to it: read again and watch anew;
    /// [`Error::ShuttingDown`]; those of a read while it reads what is there. Nothing comes after an
    /// error.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Result<WatchItem, Error> {
        loop {
            match &mut self.stage {
                Stage::Reading { left, .. } if left.is_empty() => self.catch_up(),
                Stage::Reading { .. } => {
                    if let Some(item) = self.read_page().await? {
                        return Ok(item);
                    }
                }
                Stage::CatchingUp { cursor, .. } => {
                    let cursor = *cursor;
                    match self.take(Some(cursor.revision)).await? {
                        Some(WatchItem::Changes(mut changes, _)) => {
                            if let Stage::CatchingUp { covered, .. } = &self.stage {
                                changes.retain(|change| !covered.has(change));
                            }
                            if !changes.is_empty() {
                                return Ok(WatchItem::Changes(changes, None));
                            }
                        }
                        Some(_) => {}
                        None => self.stage = Stage::Ready(cursor),
                    }
                }
                Stage::Ready(cursor) => {
                    let cursor = *cursor;
                    self.stage = Stage::Live;
                    return Ok(WatchItem::SnapshotEnd(cursor));
                }
                Stage::Live => {
                    if let Some(item) = self.take(None).await? {
                        return Ok(item);
                    }
                }
            }
        }
    }

    fn catch_up(&mut self) {
        if let Stage::Reading {
            covered, joined, ..
        } = &mut self.stage
        {
            let revision = covered.newest().unwrap_or(joined.revision);
            let cursor = Cursor {
                revision: revision.max(joined.revision),
                ..*joined
            };
            let covered = std::mem::take(covered);
            self.stage = Stage::CatchingUp { covered, cursor };
        }
    }

    async fn read_page(&mut self) -> Result<Option<WatchItem>, Error> {
        let Stage::Reading { left, .. } = &self.stage else {
            return Ok(None);
        };
        let Some(range) = left.last().cloned() else {
            return Ok(None);
        };
        let stretch = Stretch {
            namespace: self.namespace.clone(),
            range: range.clone(),
            direction: Direction::Ascending,
            limit: PAGE_ENTRIES,
            max_bytes: PAGE_BYTES,
            now: self.storage.inner.shared.clock.now(),
        };
        let found = self
            .storage
            .read(move |shared, deadline| shared.adapter.scan(&stretch, deadline))
            .await?;
        let Stage::Reading { left, covered, .. } = &mut self.stage else {
            return Ok(None);
        };
        left.pop();
        let last = found.items.last().map(|entry| entry.key.clone());
        let last = last.filter(|_| found.more);
        if let Some(last) = &last {
            let mut rest = range.clone();
            // No text lies between a text and itself followed by a zero byte.
            rest.from = format!("{last}\0");
            left.push(rest);
        }
        covered.pages.push((last, range, found.revision));
        let initial = found.items.into_iter().map(|entry| Change {
            key: entry.key.clone(),
            revision: entry.revision,
            what: What::Initial(entry),
            conflated: false,
        });
        let initial: Vec<_> = initial.collect();
        Ok((!initial.is_empty()).then_some(WatchItem::Changes(initial, None)))
    }

    /// Waits for what comes; `None`: everything up to this revision has been told.
    async fn take(&mut self, up_to: Option<Revision>) -> Result<Option<WatchItem>, Error> {
        let (shared, id) = (&self.storage.inner.shared, self.id);
        poll_fn(|context| {
            let taken = shared.changes.lock().take(id, up_to, context.waker());
            match taken {
                Ok(Taken::Changes(changes, cursor)) => {
                    Poll::Ready(Ok(Some(WatchItem::Changes(changes, cursor))))
                }
                Ok(Taken::Progress(cursor)) => Poll::Ready(Ok(Some(WatchItem::Progress(cursor)))),
                Ok(Taken::Nothing(reached)) if up_to.is_some_and(|up_to| reached >= up_to) => {
                    Poll::Ready(Ok(None))
                }
                Ok(Taken::Nothing(_)) => Poll::Pending,
                Err(end) => Poll::Ready(Err(error(end))),
            }
        })
        .await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.storage.inner.shared.changes.lock().leave(self.id);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
