//! `corectl wait plugin/NAME --for STATE`.
//!
//! Waits through everything that passes by itself: a core that is not up yet or is being restarted,
//! a plugin in back-off. A plugin that nobody knows ends the wait at once, as a typing mistake would
//! otherwise cost the whole time.

use std::time::Duration;

use core_proto::v1::plugin_manager_watch_response::Item;
use core_proto::v1::{PluginInfo, PluginManagerWatchRequest, PluginState};
use tokio::time::{Instant, sleep, timeout_at};

use crate::cli::{Global, Goal, WaitArgs};
use crate::connect::Core;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Cell, Form, Output, Tone};
use crate::plugins::suggestion;
use crate::plugins::view::{PluginView, state_word, tone, why};

/// Time to wait when `--timeout` is not given.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to reach a core.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// What was learnt so far, for the message at the end.
#[derive(Debug, Default)]
struct Seen {
    plugin: Option<PluginInfo>,
    /// The core was reached at least once.
    core: bool,
    lost: Option<Failure>,
}

/// Waits until the goal is reached.
pub(crate) async fn run(
    global: &Global,
    arguments: &WaitArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let time = global.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let deadline = Instant::now() + time;
    let mut seen = Seen::default();
    let waiting = Box::pin(until(global, arguments, &mut seen));
    match timeout_at(deadline, waiting).await {
        Ok(Ok(info)) => show(info, output),
        Ok(Err(failure)) => Err(failure),
        Err(_elapsed) => Err(too_late(arguments, time, seen)),
    }
}

fn reached(goal: Goal, info: &PluginInfo) -> bool {
    match goal {
        Goal::Unloaded => info.state() == PluginState::Unloaded,
        Goal::Loaded => info.state() == PluginState::Loaded,
        Goal::Started => info.state() == PluginState::Started,
        Goal::Stopped => info.state() == PluginState::Stopped,
        Goal::Ready => info.state() == PluginState::Started && info.phase == "ready",
    }
}

async fn until(
    global: &Global,
    arguments: &WaitArgs,
    seen: &mut Seen,
) -> Result<PluginInfo, Failure> {
    loop {
        match attempt(global, arguments, seen).await {
            Err(failure) if failure.exit() == Exit::Unreachable => {
                seen.lost = Some(failure);
                sleep(RETRY_EVERY).await;
            }
            result => return result,
        }
    }
}

/// One connection's worth of waiting.
///
/// # Cancel safety
/// Nothing is lost: it only reads.
async fn attempt(
    global: &Global,
    arguments: &WaitArgs,
    seen: &mut Seen,
) -> Result<PluginInfo, Failure> {
    let name = &arguments.target;
    let core = Core::connect(global).await?;
    let question = PluginManagerWatchRequest {
        names: vec![name.clone()],
    };
    let mut client = core.plugins();
    let mut stream = core.open(name, client.watch(question)).await?;
    seen.core = true;
    let mut known = false;
    while let Some(response) = core.next(name, &mut stream).await? {
        match response.item {
            Some(Item::Plugin(info)) if info.name == *name => {
                if reached(arguments.goal, &info) {
                    return Ok(info);
                }
                known = true;
                seen.lost = None;
                seen.plugin = Some(info);
            }
            Some(Item::SnapshotEnd(_)) if !known => return Err(unknown(&core, name).await),
            // Taken out of the configuration while it was waited for.
            Some(Item::Removed(gone)) if gone == *name => return Err(unknown(&core, name).await),
            Some(Item::Plugin(_) | Item::SnapshotEnd(_) | Item::Removed(_)) | None => {}
        }
    }
    Err(core.stream_ended())
}

async fn unknown(core: &Core, name: &str) -> Failure {
    Failure::NotFound {
        what: format!("plugin {name:?}"),
        hint: suggestion(core, name).await.map_or_else(
            || "`corectl plugins list` shows the plugins".to_owned(),
            |meant| format!("did you mean {meant:?}?"),
        ),
    }
}

fn too_late(arguments: &WaitArgs, after: Duration, seen: Seen) -> Failure {
    let name = &arguments.target;
    match seen {
        // Never a core: that is what is wrong, not the plugin.
        Seen {
            core: false,
            lost: Some(failure),
            ..
        } => failure,
        Seen {
            plugin: Some(info), ..
        } => Failure::TimedOut {
            what: format!(
                "plugin {name} is {} ({}{}{})",
                state_word(info.state()),
                info.phase,
                if why(&info).is_empty() { "" } else { ": " },
                why(&info),
            ),
            after,
            hint: format!(
                "`corectl plugins describe {name}` and `corectl plugins logs {name}` say more"
            ),
        },
        Seen { .. } => Failure::TimedOut {
            what: format!("nothing was learnt of plugin {name}"),
            after,
            hint: "--timeout allows more time".to_owned(),
        },
    }
}

fn show(info: PluginInfo, output: &mut Output) -> Result<(), Failure> {
    match output.form() {
        Form::Json => output.json(&PluginView::from(info)),
        Form::Quiet => output.line(&info.name),
        Form::Table => output.cells(&[
            Cell::from(&info.name),
            Cell::new(state_word(info.state()), tone(&info)),
            Cell::new(&info.phase, Tone::Faint),
        ]),
    }
}
