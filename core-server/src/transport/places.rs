//! Who may keep a connection: places for those whose peer is known, fewer for those whose peer is not,
//! some that only operators and plugins of this process can have. Pure: it decides and ends nothing.

use std::collections::BTreeMap;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// All of them but the reserved ones.
    pub(super) connections: usize,
    /// Of those, the ones whose peer is not known yet; at least one.
    pub(super) unidentified: usize,
    /// Beyond all others, for those whom others must not shut out.
    pub(super) reserved: usize,
}

/// Names one connection for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64);

/// What a newcomer was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entered<T> {
    pub(super) id: Id,
    pub(super) kind: Kind,
    /// The connection that must end for it.
    pub(super) gives_way: Option<T>,
}

/// What a connection is counted as. Whoever holds it says it again when the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its peer is known: it stays.
    Identified,
    /// Its peer is not: it stays while it is not the oldest of too many.
    Unidentified,
    /// In a place that others cannot have.
    Reserved,
}

/// All connections; `T` is what ends one.
#[derive(Debug)]
pub(super) struct Places<T> {
    bounds: Bounds,
    identified: usize,
    reserved: usize,
    /// By age: ids rise.
    unidentified: BTreeMap<Id, T>,
    next: u64,
}

impl<T> Places<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds: Bounds {
                unidentified: bounds.unidentified.max(1),
                ..bounds
            },
            identified: 0,
            reserved: 0,
            unidentified: BTreeMap::new(),
            next: 0,
        }
    }

    /// A connection whose peer is not known. `None`: no place, because all are taken by known ones.
    pub(super) fn enter_unidentified(&mut self, end: T) -> Option<Entered<T>> {
        if self.identified >= self.bounds.connections {
            return None;
        }
        let crowded = self.unidentified.len() >= self.bounds.unidentified;
        let gives_way = if crowded || self.is_full() {
            self.oldest_gives_way()
        } else {
            None
        };
        let id = self.next_id();
        self.unidentified.insert(id, end);
        Some(Entered {
            id,
            kind: Kind::Unidentified,
            gives_way,
        })
    }

    /// A connection whose peer is known by its socket.
    pub(super) fn enter_identified(&mut self) -> Option<Entered<T>> {
        let mut gives_way = None;
        if self.is_full() {
            gives_way = self.oldest_gives_way();
        }
        let kind = if !self.is_full() {
            self.identified += 1;
            Kind::Identified
        } else if self.reserved < self.bounds.reserved {
            self.reserved += 1;
            Kind::Reserved
        } else {
            return None;
        };
        Some(Entered {
            id: self.next_id(),
            kind,
            gives_way,
        })
    }

    /// The peer of a connection became known. `false`: it has given way already, or is known.
    pub(super) fn identify(&mut self, id: Id) -> bool {
        let was_unknown = self.unidentified.remove(&id).is_some();
        self.identified += usize::from(was_unknown);
        was_unknown
    }

    /// The oldest of the unknown has to end; it is counted no more.
    pub(super) fn oldest_gives_way(&mut self) -> Option<T> {
        self.unidentified.pop_first().map(|(_, end)| end)
    }

    /// A connection ended.
    pub(super) fn leave(&mut self, id: Id, kind: Kind) {
        match kind {
            Kind::Identified => self.identified -= 1,
            Kind::Reserved => self.reserved -= 1,
            // Gone already when it has given way.
            Kind::Unidentified => drop(self.unidentified.remove(&id)),
        }
    }

    /// Connections in all.
    pub(super) fn len(&self) -> usize {
        self.identified + self.unidentified.len() + self.reserved
    }

    /// Those whose peer is not known.
    pub(super) fn unidentified(&self) -> usize {
        self.unidentified.len()
    }

    fn is_full(&self) -> bool {
        self.identified + self.unidentified.len() >= self.bounds.connections
    }

    fn next_id(&mut self) -> Id {
        self.next += 1;
        Id(self.next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(connections: usize, unidentified: usize, reserved: usize) -> Places<&'static str> {
        Places::new(Bounds {
            connections,
            unidentified,
            reserved,
        })
    }

    #[test]
    fn among_the_unidentified_the_oldest_gives_way() {
        let mut places = places(10, 2, 0);
        let first = places.enter_unidentified("first").expect("room");
        let second = places.enter_unidentified("second").expect("room");
        assert_eq!((first.gives_way, second.gives_way), (None, None));
        assert!(places.identify(first.id));
        assert_eq!(
            places.enter_unidentified("third").expect("room").gives_way,
            None,
            "the first is known by now"
        );
        let fourth = places.enter_unidentified("fourth").expect("room");
        assert_eq!(fourth.gives_way, Some("second"));
        assert!(!places.identify(second.id), "too late");
        places.leave(second.id, Kind::Unidentified);
        places.leave(first.id, Kind::Identified);
        assert_eq!((places.len(), places.unidentified()), (2, 2));
    }

    #[test]
    fn known_ones_are_never_sent_away_and_fill_the_house() {
        let mut places = places(2, 2, 1);
        let unknown = places.enter_unidentified("unknown").expect("room");
        places.enter_unidentified("older").expect("room");
        let known = places.enter_identified().expect("room");
        assert_eq!(
            (known.kind, known.gives_way),
            (Kind::Identified, Some("unknown"))
        );
        places.leave(unknown.id, Kind::Unidentified);
        let known = places.enter_identified().expect("room");
        assert_eq!(known.gives_way, Some("older"));
        assert_eq!(places.enter_unidentified("late"), None);
        let kept = places.enter_identified().expect("its own place");
        assert_eq!((kept.kind, kept.gives_way), (Kind::Reserved, None));
        assert_eq!(places.enter_identified(), None);
        places.leave(kept.id, Kind::Reserved);
        assert!(places.enter_identified().is_some());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Unidentified,
        Identified,
        Identify(usize),
        Leave(usize),
        GiveWay,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Unidentified),
            1 => Just(Step::Identified),
            2 => (0_usize..32).prop_map(Step::Identify),
            2 => (0_usize..32).prop_map(Step::Leave),
            1 => Just(Step::GiveWay),
        ]
    }

    proptest! {
        /// Whatever comes and goes: the bounds hold, and everybody is counted once.
        #[test]
        fn the_bounds_hold_and_the_count_is_exact(steps in proptest::collection::vec(step(), 0..200)) {
            let bounds = Bounds { connections: 6, unidentified: 3, reserved: 2 };
            let mut places = Places::new(bounds);
            // Connections that have not left, and whether they were told to go.
            let mut live: Vec<(Id, Kind, bool)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Unidentified | Step::Identified => {
                        let entered = match step {
                            Step::Unidentified => places.enter_unidentified(number),
                            _ => places.enter_identified(),
                        };
                        let Some(entered) = entered else { continue };
                        if entered.gives_way.is_some() {
                            let oldest = live.iter_mut().find(|(_, kind, gone)| *kind == Kind::Unidentified && !gone);
                            oldest.expect("an unknown one").2 = true;
                        }
                        live.push((entered.id, entered.kind, false));
                    }
                    Step::Identify(index) if index < live.len() => {
                        let (id, kind, gone) = &mut live[index];
                        let expected = *kind == Kind::Unidentified && !*gone;
                        prop_assert_eq!(places.identify(*id), expected);
                        if expected {
                            *kind = Kind::Identified;
                        }
                    }
                    Step::Leave(index) if index < live.len() => {
                        let (id, kind, _) = live.remove(index);
                        places.leave(id, kind);
                    }
                    Step::GiveWay => {
                        let oldest = live.iter_mut().find(|(_, kind, gone)| *kind == Kind::Unidentified && !gone);
                        prop_assert_eq!(places.oldest_gives_way().is_some(), oldest.is_some());
                        if let Some(oldest) = oldest {
                            oldest.2 = true;
                        }
                    }
                    Step::Identify(_) | Step::Leave(_) => {}
                }
                let counted = live.iter().filter(|(_, _, gone)| !gone);
                prop_assert_eq!(places.len(), counted.count());
                prop_assert!(places.unidentified() <= bounds.unidentified);
                prop_assert!(places.len() <= bounds.connections + bounds.reserved);
            }
        }
    }
}
