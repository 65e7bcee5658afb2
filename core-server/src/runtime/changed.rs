//! What differs between two configurations, by the names of settings, for the audit log: pure. Never a value.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Quota, Quotas};
use crate::plugin_manager::{Kind, Manifest};
use crate::types::PluginName;

/// Longest text of one record. Beyond it the rest is counted.
const MAX_CHARS: usize = 4_000;

/// The keys that differ: "quotas.calls_per_second", "plugins.lamp.config.port", "plugins.lamp (added)". In order.
pub(super) fn changed(before: (&[Manifest], Quotas), after: (&[Manifest], Quotas)) -> Vec<String> {
    let mut keys = Vec::new();
    for quota in Quota::ALL {
        if before.1.limit(quota) != after.1.limit(quota) {
            keys.push(format!("quotas.{}", quota.key()));
        }
    }
    let (before, after) = (by_name(before.0), by_name(after.0));
    let names: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
    for name in names {
        match (before.get(name), after.get(name)) {
            (None, _) => keys.push(format!("plugins.{name} (added)")),
            (_, None) => keys.push(format!("plugins.{name} (removed)")),
            (Some(before), Some(after)) => {
                let own = of_plugin(before, after).into_iter();
                keys.extend(own.map(|key| format!("plugins.{name}.{key}")));
            }
        }
    }
    keys
}

fn by_name(manifests: &[Manifest]) -> BTreeMap<&PluginName, &Manifest> {
    manifests.iter().map(|one| (&one.name, one)).collect()
}

fn of_plugin(before: &Manifest, after: &Manifest) -> Vec<String> {
    // Taken apart, so that a new setting is not forgotten here.
    let Manifest {
        name: _,
        version,
        description,
        kind,
        autostart,
        requires,
        wants,
        on_loss,
        restart,
        timeouts,
        limits,
        sandbox,
        permissions,
        granted,
        denied,
        quotas,
        config,
        // Where secrets stand changes with what stands there.
        config_secrets: _,
    } = before;
    let kind_key = match (kind, &after.kind) {
        (Kind::Remote { .. }, Kind::Remote { .. }) => "token",
        _ => "run",
    };
    let fields = [
        ("version", *version == after.version),
        ("description", *description == after.description),
        (kind_key, *kind == after.kind),
        ("autostart", *autostart == after.autostart),
        ("requires", *requires == after.requires),
        ("wants", *wants == after.wants),
        ("on_loss", *on_loss == after.on_loss),
        ("restart", *restart == after.restart),
        ("timeouts", *timeouts == after.timeouts),
        ("limits", *limits == after.limits),
        ("sandbox", *sandbox == after.sandbox),
        ("permissions", *permissions == after.permissions),
        ("grants", *granted == after.granted),
        ("deny", *denied == after.denied),
        ("quotas", *quotas == after.quotas),
    ];
    let differing = fields.iter().filter(|(_, same)| !same);
    let mut keys: Vec<_> = differing.map(|(key, _)| (*key).to_owned()).collect();
    let in_config: BTreeSet<_> = config.keys().chain(after.config.keys()).collect();
    let differing = in_config
        .into_iter()
        .filter(|key| config.get(*key) != after.config.get(*key));
    keys.extend(differing.map(|key| format!("config.{key}")));
    keys
}

/// One text of names, as long as a record may be.
pub(super) fn listed(names: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        if text.len() + name.len() > MAX_CHARS {
            return format!("{text} and {} more", names.len() - index);
        }
        if index > 0 {
            text.push_str(", ");
        }
        text.push_str(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::security::Token;

    fn manifest(name: &str) -> Manifest {
        let name = PluginName::parse(name).expect("a good name");
        Manifest::new(name, Kind::Remote { token: None })
    }

    #[test]
    fn what_differs_is_named_by_its_key_and_no_value_is() {
        let quotas = Quotas::default();
        let old = [manifest("lamp"), manifest("gone"), manifest("same")];
        assert_eq!(changed((&old, quotas), (&old, quotas)), [""; 0]);
        let mut lamp = manifest("lamp");
        let secret = "a secret that nobody may read";
        let token = Token::from_text(secret);
        lamp.kind = Kind::Remote { token };
        lamp.config.insert("password".to_owned(), json!(secret));
        lamp.autostart = false;
        let mut fewer = quotas;
        fewer.set(Quota::CallsPerSecond, 7);
        let new = [manifest("new"), lamp, manifest("same")];
        let keys = changed((&old, quotas), (&new, fewer));
        let expected = [
            "quotas.calls_per_second",
            "plugins.gone (removed)",
            "plugins.lamp.token",
            "plugins.lamp.autostart",
            "plugins.lamp.config.password",
            "plugins.new (added)",
        ];
        assert_eq!(keys, expected);
        assert!(!listed(&keys).contains(secret));
    }

    #[test]
    fn what_is_too_much_for_one_line_is_counted() {
        let names: Vec<_> = (0..1_000)
            .map(|index| format!("plugins.p{index}.config"))
            .collect();
        let text = listed(&names);
        assert!(
            text.len() < MAX_CHARS + 100 && text.ends_with(" more"),
            "{text}"
        );
        assert_eq!(listed(&names[..2]), "plugins.p0.config, plugins.p1.config");
    }
}
