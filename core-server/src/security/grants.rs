//! What a plugin may do beyond its own area: what its manifest asks for, what the operator grants, what
//! the operator denies. Pure.

use std::collections::BTreeSet;

use crate::config::{Act, Manage, Permission, Permissions};
use crate::types::{Pattern, PluginName};

use super::permissions::{Action, in_core, owns_namespace, reserved};

/// Whether what a manifest asks for is granted by that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granting {
    /// As asked: the operator chose the directory that the manifest is in.
    #[default]
    AsAsked,
    /// Only what the operator grants.
    Reviewed,
}

/// What becomes of a use that is not granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is done, and noted.
    Audit,
}

/// Grants and denies of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// Lists of what it may do; they add up.
    pub granted: Vec<Permissions>,
    /// What it may not do, whatever is granted.
    pub denied: Permissions,
}

/// The same for people and plugins: one permission after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// What is granted. It may hold what is denied.
    pub granted: Vec<Permission>,
    /// What is denied, whatever is granted.
    pub denied: Vec<Permission>,
}

/// How a use is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// Nobody has granted it.
    NotGranted,
    /// The operator denies it.
    Denied,
    /// It is the core's own.
    Reserved,
}

impl From<Permissions> for Effective {
    fn from(granted: Permissions) -> Self {
        Self {
            granted: vec![granted],
            denied: Permissions::default(),
        }
    }
}

impl Effective {
    /// Whether the plugin may do something. Deny beats allow, also in its own area; nobody but the core
    /// writes what is the core's.
    #[must_use]
    pub fn judge(&self, plugin: &PluginName, action: Action<'_>) -> Verdict {
        if reserved(action).is_some() {
            return Verdict::Reserved;
        }
        if denies(&self.denied, action) {
            return Verdict::Denied;
        }
        let granted =
            is_own(plugin, action) || self.granted.iter().any(|granted| allows(granted, action));
        if granted {
            Verdict::Allowed
        } else {
            Verdict::NotGranted
        }
    }

    /// What is granted, and what is denied, each in order and once.
    #[must_use]
    pub fn listed(&self) -> Listed {
        let entries = |list: &Permissions| list.entries().into_iter().map(|(entry, _)| entry);
        let granted: BTreeSet<_> = self.granted.iter().flat_map(entries).collect();
        Listed {
            granted: granted.into_iter().collect(),
            denied: entries(&self.denied).collect(),
        }
    }

    /// The environment variables that a process of the plugin is given of the core's own.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        let Listed { granted, denied } = self.listed();
        let is_given = |entry: &Permission| entry.act() == Act::Env && !denied.contains(entry);
        let given = granted.iter().filter(|entry| is_given(entry));
        given.map(|entry| entry.resource().to_owned()).collect()
    }

    /// Whether the plugin may use a part of the core's management.
    #[must_use]
    pub fn manages(&self, part: Manage) -> bool {
        !self.denied.manage.contains(&part)
            && self
                .granted
                .iter()
                .any(|granted| granted.manage.contains(&part))
    }
}

/// What needs no grant: the own area, and reading the core's.
fn is_own(plugin: &PluginName, action: Action<'_>) -> bool {
    match action {
        Action::Publish(name)
        | Action::Provide(name)
        | Action::Call(name)
        | Action::WriteState(name) => plugin.owns(name),
        Action::Subscribe(pattern) | Action::WatchState(pattern) => {
            plugin.owns(pattern.as_str()) || in_core(pattern.as_str())
        }
        Action::ReadState(name) => plugin.owns(name) || in_core(name),
        Action::ReadStorage(namespace) | Action::WriteStorage(namespace) => {
            owns_namespace(plugin, namespace)
        }
    }
}

/// Whether a list grants it. What is subscribed to must be contained, not merely overlap.
fn allows(granted: &Permissions, action: Action<'_>) -> bool {
    let any = |patterns: &[Pattern], name: &str| patterns.iter().any(|p| p.matches(name));
    let contained =
        |patterns: &[Pattern], inner: &Pattern| patterns.iter().any(|outer| outer.contains(inner));
    match action {
        Action::Publish(topic) => any(&granted.publish, topic),
        Action::Subscribe(pattern) => contained(&granted.subscribe, pattern),
        Action::Provide(service) => any(&granted.provide, service),
        Action::Call(service) => granted
            .call
            .iter()
            .any(|call| call.services.matches(service)),
        Action::ReadState(key) => any(&granted.state.read, key),
        Action::WatchState(pattern) => contained(&granted.state.read, pattern),
        Action::WriteState(key) => any(&granted.state.write, key),
        Action::ReadStorage(namespace) => {
            any(&granted.storage.read, namespace) || any(&granted.storage.write, namespace)
        }
        Action::WriteStorage(namespace) => any(&granted.storage.write, namespace),
    }
}

/// Whether a list denies it. A subscription is denied when it would see anything of what is denied.
fn denies(denied: &Permissions, action: Action<'_>) -> bool {
    let any = |patterns: &[Pattern], name: &str| patterns.iter().any(|p| p.matches(name));
    let overlaps =
        |patterns: &[Pattern], inner: &Pattern| patterns.iter().any(|outer| outer.overlaps(inner));
    match action {
        Action::Publish(topic) => any(&denied.publish, topic),
        Action::Subscribe(pattern) => overlaps(&denied.subscribe, pattern),
        Action::Provide(service) => any(&denied.provide, service),
        Action::Call(service) => denied
            .call
            .iter()
            .any(|call| call.services.matches(service)),
        Action::ReadState(key) => any(&denied.state.read, key),
        Action::WatchState(pattern) => overlaps(&denied.state.read, pattern),
        Action::WriteState(key) => any(&denied.state.write, key),
        Action::ReadStorage(namespace) => any(&denied.storage.read, namespace),
        Action::WriteStorage(namespace) => {
            any(&denied.storage.write, namespace) || any(&denied.storage.read, namespace)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallPermission, Need};

    fn lamp() -> PluginName {
        PluginName::parse("lamp").expect("good name")
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("good pattern")
    }

    fn subscribing(texts: &[&str]) -> Permissions {
        Permissions {
            subscribe: texts.iter().map(|text| pattern(text)).collect(),
            publish: texts.iter().map(|text| pattern(text)).collect(),
            ..Permissions::default()
        }
    }

    #[test]
    fn deny_beats_allow_also_at_home() {
        let effective = Effective {
            granted: vec![subscribing(&["home.>"])],
            denied: subscribing(&["home.alarm.*", "lamp.secret"]),
        };
        let judge = |action| effective.judge(&lamp(), action);
        for (topic, expected) in [
            ("home.door", Verdict::Allowed),
            ("home.alarm.armed", Verdict::Denied),
            ("home.alarm.zone.x", Verdict::Allowed),
            ("lamp.on", Verdict::Allowed),
            ("lamp.secret", Verdict::Denied),
            ("shed.door", Verdict::NotGranted),
            ("core.plugin.x", Verdict::Reserved),
        ] {
            assert_eq!(judge(Action::Publish(topic)), expected, "{topic}");
        }
        for (text, expected) in [
            ("home.door", Verdict::Allowed),
            // It would hear of the alarm too.
            ("home.>", Verdict::Denied),
            ("home.*.armed", Verdict::Denied),
            ("home.alarm.zone.>", Verdict::Allowed),
            ("lamp.>", Verdict::Denied),
        ] {
            let subscribed = pattern(text);
            let verdict = effective.judge(&lamp(), Action::Subscribe(&subscribed));
            assert_eq!(verdict, expected, "{text}");
        }
    }

    #[test]
    fn an_environment_is_what_is_granted_but_for_what_is_denied() {
        let env = |names: &[&str]| Permissions {
            env: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Permissions::default()
        };
        let effective = Effective {
            granted: vec![env(&["B", "A"]), env(&["C", "A"])],
            denied: env(&["B", "D"]),
        };
        assert_eq!(effective.environment(), ["A", "C"]);
    }

    #[test]
    fn parts_of_the_management_are_granted_and_denied_one_by_one() {
        let all = Permissions {
            manage: vec![Manage::ViewPlugins, Manage::ReadLogs],
            ..Permissions::default()
        };
        let one = Permissions {
            manage: vec![Manage::ReadLogs],
            ..Permissions::default()
        };
        let effective = Effective {
            granted: vec![all],
            denied: one,
        };
        assert!(effective.manages(Manage::ViewPlugins));
        assert!(!effective.manages(Manage::ReadLogs) && !effective.manages(Manage::ManagePlugins));
    }

    #[test]
    fn who_may_not_read_a_namespace_may_not_write_it() {
        let mut denied = Permissions::default();
        denied.storage.read = vec![pattern("geo")];
        denied.call = vec![CallPermission {
            services: pattern("geo.>"),
            need: Need::Required,
        }];
        let mut granted = Permissions::default();
        granted.storage.write = vec![pattern("*")];
        let effective = Effective {
            granted: vec![granted],
            denied,
        };
        let judge = |action| effective.judge(&lamp(), action);
        assert_eq!(judge(Action::WriteStorage("geo")), Verdict::Denied);
        assert_eq!(judge(Action::WriteStorage("shed")), Verdict::Allowed);
        assert_eq!(judge(Action::Call("geo.lookup")), Verdict::Denied);
    }
}
