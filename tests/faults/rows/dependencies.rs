//! 21: a plugin that others require is killed.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use core_proto::v1::PluginInfo;
use core_proto::v1::core_message::Message as FromCore;
use core_tests::{Client, Hello, RawPlugin, patience, signal};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use crate::ECHO;
use crate::home::{Home, QUICK, QUICK_NOTE, Timeline, plugin};
use crate::measure::ms;
use crate::report::Row;

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
const TOML: &str = "[plugins.listener]\nrun.kind = \"remote\"\ntoken_env = \"LISTENER_TOKEN\"\nrequires = [\"base\"]\n";

pub(crate) async fn lost(row: Row) -> Result<()> {
    row.note(QUICK_NOTE);
    let requires = |name: &str, of: &str, on_loss: &str| {
        plugin(name, ECHO, &[])
            .top(&format!("requires = [{of:?}]"))
            .top(&format!("on_loss = {{ {of} = {on_loss:?} }}"))
    };
    let core = Home::prepare(
        TOML,
        &[
            plugin("base", ECHO, &[]).sections(QUICK),
            requires("notified", "base", "notify"),
            requires("stopped", "base", "stop"),
            requires("middle", "base", "restart"),
            requires("top", "middle", "restart"),
        ],
    )
    .env("LISTENER_TOKEN", TOKEN);
    let listening = core.anonymous().with_token(TOKEN);
    let home = Home::of(core).await;
    let names = ["base", "notified", "stopped", "middle", "top"];
    let before = home.all_ready(&names).await;
    let listener = RawPlugin::open(&listening, Hello::ready()).await;
    let listener = listener.context("the listener is admitted")?;
    home.operator.until_phase("listener", "ready").await;
    let timeline = home.timeline().await;

    let kill = Instant::now();
    signal(before[0].pid, Signal::KILL);
    let told = tokio::spawn(until_told(listener));
    let refused = fail_fast(&home.operator, kill).await;
    for plugin in &before {
        let again = match plugin.name.as_str() {
            "base" | "middle" | "top" => home.ready_after(&plugin.name, plugin.generation).await,
            name => home.operator.until_phase(name, "ready").await,
        };
        let unharmed = match plugin.name.as_str() {
            "notified" | "stopped" => {
                again.pid == plugin.pid && again.generation == plugin.generation
            }
            _ => again.generation == plugin.generation + 1,
        };
        row.require(unharmed, format!("{}: one new run at most", plugin.name));
    }
    let recovered = kill.elapsed();
    let told = told.await.context("the listener's task")?;
    row.tell("all ready again after", ms(recovered), "ms");
    row.at_most(
        "DependencyChanged after",
        told.map_or(f64::NAN, |at| ms(at - kill)),
        "ms",
        100.0,
    );
    row.at_most("calls fail fast after", ms(refused), "ms", 100.0);
    let stopped = timeline
        .first("stopped", patience(), |stopped| {
            stopped.phase == "stopping" || stopped.state() == core_proto::v1::PluginState::Stopped
        })
        .await;
    row.require(stopped.is_some(), "on_loss = stop stops it meanwhile");
    let errors = order_errors(&timeline, &before)?;
    row.exactly("order errors", errors.len(), "", 0);
    for error in errors {
        row.broken(error);
    }
    let charged: Vec<_> = home.all_ready(&["middle", "top"]).await;
    for plugin in charged {
        let exit = plugin.last_exit.context("its run was ended")?;
        row.require(
            exit.code == Some(0),
            format!("{} is ended in order: {exit:?}", plugin.name),
        );
    }
    home.stop(&row).await;
    Ok(())
}

/// When the plugin hears of the loss.
async fn until_told(mut listener: RawPlugin) -> Option<Instant> {
    let mut lost = None;
    loop {
        match tokio::time::timeout(patience(), listener.next()).await {
            Ok(Ok(FromCore::DependencyChanged(changed))) if changed.name == "base" => {
                if !changed.available {
                    lost = Some(Instant::now());
                } else if lost.is_some() {
                    return lost;
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return None,
        }
    }
}

/// Time from the kill to a call that is refused without waiting.
async fn fail_fast(operator: &Client, kill: Instant) -> Duration {
    loop {
        let answer = operator.call("base.say", json!({ "text": "?" })).await;
        if answer.is_err_and(|status| status.code() == Code::Unavailable) {
            return kill.elapsed();
        }
    }
}

/// `restart`: the last dependent ends first, and begins last.
fn order_errors(timeline: &Timeline, before: &[PluginInfo]) -> Result<Vec<String>> {
    let told = timeline.told();
    let first = |name: &str, holds: &dyn Fn(&PluginInfo) -> bool| -> Result<SystemTime> {
        let found = told
            .iter()
            .find(|(_, plugin)| plugin.name == name && holds(plugin));
        let (_, plugin) = found.with_context(|| format!("{name} was never told so"))?;
        let since = plugin.since.context("a phase has a begin")?;
        SystemTime::try_from(since).context("a time")
    };
    let generation = |name: &str| {
        let plugin = before.iter().find(|plugin| plugin.name == name);
        plugin.map_or(0, |plugin| plugin.generation)
    };
    let process_ended = |name: &str| {
        let old = generation(name);
        first(name, &move |plugin: &PluginInfo| {
            plugin.generation == old && plugin.pid == 0 || plugin.generation > old
        })
    };
    let begun = |name: &str| {
        let old = generation(name);
        first(name, &move |plugin: &PluginInfo| plugin.generation > old)
    };
    let ready = |name: &str| {
        let old = generation(name);
        first(name, &move |plugin: &PluginInfo| {
            plugin.generation > old && plugin.phase == "ready"
        })
    };
    let mut errors = Vec::new();
    for (what, earlier, later) in [
        (
            "top ends before middle",
            process_ended("top")?,
            process_ended("middle")?,
        ),
        (
            "base is ready before middle begins",
            ready("base")?,
            begun("middle")?,
        ),
        (
            "middle is ready before top begins",
            ready("middle")?,
            begun("top")?,
        ),
    ] {
        if earlier > later {
            errors.push(what.to_owned());
        }
    }
    Ok(errors)
}
