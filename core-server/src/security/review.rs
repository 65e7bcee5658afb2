//! What a plugin asks for, who grants it, and what is missing: the merge of a manifest, a `Hello`, the
//! configuration and what operators grant while the core runs. Pure.
//!
//! - A manifest grants what it asks for by asking, unless the core reviews. A `Hello` never does: it comes
//!   from another machine, and nobody chose what it says.
//! - Deny beats allow. What is denied is decided: it is not missing.
//! - Missing is what is asked for as required, and neither granted nor denied.

use std::collections::BTreeSet;

use super::grants::{Effective, Granting};
use super::operator_grants::Grant;
use super::permissions::{in_core, owns_namespace};
use crate::config::{Act, Need, Permission, Permissions};
use crate::types::{Pattern, PluginName};

/// Permissions that a sentence names one by one.
const NAMED: usize = 5;

/// All that is said of what one plugin may do.
#[derive(Clone, Copy, Debug)]
pub struct Review<'a> {
    /// Whose.
    pub plugin: &'a PluginName,
    /// Its manifest asks for this.
    pub asked: &'a Permissions,
    /// A remote plugin's `Hello` asks for this.
    pub said: &'a [(Permission, Need)],
    /// The configuration grants this.
    pub configured: &'a Permissions,
    /// Operators have granted this.
    pub given: &'a [Grant],
    /// The configuration denies this.
    pub denied: &'a Permissions,
    /// Whether a manifest grants by asking.
    pub granting: Granting,
}

/// How one permission stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub permission: Permission,
    /// It is asked for, and whether the plugin copes without.
    pub asked: Option<Need>,
    /// Who grants it, or something that includes it.
    pub granted_by: Vec<String>,
    /// The configuration denies it.
    pub denied: bool,
    /// When an operator granted it, in seconds since 1970.
    pub granted_at: Option<u64>,
}

impl Standing {
    /// Asked for as required, and nobody has decided.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.asked == Some(Need::Required) && self.granted_by.is_empty() && !self.denied
    }
}

impl Review<'_> {
    /// What counts when something is used.
    #[must_use]
    pub fn effective(&self) -> Effective {
        let asked = match self.granting {
            Granting::AsAsked => Some(self.asked.clone()),
            Granting::Reviewed => None,
        };
        let given = self.given.iter().map(|grant| &grant.permission);
        let lists = [self.configured.clone(), given.collect()];
        Effective {
            granted: asked.into_iter().chain(lists).collect(),
            denied: self.denied.clone(),
        }
    }

    /// How each permission stands that anybody says anything of, in order.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let mut all: BTreeSet<Permission> = BTreeSet::new();
        for list in [self.asked, self.configured, self.denied] {
            all.extend(list.entries().into_iter().map(|(permission, _)| permission));
        }
        all.extend(self.said.iter().map(|(permission, _)| permission.clone()));
        all.extend(self.given.iter().map(|grant| grant.permission.clone()));
        let asked = self.asked.entries();
        all.into_iter()
            .map(|permission| self.standing(permission, &asked))
            .collect()
    }

    fn standing(&self, permission: Permission, asked: &[(Permission, Need)]) -> Standing {
        let requests = asked.iter().chain(self.said);
        let needs = requests.filter(|(one, _)| *one == permission);
        // Asked for twice, it is required if it is so once.
        let asked = needs.map(|(_, need)| *need).reduce(|one, other| match one {
            Need::Required => one,
            Need::Optional => other,
        });
        let mut granted_by = Vec::new();
        let mut by = |holds: bool, who: &str| {
            if holds && !granted_by.iter().any(|known| known == who) {
                granted_by.push(who.to_owned());
            }
        };
        by(is_own(self.plugin, &permission), "own area");
        let as_asked = self.granting == Granting::AsAsked;
        by(as_asked && includes(self.asked, &permission), "manifest");
        by(includes(self.configured, &permission), "configuration");
        let mut granted_at = None;
        for grant in self.given {
            if includes(&[&grant.permission].into_iter().collect(), &permission) {
                by(true, &grant.by);
                granted_at = granted_at.max(Some(grant.at));
            }
        }
        Standing {
            asked,
            granted_by,
            denied: denies(self.denied, &permission),
            granted_at,
            permission,
        }
    }

    /// What it waits for, for people; `None`: nothing.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let missing = self.standings().into_iter().filter(Standing::is_missing);
        let missing: Vec<_> = missing.map(|standing| standing.permission).collect();
        if missing.is_empty() {
            return None;
        }
        let named: Vec<_> = missing
            .iter()
            .take(NAMED)
            .map(ToString::to_string)
            .collect();
        let more = match missing.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "it asks for {}{more}, which nobody has granted: `corectl plugins grant {}` grants what it asks \
             for, `corectl plugins permissions {1}` shows it",
            named.join(", "),
            self.plugin,
        ))
    }
}

/// Whether it needs no grant.
fn is_own(plugin: &PluginName, permission: &Permission) -> bool {
    let resource = permission.resource();
    match permission.act() {
        Act::Publish | Act::Provide | Act::Call | Act::WriteState => plugin.owns(resource),
        Act::Subscribe | Act::ReadState => plugin.owns(resource) || in_core(resource),
        Act::ReadStorage | Act::WriteStorage => owns_namespace(plugin, resource),
        Act::Manage | Act::Env => false,
    }
}

/// Whether a list holds all of it.
fn includes(list: &Permissions, permission: &Permission) -> bool {
    let Some(wanted) = permission.pattern() else {
        let entries = list.entries();
        return entries.iter().any(|(entry, _)| entry == permission);
    };
    let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.contains(&wanted));
    match permission.act() {
        Act::Publish => any(&list.publish),
        Act::Subscribe => any(&list.subscribe),
        Act::Provide => any(&list.provide),
        Act::Call => list.call.iter().any(|call| call.services.contains(&wanted)),
        Act::ReadStorage => any(&list.storage.read) || any(&list.storage.write),
        Act::WriteStorage => any(&list.storage.write),
        Act::ReadState => any(&list.state.read),
        Act::WriteState => any(&list.state.write),
        Act::Manage | Act::Env => false,
    }
}

/// Whether a list denies all of it, or, of what is read through a pattern, any of it: as uses are judged.
fn denies(list: &Permissions, permission: &Permission) -> bool {
    let Some(wanted) = permission.pattern() else {
        return includes(list, permission);
    };
    let overlaps = |patterns: &[Pattern]| patterns.iter().any(|one| one.overlaps(&wanted));
    let any = |patterns: &[Pattern]| patterns.iter().any(|one| one.contains(&wanted));
    match permission.act() {
        Act::Subscribe => overlaps(&list.subscribe),
        Act::ReadState => overlaps(&list.state.read),
        Act::ReadStorage => any(&list.storage.read),
        Act::WriteStorage => any(&list.storage.read) || any(&list.storage.write),
        _ => includes(list, permission),
    }
}

#[cfg(test)]
mod tests {
    use super::super::grants::Verdict;
    use super::super::permissions::Action;
    use super::*;

    fn lamp() -> PluginName {
        PluginName::parse("lamp").expect("good name")
    }

    fn permission(text: &str) -> Permission {
        text.parse().expect(text)
    }

    fn list(texts: &[&str]) -> Permissions {
        let entries: Vec<_> = texts.iter().map(|text| permission(text)).collect();
        entries.iter().collect()
    }

    /// One plugin's sources, as texts; "?" at the end of what is said: it copes without.
    #[derive(Clone, Copy, Default)]
    struct Case<'a> {
        asked: &'a [&'a str],
        said: &'a [&'a str],
        configured: &'a [&'a str],
        given: &'a [&'a str],
        denied: &'a [&'a str],
    }

    fn on<T>(case: Case<'_>, granting: Granting, look: impl FnOnce(&Review<'_>) -> T) -> T {
        let said = case.said.iter().map(|text| match text.strip_suffix('?') {
            Some(text) => (permission(text), Need::Optional),
            None => (permission(text), Need::Required),
        });
        let given = case.given.iter().map(|text| Grant {
            permission: permission(text),
            by: "uid 7".to_owned(),
            at: 5,
        });
        look(&Review {
            plugin: &lamp(),
            asked: &list(case.asked),
            said: &said.collect::<Vec<_>>(),
            configured: &list(case.configured),
            given: &given.collect::<Vec<_>>(),
            denied: &list(case.denied),
            granting,
        })
    }

    fn missing(case: Case<'_>, granting: Granting) -> Vec<String> {
        let standings = on(case, granting, |review| review.standings());
        let missing = standings.into_iter().filter(Standing::is_missing);
        missing.map(|one| one.permission.to_string()).collect()
    }

    #[test]
    fn what_is_missing_follows_the_table() {
        let nothing = Case::default();
        let asks = Case {
            asked: &["publish=home.>", "call=geo.lookup"],
            ..nothing
        };
        let says = Case {
            said: &["publish=home.>", "call=geo.lookup?"],
            ..nothing
        };
        let both = &["publish=home.>", "call=geo.lookup"][..];
        let table: Vec<(&str, Case<'_>, &[&str], &[&str])> = vec![
            // Missing as asked, and under review.
            ("nothing", nothing, &[], &[]),
            ("a manifest asks", asks, &[], both),
            (
                "its own area needs nobody",
                Case {
                    asked: &["publish=lamp.>", "subscribe=core.>", "storage.write=lamp.x"],
                    said: &["call=lamp.on"],
                    ..nothing
                },
                &[],
                &[],
            ),
            (
                "the configuration grants a part, and more than that",
                Case {
                    configured: &["publish=>", "call=geo.other"],
                    ..asks
                },
                &[],
                &["call=geo.lookup"],
            ),
            (
                "an operator grants the rest",
                Case {
                    configured: &["publish=home.>"],
                    given: &["call=geo.*"],
                    ..asks
                },
                &[],
                &[],
            ),
            (
                "a narrower grant is not enough",
                Case {
                    given: &["publish=home.scene", "call=geo.lookup"],
                    ..asks
                },
                &[],
                &["publish=home.>"],
            ),
            (
                "what is denied is decided",
                Case {
                    denied: &["publish=home.>"],
                    ..asks
                },
                &[],
                &["call=geo.lookup"],
            ),
            (
                "a Hello grants nothing, and what it copes without is not waited for",
                says,
                &["publish=home.>"],
                &["publish=home.>"],
            ),
            (
                "asked for twice, it is required if it is so once",
                Case {
                    said: &["call=a.b?", "call=a.b"],
                    ..nothing
                },
                &["call=a.b"],
                &["call=a.b"],
            ),
            (
                "a Hello asks for what the manifest asks for",
                Case {
                    asked: &["publish=home.>"],
                    ..says
                },
                &[],
                &["publish=home.>"],
            ),
            (
                "writing includes reading",
                Case {
                    said: &["storage.read=geo", "state.read=home.mode"],
                    given: &["storage.write=geo", "state.write=home.mode"],
                    ..nothing
                },
                // State does not: as uses are judged.
                &["state.read=home.mode"],
                &["state.read=home.mode"],
            ),
            (
                "management and environment word by word",
                Case {
                    asked: &["manage=logs.read", "env=HTTPS_PROXY"],
                    given: &["manage=plugins.view", "env=HTTPS_PROXY"],
                    ..nothing
                },
                &[],
                &["manage=logs.read"],
            ),
        ];
        for (what, case, as_asked, reviewed) in table {
            assert_eq!(missing(case, Granting::AsAsked), as_asked, "{what}");
            assert_eq!(missing(case, Granting::Reviewed), reviewed, "{what}");
        }
    }

    #[test]
    fn what_is_said_to_be_granted_is_what_uses_are_judged_by() {
        let case = Case {
            asked: &["publish=a.x"],
            said: &["publish=b.x"],
            configured: &["publish=c.*", "publish=e.x"],
            given: &["publish=d.x", "publish=e.x"],
            denied: &["publish=e.x", "publish=lamp.secret"],
        };
        for granting in [Granting::AsAsked, Granting::Reviewed] {
            on(case, granting, |review| {
                let effective = review.effective();
                for one in review.standings() {
                    let topic = one.permission.resource().replace('*', "any");
                    let verdict = effective.judge(&lamp(), Action::Publish(&topic));
                    let expected = match (one.denied, one.granted_by.is_empty()) {
                        (true, _) => Verdict::Denied,
                        (false, true) => Verdict::NotGranted,
                        (false, false) => Verdict::Allowed,
                    };
                    assert_eq!(verdict, expected, "{granting:?} {one:?}");
                }
            });
        }
    }

    #[test]
    fn everybody_who_grants_is_named() {
        let case = Case {
            asked: &["publish=home.>"],
            configured: &["publish=home.*"],
            given: &["publish=home.>"],
            ..Case::default()
        };
        let standings = on(case, Granting::AsAsked, |review| review.standings());
        let shown: Vec<_> = standings
            .iter()
            .map(|one| (one.permission.to_string(), one.granted_by.join("; ")))
            .collect();
        let expected = [
            ("publish=home.*", "manifest; configuration; uid 7"),
            ("publish=home.>", "manifest; uid 7"),
        ];
        let expected = expected.map(|(one, by)| (one.to_owned(), by.to_owned()));
        assert_eq!(shown, expected);
        assert_eq!(standings[0].asked, None, "nobody asks for this one itself");
        assert_eq!(standings[1].granted_at, Some(5));
    }

    #[test]
    fn the_sentence_names_a_few_and_the_command() {
        let said = ["call=a.b", "call=a.c", "call=a.d", "call=a.e", "call=a.f"];
        let more = [&said[..], &["call=a.g"]].concat();
        let text = |said: &[&str]| {
            let case = Case {
                said,
                ..Case::default()
            };
            on(case, Granting::AsAsked, |review| review.missing()).expect("missing")
        };
        assert!(text(&said).starts_with(
            "it asks for call=a.b, call=a.c, call=a.d, call=a.e, call=a.f, which nobody"
        ));
        assert!(text(&more).contains("call=a.f and 1 more, which"));
        assert!(text(&said).contains("`corectl plugins grant lamp`"));
        assert!(text(&said).contains("`corectl plugins permissions lamp`"));
    }
}
