//! Rules over what happens in the house: motion switches lamps, a machine under strain is reported.
//!
//! What it shows: a plugin that lives on others. It subscribes to their events, calls their services,
//! requires one plugin and copes without the rest. The rules are a pure function (`rules`); this file
//! feeds it, does what it says, and remembers.
//!
//! One thing is worked on at a time: the lock around the memory is held until its actions are done, so
//! that a lamp is never switched off by an older decision. Events wait meanwhile in the SDK's bounded
//! queue. A crash between an action and the memory of it repeats the action, which does no harm to a lamp.

mod rules;

use std::cmp::Reverse;
use std::time::{SystemTime, UNIX_EPOCH};

use plugin_sdk::prelude::*;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::rules::{Action, Happening, Memory, Period, Rules, Warning, decide, explain, failed};

/// Actions kept in the history: a ring of keys, as `notifications` has one.
const KEPT: u64 = 100;

/// One action of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Record {
    /// Counts from 1.
    number: u64,
    /// Milliseconds since 1970.
    at: u64,
    #[serde(flatten)]
    action: Action,
    /// Why it failed, if it did.
    error: Option<String>,
}

struct Automation {
    kept: Mutex<Kept>,
    clock: Clock,
}

#[derive(Default)]
struct Kept {
    memory: Memory,
    /// Number of the newest record.
    newest: u64,
}

#[derive(Deserialize)]
struct Motion {
    room: String,
}

#[derive(Deserialize)]
struct Sample {
    warnings: Vec<Warning>,
}

#[derive(Deserialize)]
struct Sunlight {
    period: Period,
}

#[plugin(name = "automation", requires = ["devices"], config = Rules)]
impl Automation {
    /// Remembers.
    #[on_load]
    async fn remember(&self, ctx: &Ctx) -> Result {
        let memory = ctx.storage().get("memory").await?.unwrap_or_default();
        let newest = records(ctx)
            .await?
            .first()
            .map_or(0, |record| record.number);
        *self.kept.lock().await = Kept { memory, newest };
        Ok(())
    }

    #[on("devices.motion")]
    async fn motion(&self, ctx: &Ctx, motion: Motion) -> Result {
        // Without an answer in good time the lamp is as bright as by day.
        let patience = CallOptions::new().timeout(secs(1));
        let sunlight = ctx
            .call_with::<Sunlight>("sunlight.now", &(), patience)
            .await;
        let period = sunlight.ok().map(|sunlight| sunlight.period);
        self.happened(
            ctx,
            &Happening::Motion {
                room: motion.room,
                period,
            },
        )
        .await
    }

    #[on("host_sensors.sample")]
    async fn sample(&self, ctx: &Ctx, sample: Sample) -> Result {
        self.happened(
            ctx,
            &Happening::Sample {
                warnings: sample.warnings,
            },
        )
        .await
    }

    #[task]
    async fn tick(&self, ctx: &Ctx) -> Result {
        ctx.every(secs(1), || self.happened(ctx, &Happening::Tick))
            .await
    }

    /// The rules in force, in words.
    #[service(read_only)]
    async fn rules(&self, ctx: &Ctx) -> Result<Vec<String>> {
        Ok(explain(&ctx.config()?))
    }

    /// What was done, newest first; the last 10 actions unless more are asked for, 100 at most.
    #[service(read_only)]
    async fn history(&self, ctx: &Ctx, limit: Option<usize>) -> Result<Vec<Record>> {
        let mut found = records(ctx).await?;
        found.truncate(limit.unwrap_or(10));
        Ok(found)
    }

    async fn happened(&self, ctx: &Ctx, happening: &Happening) -> Result {
        let rules: Rules = ctx.config()?;
        let mut kept = self.kept.lock().await;
        let now = self.clock.now();
        let (mut memory, actions) = decide(&rules, &kept.memory, happening, now);
        let mut records = Vec::new();
        for action in actions {
            let error = perform(ctx, &action).await.err();
            if let Some(error) = &error {
                tracing::warn!(?action, %error, "an action failed");
                failed(&mut memory, &action, now);
            }
            kept.newest += 1;
            let error = error.map(|error| error.to_string());
            records.push(Record {
                number: kept.newest,
                at: now,
                action,
                error,
            });
        }
        if records.is_empty() && memory == kept.memory {
            return Ok(());
        }
        let mut batch = Batch::new().set("memory", &memory)?;
        for record in &records {
            batch = batch.set(format!("done/{:03}", record.number % KEPT), record)?;
        }
        kept.memory = memory;
        ctx.storage().apply(batch).await?;
        for record in &records {
            ctx.publish("automation.done", record).await?;
        }
        Ok(())
    }
}

async fn perform(ctx: &Ctx, action: &Action) -> Result {
    match action {
        Action::TurnOn { device_id, level } => {
            ctx.call(
                "devices.turn_on",
                &json!({ "device_id": device_id, "level": level }),
            )
            .await
        }
        Action::TurnOff { device_id } => {
            ctx.call("devices.turn_off", &json!({ "device_id": device_id }))
                .await
        }
        Action::Tell { text, urgency } => {
            ctx.call(
                "notifications.send",
                &json!({ "text": text, "urgency": urgency }),
            )
            .await
        }
    }
}

/// All records that are kept, newest first.
async fn records(ctx: &Ctx) -> Result<Vec<Record>> {
    let entries = ctx.storage().scan("done/").await?;
    let mut found = entries
        .iter()
        .map(|entry| entry.parse())
        .collect::<Result<Vec<Record>>>()?;
    found.sort_by_key(|found| Reverse(found.number));
    Ok(found)
}

/// The time of the day, read once, and steady from then on: a clock that is set switches nothing.
struct Clock {
    began: Instant,
    began_at: SystemTime,
}

impl Clock {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            began_at: SystemTime::now(),
        }
    }

    /// Milliseconds since 1970.
    fn now(&self) -> u64 {
        let time = self.began_at + self.began.elapsed();
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Automation {
    fn new() -> Self {
        Self {
            kept: Mutex::default(),
            clock: Clock::new(),
        }
    }
}

plugin_sdk::main!(Automation::new());

#[cfg(test)]
mod tests;
