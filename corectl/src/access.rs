//! `corectl tokens`, `corectl plugins invite`, `corectl join`: who may come in.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use core_proto::v1::{
    AccessCreateTokenRequest, AccessInviteRequest, AccessListCredentialsRequest,
    AccessRevokeCredentialRequest, CredentialInfo, Permission,
};
use core_tls::{CredentialsDir, EnrollError, JoinString};
use serde::Serialize;

use crate::cli::parse_timeout;
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::output::{Cell, Form, Output, Table, note, now};
use crate::plugins::permissions;
use crate::time;

/// The commands of `corectl tokens`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// Make a token and print it, once.
    #[command(group(clap::ArgGroup::new("whose").required(true)))]
    Create {
        /// The plugin that it is for; one that is not configured becomes a remote plugin.
        #[arg(long, value_name = "NAME", group = "whose")]
        plugin: Option<String>,
        /// It is for a person or tool with the operator's rights.
        #[arg(long, group = "whose")]
        operator: bool,
        /// Where it is used, for people.
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
        /// How long it is good: 12h, 30days. Without it, until it is revoked.
        #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
        valid_for: Option<Duration>,
    },
    /// List credentials; never secrets.
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this plugin.
        #[arg(long, value_name = "NAME")]
        plugin: Option<String>,
    },
    /// Revoke credentials: whoever uses them is cut off within a second.
    #[command(group(clap::ArgGroup::new("which").required(true)))]
    Revoke {
        /// Their ids.
        #[arg(value_name = "ID", group = "which")]
        ids: Vec<String>,
        /// All of this plugin.
        #[arg(long, value_name = "NAME", group = "which")]
        plugin: Option<String>,
    },
}

/// `corectl plugins invite NAME`.
#[derive(Args, Debug)]
pub(crate) struct InviteArgs {
    /// The plugin; one that is not configured becomes a remote plugin.
    name: String,
    /// How long it is good: up to 24h. Usual: 10m.
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    valid_for: Option<Duration>,
    /// What it is granted once it has joined: publish=home.scene. May be repeated.
    #[arg(long, value_name = "ACTION=RESOURCE", value_parser = permissions::parse)]
    grant: Vec<Permission>,
}

/// The JSON shape of a credential.
#[derive(Debug, Serialize)]
struct CredentialView {
    id: String,
    kind: String,
    /// Empty: an operator.
    plugin: String,
    label: String,
    created_at: Option<String>,
    expires_at: Option<String>,
}

impl From<CredentialInfo> for CredentialView {
    fn from(info: CredentialInfo) -> Self {
        Self {
            created_at: time::rfc3339(info.created_at.as_ref()),
            expires_at: time::rfc3339(info.expires_at.as_ref()),
            id: info.id,
            kind: info.kind,
            plugin: info.plugin,
            label: info.label,
        }
    }
}

/// The JSON shape of what was made, with its secret.
#[derive(Debug, Serialize)]
struct MadeView {
    credential: Option<CredentialView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<String>,
}

/// The JSON shape of a join.
#[derive(Debug, Serialize)]
struct JoinedView {
    plugin: String,
    address: String,
    ca_file: String,
    certificate_file: String,
    key_file: String,
}

/// Runs a command of `corectl tokens`.
pub(crate) async fn run(
    core: &Core,
    command: &TokensCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        TokensCommand::Create {
            plugin,
            operator: _,
            label,
            valid_for,
        } => create(core, plugin.as_deref(), label, *valid_for, output).await,
        TokensCommand::List { plugin } => list(core, plugin.as_deref(), output).await,
        TokensCommand::Revoke { ids, plugin } => revoke(core, ids, plugin.as_deref(), output).await,
    }
}

async fn create(
    core: &Core,
    plugin: Option<&str>,
    label: &str,
    valid_for: Option<Duration>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = AccessCreateTokenRequest {
        plugin: plugin.unwrap_or_default().to_owned(),
        label: label.to_owned(),
        valid_for: wire(valid_for),
    };
    let mut client = core.access();
    let subject = plugin.unwrap_or_default();
    let made = core
        .ask(subject, UNARY_TIMEOUT, question, |request| {
            client.create_token(request)
        })
        .await?;
    let view = MadeView {
        credential: made.credential.map(CredentialView::from),
        token: Some(made.token.clone()),
        join: None,
    };
    if output.form() == Form::Json {
        return output.json(&view);
    }
    output.line(&made.token)?;
    output.flush()?;
    note("it is shown this once; keep it in a file that only its user can read");
    Ok(())
}

async fn list(core: &Core, plugin: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let question = AccessListCredentialsRequest {
        plugin: plugin.unwrap_or_default().to_owned(),
    };
    let mut client = core.access();
    let listed = core
        .ask("", UNARY_TIMEOUT, question, |request| {
            client.list_credentials(request)
        })
        .await?;
    match output.form() {
        Form::Json => {
            let credentials = listed.credentials.into_iter();
            let views: Vec<_> = credentials.map(CredentialView::from).collect();
            output.json(&views)
        }
        Form::Quiet => {
            let mut ids = listed.credentials.iter().map(|info| &info.id);
            ids.try_for_each(|id| output.line(id))
        }
        Form::Table => {
            let mut table = Table::new(["ID", "KIND", "FOR", "MADE", "EXPIRES", "LABEL"]);
            for info in &listed.credentials {
                let whose = match info.plugin.as_str() {
                    "" => "(operator)",
                    plugin => plugin,
                };
                table.row([
                    Cell::from(&info.id),
                    Cell::from(&info.kind),
                    Cell::from(whose),
                    Cell::from(time::relative(info.created_at.as_ref(), now())),
                    Cell::from(time::local(info.expires_at.as_ref())),
                    Cell::from(&info.label),
                ]);
            }
            output.table(&table, "no credentials")
        }
    }
}

async fn revoke(
    core: &Core,
    ids: &[String],
    plugin: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = AccessRevokeCredentialRequest {
        ids: ids.to_vec(),
        plugin: plugin.unwrap_or_default().to_owned(),
    };
    let mut client = core.access();
    let subject = plugin.unwrap_or_default();
    let revoked = core
        .ask(subject, UNARY_TIMEOUT, question, |request| {
            client.revoke_credential(request)
        })
        .await?;
    match output.form() {
        Form::Json => {
            return output.json(&serde_json::json!({
                "revoked": revoked.revoked,
                "configured_token_remains": revoked.configured_token_remains,
            }));
        }
        Form::Quiet => {}
        Form::Table => output.line(&format!("revoked: {}", revoked.revoked))?,
    }
    if revoked.configured_token_remains {
        output.flush()?;
        note(&format!(
            "the token that the configuration gives \"{subject}\" is good still: take token_file or token_env out of \
             [plugins.{subject}] in core.toml, and run corectl reload"
        ));
    }
    Ok(())
}

/// `corectl plugins invite NAME`.
pub(crate) async fn invite(
    core: &Core,
    arguments: &InviteArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let (plugin, valid_for) = (arguments.name.as_str(), arguments.valid_for);
    let question = AccessInviteRequest {
        plugin: plugin.to_owned(),
        valid_for: wire(valid_for),
        permissions: arguments.grant.clone(),
    };
    let mut client = core.access();
    let invited = core
        .ask(plugin, UNARY_TIMEOUT, question, |request| {
            client.invite(request)
        })
        .await?;
    if output.form() == Form::Json {
        return output.json(&MadeView {
            credential: invited.credential.map(CredentialView::from),
            token: None,
            join: Some(invited.join),
        });
    }
    output.line(&invited.join)?;
    output.flush()?;
    note(&format!(
        "good once, for {}; on the other machine: corectl join - --out DIR, which reads it from standard input \
         (as an argument other users there can see it), or start the plugin with CORE_JOIN=STRING and \
         CORE_CREDENTIALS_DIR=DIR",
        humantime::format_duration(valid_for.unwrap_or(Duration::from_secs(600)))
    ));
    Ok(())
}

/// `corectl join STRING --out DIR`: speaks to the core that the string names, with no other credential.
pub(crate) async fn join(text: &str, out: &Path, output: &mut Output) -> Result<(), Failure> {
    let invitation: JoinString = text
        .parse()
        .map_err(|error: core_tls::BadJoinString| Failure::usage(error.to_string(), ""))?;
    let directory = CredentialsDir::new(out);
    if directory.holds_certificate() {
        return Err(Failure::usage(
            format!("{} holds a certificate already", out.display()),
            "remove the directory to join anew, or name another with --out",
        ));
    }
    let (enrolled, address) = Box::pin(core_tls::join(&invitation))
        .await
        .map_err(|error| refused(error, &invitation))?;
    let others = invitation
        .addresses
        .iter()
        .filter(|other| **other != address);
    let addresses: Vec<_> = std::iter::once(&address).chain(others).cloned().collect();
    directory
        .write(&enrolled, &addresses)
        .map_err(|error| Failure::io("keeping the certificate", error))?;
    let show = |path: std::path::PathBuf| path.display().to_string();
    let view = JoinedView {
        plugin: enrolled.plugin,
        address,
        ca_file: show(directory.ca()),
        certificate_file: show(directory.certificate()),
        key_file: show(directory.key()),
    };
    match output.form() {
        Form::Json => output.json(&view),
        Form::Quiet => output.line(&view.plugin),
        Form::Table => {
            for (name, value) in [
                ("CORE_PLUGIN", &view.plugin),
                ("CORE_ADDR", &view.address),
                ("CORE_CA_FILE", &view.ca_file),
                ("CORE_CERT_FILE", &view.certificate_file),
                ("CORE_KEY_FILE", &view.key_file),
            ] {
                output.line(&format!("{name}={value}"))?;
            }
            output.flush()?;
            note(&format!(
                "joined as \"{}\"; give the plugin these, or CORE_CREDENTIALS_DIR={} if its SDK \
                 renews by itself; else run corectl join --renew every few hours",
                view.plugin,
                out.display()
            ));
            Ok(())
        }
    }
}

/// `corectl join --renew --out DIR`.
pub(crate) async fn renew(out: &Path, output: &mut Output) -> Result<(), Failure> {
    let directory = CredentialsDir::new(out);
    let unreadable = |error| Failure::io("reading the certificate", error);
    let stored = directory.read().map_err(unreadable)?;
    let key = directory.read_key().map_err(unreadable)?;
    let identity = (directory.certificate(), directory.key());
    let tls = core_tls::ClientTls::from_files(&directory.ca(), Some((&identity.0, &identity.1)))
        .map_err(|error| Failure::usage(error.to_string(), ""))?;
    let (enrolled, _) = Box::pin(core_tls::renew(&stored.addresses, &tls, &key))
        .await
        .map_err(|error| failed(error, &stored.plugin, &stored.addresses.join(", ")))?;
    directory
        .write(&enrolled, &stored.addresses)
        .map_err(|error| Failure::io("keeping the certificate", error))?;
    match output.form() {
        Form::Json => output.json(&serde_json::json!({ "plugin": enrolled.plugin })),
        Form::Quiet => Ok(()),
        Form::Table => output.line(&format!("renewed: {}", enrolled.plugin)),
    }
}

fn refused(error: EnrollError, invitation: &JoinString) -> Failure {
    failed(error, "the invitation", &invitation.addresses.join(", "))
}

fn failed(error: EnrollError, subject: &str, addresses: &str) -> Failure {
    match error {
        EnrollError::Refused(status) => {
            Failure::Refused(Box::new(crate::failure::Refusal::new(subject, &status)))
        }
        EnrollError::Unreachable { tried } => Failure::Unreachable {
            address: addresses.to_owned(),
            origin: "from the join string".to_owned(),
            cause: tried,
        },
        other => Failure::usage(other.to_string(), ""),
    }
}

fn wire(duration: Option<Duration>) -> Option<prost_types::Duration> {
    duration.and_then(|duration| prost_types::Duration::try_from(duration).ok())
}
