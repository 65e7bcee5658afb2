//! What operators have granted to plugins while the core ran: the content of a file of the core's own,
//! `security/grants.json`. Pure: whoever owns it writes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::Permission;
use crate::types::PluginName;

/// Version of the file's form.
const VERSION: u32 = 1;
/// Grants of one plugin, and permissions of one request.
pub const MAX_GRANTS: usize = 1_000;

/// One permission that an operator granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which.
    pub permission: Permission,
    /// Who: "uid 1000", "token 5d41402a (laptop)".
    pub by: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What operators have granted, and which plugins have been let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorGrants {
    by_plugin: BTreeMap<PluginName, Vec<Grant>>,
    /// Plugins that have once had all that they could not do without: a newer version that asks for more
    /// is not made to wait for it.
    let_in: BTreeSet<PluginName>,
}

impl OperatorGrants {
    /// Those of a plugin, in order.
    #[must_use]
    pub fn of(&self, plugin: &PluginName) -> &[Grant] {
        self.by_plugin.get(plugin).map_or(&[], Vec::as_slice)
    }

    /// Adds grants; those that are new, in order.
    ///
    /// # Errors
    /// [`Full`]: there would be too many; nothing was added.
    pub fn give(
        &mut self,
        plugin: &PluginName,
        permissions: impl IntoIterator<Item = Permission>,
        by: &str,
        at: u64,
    ) -> Result<Vec<Permission>, Full> {
        let held = self.of(plugin);
        let new: BTreeSet<_> = permissions
            .into_iter()
            .filter(|new| held.iter().all(|grant| grant.permission != *new))
            .collect();
        if held.len() + new.len() > MAX_GRANTS {
            return Err(Full);
        }
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let held = self.by_plugin.entry(plugin.clone()).or_default();
        held.extend(new.iter().map(|permission| Grant {
            permission: permission.clone(),
            by: by.to_owned(),
            at,
        }));
        held.sort_by(|one, other| one.permission.cmp(&other.permission));
        Ok(new.into_iter().collect())
    }

    /// Takes grants back, all if none is named; those that there were. The plugin counts as not let in.
    pub fn take(&mut self, plugin: &PluginName, permissions: &[Permission]) -> Vec<Permission> {
        self.let_in.remove(plugin);
        let held = self.by_plugin.remove(plugin).unwrap_or_default();
        let is_taken =
            |grant: &Grant| permissions.is_empty() || permissions.contains(&grant.permission);
        let (taken, left): (Vec<_>, Vec<_>) = held.into_iter().partition(is_taken);
        if !left.is_empty() {
            self.by_plugin.insert(plugin.clone(), left);
        }
        taken.into_iter().map(|grant| grant.permission).collect()
    }

    /// Whether a plugin has once had all that it could not do without.
    #[must_use]
    pub fn is_let_in(&self, plugin: &PluginName) -> bool {
        self.let_in.contains(plugin)
    }

    /// Notes that it has; `true`: that is news.
    pub fn let_in(&mut self, plugin: &PluginName) -> bool {
        self.let_in.insert(plugin.clone())
    }

    /// Forgets all of a plugin that is known no more; `true`: there was something.
    pub fn forget(&mut self, plugin: &PluginName) -> bool {
        let had = self.let_in.remove(plugin);
        self.by_plugin.remove(plugin).is_some() || had
    }

    /// As a text, for the file.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let mut plugins: BTreeMap<String, OnePlugin> = BTreeMap::new();
        for (plugin, grants) in &self.by_plugin {
            let grants = grants.iter().map(|grant| OneGrant {
                permission: grant.permission.to_string(),
                by: grant.by.clone(),
                at: grant.at,
            });
            plugins.entry(plugin.to_string()).or_default().grants = grants.collect();
        }
        for plugin in &self.let_in {
            plugins.entry(plugin.to_string()).or_default().let_in = true;
        }
        let version = VERSION;
        serde_json::to_vec_pretty(&Content { version, plugins }).unwrap_or_default()
    }

    /// Out of the text of the file.
    ///
    /// # Errors
    /// What of it is not what the core wrote, for people.
    pub fn from_text(text: &[u8]) -> Result<Self, String> {
        let content: Content = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if content.version != VERSION {
            return Err(format!(
                "its version is {}, this core knows {VERSION}",
                content.version
            ));
        }
        let mut all = Self::default();
        for (name, one) in content.plugins {
            let plugin = PluginName::parse(&name).map_err(|error| error.to_string())?;
            if one.let_in {
                all.let_in.insert(plugin.clone());
            }
            for OneGrant { permission, by, at } in one.grants {
                let permission: Permission = permission
                    .parse()
                    .map_err(|error| format!("plugin \"{plugin}\": {error}"))?;
                all.give(&plugin, [permission], &by, at)
                    .map_err(|Full| format!("plugin \"{plugin}\" has too many grants"))?;
            }
        }
        Ok(all)
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    plugins: BTreeMap<String, OnePlugin>,
}

#[derive(Default, Serialize, Deserialize)]
struct OnePlugin {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    let_in: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grants: Vec<OneGrant>,
}

#[derive(Serialize, Deserialize)]
struct OneGrant {
    permission: String,
    by: String,
    at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PluginName {
        PluginName::parse(text).expect("good name")
    }

    fn permissions(texts: &[&str]) -> Vec<Permission> {
        texts
            .iter()
            .map(|text| text.parse().expect("good"))
            .collect()
    }

    #[test]
    fn grants_are_given_and_taken_once_and_outlive_the_core() {
        let (lamp, mut grants) = (name("lamp"), OperatorGrants::default());
        let two = permissions(&["publish=b.x", "publish=a.x"]);
        let given = grants.give(&lamp, two.clone(), "uid 7", 5).expect("room");
        assert_eq!(given, permissions(&["publish=a.x", "publish=b.x"]));
        let again = grants.give(&lamp, two, "uid 8", 6).expect("room");
        assert_eq!(again, [], "whoever granted it first is named");
        assert!(grants.let_in(&lamp) && !grants.let_in(&lamp));
        grants.let_in(&name("door"));
        let kept = OperatorGrants::from_text(&grants.to_text());
        assert_eq!(kept.as_ref(), Ok(&grants));
        let one = permissions(&["publish=a.x", "publish=c.x"]);
        assert_eq!(
            grants.take(&lamp, &one),
            permissions(&["publish=a.x"]),
            "what there was"
        );
        assert!(!grants.is_let_in(&lamp) && grants.is_let_in(&name("door")));
        assert_eq!(grants.take(&lamp, &[]), permissions(&["publish=b.x"]));
        assert_eq!(grants.of(&lamp), []);
        assert!(grants.forget(&name("door")) && !grants.forget(&lamp));
        assert_eq!(grants, OperatorGrants::default());
    }

    #[test]
    fn a_plugin_has_a_thousand_at_most() {
        let (lamp, mut grants) = (name("lamp"), OperatorGrants::default());
        let many = |count: usize| {
            let texts = (0..count).map(|number| format!("publish=a.x{number}"));
            texts
                .map(|text| text.parse().expect("good"))
                .collect::<Vec<Permission>>()
        };
        assert_eq!(grants.give(&lamp, many(MAX_GRANTS + 1), "", 0), Err(Full));
        grants.give(&lamp, many(MAX_GRANTS), "", 0).expect("room");
        let one = permissions(&["publish=b.x"]);
        assert_eq!(grants.give(&lamp, one, "", 0), Err(Full));
        assert_eq!(grants.of(&lamp).len(), MAX_GRANTS);
    }

    #[test]
    fn what_the_core_did_not_write_is_told() {
        for (text, expected) in [
            ("", "EOF"),
            (r#"{"version": 2, "plugins": {}}"#, "version is 2"),
            (
                r#"{"version": 1, "plugins": {"lamp": {"grants": [{"permission": "x", "by": "", "at": 1}]}}}"#,
                "ACTION=RESOURCE",
            ),
        ] {
            let error = OperatorGrants::from_text(text.as_bytes()).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }
}
