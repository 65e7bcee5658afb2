//! What a new configuration means for each plugin: pure, over two lists of manifests.

use std::collections::BTreeMap;

use super::Manifest;
use crate::types::PluginName;

/// How two manifests of one plugin differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// Not at all.
    Nothing,
    /// In what only the core looks at: whether it starts by itself, what it may do and how much of it, and
    /// which values are secret.
    Core,
    /// In its configuration, and perhaps in what only the core looks at.
    Config,
    /// In something that a run is begun with.
    Run,
}

/// What is to be done with a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
    Alter(Difference),
    /// Unchanged, but it waits after a failure: tried now.
    Retry,
}

/// Compares two manifests of one plugin.
pub(super) fn difference(old: &Manifest, new: &Manifest) -> Difference {
    let mut aligned = new.clone();
    if *old == aligned {
        return Difference::Nothing;
    }
    aligned.autostart = old.autostart;
    // Grants act at once, on what runs; but an environment is given at birth.
    if aligned.permissions.env == old.permissions.env {
        aligned.permissions.clone_from(&old.permissions);
    }
    aligned.granted.clone_from(&old.granted);
    aligned.denied.clone_from(&old.denied);
    aligned.quotas = old.quotas;
    aligned.config_secrets.clone_from(&old.config_secrets);
    if *old == aligned {
        return Difference::Core;
    }
    aligned.config.clone_from(&old.config);
    if *old == aligned {
        return Difference::Config;
    }
    Difference::Run
}

/// What is to be done, by plugin; those that are not named stay as they are. `waits`: it waits after
/// a failure.
pub(super) fn changes<'a>(
    old: &BTreeMap<&'a PluginName, &'a Manifest>,
    new: &BTreeMap<PluginName, Manifest>,
    waits: impl Fn(&PluginName) -> bool,
) -> BTreeMap<PluginName, Change> {
    let mut changes = BTreeMap::new();
    for (name, manifest) in new {
        let change = match old.get(name) {
            None => Change::Add,
            Some(old) => match difference(old, manifest) {
                Difference::Nothing if waits(name) => Change::Retry,
                Difference::Nothing => continue,
                difference => Change::Alter(difference),
            },
        };
        changes.insert(name.clone(), change);
    }
    for name in old.keys().filter(|name| !new.contains_key(**name)) {
        changes.insert((*name).clone(), Change::Remove);
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::{Command, Kind, OnLoss, RestartMode};
    use super::*;
    use crate::config::{Manage, Quota};
    use crate::security::Token;

    fn name(text: &str) -> PluginName {
        PluginName::parse(text).expect("a good name")
    }

    fn command(program: &str) -> Kind {
        Kind::Process(Command {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            pass_env: Vec::new(),
            working_dir: "/data".into(),
        })
    }

    fn lamp() -> Manifest {
        Manifest {
            requires: vec![name("devices")],
            ..Manifest::new(name("lamp"), command("/bin/lamp"))
        }
    }

    fn with(alter: impl FnOnce(&mut Manifest)) -> Manifest {
        let mut manifest = lamp();
        alter(&mut manifest);
        manifest
    }

    fn config(manifest: &mut Manifest, port: u16) {
        manifest.config.insert("port".to_owned(), json!(port));
    }

    #[test]
    fn each_field_means_what_the_documentation_says() {
        let seconds = Duration::from_secs;
        let token = || Token::random();
        let table: Vec<(Manifest, Difference)> = vec![
            (lamp(), Difference::Nothing),
            (with(|m| m.autostart = false), Difference::Core),
            (
                with(|m| m.permissions.manage.push(Manage::ReadLogs)),
                Difference::Core,
            ),
            (
                with(|m| m.denied.manage.push(Manage::ReadLogs)),
                Difference::Core,
            ),
            (
                with(|m| m.quotas.set(Quota::CallsPerSecond, 1)),
                Difference::Core,
            ),
            (
                with(|m| m.config_secrets = vec!["/port".to_owned()]),
                Difference::Core,
            ),
            (with(|m| config(m, 1)), Difference::Config),
            (
                with(|m| {
                    config(m, 1);
                    m.autostart = false;
                }),
                Difference::Config,
            ),
            (with(|m| m.kind = command("/bin/other")), Difference::Run),
            (
                with(|m| {
                    m.kind = Kind::Remote {
                        token: Some(token()),
                    }
                }),
                Difference::Run,
            ),
            (with(|m| m.kind = Kind::Embedded), Difference::Run),
            (with(|m| m.version = "2".to_owned()), Difference::Run),
            (with(|m| m.description = "x".to_owned()), Difference::Run),
            (with(|m| m.requires.clear()), Difference::Run),
            (with(|m| m.wants.push(name("sun"))), Difference::Run),
            (
                with(|m| {
                    m.on_loss.insert(name("devices"), OnLoss::Stop);
                }),
                Difference::Run,
            ),
            (
                with(|m| m.restart.mode = RestartMode::Never),
                Difference::Run,
            ),
            (with(|m| m.timeouts.stop = seconds(1)), Difference::Run),
            (
                with(|m| m.permissions.env.push("X".to_owned())),
                Difference::Run,
            ),
            (
                with(|m| {
                    config(m, 1);
                    m.version = "2".to_owned();
                }),
                Difference::Run,
            ),
        ];
        for (new, expected) in table {
            assert_eq!(difference(&lamp(), &new), expected, "{new:?}");
        }
    }

    #[test]
    fn another_token_is_another_run() {
        let remote = |token: &Token| {
            let token = token.clone();
            Manifest::new(name("lamp"), Kind::Remote { token: Some(token) })
        };
        let (one, two) = (Token::random(), Token::random());
        assert_eq!(
            difference(&remote(&one), &remote(&one)),
            Difference::Nothing
        );
        assert_eq!(difference(&remote(&one), &remote(&two)), Difference::Run);
    }

    #[test]
    fn lists_are_compared_by_name() {
        let bare = |text: &str| Manifest::new(name(text), Kind::Embedded);
        let list = |names: &[&str]| -> BTreeMap<PluginName, Manifest> {
            names.iter().map(|text| (name(text), bare(text))).collect()
        };
        let old = list(&["gone", "same", "altered", "failed", "failed_altered"]);
        let mut new = list(&["same", "altered", "failed", "failed_altered", "fresh"]);
        for text in ["altered", "failed_altered"] {
            new.get_mut(text).expect("there").autostart = false;
        }
        let old = old.iter().collect();
        let found = changes(&old, &new, |name| name.as_str().starts_with("failed"));
        let found: Vec<_> = found
            .iter()
            .map(|(name, change)| (name.as_str(), *change))
            .collect();
        let altered = Change::Alter(Difference::Core);
        assert_eq!(
            found,
            [
                ("altered", altered),
                ("failed", Change::Retry),
                ("failed_altered", altered),
                ("fresh", Change::Add),
                ("gone", Change::Remove),
            ]
        );
        assert!(changes(&BTreeMap::new(), &BTreeMap::new(), |_| true).is_empty());
    }
}
