//! A plugin that does everything a plugin does with others, all the time, and keeps account of it: it
//! publishes ticks, checks those of one other, calls that one, and counts what was asked of itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plugin_sdk::prelude::*;

use crate::ticks::{self, Incarnations};

/// What its calls may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The SDK waits so much longer for the core's word, and a second more is no hang yet.
const CALL_PATIENCE: Duration = Duration::from_secs(7);

/// What is told a peer of its world.
#[derive(Clone)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Whom it hears and calls; nobody if it is empty.
    pub other: String,
    /// Between two events, and between two calls.
    pub pace: Duration,
    /// Of its events and calls.
    pub incarnations: Incarnations,
}

/// What a peer has to say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    /// Of the other's events.
    pub heard: ticks::Report,
    /// `on_load` ran so often.
    pub loads: u64,
    /// Calls that it made: all, those that were answered, those that failed.
    pub asked: u64,
    /// With a result.
    pub answered: u64,
    /// With an error.
    pub failed: u64,
    /// Calls that were dropped with the task that made them, when the run ended.
    pub withdrawn: u64,
    /// Calls that neither were answered nor failed within their time.
    pub hung: u64,
    /// Calls that it was answered twice, or that its provider did twice.
    pub answered_wrong: Vec<String>,
    /// What was asked of it twice though it is not idempotent, by id.
    pub done_twice: Vec<u64>,
}

/// Arguments of `once`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Once {
    id: u64,
}

/// Arguments of `say`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Say {
    text: String,
}

#[derive(Default)]
struct Kept {
    account: Mutex<Account>,
    done: Mutex<HashMap<u64, u64>>,
    loads: AtomicU64,
}

impl Peer {
    /// The plugin. Its services:
    ///
    /// | service | answers |
    /// |---|---|
    /// | `say {text}` | the text; idempotent |
    /// | `once {id}` | how often this was asked with this id, and so 1; not idempotent |
    /// | `account` | an [`Account`] |
    #[must_use]
    pub fn plugin(&self) -> Plugin {
        let kept = Arc::<Kept>::default();
        let heard = Arc::<Mutex<ticks::Report>>::default();
        let topic = format!("{}.tick", self.name);
        let (pace, incarnations) = (self.pace, Arc::clone(&self.incarnations));
        let tick =
            move |ctx: Ctx| ticks::publish(ctx, topic.clone(), pace, Arc::clone(&incarnations));
        let (loaded, done, told) = (Arc::clone(&kept), Arc::clone(&kept), Arc::clone(&kept));
        let of_events = Arc::clone(&heard);
        let mut plugin = Plugin::builder(&self.name)
            .on_load(move |_: Ctx| {
                loaded.loads.fetch_add(1, Ordering::Relaxed);
                async { Ok(()) }
            })
            .service(
                Service::new("say")
                    .idempotent()
                    .handle(|_: Ctx, Say { text }| async move { Ok(text) }),
            )
            .service(Service::new("once").handle(move |_: Ctx, Once { id }| {
                let times = done.did(id);
                async move { Ok(times) }
            }))
            .service(
                Service::new("account")
                    .idempotent()
                    .handle(move |_: Ctx, (): ()| {
                        let mut account = told.account.lock().expect("no panic inside").clone();
                        account.heard = of_events.lock().expect("no panic inside").clone();
                        account.loads = told.loads.load(Ordering::Relaxed);
                        async move { Ok(account) }
                    }),
            )
            .task("tick", tick);
        if !self.other.is_empty() {
            let (service, pace) = (format!("{}.once", self.other), self.pace);
            let incarnations = Arc::clone(&self.incarnations);
            plugin = plugin
                .subscribe(ticks::checked(&format!("{}.tick", self.other), &heard))
                .task("call", move |ctx: Ctx| {
                    let (service, kept) = (service.clone(), Arc::clone(&kept));
                    // One number for each task's life; ids count up from it.
                    let first = incarnations();
                    async move { call(&ctx, &service, first, pace, &kept).await }
                });
        }
        plugin.build()
    }
}

async fn call(ctx: &Ctx, service: &str, first: u64, pace: Duration, kept: &Kept) -> Result<()> {
    for id in first.. {
        let options = CallOptions::new().timeout(CALL_TIMEOUT);
        let once = Once { id };
        let asked = Asked::begin(kept);
        let call = ctx.call_with::<u64>(service, &once, options);
        let ended = tokio::time::timeout(CALL_PATIENCE, call).await;
        asked.end();
        {
            let mut account = kept.account();
            match ended {
                Ok(Ok(1)) => account.answered += 1,
                Ok(Ok(times)) => account
                    .answered_wrong
                    .push(format!("call {id} was done {times} times")),
                Ok(Err(_)) => account.failed += 1,
                Err(_) => account.hung += 1,
            }
        }
        tokio::time::sleep(pace).await;
    }
    Ok(())
}

/// A call under way. Dropped before its end, it was withdrawn.
struct Asked<'a>(Option<&'a Kept>);

impl<'a> Asked<'a> {
    fn begin(kept: &'a Kept) -> Self {
        kept.account().asked += 1;
        Self(Some(kept))
    }

    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(kept) = self.0 {
            kept.account().withdrawn += 1;
        }
    }
}

impl Account {
    /// Calls whose end is not told yet.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        let ended = self.answered + self.failed + self.withdrawn + self.hung;
        self.asked - ended - self.answered_wrong.len() as u64
    }
}

impl Kept {
    fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account.lock().expect("no panic inside")
    }

    fn did(&self, id: u64) -> u64 {
        let times = {
            let mut done = self.done.lock().expect("no panic inside");
            let times = done.entry(id).or_default();
            *times += 1;
            *times
        };
        if times > 1 {
            self.account().done_twice.push(id);
        }
        times
    }
}
