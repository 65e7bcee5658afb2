//! Which lanes select an event. Pure.
//!
//! A trie finds the lanes of a topic, a memo remembers them. The memo is emptied when a lane comes or
//! goes, which is rare: most new subscriptions join a lane that is there. Lanes that select by subject
//! or by source are found by those too, so that ten thousand subscriptions to one topic, each for its
//! own subject, do not meet every event of that topic.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{Source, Topic};

use super::event::{Label, Selection};
use super::trie::Trie;

/// Topics remembered; then the memo is emptied. Topics are meant to be few.
const MEMO_TOPICS: usize = 8_192;

/// Names a lane: its place in the slab of lanes. May be used again once the lane is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LaneId(pub(super) usize);

#[derive(Debug)]
pub(super) struct Routes {
    trie: Trie<LaneId>,
    memo: HashMap<Arc<str>, Route>,
}

/// The lanes of a topic.
#[derive(Debug, Default)]
struct Route {
    any: Vec<LaneId>,
    by_subject: HashMap<Arc<str>, Vec<LaneId>>,
    by_source: HashMap<Source, Vec<LaneId>>,
    /// That of the latest event of this topic: the next is often alike.
    label: Option<Arc<Label>>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            trie: Trie::new(),
            memo: HashMap::new(),
        }
    }

    pub(super) fn insert(&mut self, selection: &Selection, id: LaneId) {
        for pattern in selection.patterns() {
            self.trie.insert(pattern, id);
        }
        self.memo.clear();
    }

    pub(super) fn remove(&mut self, selection: &Selection, id: LaneId) {
        for pattern in selection.patterns() {
            self.trie.remove(pattern, id);
        }
        self.memo.clear();
    }

    /// Puts into `lanes` those whose patterns, and subject or source, fit the event; what else they
    /// select by is for the caller to judge. Returns the event's label.
    pub(super) fn find<'a>(
        &mut self,
        topic: &Topic,
        source: &Source,
        subject: &Arc<str>,
        selection: impl Fn(LaneId) -> &'a Selection,
        lanes: &mut Vec<LaneId>,
    ) -> Arc<Label> {
        lanes.clear();
        if let Some(route) = self.memo.get_mut(topic.as_str()) {
            return route.select(topic, source, subject, lanes);
        }
        if self.memo.len() >= MEMO_TOPICS {
            self.memo.clear();
        }
        let mut route = self.walk(topic, selection);
        let label = route.select(topic, source, subject, lanes);
        self.memo.insert(topic.shared(), route);
        label
    }

    fn walk<'a>(&self, topic: &Topic, selection: impl Fn(LaneId) -> &'a Selection) -> Route {
        let mut found = Vec::new();
        self.trie.collect(topic.as_str(), &mut found);
        found.sort_unstable();
        found.dedup();
        let mut route = Route::default();
        for id in found {
            let selection = selection(id);
            match (&selection.subject, &selection.source) {
                (Some(subject), _) => route.by_subject.entry(Arc::clone(subject)).or_default(),
                (None, Some(source)) => route.by_source.entry(source.clone()).or_default(),
                (None, None) => &mut route.any,
            }
            .push(id);
        }
        route
    }
}

impl Route {
    fn select(
        &mut self,
        topic: &Topic,
        source: &Source,
        subject: &Arc<str>,
        lanes: &mut Vec<LaneId>,
    ) -> Arc<Label> {
        lanes.extend_from_slice(&self.any);
        if let Some(selecting) = self.by_subject.get(subject) {
            lanes.extend_from_slice(selecting);
        }
        if let Some(selecting) = self.by_source.get(source) {
            lanes.extend_from_slice(selecting);
        }
        match &self.label {
            Some(label) if label.source == *source && label.subject == *subject => {
                Arc::clone(label)
            }
            _ => {
                let label = Arc::new(Label {
                    topic: topic.clone(),
                    source: source.clone(),
                    subject: Arc::clone(subject),
                });
                self.label = Some(Arc::clone(&label));
                label
            }
        }
    }
}
