//! Which of many patterns match a name: a trie by token, so that the cost depends on the name's
//! length and on the matches, not on how many patterns there are. Pure.
//!
//! The rules are those of [`Pattern::matches`]; a property test holds the two together.

use std::collections::HashMap;

use crate::types::Pattern;

/// Patterns, each with the ids that asked for it.
#[derive(Debug)]
pub(crate) struct Trie<I> {
    root: Node<I>,
}

#[derive(Debug)]
struct Node<I> {
    literal: HashMap<Box<str>, Self>,
    /// What follows a `*`.
    any: Option<Box<Self>>,
    /// Patterns that end here.
    here: Vec<I>,
    /// Patterns that end with `>` here.
    rest: Vec<I>,
}

impl<I> Node<I> {
    fn new() -> Self {
        Self {
            literal: HashMap::new(),
            any: None,
            here: Vec::new(),
            rest: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.literal.is_empty()
            && self.any.is_none()
            && self.here.is_empty()
            && self.rest.is_empty()
    }
}

impl<I: Copy + Eq> Trie<I> {
    pub(crate) fn new() -> Self {
        Self { root: Node::new() }
    }

    /// Adds `id` under `pattern`. The same pair may be added once.
    pub(crate) fn insert(&mut self, pattern: &Pattern, id: I) {
        let mut node = &mut self.root;
        for token in pattern.tokens() {
            node = match token {
                ">" => return node.rest.push(id),
                "*" => node.any.get_or_insert_with(|| Box::new(Node::new())),
                token => node.literal.entry(token.into()).or_insert_with(Node::new),
            };
        }
        node.here.push(id);
    }

    /// Takes it away again, with the branches that it leaves empty.
    pub(crate) fn remove(&mut self, pattern: &Pattern, id: I) {
        let tokens: Vec<_> = pattern.tokens().collect();
        remove(&mut self.root, &tokens, id);
    }

    /// Appends the ids of the patterns that match. An id stands there once for each of its patterns
    /// that matches.
    pub(crate) fn collect(&self, name: &str, found: &mut Vec<I>) {
        collect(&self.root, Some(name), true, found);
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

fn remove<I: Copy + Eq>(node: &mut Node<I>, tokens: &[&str], id: I) {
    match tokens {
        [] => node.here.retain(|other| *other != id),
        [">", ..] => node.rest.retain(|other| *other != id),
        ["*", tail @ ..] => {
            if let Some(next) = &mut node.any {
                remove(next, tail, id);
                if next.is_empty() {
                    node.any = None;
                }
            }
        }
        [token, tail @ ..] => {
            if let Some(next) = node.literal.get_mut(*token) {
                remove(next, tail, id);
                if next.is_empty() {
                    node.literal.remove(*token);
                }
            }
        }
    }
}

/// `name` is what is left of it, `None` when it is used up. Recursion ends after 16 tokens.
fn collect<I: Copy>(node: &Node<I>, name: Option<&str>, first: bool, found: &mut Vec<I>) {
    let Some(name) = name else {
        found.extend_from_slice(&node.here);
        return;
    };
    let (token, tail) = match name.split_once('.') {
        Some((token, tail)) => (token, Some(tail)),
        None => (name, None),
    };
    if !(first && token.starts_with('$')) {
        found.extend_from_slice(&node.rest);
        if let Some(next) = &node.any {
            collect(next, tail, false, found);
        }
    }
    if let Some(next) = node.literal.get(token) {
        collect(next, tail, false, found);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> impl Strategy<Value = String> {
        (
            prop::bool::weighted(0.2),
            prop::collection::vec("[abc]", 1..5),
        )
            .prop_map(|(advisory, tokens)| {
                let prefix = if advisory { "$" } else { "" };
                format!("{prefix}{}", tokens.join("."))
            })
    }

    fn patterns() -> impl Strategy<Value = Pattern> {
        (
            prop::bool::weighted(0.2),
            prop::collection::vec("[abc*]", 0..5),
            prop::bool::ANY,
        )
            .prop_filter_map("not a pattern", |(advisory, mut tokens, open)| {
                if open {
                    tokens.push(">".to_owned());
                }
                let prefix = if advisory { "$" } else { "" };
                Pattern::parse(&format!("{prefix}{}", tokens.join("."))).ok()
            })
    }

    proptest! {
        #[test]
        fn the_trie_finds_exactly_what_matches(
            patterns in prop::collection::vec(patterns(), 0..30),
            removed in prop::collection::vec(prop::bool::ANY, 30),
            names in prop::collection::vec(names(), 1..20),
        ) {
            let mut trie = Trie::new();
            for (id, pattern) in patterns.iter().enumerate() {
                trie.insert(pattern, id);
            }
            for (id, pattern) in patterns.iter().enumerate().filter(|(id, _)| removed[*id]) {
                trie.remove(pattern, id);
            }
            for name in &names {
                let mut found = Vec::new();
                trie.collect(name, &mut found);
                found.sort_unstable();
                let expected: Vec<_> = patterns
                    .iter()
                    .enumerate()
                    .filter(|(id, pattern)| !removed[*id] && pattern.matches(name))
                    .map(|(id, _)| id)
                    .collect();
                prop_assert_eq!(found, expected, "{}", name);
            }
            for (id, pattern) in patterns.iter().enumerate() {
                trie.remove(pattern, id);
            }
            prop_assert!(trie.is_empty());
        }
    }
}
