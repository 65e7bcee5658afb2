//! Which plugins `--all` means, and in which order they have their turn. Pure.

use std::collections::BTreeSet;

use core_proto::v1::{PluginInfo, PluginState};

use super::Change;

/// The names of those that a change of all is for: a restart for those that are wanted started, loading
/// for those that are wanted unloaded, everything else for those that are wanted or there. What others
/// require comes first, except where runs end for good.
pub(super) fn concerned(change: Change, plugins: &[PluginInfo]) -> Vec<String> {
    let wanted = |info: &PluginInfo| match change {
        Change::Restart => info.desired() == PluginState::Started,
        Change::Load => info.desired() == PluginState::Unloaded,
        Change::Start | Change::Stop | Change::Unload => {
            info.desired() != PluginState::Unloaded || info.state() != PluginState::Unloaded
        }
    };
    let mut names: Vec<_> = by_dependency(plugins)
        .into_iter()
        .filter(|info| wanted(info))
        .map(|info| info.name.clone())
        .collect();
    if let Change::Stop | Change::Unload = change {
        names.reverse();
    }
    names
}

/// What is required before what requires it. A circle is broken at its first plugin.
fn by_dependency(plugins: &[PluginInfo]) -> Vec<&PluginInfo> {
    let mut left: Vec<_> = plugins.iter().collect();
    let mut open: BTreeSet<_> = plugins.iter().map(|info| info.name.as_str()).collect();
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let free = |info: &&PluginInfo| {
            let mut requires = info.requires.iter();
            !requires.any(|name| open.contains(name.as_str()))
        };
        let next = left.remove(left.iter().position(free).unwrap_or(0));
        open.remove(next.name.as_str());
        ordered.push(next);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &str, desired: PluginState, requires: &[&str]) -> PluginInfo {
        PluginInfo {
            name: name.to_owned(),
            state: desired.into(),
            desired: desired.into(),
            requires: requires.iter().map(ToString::to_string).collect(),
            ..PluginInfo::default()
        }
    }

    #[test]
    fn all_are_those_concerned_in_order_of_their_dependencies() {
        use PluginState::{Started, Stopped, Unloaded};
        let failing = PluginInfo {
            state: Unloaded.into(),
            ..plugin("failing", Started, &["radio", "elsewhere"])
        };
        let plugins = [
            plugin("automation", Started, &["devices"]),
            plugin("devices", Started, &["radio"]),
            failing,
            plugin("idle", Unloaded, &[]),
            plugin("radio", Started, &[]),
            plugin("still", Stopped, &[]),
        ];
        assert_eq!(
            concerned(Change::Restart, &plugins),
            ["radio", "devices", "automation", "failing"]
        );
        assert_eq!(concerned(Change::Load, &plugins), ["idle"]);
        assert_eq!(
            concerned(Change::Unload, &plugins),
            ["still", "failing", "automation", "devices", "radio"]
        );
    }

    #[test]
    fn a_circle_has_an_end() {
        use PluginState::Started;
        let plugins = [
            plugin("a", Started, &["b"]),
            plugin("b", Started, &["a"]),
            plugin("c", Started, &["c"]),
        ];
        assert_eq!(concerned(Change::Restart, &plugins), ["a", "b", "c"]);
    }
}
