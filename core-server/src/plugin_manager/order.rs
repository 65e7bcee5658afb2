//! In which order plugins begin and end, as far as they depend on each other: pure. The worker says
//! how each plugin stands ([`Standing`]) and does what these rules answer.
//!
//! - A plugin begins once all it requires is available ([`missing`] is `None`).
//! - Plugins that are stopped together stop after those that require them ([`free_to_stop`]).
//! - A loss reaches, beyond the plugins that require the lost one, those that require them, as far as
//!   their policy is to restart or stop ([`Reactions`]). They end from the outside in, and begin again
//!   from the inside out, because one that is about to end is not available to others.

use std::collections::{BTreeMap, BTreeSet};

use super::OnLoss;
use super::dependencies::Graph;
use crate::supervisor::lifecycle::{Phase, PluginState, State};
use crate::types::{Generation, PluginName};

/// How a plugin stands, as far as order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// STARTED, and meant to stay so.
    pub available: bool,
    /// It neither runs as STARTED nor is on its way there or back.
    pub quiet: bool,
    /// The run that it has, if it has one.
    pub run: Option<Generation>,
    /// Its state and phase, for people.
    pub shown: (PluginState, Phase),
}

impl From<&State> for Standing {
    fn from(state: &State) -> Self {
        let shown = (state.state(), state.phase());
        Self {
            available: state.is_available(),
            quiet: shown.0 != PluginState::Started
                && !matches!(shown.1, Phase::Stopping | Phase::Starting),
            run: state.has_run().then(|| state.generation()),
            shown,
        }
    }
}

/// What a plugin waits for, for people, each with the reason; `None`: nothing. `standing` answers `None`
/// for a plugin that nobody knows.
#[must_use]
pub fn missing<'a>(
    requires: impl IntoIterator<Item = &'a PluginName>,
    reactions: &Reactions,
    standing: impl Fn(&PluginName) -> Option<Standing>,
) -> Option<String> {
    let missing: Vec<_> = requires
        .into_iter()
        .filter_map(|required| {
            let why = match standing(required) {
                None => "not installed",
                Some(_) if reactions.includes(required) => "it lost what it requires itself",
                Some(standing) if standing.available => return None,
                Some(standing) => absence(standing.shown),
            };
            Some(format!("{required} ({why})"))
        })
        .collect();
    (!missing.is_empty()).then(|| format!("waits for {}", missing.join(", ")))
}

fn absence((state, phase): (PluginState, Phase)) -> &'static str {
    match (state, phase) {
        (PluginState::Unloaded, Phase::Idle) => "not wanted",
        (PluginState::Loaded, Phase::Idle) => "loaded, not started",
        (PluginState::Stopped, Phase::Idle) => "stopped",
        (_, phase) => phase.as_str(),
    }
}

/// Of plugins that are to stop together, those whose dependents among them have all stopped. `true` in
/// `pending`: it has been told already.
#[must_use]
pub fn free_to_stop(graph: &Graph, pending: &BTreeMap<PluginName, bool>) -> Vec<PluginName> {
    let waiting = || {
        pending
            .iter()
            .filter_map(|(name, told)| (!told).then_some(name))
    };
    let free: Vec<_> = waiting()
        .filter(|name| {
            let mut dependents = graph.dependents(name.as_str());
            !dependents.any(|other| pending.contains_key(other))
        })
        .cloned()
        .collect();
    if free.is_empty() && waiting().count() == pending.len() {
        // Circles stand in the way. Nobody of them runs, and nobody is to be waited for.
        let circular = waiting().filter(|name| graph.cycle_through(name).is_some());
        return circular.cloned().collect();
    }
    free
}

/// The plugins that a loss reaches and that have not reacted yet.
#[derive(Clone, Debug, Default)]
pub struct Reactions {
    pending: BTreeMap<PluginName, Reaction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reaction {
    policy: OnLoss,
    /// The run that is to react.
    run: Generation,
    told: bool,
}

impl Reactions {
    /// Whether a plugin is going to end, or is just ending, for a loss.
    #[must_use]
    pub fn includes(&self, plugin: &PluginName) -> bool {
        self.pending.contains_key(plugin)
    }

    /// Whether nobody has to react.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// A plugin is lost. Answers whom this reaches that was not reached before: those are not available
    /// any more. `policy` is what a plugin does when it loses another.
    pub fn lost(
        &mut self,
        graph: &Graph,
        lost: &PluginName,
        policy: impl Fn(&PluginName, &PluginName) -> OnLoss,
        standing: impl Fn(&PluginName) -> Option<Standing>,
    ) -> Vec<PluginName> {
        let mut reached = Vec::new();
        let mut frontier = vec![lost.clone()];
        while let Some(lost) = frontier.pop() {
            for dependent in graph.dependents(lost.as_str()) {
                let policy = policy(dependent, &lost);
                let run = standing(dependent).and_then(|standing| standing.run);
                // One that does not run has nothing to end, and was a loss to others before.
                let (Some(run), true) = (run, policy != OnLoss::Notify) else {
                    continue;
                };
                let reaction = Reaction {
                    policy,
                    run,
                    told: false,
                };
                match self.pending.get_mut(dependent) {
                    Some(known) if known.run == run => {
                        // To begin anew is more than to stop.
                        if policy == OnLoss::Restart && known.policy == OnLoss::Stop {
                            *known = reaction;
                        }
                    }
                    _ => {
                        self.pending.insert(dependent.clone(), reaction);
                        reached.push(dependent.clone());
                        frontier.push(dependent.clone());
                    }
                }
            }
        }
        reached
    }

    /// Goes on: who is to be told now, and who has reacted and may be available again. To be asked until
    /// both are empty.
    pub fn advance(
        &mut self,
        graph: &Graph,
        standing: impl Fn(&PluginName) -> Option<Standing>,
    ) -> Next {
        let available = |name: &PluginName| {
            !self.pending.contains_key(name)
                && standing(name).is_some_and(|standing| standing.available)
        };
        let waits = |name: &PluginName| !graph.requires(name.as_str()).all(available);
        let over = |name: &PluginName, reaction: &Reaction| {
            let Some(standing) = standing(name) else {
                return true;
            };
            let same_run = standing.run == Some(reaction.run);
            match reaction.policy {
                OnLoss::Notify => true,
                OnLoss::Restart => !same_run,
                // What it lost is back already, or it has stopped.
                OnLoss::Stop => !same_run || !waits(name) || (reaction.told && standing.quiet),
            }
        };
        let over: Vec<_> = self
            .pending
            .iter()
            .filter(|(name, reaction)| over(name, reaction))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &over {
            self.pending.remove(name);
        }
        let free: Vec<_> = self
            .pending
            .iter()
            .filter(|(name, reaction)| {
                let mut dependents = graph.dependents(name.as_str());
                !reaction.told && !dependents.any(|other| self.pending.contains_key(other))
            })
            .map(|(name, reaction)| (name.clone(), reaction.policy))
            .collect();
        for (name, _) in &free {
            if let Some(reaction) = self.pending.get_mut(name) {
                reaction.told = true;
            }
        }
        Next { tell: free, over }
    }
}

/// What follows for the plugins that react to a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// To be told, and what to do.
    pub tell: Vec<(PluginName, OnLoss)>,
    /// These have reacted.
    pub over: Vec<PluginName>,
}

/// Plugins that nothing stands in the way of but a place to start: who is given one, in order of their
/// waiting. `waiting` holds each with a key of how long it waits.
#[must_use]
pub fn give_slots<K: Ord>(
    mut waiting: Vec<(K, PluginName)>,
    free: usize,
    mut take_start: impl FnMut() -> bool,
) -> Vec<PluginName> {
    waiting.sort();
    waiting
        .into_iter()
        .take(free)
        .take_while(|_| take_start())
        .map(|(_, name)| name)
        .collect()
}

/// The levels in which all plugins end with the core, the first one first.
#[must_use]
pub fn levels_of_the_end(graph: &Graph) -> Vec<BTreeSet<PluginName>> {
    let levels = graph.levels().into_iter().rev();
    levels.map(|level| level.into_iter().collect()).collect()
}
