//! Forks under way: plugin and program. One of each at a time, or a plugin whose start hangs would take a
//! further thread with every try, until none is left for the others.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

/// A plugin and the program that it is to become.
pub(super) type Start = (String, PathBuf);

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Starts(Arc<Mutex<BTreeSet<Start>>>);

/// A fork under way, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct UnderWay {
    starts: Starts,
    start: Start,
}

impl Starts {
    /// Whether an earlier one has not come back yet.
    pub(super) fn is_under_way(&self, start: &Start) -> bool {
        self.0.lock().contains(start)
    }

    /// Notes that one begins.
    pub(super) fn begin(&self, start: Start) -> UnderWay {
        self.0.lock().insert(start.clone());
        UnderWay {
            starts: self.clone(),
            start,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.starts.0.lock().remove(&self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_under_way_until_it_is_dropped_and_no_other_one_is() {
        let starts = Starts::default();
        let start = |program: &str| ("lamp".to_owned(), PathBuf::from(program));
        let under_way = starts.begin(start("/a"));
        assert!(starts.is_under_way(&start("/a")));
        assert!(
            !starts.is_under_way(&start("/b")),
            "an upgrade may be tried"
        );
        drop(under_way);
        assert!(!starts.is_under_way(&start("/a")));
    }
}
