//! Simulated lamps and motion detectors.
//!
//! What it shows: services with typed arguments and errors of their own; durable data that survives a
//! restart; state that others can watch; events; work in the background.
//!
//! A change of a lamp goes to storage first (the truth), then to the state `devices.<id>` (for watchers,
//! gone with the core), and is told last, by `devices.changed`: whoever hears of it finds it. The lock
//! keeps the changes of two callers in one order everywhere.

mod house;

use plugin_sdk::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::sync::Mutex;

use crate::house::{Lamp, Lamps, Motion, find, next_move};

/// `[config]` of plugin.toml.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    rooms: Vec<String>,
    motion_every_ms: u64,
    seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rooms: ["kitchen", "hall", "bedroom"].map(String::from).to_vec(),
            motion_every_ms: 6000,
            seed: 0,
        }
    }
}

#[derive(Default)]
struct Devices {
    lamps: Mutex<Lamps>,
}

#[plugin(name = "devices", config = Config)]
impl Devices {
    /// Finds each lamp as it was left.
    #[on_start]
    async fn find_lamps(&self, ctx: &Ctx) -> Result {
        let mut lamps = self.lamps.lock().await;
        lamps.clear();
        for room in ctx.config::<Config>()?.rooms {
            let new = Lamp::new(&room);
            let lamp = ctx.storage().get(key(&new.id)).await?.unwrap_or(new);
            ctx.state()
                .set(format!("devices.{}", lamp.id), &lamp)
                .await?;
            lamps.insert(lamp.id.clone(), lamp);
        }
        Ok(())
    }

    /// All lamps.
    #[service(read_only)]
    async fn list(&self) -> Result<Vec<Lamp>> {
        Ok(self.lamps.lock().await.values().cloned().collect())
    }

    /// Switches a lamp on, at a level in percent if one is given.
    #[service(idempotent)]
    async fn turn_on(&self, ctx: &Ctx, device_id: String, level: Option<u8>) -> Result<Lamp> {
        if level.is_some_and(|level| level > 100) {
            return Err(Error::invalid_argument("level: a percentage, 0 to 100"));
        }
        self.change(ctx, &device_id, |lamp| lamp.turned_on(level))
            .await
    }

    /// Switches a lamp off.
    #[service(idempotent)]
    async fn turn_off(&self, ctx: &Ctx, device_id: String) -> Result<Lamp> {
        self.change(ctx, &device_id, Lamp::turned_off).await
    }

    /// Acts as if somebody moved in a room.
    #[service]
    async fn simulate_motion(&self, ctx: &Ctx, room: String) -> Result<Motion> {
        let rooms = ctx.config::<Config>()?.rooms;
        if !rooms.contains(&room) {
            let text = format!("no room {room:?}; there are {}", rooms.join(", "));
            return Err(Error::not_found(text).with_reason("NO_SUCH_ROOM"));
        }
        moved(ctx, &room).await
    }

    /// People walk about.
    #[task]
    async fn live(&self, ctx: &Ctx) -> Result {
        let config: Config = ctx.config()?;
        let mut random = match config.seed {
            0 => rand::make_rng(),
            seed => SmallRng::seed_from_u64(seed),
        };
        while let Some((wait_ms, room)) =
            next_move(&mut random, &config.rooms, config.motion_every_ms)
        {
            tokio::time::sleep(millis(wait_ms)).await;
            moved(ctx, room).await?;
        }
        Ok(())
    }

    async fn change(&self, ctx: &Ctx, id: &str, how: impl FnOnce(&Lamp) -> Lamp) -> Result<Lamp> {
        let mut lamps = self.lamps.lock().await;
        let before = find(&lamps, id)?;
        let lamp = how(before);
        let changed = lamp != *before;
        if changed {
            ctx.storage().set(key(id), &lamp).await?;
            lamps.insert(id.to_owned(), lamp.clone());
        }
        // Also when nothing changed: a state that could not be written the last time is made good.
        ctx.state().set(format!("devices.{id}"), &lamp).await?;
        if changed {
            let event = NewEvent::new("devices.changed", &lamp)?.subject(id);
            ctx.publish_event(event).await?;
        }
        Ok(lamp)
    }
}

fn key(id: &str) -> String {
    format!("lamp/{id}")
}

async fn moved(ctx: &Ctx, room: &str) -> Result<Motion> {
    let motion = Motion::in_room(room);
    ctx.publish_event(NewEvent::new("devices.motion", &motion)?.subject(&motion.device_id))
        .await?;
    Ok(motion)
}

plugin_sdk::main!(Devices::default());

#[cfg(test)]
mod tests;
