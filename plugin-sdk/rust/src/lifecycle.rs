//! The lifecycle of a run: what LOAD, START, STOP and UNLOAD do in the plugin.
//!
//! Each step is safe to repeat: a step that the run has already taken does nothing, so that a hook
//! whose `HookDone` was lost with a channel can be sent again. A step that is cancelled (a newer hook
//! came) leaves the stage where it was.
//!
//! Order: `on_load`, subscriptions opened; `on_start`, tasks begun; events and tasks drained (2 s),
//! what is left dropped, `on_stop`; `on_unload`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::v1;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::context::{Ctx, Scope};
use crate::error::Result;
use crate::events::{self, Subscribed};
use crate::guard::guarded;
use crate::plugin::Hook;
use crate::run::{Run, Stage, Terms};

/// Event handlers that are running get this long to finish before `on_stop`.
const DRAIN: Duration = Duration::from_secs(2);
/// A failed task begins again after this, doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub(crate) async fn load(run: &Arc<Run>, scope: Scope) -> Result<()> {
    if !matches!(run.stage(), Stage::Unloaded) {
        return Ok(());
    }
    let definition = &run.plugin.definition;
    if let Some(check) = definition.check_config {
        check(&run.config())?;
    }
    let ctx = Ctx::new(Arc::clone(run), scope);
    call_hooks("on_load", &definition.hooks.on_load, &ctx).await?;
    let mut opened = Vec::new();
    for (subscription, position) in definition.subscriptions.iter().zip(&run.positions) {
        opened.push(events::open(run, subscription, Arc::clone(position)).await?);
    }
    // Only all of them: a step that fails or is cancelled before this leaves none behind.
    opened.into_iter().for_each(Subscribed::keep);
    run.stage.send_replace(Stage::Loaded);
    Ok(())
}

/// Takes a changed configuration: checked, then shown to the plugin, then in force. Before `on_load` it
/// is in force at once.
pub(crate) async fn reconfigure(run: &Arc<Run>, config: Bytes) -> Result<()> {
    let definition = &run.plugin.definition;
    if let Some(check) = definition.check_config {
        check(&config)?;
    }
    if !matches!(run.stage(), Stage::Unloaded) {
        let ctx = Ctx::new(Arc::clone(run), Scope::none());
        for hook in &definition.hooks.on_config {
            let (ctx, config) = (ctx.clone(), config.clone());
            guarded(async { hook(ctx, config).await }).await?;
        }
    }
    run.set_config(config);
    Ok(())
}

/// Registers the declared services one by one: needed when `Hello` named them wrongly, because the
/// core knows the plugin by another name than the plugin knew.
pub(crate) async fn register_declared(run: &Arc<Run>, scope: &Scope) -> Result<()> {
    for service in &run.plugin.definition.services {
        let request = v1::ServiceRegistryRegisterRequest {
            service: Some(service.describe(&run.name)),
        };
        let terms = Terms::default();
        let _: v1::ServiceRegistryRegisterResponse = run
            .request(scope, "ServiceRegistry/Register", request, terms)
            .await?;
    }
    Ok(())
}

/// Runs `on_start`. The stage changes in [`begin`], after the core has been told.
pub(crate) async fn start(run: &Arc<Run>, scope: Scope) -> Result<()> {
    if matches!(run.stage(), Stage::Started(_)) {
        return Ok(());
    }
    let ctx = Ctx::new(Arc::clone(run), scope);
    call_hooks("on_start", &run.plugin.definition.hooks.on_start, &ctx).await
}

/// Opens the gates: events are handled, tasks run.
pub(crate) fn begin(run: &Arc<Run>) {
    if matches!(run.stage(), Stage::Started(_)) {
        return;
    }
    let token = run.ended.child_token();
    run.stage.send_replace(Stage::Started(token.clone()));
    for (name, task) in &run.plugin.definition.tasks {
        let span = tracing::info_span!("task", plugin = %run.name, task = %name);
        let work = repeat_until_done(Arc::clone(run), Arc::clone(task));
        let token = token.clone();
        run.tasks.spawn(
            async move {
                tokio::select! {
                    biased;
                    () = token.cancelled() => {}
                    () = work => {}
                }
            }
            .instrument(span),
        );
    }
}

async fn repeat_until_done(run: Arc<Run>, task: Hook) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = tokio::time::Instant::now();
        let ctx = Ctx::new(Arc::clone(&run), Scope::none());
        let Err(error) = guarded(async { task(ctx).await }).await else {
            return;
        };
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tracing::error!(%error, again_in = ?pause, "a task failed");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

pub(crate) async fn stop(run: &Arc<Run>, scope: Scope) -> Result<()> {
    let (Stage::Started(token) | Stage::Stopping(token)) = run.stage() else {
        return Ok(());
    };
    run.stage.send_replace(Stage::Stopping(token.clone()));
    end_background_work(run, &token).await;
    let ctx = Ctx::new(Arc::clone(run), scope);
    let result = call_hooks("on_stop", &run.plugin.definition.hooks.on_stop, &ctx).await;
    run.stage.send_replace(Stage::Stopped);
    result
}

async fn end_background_work(run: &Run, token: &CancellationToken) {
    // New events are held back by the stage; the gate is free when those under way are done.
    if timeout(DRAIN, run.event_gate.write()).await.is_err() {
        tracing::warn!("an event handler did not finish within {DRAIN:?} and is dropped");
    }
    token.cancel();
    // Dropped futures are gone at once; only a destructor that blocks could take longer.
    run.tasks.close();
    if timeout(DRAIN, run.tasks.wait()).await.is_err() {
        tracing::warn!("a task did not end within {DRAIN:?}");
    }
    run.tasks.reopen();
}

pub(crate) async fn unload(run: &Arc<Run>, scope: Scope) -> Result<()> {
    let stopped = stop(run, scope.clone()).await;
    let unloaded = match run.stage() {
        Stage::Unloaded => Ok(()),
        _ => {
            let ctx = Ctx::new(Arc::clone(run), scope);
            call_hooks("on_unload", &run.plugin.definition.hooks.on_unload, &ctx).await
        }
    };
    run.stage.send_replace(Stage::Unloaded);
    stopped.and(unloaded)
}

/// Runs all hooks of a step, in order of declaration. The first error ends a step that builds up;
/// steps that tear down run to their end.
async fn call_hooks(step: &'static str, hooks: &[Hook], ctx: &Ctx) -> Result<()> {
    let tears_down = matches!(step, "on_stop" | "on_unload");
    let mut result = Ok(());
    for hook in hooks {
        let ctx = ctx.clone();
        let done = guarded(async { hook(ctx).await }).await;
        if let Err(error) = &done {
            tracing::error!(step, %error, "a lifecycle hook failed");
        }
        result = result.and(done);
        if result.is_err() && !tears_down {
            break;
        }
    }
    result
}
