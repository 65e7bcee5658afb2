//! A run: one life of a plugin, and everything that refers to it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::last_read::{Connections, LastRead};
use super::outbox::Outbox;
use super::slots::CallerSlots;
use crate::event_bus::Gate;
use crate::types::{Generation, PluginName, RunId};

/// One channel of a run; unique in this core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId(u64);

impl ChannelId {
    /// A new id.
    #[must_use]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The live channel of a run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Link {
    /// Which channel.
    pub channel: ChannelId,
    /// Whose.
    pub plugin: PluginName,
    /// What waits for it.
    pub outbox: Outbox,
    /// Calls it works on at once.
    pub max_calls_in_flight: usize,
}

/// One run. Made by the plugin manager; everyone else only reads.
#[derive(Debug)]
pub struct Run {
    plugin: PluginName,
    id: RunId,
    generation: Generation,
    /// The core runs it itself.
    hosted: bool,
    ended: CancellationToken,
    gate: watch::Sender<Gate>,
    /// The channel, if there is one now. Guards only itself.
    link: Mutex<Option<Link>>,
    /// When the plugin last answered a `Ping`, and with which nonce.
    last_pong: Mutex<Option<(u64, Instant)>>,
    /// Why its credential was refused, if it was.
    refused: Mutex<Option<String>>,
    /// Over which its requests came.
    connections: Connections,
    watches: Arc<CallerSlots>,
}

impl Run {
    /// A run that begins now, of a plugin that runs elsewhere.
    #[must_use]
    pub fn new(plugin: PluginName, generation: Generation) -> Arc<Self> {
        Self::begin(plugin, generation, false)
    }

    /// A run that begins now, of a child or embedded plugin: only its own token speaks for it.
    #[must_use]
    pub fn hosted(plugin: PluginName, generation: Generation) -> Arc<Self> {
        Self::begin(plugin, generation, true)
    }

    fn begin(plugin: PluginName, generation: Generation, hosted: bool) -> Arc<Self> {
        Arc::new(Self {
            plugin,
            id: RunId::random(),
            generation,
            hosted,
            ended: CancellationToken::new(),
            gate: watch::Sender::new(Gate::Waiting),
            link: Mutex::new(None),
            last_pong: Mutex::new(None),
            refused: Mutex::new(None),
            connections: Connections::new(),
            watches: Arc::default(),
        })
    }

    /// Whose run.
    #[must_use]
    pub fn plugin(&self) -> &PluginName {
        &self.plugin
    }

    /// Whether the core runs it itself, and so made a token for it.
    #[must_use]
    pub fn is_hosted(&self) -> bool {
        self.hosted
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Its number.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Cancelled when the run ends; streams and registrations of the run end by it.
    #[must_use]
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether its events flow.
    #[must_use]
    pub fn gate(&self) -> watch::Receiver<Gate> {
        self.gate.subscribe()
    }

    /// The live channel, if there is one.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        self.link.lock().clone()
    }

    /// Its share of watches.
    #[must_use]
    pub fn watches(&self) -> &Arc<CallerSlots> {
        &self.watches
    }

    /// Lets events flow or not. Only the plugin manager does this.
    pub fn set_gate(&self, gate: Gate) {
        self.gate
            .send_if_modified(|current| std::mem::replace(current, gate) != gate);
    }

    /// Sets the live channel and returns the one before. Only the plugin manager does this.
    pub fn set_link(&self, link: Option<Link>) -> Option<Link> {
        std::mem::replace(&mut *self.link.lock(), link)
    }

    /// Notes that its credential was presented by somebody it was not made for; the first time counts.
    pub fn note_refusal(&self, why: String) {
        self.refused.lock().get_or_insert(why);
    }

    /// Takes what [`Self::note_refusal`] noted.
    #[must_use]
    pub fn take_refusal(&self) -> Option<String> {
        self.refused.lock().take()
    }

    /// Notes that a request of this run came over a connection. Cheap when it is known already.
    pub fn came_over(&self, connection: &LastRead) {
        self.connections.add(connection);
    }

    /// When a byte was last read from any of its open connections.
    #[must_use]
    pub fn last_read(&self) -> Option<Instant> {
        self.connections.last_read()
    }

    /// Notes an answer to a `Ping`.
    pub fn note_pong(&self, nonce: u64, now: Instant) {
        *self.last_pong.lock() = Some((nonce, now));
    }

    /// The last answer to a `Ping`: its nonce and when it came.
    #[must_use]
    pub fn last_pong(&self) -> Option<(u64, Instant)> {
        *self.last_pong.lock()
    }
}

/// The runs that are alive, by plugin. Written by the plugin manager, read to tell whose request it is.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// At most one run per plugin. Short lock: no await inside.
    live: Arc<RwLock<HashMap<PluginName, Arc<Run>>>>,
}

impl Runs {
    /// The live run of a plugin.
    #[must_use]
    pub fn get(&self, plugin: &str) -> Option<Arc<Run>> {
        self.live.read().get(plugin).cloned()
    }

    /// Makes a run the live one of its plugin.
    pub fn insert(&self, run: Arc<Run>) {
        let before = self.live.write().insert(run.plugin.clone(), run);
        debug_assert!(
            before.is_none_or(|run| run.ended.is_cancelled()),
            "two live runs"
        );
    }

    /// Ends a run: takes it off the list and cancels what belongs to it. Idempotent.
    pub fn end(&self, run: &Run) {
        let mut live = self.live.write();
        if live
            .get(run.plugin.as_str())
            .is_some_and(|current| current.id == run.id)
        {
            live.remove(run.plugin.as_str());
        }
        drop(live);
        run.ended.cancel();
    }
}
