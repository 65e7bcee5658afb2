//! `corectl plugins permissions`, `grant`, `revoke`: what a plugin may do beyond its own area.

use clap::Subcommand;
use core_proto::v1::{
    AccessGrantRequest, AccessListPermissionsRequest, AccessRevokeRequest, Permission,
    PermissionInfo,
};
use serde::Serialize;

use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::output::{Cell, Form, Output, Table, Tone, note};
use crate::time;

/// The commands of `corectl plugins` about permissions.
#[derive(Debug, Subcommand)]
pub(crate) enum PermissionsCommand {
    /// Show what a plugin asks for, what it is granted and by whom, and what is missing.
    Permissions {
        /// The plugin.
        name: String,
    },
    /// Grant a plugin what it asks for, or what is named; takes effect at once.
    ///
    /// ACTION is publish, subscribe, provide, call, storage.read, storage.write, state.read,
    /// state.write, manage or env; RESOURCE a topic, service, key or namespace, or a pattern of them:
    /// * is one token, > the rest.
    Grant {
        /// The plugin.
        name: String,
        /// What to grant: publish=home.scene. All that it asks for if none is given.
        #[arg(value_name = "ACTION=RESOURCE", value_parser = parse)]
        what: Vec<Permission>,
    },
    /// Take back what operators have granted; takes effect at once.
    ///
    /// What its manifest or the configuration grants stays.
    Revoke {
        /// The plugin.
        name: String,
        /// What to take back, as it was granted. All if none is given.
        #[arg(value_name = "ACTION=RESOURCE", value_parser = parse)]
        what: Vec<Permission>,
    },
}

/// Runs one of them.
pub(super) async fn run(
    core: &Core,
    command: &PermissionsCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        PermissionsCommand::Permissions { name } => show(core, name, output).await,
        PermissionsCommand::Grant { name, what } => grant(core, name, what, output).await,
        PermissionsCommand::Revoke { name, what } => revoke(core, name, what, output).await,
    }
}

/// The JSON shape of one permission.
#[derive(Debug, Serialize)]
struct PermissionView {
    permission: String,
    action: String,
    resource: String,
    asked: bool,
    optional: bool,
    status: &'static str,
    granted_by: Vec<String>,
    granted_at: Option<String>,
}

impl From<PermissionInfo> for PermissionView {
    fn from(info: PermissionInfo) -> Self {
        let status = status(&info);
        let permission = info.permission.unwrap_or_default();
        Self {
            permission: text(&permission),
            action: permission.action,
            resource: permission.resource,
            asked: info.asked,
            optional: permission.optional,
            status,
            granted_by: info.granted_by,
            granted_at: time::rfc3339(info.granted_at.as_ref()),
        }
    }
}

/// The JSON shape of a plugin's permissions, and of what became of them.
#[derive(Debug, Serialize)]
struct PermissionsView {
    plugin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    granted: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<Vec<String>>,
    permissions: Vec<PermissionView>,
}

/// Reads "publish=home.>". The core judges the parts.
pub(crate) fn parse(argument: &str) -> Result<Permission, String> {
    match argument.split_once('=') {
        Some((action, resource)) if !action.is_empty() && !resource.is_empty() => Ok(Permission {
            action: action.to_owned(),
            resource: resource.to_owned(),
            optional: false,
        }),
        _ => Err(format!(
            "ACTION=RESOURCE is expected, such as publish=home.scene; not {argument:?}"
        )),
    }
}

fn text(permission: &Permission) -> String {
    format!("{}={}", permission.action, permission.resource)
}

fn texts(permissions: &[Permission]) -> Vec<String> {
    permissions.iter().map(text).collect()
}

/// How one stands, in a word or two.
fn status(info: &PermissionInfo) -> &'static str {
    let optional = info.permission.as_ref().is_some_and(|it| it.optional);
    match info {
        _ if info.denied => "denied",
        _ if !info.granted_by.is_empty() => "granted",
        _ if info.asked && !optional => "missing",
        _ => "not granted",
    }
}

async fn listed(core: &Core, name: &str) -> Result<Vec<PermissionInfo>, Failure> {
    let mut client = core.access();
    let plugin = name.to_owned();
    let question = AccessListPermissionsRequest { plugin };
    let listed = core.ask(name, UNARY_TIMEOUT, question, |request| {
        client.list_permissions(request)
    });
    match listed.await {
        Ok(listed) => Ok(listed.permissions),
        Err(failure) => Err(super::explained(core, name, failure).await),
    }
}

/// `corectl plugins permissions NAME`.
async fn show(core: &Core, name: &str, output: &mut Output) -> Result<(), Failure> {
    let permissions = listed(core, name).await?;
    match output.form() {
        Form::Json => output.json(&PermissionsView {
            plugin: name.to_owned(),
            granted: None,
            revoked: None,
            permissions: permissions.into_iter().map(Into::into).collect(),
        }),
        Form::Quiet => permissions
            .iter()
            .filter_map(|info| info.permission.as_ref())
            .try_for_each(|permission| output.line(&text(permission))),
        Form::Table => {
            let mut table = Table::new(["PERMISSION", "ASKED", "STATUS", "BY"]);
            for info in &permissions {
                let permission = info.permission.clone().unwrap_or_default();
                let asked = match (info.asked, permission.optional) {
                    (false, _) => "",
                    (true, false) => "yes",
                    (true, true) => "optional",
                };
                let status = status(info);
                let tone = match status {
                    "granted" => Tone::Good,
                    "missing" => Tone::Waiting,
                    "denied" => Tone::Bad,
                    _ => Tone::Plain,
                };
                let by = match status {
                    "denied" => "configuration".to_owned(),
                    _ => info.granted_by.join(", "),
                };
                table.row([
                    Cell::from(text(&permission)),
                    Cell::from(asked),
                    Cell::new(status, tone),
                    Cell::from(by),
                ]);
            }
            output.table(&table, "it has its own area and asks for nothing beyond")?;
            output.flush()?;
            if permissions.iter().any(|info| status(info) == "missing") {
                note(&format!(
                    "`corectl plugins grant {name}` grants all that is asked for"
                ));
            }
            Ok(())
        }
    }
}

/// What `describe` says of them. Best effort: whoever may not ask for them sees the rest.
pub(super) async fn add_facts(core: &Core, name: &str, table: &mut Table) {
    let permissions = listed(core, name).await.unwrap_or_default();
    for word in ["granted", "denied", "missing"] {
        let own = |info: &PermissionInfo| info.granted_by.iter().any(|who| who == "own area");
        let texts: Vec<_> = permissions
            .iter()
            .filter(|info| status(info) == word && !own(info))
            .filter_map(|info| info.permission.as_ref())
            .map(text)
            .collect();
        if !texts.is_empty() {
            table.fact(word, texts.join(", "));
        }
    }
}

/// `corectl plugins grant NAME [ACTION=RESOURCE…]`.
async fn grant(
    core: &Core,
    name: &str,
    named: &[Permission],
    output: &mut Output,
) -> Result<(), Failure> {
    let permissions = match named {
        // What is granted is what is shown now, not what the plugin may ask for a moment later.
        [] => listed(core, name)
            .await?
            .into_iter()
            .filter(|info| info.asked && matches!(status(info), "missing" | "not granted"))
            .filter_map(|info| info.permission)
            .collect(),
        named => named.to_vec(),
    };
    if permissions.is_empty() {
        return done(
            name,
            Done::Granted(Vec::new()),
            listed(core, name).await?,
            output,
        );
    }
    let mut client = core.access();
    let plugin = name.to_owned();
    let question = AccessGrantRequest {
        plugin,
        permissions,
    };
    let granted = core.ask(name, UNARY_TIMEOUT, question, |request| {
        client.grant(request)
    });
    match granted.await {
        Ok(granted) => {
            let texts = texts(&granted.granted);
            done(name, Done::Granted(texts), granted.permissions, output)
        }
        Err(failure) => Err(super::explained(core, name, failure).await),
    }
}

/// `corectl plugins revoke NAME [ACTION=RESOURCE…]`.
async fn revoke(
    core: &Core,
    name: &str,
    named: &[Permission],
    output: &mut Output,
) -> Result<(), Failure> {
    let mut client = core.access();
    let question = AccessRevokeRequest {
        plugin: name.to_owned(),
        permissions: named.to_vec(),
    };
    let revoked = core.ask(name, UNARY_TIMEOUT, question, |request| {
        client.revoke(request)
    });
    match revoked.await {
        Ok(revoked) => {
            let texts = texts(&revoked.revoked);
            done(name, Done::Revoked(texts), revoked.permissions, output)
        }
        Err(failure) => Err(super::explained(core, name, failure).await),
    }
}

/// What was done: each permission, as text.
enum Done {
    Granted(Vec<String>),
    Revoked(Vec<String>),
}

fn done(
    name: &str,
    done: Done,
    permissions: Vec<PermissionInfo>,
    output: &mut Output,
) -> Result<(), Failure> {
    let (word, changed, nothing) = match &done {
        Done::Granted(changed) => ("granted", changed, "nothing new was granted"),
        Done::Revoked(changed) => ("revoked", changed, "no operator had granted that"),
    };
    match output.form() {
        Form::Json => {
            let permissions = permissions.into_iter().map(Into::into).collect();
            let (granted, revoked) = match done {
                Done::Granted(changed) => (Some(changed), None),
                Done::Revoked(changed) => (None, Some(changed)),
            };
            return output.json(&PermissionsView {
                plugin: name.to_owned(),
                granted,
                revoked,
                permissions,
            });
        }
        Form::Quiet => changed.iter().try_for_each(|text| output.line(text))?,
        Form::Table => {
            for text in changed {
                output.cells(&[Cell::from(word), Cell::from(text)])?;
            }
        }
    }
    output.flush()?;
    if changed.is_empty() {
        note(nothing);
    }
    if let Done::Revoked(_) = done {
        still_granted(name, &permissions);
    }
    Ok(())
}

/// What was not an operator's to take back.
fn still_granted(name: &str, permissions: &[PermissionInfo]) {
    let others = |info: &&PermissionInfo| {
        let by = |who: &String| who == "manifest" || who == "configuration";
        !info.denied && info.granted_by.iter().any(by)
    };
    let left: Vec<_> = permissions
        .iter()
        .filter(others)
        .filter_map(|info| info.permission.as_ref())
        .map(text)
        .collect();
    if !left.is_empty() {
        note(&format!(
            "its manifest or the configuration still grants {}; [plugins.{name}.deny] in core.toml takes \
             away what they grant",
            left.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_an_action_and_a_resource() {
        let parsed = parse("storage.read=geo").expect("good");
        assert_eq!(
            (parsed.action.as_str(), parsed.resource.as_str()),
            ("storage.read", "geo")
        );
        for bad in ["publish", "=geo", "publish=", ""] {
            assert!(
                parse(bad).expect_err(bad).contains("ACTION=RESOURCE"),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_status_follows_the_table() {
        let info = |asked, optional, by: &[&str], denied| PermissionInfo {
            permission: Some(Permission {
                optional,
                ..Permission::default()
            }),
            asked,
            granted_by: by.iter().map(|&who| who.to_owned()).collect(),
            denied,
            granted_at: None,
        };
        for (info, expected) in [
            (info(true, false, &[], false), "missing"),
            (info(true, true, &[], false), "not granted"),
            (info(true, false, &["uid 7"], false), "granted"),
            (info(true, false, &["manifest"], true), "denied"),
            (info(false, false, &["configuration"], false), "granted"),
            (info(false, false, &[], true), "denied"),
        ] {
            assert_eq!(status(&info), expected, "{info:?}");
        }
    }
}
