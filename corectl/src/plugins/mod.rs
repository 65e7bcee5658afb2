//! `corectl plugins`: list, describe, control, logs.

mod explain;
mod level;
mod logs;
mod order;
pub(crate) mod permissions;
mod quotas;
mod upgrade;
pub(crate) mod view;

use std::time::Duration;

use core_proto::v1::{
    CrashReport, PluginInfo, PluginManagerGetRequest, PluginManagerListRequest,
    PluginManagerLoadRequest, PluginManagerRestartRequest, PluginManagerStartAllRequest,
    PluginManagerStartRequest, PluginManagerStopAllRequest, PluginManagerStopRequest,
    PluginManagerUnloadRequest, PluginResult,
};
use serde::Serialize;

use crate::access;
use crate::cli::{NamesOrAll, PluginsCommand};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::exit::Exit;
use crate::failure::{ErrorView, Failure};
use crate::output::{Cell, Form, Output, Table, Tone, now};
use crate::text::nearest;
use crate::time;
use quotas::QuotaView;
use view::{PluginView, kind_word, state_word, tone};

/// A change of one plugin may take a start, which is 30 s by default, after a stop.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// All plugins, level by level.
const CHANGE_ALL_TIMEOUT: Duration = Duration::from_secs(180);

/// Crashes that are shown to people.
const SHOWN_CRASHES: usize = 5;

/// A request for one plugin.
#[derive(Clone, Copy, Debug)]
enum Change {
    Load,
    Start,
    Stop,
    Unload,
    Restart,
}

/// The JSON shape of changes.
#[derive(Debug, Serialize)]
struct ChangeView {
    name: String,
    ok: bool,
    plugin: Option<PluginView>,
    error: Option<ErrorView>,
}

/// What became of one plugin.
struct Outcome {
    name: String,
    /// As the core last told, also beside an error.
    info: Option<PluginInfo>,
    failure: Option<Failure>,
}

/// Runs a command of this group.
pub(crate) async fn run(
    core: &Core,
    command: &PluginsCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        PluginsCommand::List => show_list(all(core).await?, output),
        PluginsCommand::Describe { name } => describe(core, name, output).await,
        PluginsCommand::Start(which) => change_which(core, Change::Start, which, output).await,
        PluginsCommand::Stop(which) => change_which(core, Change::Stop, which, output).await,
        PluginsCommand::Restart(which) => change_which(core, Change::Restart, which, output).await,
        PluginsCommand::Load(which) => change_which(core, Change::Load, which, output).await,
        PluginsCommand::Unload(which) => change_which(core, Change::Unload, which, output).await,
        PluginsCommand::Upgrade { name, path } => {
            let outcome = Outcome::of(core, name, upgrade::request(core, name, path).await).await;
            finish(vec![outcome], output)
        }
        PluginsCommand::Invite(arguments) => access::invite(core, arguments, output).await,
        PluginsCommand::Permissions(command) => permissions::run(core, command, output).await,
        PluginsCommand::Logs(arguments) => logs::run(core, arguments, output).await,
        PluginsCommand::LogLevel(arguments) => level::run(core, arguments, output).await,
    }
}

/// All plugins, in order of name.
pub(crate) async fn all(core: &Core) -> Result<Vec<PluginInfo>, Failure> {
    Core::all_pages(async |page_token| {
        let question = PluginManagerListRequest {
            page_token,
            ..Default::default()
        };
        let mut client = core.plugins();
        let page = core
            .ask("", UNARY_TIMEOUT, question, |request| client.list(request))
            .await?;
        Ok((page.plugins, page.next_page_token))
    })
    .await
}

/// The plugin that was probably meant. Best effort: a suggestion must not add a failure.
pub(crate) async fn suggestion(core: &Core, name: &str) -> Option<String> {
    let plugins = all(core).await.ok()?;
    nearest(name, plugins.iter().map(|plugin| plugin.name.as_str()))
}

/// Adds "did you mean" to a failure about a plugin that does not exist.
pub(crate) async fn explained(core: &Core, name: &str, mut failure: Failure) -> Failure {
    if failure.reason() == "NO_SUCH_PLUGIN" {
        failure.suggest(suggestion(core, name).await);
    }
    failure
}

fn show_list(plugins: Vec<PluginInfo>, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct List {
        plugins: Vec<PluginView>,
    }
    match output.form() {
        Form::Json => output.json(&List {
            plugins: plugins.into_iter().map(PluginView::from).collect(),
        }),
        Form::Quiet => plugins.iter().try_for_each(|info| output.line(&info.name)),
        Form::Table => output.table(&table(&plugins), "no plugins"),
    }
}

/// The table of `plugins list`, which `status` shows too.
pub(crate) fn table<'a>(plugins: impl IntoIterator<Item = &'a PluginInfo>) -> Table {
    let now = now();
    let mut table = Table::new([
        "NAME", "STATE", "PHASE", "SINCE", "RESTARTS", "KIND", "VERSION", "WHY",
    ]);
    for info in plugins {
        table.row([
            Cell::from(&info.name),
            Cell::new(state_word(info.state()), tone(info)),
            Cell::new(&info.phase, tone(info)),
            time::relative(info.since.as_ref(), now).into(),
            info.restarts.to_string().into(),
            kind_word(info.kind()).into(),
            Cell::from(&info.version),
            Cell::new(&explain::brief(info, now), Tone::Faint),
        ]);
    }
    table
}

async fn describe(core: &Core, name: &str, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Described {
        #[serde(flatten)]
        plugin: PluginView,
        explanation: Vec<String>,
        quotas: Vec<QuotaView>,
    }
    let info = match get(core, name).await {
        Ok(info) => info,
        Err(failure) => return Err(explained(core, name, failure).await),
    };
    if output.form() == Form::Quiet {
        return output.line(&info.name);
    }
    let explanation = explanation(core, &info).await;
    let quotas = quotas::of(core, name).await;
    match output.form() {
        Form::Json => output.json(&Described {
            explanation,
            plugin: info.into(),
            quotas: quotas.into_iter().map(QuotaView::from).collect(),
        }),
        Form::Quiet | Form::Table => {
            for sentence in &explanation {
                output.line(sentence)?;
            }
            output.line("")?;
            let mut facts = facts(&info);
            permissions::add_facts(core, name, &mut facts).await;
            quotas::show(&quotas, &mut facts);
            output.table(&facts, "")
        }
    }
}

async fn get(core: &Core, name: &str) -> Result<PluginInfo, Failure> {
    let mut client = core.plugins();
    let question = PluginManagerGetRequest {
        name: name.to_owned(),
    };
    let answer = core.ask(name, UNARY_TIMEOUT, question, |request| client.get(request));
    Ok(answer.await?.plugin.unwrap_or_default())
}

/// Why a plugin is as it is. The others are asked for only where they have to do with it; without
/// them less is said, and nothing fails.
async fn explanation(core: &Core, info: &PluginInfo) -> Vec<String> {
    let others = match info.phase.as_str() {
        "waiting_dependency" => all(core).await.unwrap_or_default(),
        _ => Vec::new(),
    };
    let find = |name: &str| others.iter().find(|other| other.name == name);
    explain::explain(info, &find, now())
}

/// One crash in a line: how it ended, then which program with which configuration it was.
fn crash(report: &CrashReport) -> String {
    let mut said = Vec::new();
    if let Some(exit) = &report.exit {
        said.push(format!(
            "{}: {}",
            time::local(exit.at.as_ref()),
            exit.message
        ));
        if exit.forced {
            said.push("forced by the core".to_owned());
        }
        if let Some(ran_for) = &exit.ran_for {
            let ran_for = time::short(time::duration(ran_for));
            said.push(format!("after running {ran_for}"));
        }
    }
    if !report.reason.is_empty() {
        said.push(format!("reason {}", report.reason));
    }
    said.push(format!("generation {}", report.generation));
    if !report.plugin_version.is_empty() {
        said.push(format!("version {}", report.plugin_version));
    }
    said.push(format!("config revision {}", report.config_revision));
    if let Some(bytes) = report.rss_bytes {
        said.push(format!("{} MiB resident", bytes >> 20));
    }
    said.join(", ")
}

/// Everything about one plugin, what explains its state first.
fn facts(info: &PluginInfo) -> Table {
    let now = now();
    let moment = |timestamp| {
        let relative = time::relative(timestamp, now);
        format!("{relative} ({})", time::local(timestamp))
    };
    let mut table = Table::facts();
    table.fact("name", &info.name);
    table.fact("state", Cell::new(state_word(info.state()), tone(info)));
    table.fact("desired", state_word(info.desired()));
    table.fact("phase", Cell::new(&info.phase, tone(info)));
    table.fact("reason", &info.reason);
    table.fact("message", &info.message);
    if info.since.is_some() {
        table.fact("since", moment(info.since.as_ref()));
    }
    if info.next_attempt_at.is_some() {
        table.fact("next attempt", moment(info.next_attempt_at.as_ref()));
    }
    table.fact("generation", info.generation.to_string());
    table.fact("restarts", info.restarts.to_string());
    if let Some(exit) = &info.last_exit {
        let mut text = exit.message.clone();
        if exit.forced {
            text.push_str(", forced by the core");
        }
        if exit.at.is_some() {
            text.push_str(&format!(", {}", moment(exit.at.as_ref())));
        }
        if let Some(ran_for) = &exit.ran_for {
            let ran_for = time::short(time::duration(ran_for));
            text.push_str(&format!(", after running {ran_for}"));
        }
        table.fact("last exit", text);
        for line in &exit.last_lines {
            table.fact(" ", Cell::new(&format!("| {line}"), Tone::Faint));
        }
    }
    for (index, report) in info.crash_reports.iter().take(SHOWN_CRASHES).enumerate() {
        let label = if index == 0 { "crashes" } else { " " };
        table.fact(label, crash(report));
    }
    if let Some(more) = info.crash_reports.len().checked_sub(SHOWN_CRASHES + 1) {
        let text = format!("and {} more; --json shows them", more + 1);
        table.fact(" ", Cell::new(&text, Tone::Faint));
    }
    table.fact("failures", info.failures.to_string());
    if let Some(policy) = &info.restart {
        table.fact("restart", &policy.mode);
    }
    if info.suppressed_lines > 0 {
        table.fact("suppressed", format!("{} lines", info.suppressed_lines));
    }
    if let Some(isolation) = &info.isolation {
        table.fact("runs as", &isolation.user);
        table.fact("landlock", &isolation.landlock);
        for limit in &isolation.limits {
            let text = match limit.mode.as_str() {
                "unlimited" => limit.mode.clone(),
                mode => format!("{} ({mode})", limit.value),
            };
            table.fact(&limit.name, text);
        }
    }
    let level = Some(info.log_level.as_str()).filter(|level| !level.is_empty());
    table.fact("log level", level.unwrap_or("default"));
    let several = |values: &[String]| values.join(", ");
    table.fact("requires", several(&info.requires));
    table.fact("wants", several(&info.wants));
    table.fact("services", several(&info.services));
    table.fact("subscriptions", several(&info.subscriptions));
    table.fact("kind", kind_word(info.kind()));
    let pid = Some(info.pid).filter(|pid| *pid != 0);
    table.fact("pid", pid.map(|pid| pid.to_string()).unwrap_or_default());
    table.fact("version", &info.version);
    table.fact("config revision", info.config_revision.to_string());
    table.fact("config rejected", &info.config_rejected);
    table.fact("sdk", &info.sdk);
    table.fact("description", &info.description);
    table
}

async fn change_which(
    core: &Core,
    change: Change,
    which: &NamesOrAll,
    output: &mut Output,
) -> Result<(), Failure> {
    if !which.all {
        return self::change(core, change, &which.names, output).await;
    }
    let mut client = core.plugins();
    let results = match change {
        Change::Stop => {
            let question = PluginManagerStopAllRequest {};
            let answer = core
                .ask("", CHANGE_ALL_TIMEOUT, question, |request| {
                    client.stop_all(request)
                })
                .await;
            answer?.results
        }
        Change::Start => {
            let question = PluginManagerStartAllRequest {};
            let answer = core
                .ask("", CHANGE_ALL_TIMEOUT, question, |request| {
                    client.start_all(request)
                })
                .await;
            answer?.results
        }
        // The core has no request for all of these: each plugin has its turn.
        Change::Load | Change::Unload | Change::Restart => {
            let names = order::concerned(change, &all(core).await?);
            return self::change(core, change, &names, output).await;
        }
    };
    finish(results.into_iter().map(Outcome::from).collect(), output)
}

/// One after another, in the order given; one that fails does not keep the others from their turn.
async fn change(
    core: &Core,
    change: Change,
    names: &[String],
    output: &mut Output,
) -> Result<(), Failure> {
    let mut outcomes = Vec::with_capacity(names.len());
    for name in names {
        let result = request(core, change, name.clone()).await;
        outcomes.push(Outcome::of(core, name, result).await);
    }
    finish(outcomes, output)
}

/// Adds to a failure for want of time what is being waited for.
async fn late(core: &Core, name: &str, mut failure: Failure) -> Failure {
    if let Failure::TimedOut { .. } = failure
        && let Ok(info) = get(core, name).await
    {
        let state = format!("it is {}, {}", state_word(info.state()), info.phase);
        let why = explanation(core, &info).await.join(" ");
        failure.explain(&format!("{state} now. {why}"));
    }
    failure
}

async fn request(core: &Core, change: Change, name: String) -> Result<Option<PluginInfo>, Failure> {
    /// The five requests differ in nothing but their names.
    macro_rules! ask {
        ($message:ident, $method:ident) => {{
            let mut client = core.plugins();
            let question = $message { name: name.clone() };
            let answer = core
                .ask(&name, CHANGE_TIMEOUT, question, |request| {
                    client.$method(request)
                })
                .await;
            answer?.plugin
        }};
    }
    Ok(match change {
        Change::Load => ask!(PluginManagerLoadRequest, load),
        Change::Start => ask!(PluginManagerStartRequest, start),
        Change::Stop => ask!(PluginManagerStopRequest, stop),
        Change::Unload => ask!(PluginManagerUnloadRequest, unload),
        Change::Restart => ask!(PluginManagerRestartRequest, restart),
    })
}

impl Outcome {
    async fn of(core: &Core, name: &str, result: Result<Option<PluginInfo>, Failure>) -> Self {
        let name = name.to_owned();
        match result {
            Ok(info) => Self {
                name,
                info,
                failure: None,
            },
            Err(failure) => Self {
                failure: Some(late(core, &name, explained(core, &name, failure).await).await),
                name,
                info: None,
            },
        }
    }
}

impl From<PluginResult> for Outcome {
    fn from(result: PluginResult) -> Self {
        let name = result
            .plugin
            .as_ref()
            .map_or_else(String::new, |plugin| plugin.name.clone());
        Self {
            failure: result.error.map(|error| Failure::from_rpc(&name, &error)),
            name,
            info: result.plugin,
        }
    }
}

/// Shows what became of each and makes one result of all.
fn finish(outcomes: Vec<Outcome>, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Results {
        results: Vec<ChangeView>,
    }
    let total = outcomes.len();
    let mut views = Vec::new();
    let mut failures = Vec::new();
    for outcome in outcomes {
        match output.form() {
            Form::Json => views.push(ChangeView {
                ok: outcome.failure.is_none(),
                plugin: outcome.info.map(PluginView::from),
                error: outcome.failure.as_ref().map(Failure::view),
                name: outcome.name,
            }),
            Form::Table if outcome.failure.is_none() => {
                let info = outcome.info.unwrap_or_default();
                output.cells(&[
                    outcome.name.into(),
                    Cell::new(state_word(info.state()), tone(&info)),
                    Cell::new(&info.phase, Tone::Faint),
                ])?;
            }
            Form::Quiet if outcome.failure.is_none() => output.line(&outcome.name)?,
            Form::Table | Form::Quiet => {}
        }
        failures.extend(outcome.failure);
    }
    if output.form() == Form::Json {
        output.json(&Results { results: views })?;
    }
    output.flush()?;
    if failures.len() > 1 {
        if output.form() != Form::Json {
            failures.iter().for_each(|failure| output.report(failure));
        }
        return Err(Failure::Several {
            failed: failures.len(),
            total,
            exit: Exit::of_several(failures.iter().map(Failure::exit)),
        });
    }
    failures.pop().map_or(Ok(()), Err)
}
