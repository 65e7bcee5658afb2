//! One permission as a text, "publish=home.>": what the lists of [`Permissions`] are made of, for those who
//! grant, ask and show one by one. Pure.

use std::fmt;
use std::str::FromStr;

use super::permissions::{CallPermission, Manage, Need, Permissions};
use super::settings::{NAMESPACE_PATTERN, READ_PATTERN, VARIABLE, WRITE_PATTERN};
use crate::error::did_you_mean;
use crate::types::Pattern;

/// Longest resource, as of names and patterns.
const MAX_RESOURCE_BYTES: usize = 255;

/// What may be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// Publish on topics.
    Publish,
    /// Subscribe to topics.
    Subscribe,
    /// Offer services under a foreign prefix.
    Provide,
    /// Call services.
    Call,
    /// Read namespaces.
    ReadStorage,
    /// Write namespaces, which includes reading.
    WriteStorage,
    /// Read state keys.
    ReadState,
    /// Write state keys.
    WriteState,
    /// Use a part of the core's management.
    Manage,
    /// Get an environment variable of the core's own environment.
    Env,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Publish,
        Self::Subscribe,
        Self::Provide,
        Self::Call,
        Self::ReadStorage,
        Self::WriteStorage,
        Self::ReadState,
        Self::WriteState,
        Self::Manage,
        Self::Env,
    ];

    /// The word of `Permission.action`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Provide => "provide",
            Self::Call => "call",
            Self::ReadStorage => "storage.read",
            Self::WriteStorage => "storage.write",
            Self::ReadState => "state.read",
            Self::WriteState => "state.write",
            Self::Manage => "manage",
            Self::Env => "env",
        }
    }
}

/// Why something is no permission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPermission(String);

/// Something that a plugin may do, or asks for. Made of good parts only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permission {
    act: Act,
    resource: String,
}

impl Permission {
    /// Of a word and a resource.
    ///
    /// # Errors
    /// [`BadPermission`]: an unknown word, or a resource that breaks the rule of its kind.
    pub fn parse(action: &str, resource: &str) -> Result<Self, BadPermission> {
        let words = Act::ALL.map(Act::as_str);
        let known = Act::ALL.into_iter().find(|act| act.as_str() == action);
        let act = known.ok_or_else(|| {
            let shown: String = action.chars().take(80).collect();
            let suggestion = did_you_mean(&shown, words);
            BadPermission(format!(
                "\"{shown}\" is none of {}{suggestion}",
                words.join(", ")
            ))
        })?;
        if resource.len() > MAX_RESOURCE_BYTES {
            return Err(BadPermission(format!(
                "what {action} is for has {} bytes, at most {MAX_RESOURCE_BYTES} are allowed",
                resource.len()
            )));
        }
        let checked = match act {
            Act::Publish | Act::Provide | Act::WriteState => (WRITE_PATTERN.check)(resource),
            Act::Subscribe | Act::Call | Act::ReadState => (READ_PATTERN.check)(resource),
            Act::ReadStorage | Act::WriteStorage => (NAMESPACE_PATTERN.check)(resource),
            Act::Env => (VARIABLE.check)(resource),
            Act::Manage if Manage::parse(resource).is_some() => Ok(()),
            Act::Manage => Err(format!(
                "\"{resource}\" is none of {}",
                super::permissions::MANAGE.join(", ")
            )),
        };
        checked.map_err(|why| BadPermission(format!("{action}: {why}")))?;
        Ok(Self {
            act,
            resource: resource.to_owned(),
        })
    }

    fn new(act: Act, resource: impl fmt::Display) -> Self {
        let resource = resource.to_string();
        Self { act, resource }
    }

    /// What may be done.
    #[must_use]
    pub fn act(&self) -> Act {
        self.act
    }

    /// With what.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The resource, where it is a pattern.
    #[must_use]
    pub fn pattern(&self) -> Option<Pattern> {
        match self.act {
            Act::Manage | Act::Env => None,
            _ => Pattern::parse(&self.resource).ok(),
        }
    }
}

/// A permission as one argument of a command line: quoted where a shell would take it apart.
#[must_use]
pub fn quoted(permission: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=".contains(&byte);
    if permission.bytes().all(plain) {
        permission.to_owned()
    } else {
        // No permission holds a quote: the grammars see to it.
        format!("'{permission}'")
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.act.as_str(), self.resource)
    }
}

impl FromStr for Permission {
    type Err = BadPermission;

    fn from_str(text: &str) -> Result<Self, BadPermission> {
        let (action, resource) = text.split_once('=').ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            BadPermission(format!("\"{shown}\": ACTION=RESOURCE is expected"))
        })?;
        Self::parse(action, resource)
    }
}

impl Permissions {
    /// The entries one by one, in order, each once.
    #[must_use]
    pub fn entries(&self) -> Vec<(Permission, Need)> {
        let of = |act: Act, patterns: &[Pattern]| {
            let entries = patterns.iter().map(|pattern| Permission::new(act, pattern));
            entries.collect::<Vec<_>>()
        };
        let required = [
            of(Act::Publish, &self.publish),
            of(Act::Subscribe, &self.subscribe),
            of(Act::Provide, &self.provide),
            of(Act::ReadStorage, &self.storage.read),
            of(Act::WriteStorage, &self.storage.write),
            of(Act::ReadState, &self.state.read),
            of(Act::WriteState, &self.state.write),
        ];
        let manage = self.manage.iter().map(|part| part.as_str());
        let manage = manage.map(|part| Permission::new(Act::Manage, part));
        let env = self.env.iter().map(|name| Permission::new(Act::Env, name));
        let required = required.into_iter().flatten().chain(manage).chain(env);
        let required = required.map(|permission| (permission, Need::Required));
        let calls = self.call.iter().map(|call| {
            let permission = Permission::new(Act::Call, &call.services);
            (permission, call.need)
        });
        let mut entries: Vec<_> = required.chain(calls).collect();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        entries.dedup_by(|one, other| one.0 == other.0);
        entries
    }

    fn add(&mut self, permission: &Permission) {
        let pattern = permission.pattern();
        let list = match permission.act {
            Act::Publish => &mut self.publish,
            Act::Subscribe => &mut self.subscribe,
            Act::Provide => &mut self.provide,
            Act::ReadStorage => &mut self.storage.read,
            Act::WriteStorage => &mut self.storage.write,
            Act::ReadState => &mut self.state.read,
            Act::WriteState => &mut self.state.write,
            Act::Call => {
                let need = Need::Required;
                let call = pattern.map(|services| CallPermission { services, need });
                return self.call.extend(call);
            }
            Act::Manage => return self.manage.extend(Manage::parse(&permission.resource)),
            Act::Env => return self.env.push(permission.resource.clone()),
        };
        list.extend(pattern);
    }
}

impl<'a> FromIterator<&'a Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = &'a Permission>>(entries: I) -> Self {
        let mut permissions = Self::default();
        entries.into_iter().for_each(|entry| permissions.add(entry));
        permissions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_is_written_and_goes_through_the_lists() {
        let texts = [
            "publish=home.>",
            "subscribe=core.plugin.*",
            "provide=geo.lookup",
            "call=geo.*",
            "storage.read=geo",
            "storage.write=geo.cache",
            "state.read=home.mode",
            "state.write=home.mode",
            "manage=logs.read",
            "env=HTTPS_PROXY",
        ];
        let entries: Vec<Permission> = texts.map(|text| text.parse().expect(text)).into();
        let listed: Permissions = entries.iter().collect();
        let again: Vec<_> = listed.entries().into_iter().map(|entry| entry.0).collect();
        assert_eq!(again, entries);
        let shown: Vec<_> = again.iter().map(ToString::to_string).collect();
        assert_eq!(shown, texts);
    }

    #[test]
    fn what_is_no_permission_is_refused_with_its_reason() {
        for (text, expected) in [
            ("publish", "ACTION=RESOURCE"),
            ("publsh=a.b", "did you mean \"publish\""),
            ("publish=core.x", "the core's own"),
            ("publish=a..b", "publish: "),
            ("subscribe=>.a", "last token"),
            ("storage.read=Geo", "lower case"),
            ("manage=all", "plugins.view"),
            ("env=A-B", "environment variable"),
            ("call=", "call: "),
        ] {
            let error = text.parse::<Permission>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let long = format!("publish={}", "a".repeat(256));
        assert!(long.parse::<Permission>().is_err());
    }

    #[test]
    fn wildcards_are_quoted_for_a_shell() {
        assert_eq!(quoted("call=geo.lookup"), "call=geo.lookup");
        assert_eq!(quoted("publish=home.>"), "'publish=home.>'");
    }
}
