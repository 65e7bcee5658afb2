//! `corectl reload`: the core reads its configuration again.

use std::time::Duration;

use core_proto::v1::plugin_change::Kind;
use core_proto::v1::{PluginChange, PluginManagerReloadRequest, PluginManagerReloadResponse};
use serde::Serialize;

use crate::connect::Core;
use crate::failure::Failure;
use crate::output::{Cell, Form, Output, Table, Tone, note};

/// Plugins have 5 s to take a new configuration, and files may lie on a slow disk.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The JSON shape of a reload.
#[derive(Debug, Serialize)]
struct ReloadView {
    changes: Vec<ChangeView>,
    unchanged: u32,
    needs_restart: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ChangeView {
    name: String,
    change: &'static str,
    message: String,
}

impl From<PluginChange> for ChangeView {
    fn from(change: PluginChange) -> Self {
        Self {
            change: word(change.kind()),
            name: change.name,
            message: change.message,
        }
    }
}

pub(crate) async fn run(core: &Core, output: &mut Output) -> Result<(), Failure> {
    let mut client = core.plugins();
    let question = PluginManagerReloadRequest {};
    let reloaded = core
        .ask("", TIMEOUT, question, |request| client.reload(request))
        .await?;
    show(reloaded, output)
}

fn show(reloaded: PluginManagerReloadResponse, output: &mut Output) -> Result<(), Failure> {
    match output.form() {
        Form::Json => {
            return output.json(&ReloadView {
                changes: reloaded.changes.into_iter().map(ChangeView::from).collect(),
                unchanged: reloaded.unchanged,
                needs_restart: reloaded.needs_restart,
                warnings: reloaded.warnings,
            });
        }
        Form::Quiet => {
            let mut names = reloaded.changes.iter().map(|change| &change.name);
            names.try_for_each(|name| output.line(name))?;
        }
        Form::Table => {
            let mut table = Table::new(["NAME", "CHANGE", "WHY"]);
            for change in &reloaded.changes {
                table.row([
                    Cell::from(&change.name),
                    Cell::new(word(change.kind()), tone(change.kind())),
                    Cell::new(&change.message, Tone::Faint),
                ]);
            }
            output.table(&table, "no plugin changed")?;
            output.line(&format!("unchanged: {}", reloaded.unchanged))?;
        }
    }
    output.flush()?;
    for warning in &reloaded.warnings {
        note(&format!("warning: {warning}"));
    }
    if !reloaded.needs_restart.is_empty() {
        let settings = reloaded.needs_restart.join(", ");
        note(&format!("needs a restart of the core: {settings}"));
    }
    Ok(())
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "added",
        Kind::Removed => "removed",
        Kind::Reconfigured => "reconfigured",
        Kind::Restarted => "restarted",
        Kind::Updated => "updated",
        Kind::Retried => "retried",
        Kind::Rejected => "rejected",
        Kind::Unspecified => "changed",
    }
}

fn tone(kind: Kind) -> Tone {
    match kind {
        Kind::Rejected => Tone::Bad,
        _ => Tone::Plain,
    }
}
