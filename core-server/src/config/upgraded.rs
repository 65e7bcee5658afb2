//! A plugin's settings with an upgrade in the place of what is configured.

use std::path::Path;

use super::error::{Problems, label};
use super::plugins::{Context, cannot_run, read_manifest};
use super::settings;
use super::tree::{Data, Entry, Table, View, merge};
use super::upgrades::{self, Replaced, UpgradeSource};
use crate::types::PluginName;

/// What the configuration itself names.
pub(super) fn configured(joined: &Table) -> Replaced {
    let view = View::new(joined);
    let text = |view: View<'_>, key| view.text(key).unwrap_or_default().to_owned();
    Replaced {
        command: text(view.section("run"), "command"),
        version: text(view, "version"),
    }
}

/// Puts an upgrade in the place of what is configured. `own` is what `[plugins.NAME]` says: it counts
/// for another manifest too.
pub(super) fn upgrade(
    plugin: &PluginName,
    source: &UpgradeSource,
    joined: &mut Table,
    own: Table,
    context: &Context<'_>,
    problems: &mut Problems,
) {
    match source {
        UpgradeSource::Program(program) => {
            let origin = context.upgrades.origin(context.cwd);
            let text = Data::Text(program.to_string_lossy().into_owned());
            let command = Entry::new(text, origin.clone());
            let run = Table::from([("command".to_owned(), command)]);
            let run = Entry::new(Data::Table(run), origin);
            merge(joined, Table::from([("run".to_owned(), run)]));
        }
        UpgradeSource::Directory(directory) => {
            let (path, file) = upgrades::manifest_file(directory, context.cwd);
            let Some((name, origin, table)) = read_manifest(&path, &file, context, problems) else {
                return;
            };
            if name != plugin.as_str() {
                let message = format!("name: \"{name}\" is another plugin than \"{plugin}\"");
                return problems.add(&origin, message);
            }
            *joined = settings::OVERRIDE.presets();
            merge(joined, table);
            merge(joined, own);
        }
    }
    // What is already in force may be mended while the core runs; what is not must be good.
    let asked_for = context
        .candidate
        .is_some_and(|candidate| candidate.plugin == *plugin);
    if asked_for {
        let run = View::new(joined).section("run");
        let program = run.text("command").map(Path::new);
        if let Some(wrong) = program.and_then(|program| cannot_run(program, context)) {
            let program = program.map(|program| label(program, context.cwd));
            let program = program.unwrap_or_default();
            problems.add(
                &run.origin("command"),
                format!("run.command: {program} {wrong}"),
            );
        }
    }
}
