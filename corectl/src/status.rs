//! `corectl status` and `corectl version`.

use std::collections::BTreeMap;
use std::time::Duration;

use core_proto::contract::{WIRE_VERSION_MAX, WIRE_VERSION_MIN};
use core_proto::v1::{
    IntrospectionGetInfoRequest, IntrospectionGetInfoResponse, PluginInfo, PluginState,
};
use serde::Serialize;

use crate::cli::{Global, StatusArgs};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::output::{Cell, Form, Output, Table, Tone, note, now};
use crate::plugins;
use crate::plugins::view::{Condition, PluginView, condition, state_word};
use crate::time;

/// The version of all JSON shapes. Fields are only ever added within one.
const JSON_VERSION: u32 = 1;
/// `version` does not wait long for a core: its own version is what most ask for.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);

/// The JSON shape of `status`.
#[derive(Debug, Serialize)]
struct StatusView {
    version: String,
    started_at: Option<String>,
    uptime_seconds: Option<u64>,
    address: String,
    addresses: Vec<String>,
    insecure_plaintext: bool,
    storage: String,
    storage_path: String,
    epoch: String,
    /// Plugins per state.
    plugins: BTreeMap<&'static str, usize>,
    attention: Vec<PluginView>,
}

/// The JSON shape of `version`.
#[derive(Debug, Serialize)]
struct VersionView {
    corectl: &'static str,
    json_version: u32,
    wire_version_min: u32,
    wire_version_max: u32,
    /// Absent core: null.
    core: Option<CoreVersionView>,
}

#[derive(Debug, Serialize)]
struct CoreVersionView {
    version: String,
    wire_version_min: u32,
    wire_version_max: u32,
    features: Vec<String>,
    address: String,
}

async fn info(core: &Core) -> Result<IntrospectionGetInfoResponse, Failure> {
    let mut client = core.introspection();
    core.ask(
        "",
        UNARY_TIMEOUT,
        IntrospectionGetInfoRequest {},
        |request| client.get_info(request),
    )
    .await
}

/// Shows how the core is. With `--check` plugins that need attention are exit code 9.
pub(crate) async fn run(
    core: &Core,
    arguments: &StatusArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let info = info(core).await?;
    let plugins = plugins::all(core).await?;
    let troubled: Vec<&PluginInfo> = plugins
        .iter()
        .filter(|plugin| condition(plugin) == Condition::Attention)
        .collect();
    match output.form() {
        Form::Json => output.json(&view(core, info, &plugins, &troubled))?,
        Form::Quiet => {
            for plugin in &troubled {
                output.line(&plugin.name)?;
            }
        }
        Form::Table => show(&info, &plugins, &troubled, output)?,
    }
    if arguments.check && !troubled.is_empty() {
        let names: Vec<&str> = troubled.iter().map(|plugin| plugin.name.as_str()).collect();
        let names = names.join(", ");
        return Err(Failure::ChecksFailed(format!("need attention: {names}")));
    }
    Ok(())
}

fn uptime(info: &IntrospectionGetInfoResponse) -> Option<Duration> {
    let started = time::from_wire(info.started_at.as_ref())?;
    Duration::try_from(now().duration_since(started)).ok()
}

/// How many plugins are in each state; those of no plugin included, in the order of a life.
fn counts(plugins: &[PluginInfo]) -> [(PluginState, usize); 4] {
    [
        PluginState::Started,
        PluginState::Loaded,
        PluginState::Stopped,
        PluginState::Unloaded,
    ]
    .map(|state| {
        let count = plugins.iter().filter(|plugin| plugin.state() == state);
        (state, count.count())
    })
}

fn view(
    core: &Core,
    info: IntrospectionGetInfoResponse,
    plugins: &[PluginInfo],
    troubled: &[&PluginInfo],
) -> StatusView {
    StatusView {
        uptime_seconds: uptime(&info).map(|uptime| uptime.as_secs()),
        started_at: time::rfc3339(info.started_at.as_ref()),
        version: info.version,
        address: core.address().to_string(),
        addresses: info.addresses,
        insecure_plaintext: info.insecure_plaintext,
        storage: info.storage,
        storage_path: info.storage_path,
        epoch: info.epoch.to_string(),
        plugins: counts(plugins)
            .map(|(state, count)| (state_word(state), count))
            .into(),
        attention: troubled
            .iter()
            .map(|plugin| PluginView::from((*plugin).clone()))
            .collect(),
    }
}

fn show(
    info: &IntrospectionGetInfoResponse,
    plugins: &[PluginInfo],
    troubled: &[&PluginInfo],
    output: &mut Output,
) -> Result<(), Failure> {
    if info.insecure_plaintext {
        output.cells(&[Cell::new(
            "INSECURE: this core accepts plaintext from other machines; anybody on the network can \
             read tokens and data",
            Tone::Bad,
        )])?;
    }
    let mut facts = Table::facts();
    facts.fact("core", &info.version);
    let uptime = uptime(info).map(time::short).unwrap_or_default();
    facts.fact(
        "up",
        format!("{uptime} (since {})", time::local(info.started_at.as_ref())),
    );
    facts.fact("addresses", info.addresses.join(", "));
    let place = &info.storage_path;
    facts.fact(
        "storage",
        if place.is_empty() {
            info.storage.clone()
        } else {
            format!("{} at {place}", info.storage)
        },
    );
    let counts: Vec<String> = counts(plugins)
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {}", state_word(*state)))
        .collect();
    facts.fact(
        "plugins",
        if counts.is_empty() {
            "none".to_owned()
        } else {
            counts.join(", ")
        },
    );
    output.table(&facts, "")?;
    if !troubled.is_empty() {
        output.line("")?;
        output.cells(&[Cell::new("need attention", Tone::Bad)])?;
        output.table(&plugins::table(troubled.iter().copied()), "")?;
    }
    Ok(())
}

/// Shows the versions. A core that is not there is no failure here.
pub(crate) async fn version(global: &Global, output: &mut Output) -> Result<(), Failure> {
    let mut global = global.clone();
    global.timeout.get_or_insert(VERSION_TIMEOUT);
    let core = match Core::connect(&global).await {
        Ok(core) => info(&core).await.map(|info| (core, info)),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &core
        && output.form() == Form::Table
    {
        note(&failure.to_string());
    }
    let core = core.ok().map(|(core, info)| CoreVersionView {
        version: info.version,
        wire_version_min: info.wire_version_min,
        wire_version_max: info.wire_version_max,
        features: info.features,
        address: core.address().to_string(),
    });
    let view = VersionView {
        corectl: env!("CARGO_PKG_VERSION"),
        json_version: JSON_VERSION,
        wire_version_min: WIRE_VERSION_MIN,
        wire_version_max: WIRE_VERSION_MAX,
        core,
    };
    match output.form() {
        Form::Json => output.json(&view),
        Form::Quiet => output.line(view.corectl),
        Form::Table => {
            let wire = |min, max| {
                if min == max {
                    format!("wire {min}")
                } else {
                    format!("wire {min} to {max}")
                }
            };
            let mut table = Table::facts();
            table.row([
                "corectl".into(),
                view.corectl.into(),
                wire(WIRE_VERSION_MIN, WIRE_VERSION_MAX).into(),
            ]);
            if let Some(core) = view.core {
                table.row([
                    "core".into(),
                    core.version.into(),
                    wire(core.wire_version_min, core.wire_version_max).into(),
                    core.address.into(),
                ]);
            }
            output.table(&table, "")
        }
    }
}
