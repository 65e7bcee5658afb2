//! Whether a call goes back in line when its provider's link is lost. Pure.

/// Most times that one call is dispatched again.
pub(super) const MAX_REPEATS: u8 = 2;

/// What one call has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    /// How often it went back in line.
    pub(super) repeats: u8,
    /// A provider may have had it, and so it may have taken effect.
    pub(super) reached: bool,
}

impl Tries {
    /// Its link is lost. `sent`: it had left the core. `None`: it must not be dispatched again.
    ///
    /// Doing a call twice is worse than not answering it: only what was never sent, or what its
    /// provider declared idempotent, goes again, and not for ever, for it may be the call that kills
    /// its providers.
    pub(super) fn again(self, sent: bool, idempotent: bool) -> Option<Self> {
        let reached = self.reached || sent;
        let may = self.repeats < MAX_REPEATS && (!reached || idempotent);
        may.then(|| Self {
            repeats: self.repeats + 1,
            reached,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_taken_effect_goes_again_only_if_that_does_no_harm() {
        let tries = |repeats, reached| Tries { repeats, reached };
        for (before, sent, idempotent, after) in [
            // Never sent: whatever it is.
            (tries(0, false), false, false, Some(tries(1, false))),
            (tries(1, false), false, true, Some(tries(2, false))),
            (tries(2, false), false, false, None),
            // Sent now.
            (tries(0, false), true, true, Some(tries(1, true))),
            (tries(1, false), true, true, Some(tries(2, true))),
            (tries(2, false), true, true, None),
            (tries(0, false), true, false, None),
            (tries(1, false), true, false, None),
            // Sent before: that it was not sent this time takes nothing back.
            (tries(1, true), false, true, Some(tries(2, true))),
            (tries(1, true), false, false, None),
            (tries(2, true), false, true, None),
            (tries(2, true), true, true, None),
        ] {
            assert_eq!(
                before.again(sent, idempotent),
                after,
                "{before:?} sent: {sent} idempotent: {idempotent}"
            );
        }
    }
}
