//! The one task that owns all plugins: feeds their machines; `perform.rs` does what they decide.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dependencies::Graph;
use super::desired::DesiredFile;
use super::grants::Grants;
use super::keeper::Keeper;
use super::operations::{Batch, Unkept};
use super::order::{self, Reactions, Standing};
use super::plugin::Plugin;
use super::programs::Looking;
use super::reload::{Pending, initially, settings};
use super::reports::Word;
use super::shutdown::Shutdown;
use super::{Config, Dependencies, Kind, Manifest, Message, OnLoss, Opening, Shared};
use crate::channel::{ChannelId, Outbound, Push, Run};
use crate::config::Upgrades;
use crate::stall::StallGuard;
use crate::supervisor::host::HostEvent;
use crate::supervisor::isolation::{Machine, Places};
use crate::supervisor::lifecycle::{Event, PluginState, RunEvent, State, step};
use crate::supervisor::output::LogBook;
use crate::supervisor::program::Looker;
use crate::supervisor::start_bucket::StartBucket;
use crate::supervisor::usage::UsageMeter;
use crate::task::TaskScope;
use crate::types::{Generation, PluginName};

/// Reports of hosts that wait; hosts wait when it is full.
const HOST_EVENTS: usize = 64;
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
    pub(super) reloads: Vec<Pending>,
    pub(super) reactions: Reactions,
    pub(super) shutdown: Option<Shutdown>,
    pub(super) desired: DesiredFile,
    pub(super) upgrades: Upgrades,
    pub(super) grants: Grants,
    pub(super) keeper: Keeper,
    /// Done, but for being on the disk.
    pub(super) unkept: Vec<Unkept>,
    pub(super) scope: TaskScope,
    messages: mpsc::Receiver<Message>,
    /// `Open`s that wait for the news of their process.
    pub(super) early: Vec<Opening>,
    pub(super) host_events: (mpsc::Sender<HostReport>, mpsc::Receiver<HostReport>),
    /// Changed since it was last put on the board.
    pub(super) dirty: BTreeSet<PluginName>,
    pub(super) next_link_check: Instant,
    pub(super) next_program_check: Instant,
    pub(super) looking: Looking,
    /// Looks at programs that may have been mended, and before a start: neither is in the other's way.
    pub(super) looker: Looker,
    pub(super) start_looker: Looker,
    pub(super) next_reports: Option<Instant>,
    pub(super) start_bucket: StartBucket,
    pub(super) stall_guard: StallGuard,
    /// End of the core's last stall: nothing is held against anybody from before.
    pub(super) stalled_until: Instant,
    pub(super) machine: Machine,
    pub(super) meter: UsageMeter,
}

/// What woke the worker.
enum Woken {
    Stop,
    Host(HostReport),
    Message(Option<Message>),
    /// Reports of channels, or a deadline.
    Look,
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
        mut work: Dependencies,
        shared: Arc<Shared>,
        messages: mpsc::Receiver<Message>,
    ) -> Self {
        let now = Instant::now();
        let desired = DesiredFile::open(&config.data_dir, config.keep_desired);
        // Where it cannot be read the configuration was refused, or there was none.
        let upgrades = Upgrades::read(&config.data_dir);
        let upgrades = upgrades.unwrap_or_else(|_| Upgrades::none(&config.data_dir));
        let grants = Grants::new(&config.data_dir, std::mem::take(&mut work.operator_grants));
        let requires = manifests
            .iter()
            .rev()
            .map(|m| (m.name.clone(), m.requires.clone()));
        let start_bucket = StartBucket::new(config.start_burst, config.starts_per_second, now);
        let places = Places {
            data_dir: config.data_dir.clone(),
            socket: config.core_address.strip_prefix("unix:").map(Into::into),
        };
        let machine = Machine::new(places, &config.cookie);
        let mut worker = Self {
            machine,
            meter: UsageMeter::default(),
            config,
            work,
            shared,
            dirty: BTreeSet::new(),
            plugins: BTreeMap::new(),
            graph: Graph::new(requires),
            batches: Vec::new(),
            reloads: Vec::new(),
            reactions: Reactions::default(),
            shutdown: None,
            desired,
            upgrades,
            grants,
            keeper: Keeper::default(),
            unkept: Vec::new(),
            scope: TaskScope::new(),
            messages,
            early: Vec::new(),
            host_events: mpsc::channel(HOST_EVENTS),
            next_link_check: now,
            next_program_check: now,
            looking: Looking::default(),
            looker: Looker::default(),
            start_looker: Looker::default(),
            next_reports: None,
            start_bucket,
            stall_guard: StallGuard::new(now),
            stalled_until: now,
        };
        for manifest in manifests {
            if worker.plugins.contains_key(&manifest.name) {
                let name = &manifest.name;
                tracing::warn!(plugin = %name, "two manifests have this name; the first counts");
                continue;
            }
            worker.install(manifest, now);
        }
        worker.put_permissions_in_force();
        // Known from the first moment, before anything runs.
        worker.publish();
        worker
    }

    /// Makes a plugin known; nothing of it runs yet.
    pub(super) fn install(&mut self, manifest: Manifest, now: Instant) {
        let name = manifest.name.clone();
        if let Kind::Remote { token: Some(token) } = &manifest.kind {
            self.work.credentials.set_static(&name, token);
        }
        let wanted = self.wanted(&manifest);
        let mut state = State::new(settings(&manifest), wanted, rand::random(), now);
        if self.desired.get(&name) == Some(PluginState::Unloaded) {
            state = state.unloaded_by_request();
        }
        let log = Arc::new(LogBook::new(name.as_str()));
        self.shared
            .logs
            .lock()
            .insert(name.clone(), Arc::clone(&log));
        let plugin = Plugin::new(manifest, state, log, now);
        self.plugins.insert(name.clone(), plugin);
        if let Some((reason, message)) = self.bar(&name)
            && let Some(plugin) = self.plugins.get_mut(&name)
        {
            tracing::error!(plugin = %name, "it cannot run: {message}");
            plugin.state = plugin.state.clone().barred(reason, message, now);
        }
        self.dirty.insert(name);
    }

    /// Brings the plugins to what is wanted of them, until `stop` is cancelled. Children that live
    /// then are killed: call [`super::PluginManager::shutdown`] before.
    pub async fn run(mut self, stop: CancellationToken) {
        let (meter, custody) = (self.meter.clone(), self.work.custody.clone());
        let owner = Box::new(move |pid| custody.owner(pid));
        self.scope.spawn("usage", |stop| meter.run(owner, stop));
        self.spread();
        let mut handles_live = true;
        loop {
            self.settle();
            let wake = self.next_deadline();
            let woken = tokio::select! {
                () = stop.cancelled() => Woken::Stop,
                Some(report) = self.host_events.1.recv() => Woken::Host(report),
                () = self.shared.reports.news() => Woken::Look,
                () = self.keeper.news() => Woken::Look,
                message = self.messages.recv(), if handles_live => Woken::Message(message),
                () = tokio::time::sleep_until(wake) => Woken::Look,
            };
            // Before anything is judged, or the core's own lateness would be taken for a plugin's.
            self.forgive_own_lateness();
            match woken {
                Woken::Stop => break,
                Woken::Host(report) => self.host_report(report),
                Woken::Message(Some(message)) => {
                    // A child's process is told before its channel can be: its pid is known
                    // (and no operator's) by the time it is admitted.
                    while let Ok(report) = self.host_events.1.try_recv() {
                        self.host_report(report);
                    }
                    // What a channel said before it was lost counts before its loss.
                    self.take_reports();
                    self.message(message);
                }
                Woken::Message(None) => handles_live = false,
                Woken::Look => {}
            }
            self.take_reports();
            self.tick();
        }
        self.keeper.flush(CLOSE).await;
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
            Message::SetLogLevel {
                plugin,
                level,
                reply,
            } => {
                // Whoever asked may be gone; it is set all the same.
                drop(reply.send(self.set_log_level(&plugin, level)));
            }
            Message::Open(opening) => self.opening(opening),
            Message::ChannelLost { run, channel } => self.channel_lost(&run, channel),
            Message::Grants(plugin, change, reply) => self.change_grants(&plugin, change, reply),
            Message::Reload { manifests, reply } => self.reload(manifests, reply),
            Message::Know { add, remove, reply } => self.know(add, &remove, reply),
            // Whoever asked may have given up.
            Message::TakeTurn(reply) => reply.send(()).unwrap_or(()),
            Message::Upgrade {
                manifest,
                record,
                deadline,
                reply,
            } => self.upgrade(*manifest, record, deadline, reply),
            Message::Shutdown { deadline, reply } => self.begin_shutdown(deadline, reply),
        }
    }

    fn host_report(&mut self, report: HostReport) {
        self.note_host(report);
        let early = std::mem::take(&mut self.early);
        early.into_iter().for_each(|early| self.opening(early));
    }

    fn note_host(&mut self, (name, generation, event): HostReport) {
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
            HostEvent::Program(identity) => return self.program_seen(&name, generation, identity),
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
        self.notice_refusal(&name);
        self.feed(&name, Event::Run(generation, event));
    }

    /// A run whose credential was refused for whom it was in the hands of.
    pub(super) fn notice_refusal(&mut self, name: &PluginName) {
        let run = self.plugins.get(name).and_then(|plugin| plugin.run.clone());
        if let Some(run) = run
            && let Some(why) = run.take_refusal()
        {
            let event = RunEvent::IdentityRefused(why);
            self.feed(name, Event::Run(run.generation(), event));
        }
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
        if let Some(liveness) = &mut plugin.liveness {
            liveness.unlink();
        }
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
        for (name, run, word) in reports {
            let Some(plugin) = self.plugins.get(&name).filter(|plugin| plugin.is_run(&run)) else {
                continue;
            };
            let generation = plugin.state.generation();
            match word {
                Word::Run(event) => self.feed(&name, Event::Run(generation, event)),
                Word::Config(revision, verdict) => self.config_result(&name, revision, verdict),
            }
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
            let was_available = plugin.state.is_available();
            let was_shown = (plugin.state.state(), plugin.state.phase());
            let (state, actions) = step(&plugin.state, event, now);
            plugin.state = state;
            plugin.note_exit(now);
            let available = plugin.state.is_available();
            let shown = (plugin.state.state(), plugin.state.phase());
            for action in actions {
                self.perform(&name, action, now);
            }
            if was_available != available {
                self.tell_neighbours(&name, available, &mut queue);
            } else if was_shown != shown && !available {
                // They say why they wait.
                self.refresh_dependents(&name, &mut queue);
            }
            self.dirty.insert(name);
        }
    }

    fn tell_neighbours(
        &mut self,
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
            if available && !other.requires.contains(name) {
                queue.push_back((other.name().clone(), Event::DependencyReady));
            }
        }
        self.refresh_dependents(name, queue);
        if available || self.shutdown.is_some() {
            return;
        }
        let plugins = &self.plugins;
        let policy = |plugin: &PluginName, lost: &PluginName| {
            let plugin = plugins.get(plugin);
            let policy = plugin.and_then(|plugin| plugin.manifest.on_loss.get(lost));
            policy.copied().unwrap_or_default()
        };
        let reached = self
            .reactions
            .lost(&self.graph, name, policy, |name| standing(plugins, name));
        for name in reached {
            // It is not available to others from now on, though it still runs: those that end before it
            // must not begin before it has ended too.
            self.refresh_dependents(&name, queue);
        }
    }

    /// Tells those who require a plugin anew what they wait for.
    fn refresh_dependents(&self, name: &PluginName, queue: &mut VecDeque<(PluginName, Event)>) {
        for other in self.graph.dependents(name.as_str()) {
            let missing = self.missing(other);
            queue.push_back((other.clone(), Event::Dependencies(missing)));
        }
    }

    /// What a plugin waits for, for people.
    pub(super) fn missing(&self, name: &PluginName) -> Option<String> {
        let plugin = self.plugins.get(name)?;
        order::missing(&plugin.requires, &self.reactions, |name| {
            standing(&self.plugins, name)
        })
    }

    /// Goes on with those that end for a loss, the outermost first; `true`: somebody was told something.
    fn advance_reactions(&mut self) -> bool {
        if self.reactions.is_empty() {
            return false;
        }
        let plugins = &self.plugins;
        let next = self
            .reactions
            .advance(&self.graph, |name| standing(plugins, name));
        for (name, policy) in &next.tell {
            let event = match policy {
                OnLoss::Notify => continue,
                OnLoss::Restart => Event::RestartForDependency,
                OnLoss::Stop => Event::StopForDependency,
            };
            self.feed(name, event);
        }
        let mut queue = VecDeque::new();
        for name in &next.over {
            self.refresh_dependents(name, &mut queue);
        }
        for (name, event) in queue {
            self.feed(&name, event);
        }
        !(next.tell.is_empty() && next.over.is_empty())
    }

    /// Gives out start slots, goes on with what is under way, answers, and shows.
    fn settle(&mut self) {
        // Each of these may allow the others something. Rounds are bounded: whatever is left is done
        // after the next turn, which follows at once.
        for _ in 0..64 {
            let upgrades = self.advance_upgrades();
            let slots = self.give_slots();
            let reactions = self.advance_reactions();
            let batches = self.advance_batches();
            let shutdown = self.advance_shutdown();
            let removed = self.forget_removed();
            if !(upgrades || slots || reactions || batches || shutdown || removed) {
                break;
            }
        }
        // Nobody is told that something is so before what is wanted is on the disk.
        self.publish();
        self.answer_waiters();
        self.answer_unkept();
    }

    pub(super) fn free_slots(&self, now: Instant) -> usize {
        let held = self.slots_held(now).count();
        self.config.max_starting.max(1).saturating_sub(held)
    }

    /// Until when each start slot is held at most.
    pub(super) fn slots_held(&self, now: Instant) -> impl Iterator<Item = Instant> {
        let plugins = self.plugins.values();
        let held = plugins.filter_map(|plugin| plugin.state.slot_until());
        held.filter(move |until| *until > now)
    }

    fn give_slots(&mut self) -> bool {
        let waiting = self
            .plugins
            .values()
            .filter(|plugin| plugin.state.wants_slot())
            .map(|plugin| (plugin.state.since(), plugin.name().clone()))
            .collect();
        let now = Instant::now();
        let free = self.free_slots(now);
        let given = order::give_slots(waiting, free, || self.start_bucket.take(now));
        for name in &given {
            self.feed(name, Event::Slot);
        }
        !given.is_empty()
    }

    pub(super) fn publish(&mut self) {
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
            // Taking a plugin out is no wish about it.
            if !plugin.leaving {
                wanted.push((name, info.desired));
            }
        }
        // Only requests change what is wanted, so that this rarely writes.
        let kept = |name: &PluginName, state| self.desired.get(name) == Some(state);
        wanted.retain(|(name, state)| !kept(name, *state) && self.asked(name, *state));
        self.desired.set(wanted, &self.keeper);
    }

    /// Whether a desire is somebody's request, and not what the manifest says anyway.
    fn asked(&self, name: &PluginName, state: PluginState) -> bool {
        let initial = self
            .plugins
            .get(name)
            .map_or(PluginState::Unloaded, |plugin| initially(&plugin.manifest));
        self.desired.get(name).is_some() || state != initial
    }
}

/// Frames of the supervisor always enter an outbox, or the channel is at its end and says so itself.
pub(super) fn sent(push: Push) {
    if push != Push::Queued {
        tracing::debug!(?push, "a frame for a channel that is ending");
    }
}

fn standing(plugins: &BTreeMap<PluginName, Plugin>, name: &PluginName) -> Option<Standing> {
    plugins
        .get(name)
        .map(|plugin| Standing::from(&plugin.state))
}
