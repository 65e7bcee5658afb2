//! Memory that is held for owners who do not read what they asked for: bytes of each, against one bound.

use std::collections::HashMap;
use std::hash::Hash;

/// Most bytes for one owner, however many watches it has.
pub(crate) const BACKLOG_BYTES: usize = 16 << 20;

/// Bytes of each owner that has any.
#[derive(Debug)]
pub(crate) struct Budgets<Owner>(pub(crate) HashMap<Owner, usize>);

impl<Owner> Default for Budgets<Owner> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Owner: Clone + Eq + Hash> Budgets<Owner> {
    /// What is held for the owner was `before` and is `after`. False: now it has more than
    /// [`BACKLOG_BYTES`].
    pub(crate) fn note(&mut self, owner: &Owner, before: usize, after: usize) -> bool {
        if before == after {
            return true;
        }
        let held = self.0.get(owner).copied().unwrap_or_default() + after - before;
        if held == 0 {
            self.0.remove(owner);
        } else {
            self.0.insert(owner.clone(), held);
        }
        held <= BACKLOG_BYTES
    }
}
