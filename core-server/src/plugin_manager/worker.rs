//! The one task that owns all plugins: feeds their machines; `perform.rs` does what they decide.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dependencies::Graph;
use super::desired::DesiredFile;
use super::error::path_text;
use super::operations::Batch;
use super::plugin::Plugin;
use super::shutdown::Shutdown;
use super::{Config, Dependencies, Kind, Manifest, Message, OnLoss, Shared};
use crate::channel::{ChannelId, Closed, Outbound, Push, Run};
use crate::supervisor::host::HostEvent;
use crate::supervisor::lifecycle::{Event, Origin, PluginState, RunEvent, Settings, State, step};
use crate::task::TaskScope;
use crate::types::{Generation, PluginName};

/// Reports of hosts that wait; hosts wait when it is full.
const HOST_EVENTS: usize = 64;
/// How often channels are looked at for being stuck or gone.
const LINK_CHECK: Duration = Duration::from_secs(1);
/// How long the tasks of the worker may take to end with it.
const CLOSE: Duration = Duration::from_secs(1);
/// What callers of an absent provider are advised to wait.
pub(super) const ABSENT_RETRY: Duration = Duration::from_secs(1);

/// The worker. Runs once; see [`Worker::run`].
pub struct Worker {
    pub(super) config: Config,
    pub(super) work: Dependencies,
    pub(super) shared: Arc<Shared>,
    pub(super) plugins: BTreeMap<PluginName, Plugin>,
    pub(super) graph: Graph,
    pub(super) batches: Vec<Batch>,
    pub(super) shutdown: Option<Shutdown>,
    pub(super) desired: DesiredFile,
    pub(super) scope: TaskScope,
    messages: mpsc::Receiver<Message>,
    pub(super) host_events: (mpsc::Sender<HostReport>, mpsc::Receiver<HostReport>),
    /// Changed since it was last put on the board.
    dirty: BTreeSet<PluginName>,
    next_link_check: Instant,
    next_reports: Option<Instant>,
}

pub(super) type HostReport = (PluginName, Generation, HostEvent);

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(
        config: Config,
        manifests: Vec<Manifest>,
        work: Dependencies,
        shared: Arc<Shared>,
        messages: mpsc::Receiver<Message>,
    ) -> Self {
        let now = Instant::now();
        let desired = DesiredFile::open(&config.data_dir, config.keep_desired);
        let requires = manifests
            .iter()
            .rev()
            .map(|m| (m.name.clone(), m.requires.clone()));
        let graph = Graph::new(requires);
        let mut plugins = BTreeMap::new();
        for manifest in manifests {
            let name = manifest.name.clone();
            if plugins.contains_key(&name) {
                tracing::warn!(plugin = %name, "two manifests have this name; the first counts");
                continue;
            }
            let wanted = desired.get(&name).unwrap_or(if manifest.autostart {
                PluginState::Started
            } else {
                PluginState::Unloaded
            });
            let origin = match &manifest.kind {
                Kind::Remote { token } => {
                    work.credentials.set_static(&name, token);
                    Origin::Remote
                }
                Kind::Process(_) | Kind::Embedded => Origin::Hosted,
            };
            let settings = Settings {
                origin,
                restart: manifest.restart.clone(),
                timeouts: manifest.timeouts.clone(),
            };
            let mut state = State::new(settings, wanted, rand::random(), now);
            if let Some(path) = graph.cycle_through(&name) {
                let message = format!("plugins require each other: {}", path_text(&path));
                tracing::error!(plugin = %name, "{message}");
                state = state.barred("dependency_cycle", message, now);
            } else if matches!(manifest.kind, Kind::Embedded) && !work.embedded.contains_key(&name)
            {
                let message = "this program has no such plugin built in".to_owned();
                state = state.barred("not_built_in", message, now);
            }
            let log = shared.logs.get(&name).cloned().unwrap_or_default();
            plugins.insert(name, Plugin::new(manifest, state, log, now));
        }
        let mut worker = Self {
            config,
            work,
            shared,
            dirty: plugins.keys().cloned().collect(),
            plugins,
            graph,
            batches: Vec::new(),
            shutdown: None,
            desired,
            scope: TaskScope::new(),
            messages,
            host_events: mpsc::channel(HOST_EVENTS),
            next_link_check: now,
            next_reports: None,
        };
        // Known from the first moment, before anything runs.
        worker.publish();
        worker
    }

    /// Brings the plugins to what is wanted of them, until `stop` is cancelled. Children that live
    /// then are killed: call [`super::PluginManager::shutdown`] before.
    pub async fn run(mut self, stop: CancellationToken) {
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        for name in names {
            let missing = self.missing(&name);
            self.feed(&name, Event::Dependencies(missing));
        }
        let mut handles_live = true;
        loop {
            self.settle();
            let wake = self.next_deadline();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(report) = self.host_events.1.recv() => self.host_report(report),
                () = self.shared.reports.news() => {}
                message = self.messages.recv(), if handles_live => match message {
                    Some(message) => {
                        // A child's process is told before its channel can be: its pid is known
                        // (and no operator's) by the time it is admitted.
                        while let Ok(report) = self.host_events.1.try_recv() {
                            self.host_report(report);
                        }
                        // What a channel said before it was lost counts before its loss.
                        self.take_reports();
                        self.message(message);
                    }
                    None => handles_live = false,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            self.take_reports();
            self.tick();
        }
        let left = self.scope.close(CLOSE).await;
        if !left.is_empty() {
            tracing::warn!(?left, "tasks of the plugin manager had to be aborted");
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Request {
                plugin,
                request,
                deadline,
                reply,
            } => {
                self.request(&plugin, request, deadline, reply);
            }
            Message::All {
                which,
                deadline,
                reply,
            } => self.all(which, deadline, reply),
            Message::Open {
                credential,
                hello,
                outbox,
                reply,
            } => {
                let admitted = self.open(&credential, *hello, outbox);
                if let Err(Ok(admitted)) = reply.send(admitted) {
                    // Whoever opened it is gone already, and will not report its loss.
                    self.channel_lost(&admitted.run, admitted.channel);
                }
            }
            Message::ChannelLost { run, channel } => self.channel_lost(&run, channel),
            Message::Shutdown { deadline, reply } => self.begin_shutdown(deadline, reply),
        }
    }

    fn host_report(&mut self, (name, generation, event): HostReport) {
        let event = match event {
            HostEvent::Pid(pid) => {
                if let Some(plugin) = self.plugins.get_mut(&name)
                    && plugin.state.generation() == generation
                {
                    plugin.pid = pid;
                    self.dirty.insert(name);
                }
                return;
            }
            HostEvent::Run(event) => event,
        };
        // Its last words come before its end.
        self.take_reports();
        if let Some(plugin) = self.plugins.get_mut(&name)
            && plugin.state.generation() == generation
            && matches!(event, RunEvent::Exited(_) | RunEvent::SpawnFailed { .. })
        {
            plugin.pid = 0;
            plugin.orders = None;
        }
        self.feed(&name, Event::Run(generation, event));
    }

    pub(super) fn channel_lost(&mut self, run: &Arc<Run>, channel: ChannelId) {
        let name = run.plugin().clone();
        let Some(plugin) = self
            .plugins
            .get_mut(&name)
            .filter(|plugin| plugin.is_run(run.id()))
        else {
            return;
        };
        let Some(link) = run.link().filter(|link| link.channel == channel) else {
            return;
        };
        plugin.heartbeat = None;
        run.set_link(None);
        if !link.outbox.is_closed() {
            // Only its reading half is known to be gone. (One that ends already says why.)
            link.outbox.close();
        }
        let generation = run.generation();
        // First the route, so that nothing more is sent there; then the end of what was.
        self.feed(&name, Event::Run(generation, RunEvent::ChannelLost));
        self.work.router.link_lost(&name, channel);
    }

    fn take_reports(&mut self) {
        let (reports, later) = self.shared.reports.take(Instant::now());
        self.next_reports = later;
        for (name, run, event) in reports {
            let Some(plugin) = self.plugins.get(&name).filter(|plugin| plugin.is_run(&run)) else {
                continue;
            };
            let generation = plugin.state.generation();
            self.feed(&name, Event::Run(generation, event));
        }
    }

    // ---- time

    fn next_deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let plugins = self.plugins.values().flat_map(|plugin| {
            let beat = plugin
                .heartbeat
                .as_ref()
                .map(|heartbeat| heartbeat.next_deadline());
            let waiters = plugin.waiters.iter().map(|waiter| waiter.deadline).min();
            [plugin.state.next_deadline(), beat, waiters]
                .into_iter()
                .flatten()
        });
        let linked = self.plugins.values().any(|plugin| plugin.run.is_some());
        plugins
            .chain(self.batches.iter().map(|batch| batch.deadline))
            .chain(
                self.shutdown
                    .as_ref()
                    .and_then(|shutdown| shutdown.next_deadline()),
            )
            .chain(self.next_reports)
            .chain(linked.then_some(self.next_link_check))
            .fold(far, Instant::min)
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let check_links = self.next_link_check <= now;
        if check_links {
            self.next_link_check = now + LINK_CHECK;
        }
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        for name in names {
            let plugin = &self.plugins[&name];
            if plugin.state.next_deadline().is_some_and(|at| at <= now) {
                self.feed(&name, Event::Tick);
            }
            self.beat(&name, check_links, now);
            if check_links {
                self.check_link(&name, now);
            }
        }
    }

    fn beat(&mut self, name: &PluginName, look: bool, now: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let (Some(heartbeat), Some(run)) = (&mut plugin.heartbeat, &plugin.run) else {
            return;
        };
        if !look && heartbeat.next_deadline() > now {
            return;
        }
        let beat = heartbeat.look(run.last_pong().map(|(nonce, _)| nonce), now);
        if let (Some(nonce), Some(link)) = (beat.ping, run.link()) {
            sent(link.outbox.push(Outbound::Ping { nonce }));
        }
        if let Some(missed) = beat.degraded {
            let generation = run.generation();
            self.feed(name, Event::Run(generation, RunEvent::Heartbeat { missed }));
        }
    }

    /// Ends a channel that is not read, and notices one whose loss nobody reported.
    fn check_link(&mut self, name: &PluginName, now: Instant) {
        let Some(run) = self.plugins.get(name).and_then(|plugin| plugin.run.clone()) else {
            return;
        };
        let Some(link) = run.link() else {
            return;
        };
        let stuck = link.outbox.stuck_since();
        if stuck.is_some_and(|since| now.duration_since(since) >= self.config.stalled_after) {
            let queued_bytes = link.outbox.queued_bytes();
            tracing::warn!(plugin = %name, queued_bytes, "its channel is not read; it is closed");
            link.outbox.abort(Closed::Stalled { queued_bytes });
        }
        if link.outbox.is_closed() {
            self.channel_lost(&run, link.channel);
        }
    }

    // ---- the machines

    /// Feeds one machine, performs what it decides, and tells its neighbours.
    pub(super) fn feed(&mut self, name: &PluginName, event: Event) {
        let mut queue = VecDeque::from([(name.clone(), event)]);
        while let Some((name, event)) = queue.pop_front() {
            let now = Instant::now();
            let Some(plugin) = self.plugins.get_mut(&name) else {
                continue;
            };
            let was_started = plugin.is_started();
            let (state, actions) = step(&plugin.state, event, now);
            plugin.state = state;
            plugin.note_exit(now);
            let is_started = plugin.is_started();
            for action in actions {
                self.perform(&name, action, now);
            }
            if was_started != is_started {
                self.tell_neighbours(&name, is_started, &mut queue);
            }
            self.dirty.insert(name);
        }
    }

    fn tell_neighbours(
        &self,
        name: &PluginName,
        available: bool,
        queue: &mut VecDeque<(PluginName, Event)>,
    ) {
        for other in self.plugins.values().filter(|other| other.looks_at(name)) {
            if let Some(link) = other.run.as_ref().and_then(|run| run.link()) {
                let name = name.clone();
                sent(
                    link.outbox
                        .push(Outbound::DependencyChanged { name, available }),
                );
            }
            if !other.requires.contains(name) {
                continue;
            }
            let missing = self.missing(other.name());
            queue.push_back((other.name().clone(), Event::Dependencies(missing)));
            if available || self.shutdown.is_some() {
                continue;
            }
            match other
                .manifest
                .on_loss
                .get(name)
                .copied()
                .unwrap_or_default()
            {
                OnLoss::Notify => {}
                OnLoss::Restart => {
                    queue.push_back((other.name().clone(), Event::RestartForDependency));
                }
                OnLoss::Stop => queue.push_back((other.name().clone(), Event::StopForDependency)),
            }
        }
    }

    /// What a plugin waits for, for people.
    pub(super) fn missing(&self, name: &PluginName) -> Option<String> {
        let plugin = self.plugins.get(name)?;
        let missing: Vec<_> = plugin
            .requires
            .iter()
            .filter_map(|required| match self.plugins.get(required) {
                None => Some(format!("{required} (unknown)")),
                Some(plugin) => (!plugin.is_started()).then(|| required.to_string()),
            })
            .collect();
        (!missing.is_empty()).then(|| format!("waits for {}", missing.join(", ")))
    }

    /// Gives out start slots, goes on with what is under way, answers, and shows.
    fn settle(&mut self) {
        // Each of these may allow the others something. Rounds are bounded: whatever is left is done
        // after the next turn, which follows at once.
        for _ in 0..64 {
            let slots = self.give_slots();
            let batches = self.advance_batches();
            let shutdown = self.advance_shutdown();
            if !(slots || batches || shutdown) {
                break;
            }
        }
        // What is wanted is kept before anybody is told that it is.
        self.publish();
        self.answer_waiters();
    }

    fn give_slots(&mut self) -> bool {
        let held = self
            .plugins
            .values()
            .filter(|plugin| plugin.state.holds_slot())
            .count();
        let mut free = self.config.max_starting.max(1).saturating_sub(held);
        let mut queue: Vec<_> = self
            .plugins
            .values()
            .filter(|plugin| plugin.state.wants_slot())
            .map(|plugin| (plugin.state.since(), plugin.name().clone()))
            .collect();
        queue.sort();
        let mut given = false;
        for (_, name) in queue {
            if free == 0 {
                break;
            }
            free -= 1;
            given = true;
            self.feed(&name, Event::Slot);
        }
        given
    }

    fn publish(&mut self) {
        let now = Instant::now();
        let mut wanted = Vec::new();
        for name in std::mem::take(&mut self.dirty) {
            let Some(plugin) = self.plugins.get_mut(&name) else {
                continue;
            };
            let info = plugin.info(now);
            if self.shared.board.put(info.clone()) {
                self.work.announcer.plugin_state(&info);
            }
            wanted.push((name, info.desired));
        }
        // Only requests change what is wanted, so that this rarely writes.
        let known = |name: &PluginName, state| self.desired.get(name) == Some(state);
        wanted.retain(|(name, state)| !known(name, *state) && self.asked(name, *state));
        self.desired.set(wanted);
    }

    /// Whether a desire is somebody's request, and not what the manifest says anyway.
    fn asked(&self, name: &PluginName, state: PluginState) -> bool {
        let autostart = self
            .plugins
            .get(name)
            .is_some_and(|plugin| plugin.manifest.autostart);
        let initial = if autostart {
            PluginState::Started
        } else {
            PluginState::Unloaded
        };
        self.desired.get(name).is_some() || state != initial
    }
}

/// Frames of the supervisor always enter an outbox, or the channel is at its end and says so itself.
pub(super) fn sent(push: Push) {
    if push != Push::Queued {
        tracing::debug!(?push, "a frame for a channel that is ending");
    }
}
