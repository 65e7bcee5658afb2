//! Entries read or written lately, in memory, never older than what was answered.
//!
//! The writer feeds it, readers fill it. What keeps it true:
//!
//! - Before a batch is committed its keys are taken out and marked as in flight; until the batch is
//!   over they are read from the engine and not filled. So nobody sees an older value here after
//!   somebody saw the newer one there.
//! - A reader that misses leaves a mark *before* it reads, and fills only if its mark is still there.
//!   A commit takes the mark away, so a reader with an older snapshot fills nothing.
//! - After a failed commit everything goes, once the engine has been opened anew.
//!
//! Entries whose time has passed may lie here; who looks them up hides them.
//!
//! Absence is remembered like a value. Memory is bounded by two generations: entries enter the young
//! one; when it has half of the budget it becomes the old one, and what was old is dropped. What is
//! used moves back to the young one. That is nearly "least recently used" at the cost of one map
//! look-up, with no list to keep.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use super::adapter::Entry;
use super::names::{Key, Namespace};

/// Rough cost of an entry beyond its bytes: two handles, the slot, the map's share.
const OVERHEAD_BYTES: usize = 192;

/// Where an entry lies.
pub(super) type Place = (Namespace, Key);

pub(super) struct Cache {
    budget_bytes: usize,
    /// Guards all of it. Held for one look-up or one batch; nothing is called inside.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    young: HashMap<Place, Slot>,
    old: HashMap<Place, Slot>,
    young_bytes: usize,
    in_flight: HashSet<Place>,
    last_mark: u64,
}

enum Slot {
    Known(Option<Entry>),
    /// A reader is on its way; the number is its mark.
    Awaited(u64),
}

/// What a look-up found.
pub(super) enum Lookup {
    Known(Option<Entry>),
    /// Ask the engine; then [`Cache::fill`] with the ticket, if there is one.
    Unknown(Option<Ticket>),
}

/// The right to fill one place, unless a commit comes in between.
pub(super) struct Ticket {
    place: Place,
    mark: u64,
}

impl Cache {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Self {
            budget_bytes,
            state: Mutex::new(State::default()),
        }
    }

    pub(super) fn lookup(&self, namespace: &Namespace, key: &Key) -> Lookup {
        if self.budget_bytes == 0 {
            return Lookup::Unknown(None);
        }
        let place = (namespace.clone(), key.clone());
        let mut state = self.state.lock();
        if let Some(Slot::Known(entry)) = state.young.get(&place) {
            return Lookup::Known(entry.clone());
        }
        if let Some(slot @ Slot::Known(_)) = state.old.remove(&place) {
            let Slot::Known(entry) = &slot else {
                unreachable!("just matched")
            };
            let entry = entry.clone();
            state.insert(place, slot, self.budget_bytes);
            return Lookup::Known(entry);
        }
        if state.in_flight.contains(&place) {
            return Lookup::Unknown(None);
        }
        state.last_mark += 1;
        let mark = state.last_mark;
        state.insert(place.clone(), Slot::Awaited(mark), self.budget_bytes);
        Lookup::Unknown(Some(Ticket { place, mark }))
    }

    /// Keeps what a reader found, unless its ticket has lapsed.
    pub(super) fn fill(&self, ticket: Ticket, entry: Option<&Entry>) {
        let mut state = self.state.lock();
        let slot = state
            .young
            .get(&ticket.place)
            .or_else(|| state.old.get(&ticket.place));
        if matches!(slot, Some(Slot::Awaited(mark)) if *mark == ticket.mark) {
            state.keep(ticket.place, entry, self.budget_bytes);
        }
    }

    /// A batch that writes these places is about to be committed.
    pub(super) fn begin(&self, places: impl Iterator<Item = Place>) {
        if self.budget_bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        for place in places {
            state.remove(&place);
            state.in_flight.insert(place);
        }
    }

    /// The batch is on disk; these are its changes, in order. None: removed. Values are kept as they
    /// are: they must not be slices of larger messages.
    pub(super) fn finish(&self, changes: impl Iterator<Item = (Place, Option<Entry>)>) {
        if self.budget_bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.in_flight.clear();
        for (place, entry) in changes {
            state.keep(place, entry.as_ref(), self.budget_bytes);
        }
    }

    /// Forgets everything, the marks of readers included.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        *state = State {
            // Marks go on rising: an old ticket must not fit a new mark.
            last_mark: state.last_mark,
            ..State::default()
        };
    }
}

impl State {
    fn remove(&mut self, place: &Place) {
        self.old.remove(place);
        if let Some(slot) = self.young.remove(place) {
            self.young_bytes -= cost(place, &slot);
        }
    }

    fn keep(&mut self, place: Place, entry: Option<&Entry>, budget_bytes: usize) {
        let large = entry.is_some_and(|entry| entry.value.bytes().len() > budget_bytes / 16);
        if large {
            self.remove(&place);
            return;
        }
        self.insert(place, Slot::Known(entry.cloned()), budget_bytes);
    }

    fn insert(&mut self, place: Place, slot: Slot, budget_bytes: usize) {
        self.remove(&place);
        self.young_bytes += cost(&place, &slot);
        self.young.insert(place, slot);
        if self.young_bytes > budget_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

fn cost((namespace, key): &Place, slot: &Slot) -> usize {
    let value = match slot {
        Slot::Known(Some(entry)) => entry.value.bytes().len(),
        Slot::Known(None) | Slot::Awaited(_) => 0,
    };
    OVERHEAD_BYTES + namespace.as_str().len() + key.as_str().len() + value
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::*;
    use crate::types::Revision;
    use crate::types::json::Json;

    fn place(key: &str) -> Place {
        (
            Namespace::parse("n").expect("good"),
            Key::parse(key).expect("good"),
        )
    }

    fn entry(key: &str, revision: u64, bytes: usize) -> Entry {
        Entry {
            key: place(key).1,
            value: Json::trusted(Bytes::from(vec![b'1'; bytes])),
            revision: Revision(revision),
            updated_at: SystemTime::UNIX_EPOCH,
            expires_at: None,
        }
    }

    fn known(cache: &Cache, key: &str) -> Option<Option<u64>> {
        let (namespace, key) = place(key);
        match cache.lookup(&namespace, &key) {
            Lookup::Known(entry) => Some(entry.map(|entry| entry.revision.0)),
            Lookup::Unknown(_) => None,
        }
    }

    fn ticket(cache: &Cache, key: &str) -> Option<Ticket> {
        let (namespace, key) = place(key);
        match cache.lookup(&namespace, &key) {
            Lookup::Known(_) => panic!("{key} is known"),
            Lookup::Unknown(ticket) => ticket,
        }
    }

    #[test]
    fn a_reader_fills_what_it_found_also_absence() {
        let cache = Cache::new(1 << 20);
        let (present, absent) = (ticket(&cache, "a"), ticket(&cache, "b"));
        cache.fill(present.expect("free"), Some(&entry("a", 3, 1)));
        cache.fill(absent.expect("free"), None);
        assert_eq!(known(&cache, "a"), Some(Some(3)));
        assert_eq!(known(&cache, "b"), Some(None));
    }

    #[test]
    fn a_reader_that_a_commit_has_passed_fills_nothing() {
        let cache = Cache::new(1 << 20);
        let late = ticket(&cache, "a").expect("free");
        cache.begin([place("a")].into_iter());
        assert!(ticket(&cache, "a").is_none(), "in flight");
        cache.fill(late, Some(&entry("a", 1, 1)));
        assert!(ticket(&cache, "a").is_none(), "still in flight");
        cache.finish([(place("a"), Some(entry("a", 2, 1)))].into_iter());
        assert_eq!(known(&cache, "a"), Some(Some(2)));
    }

    #[test]
    fn a_commit_that_changed_nothing_leaves_the_place_open() {
        let cache = Cache::new(1 << 20);
        cache.begin([place("a")].into_iter());
        cache.finish(std::iter::empty());
        assert!(ticket(&cache, "a").is_some());
    }

    #[test]
    fn clearing_ends_the_tickets_of_readers_too() {
        let cache = Cache::new(1 << 20);
        let late = ticket(&cache, "a").expect("free");
        cache.clear();
        let fresh = ticket(&cache, "a").expect("free");
        cache.fill(late, Some(&entry("a", 1, 1)));
        assert_eq!(known(&cache, "a"), None);
        cache.fill(fresh, Some(&entry("a", 2, 1)));
        // The look-up in between left a mark of its own.
        assert_eq!(known(&cache, "a"), None);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let cache = Cache::new(64 << 10);
        cache.finish([(place("hot"), Some(entry("hot", 1, 100)))].into_iter());
        for index in 0..10_000 {
            let name = format!("cold{index}");
            cache.finish([(place(&name), Some(entry(&name, 1, 100)))].into_iter());
            assert_eq!(known(&cache, "hot"), Some(Some(1)), "after {index}");
        }
        let state = cache.state.lock();
        let held: usize = [&state.young, &state.old]
            .into_iter()
            .flatten()
            .map(|(place, slot)| cost(place, slot))
            .sum();
        assert!(held <= 64 << 10, "{held} bytes");
    }

    #[test]
    fn what_is_large_is_not_kept_and_nothing_is_without_a_budget() {
        let cache = Cache::new(64 << 10);
        cache.finish([(place("a"), Some(entry("a", 1, 10)))].into_iter());
        cache.finish([(place("a"), Some(entry("a", 2, 8 << 10)))].into_iter());
        assert_eq!(known(&cache, "a"), None);
        let none = Cache::new(0);
        none.finish([(place("a"), Some(entry("a", 1, 10)))].into_iter());
        assert!(ticket(&none, "a").is_none());
    }
}
