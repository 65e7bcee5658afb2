//! The effective configuration as it is shown: every setting, its value, and who set it. It is TOML
//! that reads back as the same, but for what an environment variable put into a plugin's own
//! configuration: that may be a secret and is never shown.

use std::fmt;

use super::error::Origin;
use super::shape::join;
use super::tree::{Data, Node, Reference, Table};
use super::units;

/// Stands where a value is not shown.
pub(crate) const REDACTED: &str = "[redacted]";

/// Every setting in force with its origin. `Display` is the output of `core-server check-config`.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    settings: Vec<Setting>,
}

/// One setting as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its dotted name: "listen.tcp".
    pub name: String,
    /// Its value in TOML; secrets are not in it.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

impl Origins {
    /// What a checked table says.
    pub(super) fn of(table: &Table) -> Self {
        let mut settings = Vec::new();
        collect(table, "", &mut settings);
        // Plain settings before sections, as in a file written by hand.
        settings.sort_by_key(|setting| setting.name.contains('.'));
        Self { settings }
    }

    /// The settings, in the order shown.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Who set a setting, by its dotted name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Origin> {
        let setting = self.settings.iter().find(|setting| setting.name == name)?;
        Some(&setting.origin)
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Comments begin here, unless the setting is longer.
        const COLUMN: usize = 56;
        for Setting {
            name,
            value,
            origin,
        } in &self.settings
        {
            let setting = format!("{name} = {value}");
            writeln!(formatter, "{setting:COLUMN$}  # {origin}")?;
        }
        Ok(())
    }
}

fn collect(table: &Table, path: &str, settings: &mut Vec<Setting>) {
    for (key, entry) in table {
        let name = join(path, &show_key(key));
        match &entry.node.data {
            Data::Table(table) => collect(table, &name, settings),
            Data::Invalid => {}
            data => settings.push(Setting {
                name,
                value: show(data),
                origin: entry.node.origin.clone(),
            }),
        }
    }
}

fn show(data: &Data) -> String {
    match data {
        Data::Switch(switch) => switch.to_string(),
        Data::Integer(integer) => integer.to_string(),
        Data::Float(float) => toml::Value::Float(*float).to_string(),
        Data::Text(text) | Data::Unread(text) => quote(text),
        Data::Time(time) => quote(&units::show_duration(*time)),
        Data::Size(bytes) => quote(&units::show_size(*bytes)),
        Data::Path(path) => quote(&path.to_string_lossy()),
        Data::List(items) => {
            let items: Vec<_> = items.iter().map(|Node { data, .. }| show(data)).collect();
            format!("[{}]", items.join(", "))
        }
        Data::Table(table) => {
            let members: Vec<_> = table
                .iter()
                .map(|(key, entry)| format!("{} = {}", show_key(key), show(&entry.node.data)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
        Data::Secret(Reference::File(path)) => {
            format!("{{ file = {} }}", quote(&path.to_string_lossy()))
        }
        Data::Secret(Reference::Environment(name)) => format!("{{ env = {} }}", quote(name)),
        Data::Concealed(_) | Data::Invalid => quote(REDACTED),
    }
}

/// One line, whatever is in it: the library would spread line breaks over several.
fn quote(text: &str) -> String {
    if text.contains(['\n', '\r']) {
        return serde_json::Value::from(text).to_string();
    }
    toml::Value::from(text).to_string()
}

fn show_key(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(bare) {
        key.to_owned()
    } else {
        quote(key)
    }
}
