//! What requires what: a graph, pure. It may name plugins that nobody knows (they are waited for,
//! visibly) and may hold circles (they are refused, with their path).

use std::collections::{BTreeMap, BTreeSet};

use crate::types::PluginName;

/// Who requires whom.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    requires: BTreeMap<PluginName, BTreeSet<PluginName>>,
    /// The same edges from their other ends.
    dependents: BTreeMap<PluginName, BTreeSet<PluginName>>,
}

impl Graph {
    /// A graph of plugins and what each requires.
    pub fn new(plugins: impl IntoIterator<Item = (PluginName, Vec<PluginName>)>) -> Self {
        let mut graph = Self::default();
        for (plugin, requires) in plugins {
            graph.set(plugin, requires);
        }
        graph
    }

    /// Says anew what a plugin requires.
    pub fn set(&mut self, plugin: PluginName, requires: impl IntoIterator<Item = PluginName>) {
        let requires: BTreeSet<_> = requires.into_iter().collect();
        for required in &requires {
            let dependents = self.dependents.entry(required.clone()).or_default();
            dependents.insert(plugin.clone());
        }
        let before = self.requires.insert(plugin.clone(), requires);
        let now = &self.requires[&plugin];
        for lost in before.iter().flatten().filter(|name| !now.contains(*name)) {
            if let Some(dependents) = self.dependents.get_mut(lost) {
                dependents.remove(&plugin);
            }
        }
    }

    /// Takes a plugin out. Others may still require it: it is unknown to them then.
    pub fn remove(&mut self, plugin: &PluginName) {
        self.requires.remove(plugin);
    }

    /// What a plugin requires, in order of name.
    pub fn requires(&self, plugin: &str) -> impl Iterator<Item = &PluginName> {
        self.requires.get(plugin).into_iter().flatten()
    }

    /// Who requires a plugin, in order of name.
    pub fn dependents(&self, plugin: &str) -> impl Iterator<Item = &PluginName> {
        self.dependents.get(plugin).into_iter().flatten()
    }

    /// The shortest circle through a plugin, beginning and ending with it.
    #[must_use]
    pub fn cycle_through(&self, plugin: &PluginName) -> Option<Vec<PluginName>> {
        let mut came_from: BTreeMap<&PluginName, &PluginName> = BTreeMap::new();
        let mut frontier = vec![plugin];
        while !frontier.is_empty() {
            let mut next = Vec::new();
            for from in frontier {
                for to in self.requires(from.as_str()) {
                    if to == plugin {
                        let mut path = vec![to.clone(), from.clone()];
                        let mut at = from;
                        while at != plugin {
                            at = came_from[at];
                            path.push(at.clone());
                        }
                        path.reverse();
                        return Some(path);
                    }
                    if !came_from.contains_key(to) {
                        came_from.insert(to, from);
                        next.push(to);
                    }
                }
            }
            frontier = next;
        }
        None
    }

    /// A circle, if there is one.
    #[must_use]
    pub fn cycle(&self) -> Option<Vec<PluginName>> {
        self.requires
            .keys()
            .find_map(|plugin| self.cycle_through(plugin))
    }

    /// The known plugins in the order in which they may start: each level requires only plugins of
    /// the levels before it (and unknown ones). Plugins in circles, and behind them, come last.
    #[must_use]
    pub fn levels(&self) -> Vec<Vec<PluginName>> {
        let mut placed: BTreeSet<&PluginName> = BTreeSet::new();
        let mut levels = Vec::new();
        loop {
            let free: Vec<&PluginName> = self
                .requires
                .iter()
                .filter(|(name, requires)| {
                    let open = |required: &&PluginName| {
                        self.requires.contains_key(*required) && !placed.contains(*required)
                    };
                    !placed.contains(name) && !requires.iter().any(|required| open(&required))
                })
                .map(|(name, _)| name)
                .collect();
            if free.is_empty() {
                break;
            }
            levels.push(free.iter().map(|name| (*name).clone()).collect());
            placed.extend(free);
        }
        let rest: Vec<_> = self
            .requires
            .keys()
            .filter(|name| !placed.contains(name))
            .collect();
        if !rest.is_empty() {
            levels.push(rest.into_iter().cloned().collect());
        }
        levels
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> PluginName {
        PluginName::parse(text).expect("a good name")
    }

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        Graph::new(
            edges
                .iter()
                .map(|(from, to)| (name(from), to.iter().map(|to| name(to)).collect())),
        )
    }

    fn texts(names: &[PluginName]) -> Vec<&str> {
        names.iter().map(PluginName::as_str).collect()
    }

    #[test]
    fn a_diamond_has_three_levels() {
        let graph = graph(&[("d", &["b", "c"]), ("b", &["a"]), ("c", &["a"]), ("a", &[])]);
        let levels = graph.levels();
        let levels: Vec<_> = levels.iter().map(|level| texts(level)).collect();
        assert_eq!(levels, [vec!["a"], vec!["b", "c"], vec!["d"]]);
        assert_eq!(
            graph
                .dependents("a")
                .map(PluginName::as_str)
                .collect::<Vec<_>>(),
            ["b", "c"]
        );
        assert_eq!(graph.cycle(), None);
    }

    #[test]
    fn a_circle_is_named_with_its_path_and_only_those_in_it() {
        let graph = graph(&[
            ("a", &["b"]),
            ("b", &["c"]),
            ("c", &["a"]),
            ("d", &["a"]),
            ("e", &["e"]),
        ]);
        assert_eq!(texts(&graph.cycle().expect("one")), ["a", "b", "c", "a"]);
        assert_eq!(
            texts(&graph.cycle_through(&name("e")).expect("one")),
            ["e", "e"]
        );
        assert_eq!(graph.cycle_through(&name("d")), None, "it only waits");
        assert_eq!(
            graph.levels().concat().len(),
            5,
            "everybody stands somewhere"
        );
    }

    #[test]
    fn an_unknown_plugin_stands_in_nobodys_way_but_its_dependents() {
        let graph = graph(&[("a", &["ghost"])]);
        assert_eq!(texts(&graph.levels().concat()), ["a"]);
        assert_eq!(
            graph
                .requires("a")
                .map(PluginName::as_str)
                .collect::<Vec<_>>(),
            ["ghost"]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn levels_of_any_acyclic_graph_respect_every_requirement(
            edges in prop::collection::vec((0..200_usize, 0..200_usize), 0..600),
        ) {
            let names: Vec<PluginName> = (0..200).map(|index| name(&format!("p{index:03}"))).collect();
            let mut graph = Graph::new(names.iter().map(|name| (name.clone(), Vec::new())));
            // An edge always leads to a smaller number: no circle can come about.
            for (from, to) in edges.into_iter().filter(|(from, to)| from > to) {
                let mut requires: Vec<_> = graph.requires(names[from].as_str()).cloned().collect();
                requires.push(names[to].clone());
                graph.set(names[from].clone(), requires);
            }
            prop_assert_eq!(graph.cycle(), None);
            let levels = graph.levels();
            let level_of = |name: &PluginName| levels.iter().position(|level| level.contains(name));
            for name in &names {
                for required in graph.requires(name.as_str()) {
                    prop_assert!(level_of(required) < level_of(name));
                }
            }
            prop_assert_eq!(levels.concat().len(), names.len());
        }
    }
}
