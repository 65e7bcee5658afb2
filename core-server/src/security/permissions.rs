//! What a principal may use: the table principal x RPC, and a plugin's own area plus what its
//! manifest was granted. Pure.

use super::identity::Principal;
use crate::config::{Act, Manage, Permission, quoted};
use crate::error::{Classify, ErrorKind, Reason};
use crate::types::{Pattern, PluginName};

/// Whether a plugin needs a live run for an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A live channel, named or meant.
    Run,
    /// Only a valid credential.
    Credential,
    /// A certificate, though it may have expired a while ago.
    Certificate,
}

/// The rule of one RPC.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// "package.Service/Method", or "package.Service/*".
    pub method: &'static str,
    anonymous: bool,
    plugin: Option<Needs>,
    operator: bool,
}

const fn rule(
    method: &'static str,
    anonymous: bool,
    plugin: Option<Needs>,
    operator: bool,
) -> Rule {
    Rule {
        method,
        anonymous,
        plugin,
        operator,
    }
}

const NEEDS_RUN: Option<Needs> = Some(Needs::Run);
const NEEDS_CREDENTIAL: Option<Needs> = Some(Needs::Credential);

/// Every RPC has exactly one row. A test reads the contract and names what is missing.
pub const RULES: &[Rule] = &[
    //    method                                       anonymous  plugin            operator
    rule("grpc.health.v1.Health/*", true, NEEDS_CREDENTIAL, true),
    rule(
        "grpc.reflection.v1.ServerReflection/*",
        false,
        NEEDS_CREDENTIAL,
        true,
    ),
    rule(
        "coreruntime.v1.PluginChannel/Open",
        false,
        NEEDS_CREDENTIAL,
        false,
    ),
    rule("coreruntime.v1.EventBus/*", false, NEEDS_RUN, true),
    rule(
        "coreruntime.v1.ServiceRegistry/Register",
        false,
        NEEDS_RUN,
        false,
    ),
    rule(
        "coreruntime.v1.ServiceRegistry/Unregister",
        false,
        NEEDS_RUN,
        false,
    ),
    rule(
        "coreruntime.v1.ServiceRegistry/Call",
        false,
        NEEDS_RUN,
        true,
    ),
    rule(
        "coreruntime.v1.ServiceRegistry/List",
        false,
        NEEDS_RUN,
        true,
    ),
    rule(
        "coreruntime.v1.ServiceRegistry/Describe",
        false,
        NEEDS_RUN,
        true,
    ),
    rule(
        "coreruntime.v1.ServiceRegistry/Watch",
        false,
        NEEDS_RUN,
        true,
    ),
    rule("coreruntime.v1.StateEngine/*", false, NEEDS_RUN, true),
    rule("coreruntime.v1.Storage/*", false, NEEDS_RUN, true),
    rule("coreruntime.v1.StorageAdmin/*", false, None, true),
    rule("coreruntime.v1.PluginManager/Get", false, NEEDS_RUN, true),
    rule("coreruntime.v1.PluginManager/List", false, None, true),
    rule("coreruntime.v1.PluginManager/Load", false, None, true),
    rule("coreruntime.v1.PluginManager/Start", false, None, true),
    rule("coreruntime.v1.PluginManager/Stop", false, None, true),
    rule("coreruntime.v1.PluginManager/Unload", false, None, true),
    rule("coreruntime.v1.PluginManager/Restart", false, None, true),
    rule("coreruntime.v1.PluginManager/StartAll", false, None, true),
    rule("coreruntime.v1.PluginManager/StopAll", false, None, true),
    rule("coreruntime.v1.PluginManager/Watch", false, None, true),
    rule("coreruntime.v1.PluginManager/Logs", false, None, true),
    rule("coreruntime.v1.PluginManager/Reload", false, None, true),
    rule("coreruntime.v1.PluginManager/Upgrade", false, None, true),
    rule(
        "coreruntime.v1.PluginManager/PushLogs",
        false,
        NEEDS_RUN,
        false,
    ),
    rule(
        "coreruntime.v1.PluginManager/SetLogLevel",
        false,
        None,
        true,
    ),
    rule(
        "coreruntime.v1.Introspection/GetInfo",
        false,
        NEEDS_RUN,
        true,
    ),
    rule("coreruntime.v1.Introspection/GetStats", false, None, true),
    rule("coreruntime.v1.Introspection/GetQuotas", false, None, true),
    rule("coreruntime.v1.Access/CreateToken", false, None, true),
    rule("coreruntime.v1.Access/Invite", false, None, true),
    rule("coreruntime.v1.Access/ListCredentials", false, None, true),
    rule("coreruntime.v1.Access/RevokeCredential", false, None, true),
    rule("coreruntime.v1.Access/Grant", false, None, true),
    rule("coreruntime.v1.Access/Revoke", false, None, true),
    rule("coreruntime.v1.Access/ListPermissions", false, None, true),
    rule(
        "coreruntime.v1.Enrollment/Join",
        true,
        NEEDS_CREDENTIAL,
        true,
    ),
    rule(
        "coreruntime.v1.Enrollment/Renew",
        false,
        Some(Needs::Certificate),
        false,
    ),
];

/// What plugins may use of the core's management, each with the part that it needs.
const MANAGED: &[(&str, Manage)] = &[
    ("coreruntime.v1.PluginManager/List", Manage::ViewPlugins),
    ("coreruntime.v1.PluginManager/Watch", Manage::ViewPlugins),
    ("coreruntime.v1.Introspection/GetStats", Manage::ViewPlugins),
    (
        "coreruntime.v1.Introspection/GetQuotas",
        Manage::ViewPlugins,
    ),
    ("coreruntime.v1.PluginManager/Logs", Manage::ReadLogs),
    ("coreruntime.v1.PluginManager/Load", Manage::ManagePlugins),
    ("coreruntime.v1.PluginManager/Start", Manage::ManagePlugins),
    ("coreruntime.v1.PluginManager/Stop", Manage::ManagePlugins),
    ("coreruntime.v1.PluginManager/Unload", Manage::ManagePlugins),
    (
        "coreruntime.v1.PluginManager/Restart",
        Manage::ManagePlugins,
    ),
    ("coreruntime.v1.StorageAdmin/Backup", Manage::BackUpStorage),
];

/// The part of the management that opens an RPC to a plugin, if one does.
#[must_use]
pub fn part_of(method: &str) -> Option<Manage> {
    let found = MANAGED.iter().find(|(managed, _)| *managed == method);
    found.map(|(_, part)| *part)
}

/// The rule of an RPC, given as "package.Service/Method".
#[must_use]
pub fn rule_of(method: &str) -> Option<&'static Rule> {
    let service = method.split('/').next().unwrap_or_default();
    let is_all = |rule: &Rule| rule.method.strip_suffix("/*") == Some(service);
    RULES
        .iter()
        .find(|rule| rule.method == method || is_all(rule))
}

impl Rule {
    /// Whether anybody may use it without a credential.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.anonymous
    }

    /// Whether a principal may use it, and what it needs.
    #[must_use]
    pub fn allows(&self, principal: Principal) -> Option<Needs> {
        match principal {
            Principal::Anonymous => self.anonymous.then_some(Needs::Credential),
            Principal::Plugin => self.plugin,
            Principal::Operator => self.operator.then_some(Needs::Credential),
        }
    }
}

/// What a plugin wants to do with which resource.
#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    /// Publish on a topic.
    Publish(&'a str),
    /// Subscribe to a pattern of topics.
    Subscribe(&'a Pattern),
    /// Register a service.
    Provide(&'a str),
    /// Call a service.
    Call(&'a str),
    /// Read a state key.
    ReadState(&'a str),
    /// Watch a pattern of state keys.
    WatchState(&'a Pattern),
    /// Write a state key.
    WriteState(&'a str),
    /// Read a storage namespace.
    ReadStorage(&'a str),
    /// Write a storage namespace.
    WriteStorage(&'a str),
}

/// The resource, if only the core may do this with it.
#[must_use]
pub fn reserved(action: Action<'_>) -> Option<&str> {
    let (Action::Publish(name)
    | Action::Provide(name)
    | Action::WriteState(name)
    | Action::WriteStorage(name)) = action
    else {
        return None;
    };
    (name.starts_with('$') || in_core(name)).then_some(name)
}

pub(super) fn in_core(name: &str) -> bool {
    name == "core" || name.starts_with("core.")
}

pub(super) fn owns_namespace(plugin: &PluginName, namespace: &str) -> bool {
    namespace == plugin.as_str() || plugin.owns(namespace)
}

/// Why the use of a resource is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A plugin lacks a grant.
    #[error(transparent)]
    NotGranted(#[from] NotGranted),
    /// Nobody but the core may.
    #[error("\"{resource}\" belongs to the core: nobody else writes under \"core.\" and \"$\"")]
    Reserved {
        /// Which topic, service, key or namespace.
        resource: String,
    },
}

impl Classify for Denied {
    fn kind(&self) -> ErrorKind {
        ErrorKind::PermissionDenied
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NotGranted(error) => error.reason(),
            Self::Reserved { .. } => Reason::NotGranted,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotGranted(error) => error.metadata(),
            Self::Reserved { resource } => vec![("resource", resource.clone())],
        }
    }
}

/// A plugin lacks a grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "plugin \"{plugin}\" may not {action} \"{resource}\": {}", self.advice()
)]
pub struct NotGranted {
    plugin: PluginName,
    action: &'static str,
    resource: String,
    /// As it would stand in a manifest.
    entry: String,
    /// As it would be granted.
    permission: String,
    denied: bool,
}

impl NotGranted {
    /// Who lacks it.
    #[must_use]
    pub fn plugin(&self) -> &PluginName {
        &self.plugin
    }

    /// What to do about it.
    fn advice(&self) -> String {
        let Self {
            plugin,
            entry,
            permission,
            ..
        } = self;
        if self.denied {
            return format!(
                "[plugins.{plugin}.deny] in core.toml denies it; take {entry} out there and run \
                 corectl reload"
            );
        }
        format!(
            "`corectl plugins grant {plugin} {}` grants it; so does {entry} in [permissions] of its \
             plugin.toml (unless the core reviews), or in [plugins.{plugin}.grants] of core.toml, after \
             corectl reload",
            quoted(permission)
        )
    }

    /// The denial of what the operator has denied.
    #[must_use]
    pub fn denied(plugin: &PluginName, action: Action<'_>) -> Self {
        Self {
            denied: true,
            ..Self::new(plugin, action)
        }
    }

    /// The denial of a part of the core's management.
    #[must_use]
    pub fn of_management(plugin: &PluginName, method: &str, part: Manage) -> Self {
        Self {
            plugin: plugin.clone(),
            action: "use",
            resource: method.to_owned(),
            entry: format!("`manage = [\"{}\"]`", part.as_str()),
            permission: format!("manage={}", part.as_str()),
            denied: false,
        }
    }

    /// What was wanted: the verb and the resource.
    #[must_use]
    pub fn subject(&self) -> (&'static str, &str) {
        (self.action, &self.resource)
    }

    /// The denial of an action, with the entry that would allow it.
    #[must_use]
    pub fn new(plugin: &PluginName, action: Action<'_>) -> Self {
        let list = |field: &str, resource: &str| format!("`{field} = [\"{resource}\"]`");
        let table = |field: &str, way: &str, resource: &str| {
            format!("`{field} = {{ {way} = [\"{resource}\"] }}`")
        };
        let (verb, resource, act, entry) = match action {
            Action::Publish(name) => ("publish", name, Act::Publish, list("publish", name)),
            Action::Subscribe(pattern) => (
                "subscribe to",
                pattern.as_str(),
                Act::Subscribe,
                list("subscribe", pattern.as_str()),
            ),
            Action::Provide(name) => ("provide", name, Act::Provide, list("provide", name)),
            Action::Call(name) => ("call", name, Act::Call, list("call", name)),
            Action::ReadState(name) => (
                "read state",
                name,
                Act::ReadState,
                table("state", "read", name),
            ),
            Action::WatchState(pattern) => (
                "watch state",
                pattern.as_str(),
                Act::ReadState,
                table("state", "read", pattern.as_str()),
            ),
            Action::WriteState(name) => (
                "write state",
                name,
                Act::WriteState,
                table("state", "write", name),
            ),
            Action::ReadStorage(name) => (
                "read storage",
                name,
                Act::ReadStorage,
                table("storage", "read", name),
            ),
            Action::WriteStorage(name) => (
                "write storage",
                name,
                Act::WriteStorage,
                table("storage", "write", name),
            ),
        };
        let resource: String = resource.chars().take(300).collect();
        let permission = Permission::parse(act.as_str(), &resource);
        let permission = permission.map_or_else(
            // What breaks a rule of its kind cannot be granted, and is refused for that elsewhere.
            |_| act.as_str().to_owned(),
            |permission| permission.to_string(),
        );
        Self {
            plugin: plugin.clone(),
            action: verb,
            resource,
            entry,
            permission,
            denied: false,
        }
    }
}

impl Classify for NotGranted {
    fn kind(&self) -> ErrorKind {
        ErrorKind::PermissionDenied
    }

    fn reason(&self) -> Reason {
        Reason::NotGranted
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![
            ("plugin", self.plugin.to_string()),
            ("action", self.action.to_owned()),
            ("resource", self.resource.clone()),
            ("permission", self.permission.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallPermission, Need, Permissions, ReadWrite};
    use crate::security::grants::{Effective, Verdict};

    fn lamp() -> PluginName {
        PluginName::parse("lamp").expect("good name")
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("good pattern")
    }

    #[test]
    fn without_grants_a_plugin_has_its_own_area_and_reads_the_cores() {
        let own = [
            pattern("lamp.>"),
            pattern("lamp.on"),
            pattern("core.>"),
            pattern("core.plugin.*"),
        ];
        let foreign = [
            pattern(">"),
            pattern("*.on"),
            pattern("lamps.>"),
            pattern("$core.>"),
            pattern("*"),
        ];
        let nothing = Permissions::default();
        let effective = Effective::from(nothing);
        let allows = |action| effective.judge(&lamp(), action) == Verdict::Allowed;
        for name in ["lamp.a", "lamp.a.b"] {
            assert!(allows(Action::Publish(name)) && allows(Action::Provide(name)));
            assert!(allows(Action::Call(name)) && allows(Action::WriteState(name)));
        }
        for name in ["lamp", "lamps.a", "core.a", "$core.a", "devices.on"] {
            assert!(
                !allows(Action::Publish(name)) && !allows(Action::Provide(name)),
                "{name}"
            );
            assert!(
                !allows(Action::Call(name)) && !allows(Action::WriteState(name)),
                "{name}"
            );
        }
        assert!(
            own.iter()
                .all(|p| allows(Action::Subscribe(p)) && allows(Action::WatchState(p)))
        );
        assert!(
            !foreign
                .iter()
                .any(|p| allows(Action::Subscribe(p)) || allows(Action::WatchState(p)))
        );
        assert!(
            allows(Action::ReadState("core.plugin.x")) && !allows(Action::ReadState("home.mode"))
        );
        for (namespace, expected) in [
            ("lamp", true),
            ("lamp.x", true),
            ("lamps", false),
            ("geo", false),
        ] {
            assert_eq!(
                allows(Action::WriteStorage(namespace)),
                expected,
                "{namespace}"
            );
            assert_eq!(
                allows(Action::ReadStorage(namespace)),
                expected,
                "{namespace}"
            );
        }
    }

    #[test]
    fn grants_open_exactly_what_they_name_and_never_the_cores() {
        let granted = Permissions {
            publish: vec![pattern("device.>"), pattern(">")],
            subscribe: vec![pattern("presence.*")],
            call: vec![CallPermission {
                services: pattern("geo.lookup"),
                need: Need::Required,
            }],
            storage: ReadWrite {
                read: Vec::new(),
                write: vec![pattern("geo")],
            },
            ..Permissions::default()
        };
        let effective = Effective::from(granted);
        let allows = |action| effective.judge(&lamp(), action) == Verdict::Allowed;
        assert!(allows(Action::Publish("device.changed")));
        assert!(!allows(Action::Publish("core.plugin.x")) && !allows(Action::Publish("$core.x")));
        let (left, all) = (pattern("presence.left"), pattern("presence.>"));
        assert!(allows(Action::Subscribe(&left)));
        assert!(!allows(Action::Subscribe(&all)), "wider than granted");
        assert!(allows(Action::Call("geo.lookup")) && !allows(Action::Call("geo.erase")));
        assert!(
            allows(Action::ReadStorage("geo")),
            "writing includes reading"
        );
    }

    #[test]
    fn a_denial_says_what_is_missing_and_where_to_put_it() {
        assert_eq!(
            NotGranted::new(&lamp(), Action::ReadStorage("geo")).to_string(),
            "plugin \"lamp\" may not read storage \"geo\": `corectl plugins grant lamp storage.read=geo` \
             grants it; so does `storage = { read = [\"geo\"] }` in [permissions] of its plugin.toml \
             (unless the core reviews), or in [plugins.lamp.grants] of core.toml, after corectl reload"
        );
    }

    #[test]
    fn rules_are_found_by_method_or_service() {
        let open = rule_of("coreruntime.v1.PluginChannel/Open").expect("there is a rule");
        assert_eq!(open.allows(Principal::Plugin), Some(Needs::Credential));
        assert_eq!(open.allows(Principal::Operator), None);
        assert!(rule_of("grpc.health.v1.Health/Check").is_some_and(Rule::is_open));
        assert!(rule_of("coreruntime.v1.PluginManager/Obliterate").is_none());
    }
}
