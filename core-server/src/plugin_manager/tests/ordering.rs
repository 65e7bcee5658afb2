//! The rules of order over whole homes: 200 real machines in random graphs, joined as the worker joins
//! them, with a simulated world that answers in random order on a simulated clock. Each case begins
//! everything, lets plugins crash, stops and starts all, and ends the core; each broken promise counts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::order::{self, Reactions, Standing};
use super::super::{Graph, OnLoss, RestartPolicy, Timeouts};
use super::name;
use crate::channel::Hook;
use crate::supervisor::lifecycle::{
    Action, Budget, Event, Exit, Origin, Phase, PluginState, Request, RunEvent, Settings, State,
    step,
};
use crate::supervisor::start_bucket::StartBucket;
use crate::types::PluginName;

const PLUGINS: usize = 200;
const SLOTS: usize = 4;

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What all are doing, by which ends are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Run,
    StopAll,
    Shutdown,
}

struct World {
    dice: Dice,
    graph: Graph,
    states: BTreeMap<PluginName, State>,
    on_loss: BTreeMap<(PluginName, PluginName), OnLoss>,
    reactions: Reactions,
    bucket: StartBucket,
    now: Instant,
    act: Act,
    /// Touched since it was last looked at.
    touched: BTreeSet<PluginName>,
    /// Something of theirs is under way.
    busy: BTreeSet<PluginName>,
    waiting: BTreeSet<PluginName>,
    starting: BTreeSet<PluginName>,
    peak_starting: usize,
    starts: Vec<Instant>,
    /// A plugin named here has crashed.
    crashed: BTreeSet<PluginName>,
    violations: Vec<String>,
}

/// A random graph, who stands in a circle, and who can never run.
struct Home {
    graph: Graph,
    circular: BTreeSet<PluginName>,
    broken: BTreeSet<PluginName>,
}

fn random_home(dice: &mut Dice) -> Home {
    // Names in no order of dependency.
    let offset = dice.below(PLUGINS);
    let names: Vec<_> = (0..PLUGINS)
        .map(|index| name(&format!("p{:03}", (index * 73 + offset) % PLUGINS)))
        .collect();
    // Sometimes deep, sometimes wide.
    let reach = 1 + dice.below(PLUGINS);
    let mut graph = Graph::default();
    let mut circles = false;
    for index in 0..PLUGINS {
        let mut requires = BTreeSet::new();
        for _ in 0..dice.below(4).min(index) {
            let back = 1 + dice.below(reach.min(index));
            requires.insert(names[index - back].clone());
        }
        if dice.percent(1) {
            requires.insert(name("ghost"));
        }
        // A circle of three, now and then.
        if index % 50 == 49 && dice.percent(30) {
            circles = true;
            requires.insert(names[index - 2].clone());
            let mut circle: Vec<_> = graph.requires(names[index - 2].as_str()).cloned().collect();
            circle.push(names[index].clone());
            graph.set(names[index - 2].clone(), circle);
        }
        graph.set(names[index].clone(), requires);
    }
    let circular: BTreeSet<_> = names
        .iter()
        .filter(|name| circles && graph.cycle_through(name).is_some())
        .cloned()
        .collect();
    // Whoever requires what can never run cannot run either.
    let mut frontier: Vec<_> = circular.iter().cloned().chain([name("ghost")]).collect();
    let mut broken = circular.clone();
    while let Some(plugin) = frontier.pop() {
        for dependent in graph.dependents(plugin.as_str()) {
            if broken.insert(dependent.clone()) {
                frontier.push(dependent.clone());
            }
        }
    }
    Home {
        graph,
        circular,
        broken,
    }
}

impl World {
    fn new(seed: u64) -> (Self, BTreeSet<PluginName>) {
        let mut dice = Dice(seed);
        let Home {
            graph,
            circular,
            broken,
        } = random_home(&mut dice);
        let now = Instant::now();
        let settings = Settings {
            origin: Origin::Hosted,
            restart: RestartPolicy::default(),
            timeouts: Timeouts::default(),
        };
        let (mut states, mut on_loss) = (BTreeMap::new(), BTreeMap::new());
        for plugin in graph.levels().concat() {
            for required in graph.requires(plugin.as_str()) {
                let policy = [OnLoss::Notify, OnLoss::Restart, OnLoss::Stop][dice.below(3)];
                on_loss.insert((plugin.clone(), required.clone()), policy);
            }
            let seed = dice.below(usize::MAX) as u64;
            let mut state = State::new(settings.clone(), PluginState::Started, seed, now);
            if circular.contains(&plugin) {
                let path = graph.cycle_through(&plugin).expect("a circle");
                let closed = path.first() == path.last() && path.len() > 2;
                assert!(closed && path.contains(&plugin), "{path:?}");
                state = state.barred("dependency_cycle", format!("{path:?}"), now);
            }
            states.insert(plugin, state);
        }
        let mut world = Self {
            dice,
            graph,
            states,
            on_loss,
            reactions: Reactions::default(),
            bucket: StartBucket::new(64, 8, now),
            now,
            act: Act::Run,
            touched: BTreeSet::new(),
            busy: BTreeSet::new(),
            waiting: BTreeSet::new(),
            starting: BTreeSet::new(),
            peak_starting: 0,
            starts: Vec::new(),
            crashed: BTreeSet::new(),
            violations: Vec::new(),
        };
        let names: Vec<_> = world.states.keys().cloned().collect();
        for name in names {
            let missing = world.missing(&name);
            world.feed(&name, Event::Dependencies(missing));
        }
        (world, broken)
    }

    fn standing(&self, plugin: &PluginName) -> Option<Standing> {
        self.states.get(plugin).map(Standing::from)
    }

    fn missing(&self, plugin: &PluginName) -> Option<String> {
        let requires = self.graph.requires(plugin.as_str());
        order::missing(requires, &self.reactions, |name| self.standing(name))
    }

    // ---- as the worker does it

    fn feed(&mut self, plugin: &PluginName, event: Event) {
        let mut queue = VecDeque::from([(plugin.clone(), event)]);
        while let Some((plugin, event)) = queue.pop_front() {
            let before = self.states[&plugin].clone();
            let (state, actions) = step(&before, event, self.now);
            let available = state.is_available();
            self.states.insert(plugin.clone(), state);
            for action in &actions {
                self.judge(&plugin, action);
            }
            if before.is_available() != available {
                self.refresh(&plugin, &mut queue);
                if !available && self.act != Act::Shutdown {
                    let (states, on_loss) = (&self.states, &self.on_loss);
                    let reached = self.reactions.lost(
                        &self.graph,
                        &plugin,
                        |plugin, lost| on_loss[&(plugin.clone(), lost.clone())],
                        |name| states.get(name).map(Standing::from),
                    );
                    for reached in reached {
                        self.refresh(&reached, &mut queue);
                    }
                }
            }
            self.touched.insert(plugin);
        }
    }

    fn refresh(&self, plugin: &PluginName, queue: &mut VecDeque<(PluginName, Event)>) {
        for other in self.graph.dependents(plugin.as_str()) {
            queue.push_back((other.clone(), Event::Dependencies(self.missing(other))));
        }
    }

    /// Goes on with whatever needs no answer of the world.
    fn settle(&mut self) {
        loop {
            for plugin in std::mem::take(&mut self.touched) {
                let state = &self.states[&plugin];
                let mark = |set: &mut BTreeSet<PluginName>, there: bool| {
                    if there {
                        set.insert(plugin.clone());
                    } else {
                        set.remove(&plugin);
                    }
                };
                mark(&mut self.busy, answer(state).is_some());
                mark(&mut self.waiting, state.wants_slot());
                mark(&mut self.starting, state.slot_until().is_some());
            }
            let spawned = self
                .starting
                .iter()
                .map(|plugin| self.states[plugin].phase());
            let spawned = spawned.filter(|phase| *phase != Phase::Starting).count();
            self.peak_starting = self.peak_starting.max(spawned);
            let waiting = self.waiting.iter();
            let waiting = waiting.map(|plugin| (self.states[plugin].since(), plugin.clone()));
            let free = SLOTS.saturating_sub(self.starting.len());
            let (now, bucket) = (self.now, &mut self.bucket);
            let given = order::give_slots(waiting.collect(), free, || bucket.take(now));
            for plugin in &given {
                self.starts.push(self.now);
                self.feed(plugin, Event::Slot);
            }
            let states = &self.states;
            let next = self
                .reactions
                .advance(&self.graph, |name| states.get(name).map(Standing::from));
            for (plugin, policy) in &next.tell {
                let event = match policy {
                    OnLoss::Restart => Event::RestartForDependency,
                    _ => Event::StopForDependency,
                };
                self.feed(plugin, event);
            }
            let mut queue = VecDeque::new();
            next.over
                .iter()
                .for_each(|plugin| self.refresh(plugin, &mut queue));
            for (plugin, event) in queue {
                self.feed(&plugin, event);
            }
            if self.touched.is_empty() {
                return;
            }
        }
    }

    // ---- the promises

    fn judge(&mut self, plugin: &PluginName, action: &Action) {
        let begins = matches!(
            action,
            Action::Spawn
                | Action::RunHook {
                    hook: Hook::Load | Hook::Start,
                    ..
                }
        );
        if begins && let Some(missing) = self.missing(plugin) {
            self.violations
                .push(format!("{plugin} begins ({action:?}) and {missing}"));
        }
        let ends = matches!(
            action,
            Action::Drain
                | Action::RunHook {
                    hook: Hook::Stop,
                    ..
                }
        );
        if !ends {
            return;
        }
        for other in self.graph.dependents(plugin.as_str()) {
            let state = &self.states[other];
            let policy = self.on_loss[&(other.clone(), plugin.clone())];
            let still_up = match self.act {
                Act::StopAll => !Standing::from(state).quiet,
                Act::Shutdown => !state.is_resting(),
                // It ends because of a loss: those that react to its own were to end before.
                Act::Run => policy != OnLoss::Notify && state.is_available(),
            };
            if still_up {
                let (shown, act) = ((state.state(), state.phase()), self.act);
                self.violations
                    .push(format!("{act:?}: {plugin} ends before {other} {shown:?}"));
            }
        }
    }

    // ---- the world

    /// Somebody answers.
    fn answer_one(&mut self) -> bool {
        if self.busy.is_empty() {
            return false;
        }
        let index = self.dice.below(self.busy.len());
        let plugin = self.busy.iter().nth(index).expect("in range").clone();
        let event = answer(&self.states[&plugin]).expect("it is busy");
        self.now += Duration::from_micros(self.dice.below(500) as u64);
        self.feed(&plugin, event);
        self.settle();
        true
    }

    /// Lets everything happen that happens by itself; `crashes`: so many plugins crash meanwhile.
    fn rest(&mut self, mut crashes: usize) {
        self.settle();
        loop {
            if crashes > 0 && self.dice.percent(10) {
                crashes -= 1;
                self.crash_one();
            }
            if self.answer_one() {
                continue;
            }
            if crashes > 0 {
                crashes -= 1;
                self.crash_one();
                continue;
            }
            let retry = self
                .states
                .values()
                .filter_map(State::next_attempt_at)
                .min();
            let start = (!self.waiting.is_empty()).then(|| self.bucket.next_at());
            let Some(at) = [retry, start].into_iter().flatten().min() else {
                return;
            };
            self.now = self.now.max(at);
            let due: Vec<_> = self
                .states
                .iter()
                .filter(|(_, state)| state.next_attempt_at().is_some_and(|at| at <= self.now))
                .map(|(plugin, _)| plugin.clone())
                .collect();
            for plugin in due {
                self.feed(&plugin, Event::Tick);
            }
            self.settle();
        }
    }

    fn crash_one(&mut self) {
        let up: Vec<_> = self
            .states
            .iter()
            .filter(|(_, state)| state.has_run())
            .map(|(plugin, _)| plugin.clone())
            .collect();
        if up.is_empty() {
            return;
        }
        let plugin = up[self.dice.below(up.len())].clone();
        let generation = self.states[&plugin].generation();
        let exit = RunEvent::Exited(Exit {
            code: Some(1),
            ..Exit::default()
        });
        self.feed(&plugin, Event::Run(generation, exit));
        self.crashed.insert(plugin);
        self.settle();
    }

    fn stop_all(&mut self) {
        self.act = Act::StopAll;
        let names = self.states.keys();
        let mut pending: BTreeMap<_, _> = names.map(|name| (name.clone(), false)).collect();
        while !pending.is_empty() {
            let before = (pending.len(), self.now);
            for plugin in order::free_to_stop(&self.graph, &pending) {
                pending.insert(plugin.clone(), true);
                self.feed(&plugin, Event::StopAll);
            }
            self.settle();
            let states = &self.states;
            pending.retain(|plugin, told| !(*told && Standing::from(&states[plugin]).quiet));
            // Several things happen between two looks of whoever asks.
            let idle = (0..8).any(|_| !self.answer_one());
            let stands = pending.len() == before.0 && idle && before.1 == self.now;
            assert!(!stands, "nobody gets on: {pending:?}");
        }
        self.rest(0);
    }

    fn shut_down(&mut self) {
        self.act = Act::Shutdown;
        self.reactions = Reactions::default();
        let names: Vec<_> = self.states.keys().cloned().collect();
        names.iter().for_each(|name| self.feed(name, Event::Freeze));
        let budget = Budget {
            drain: Duration::from_secs(1),
            hooks: Duration::from_secs(1),
            term: Duration::from_secs(1),
        };
        for level in order::levels_of_the_end(&self.graph) {
            for plugin in &level {
                self.feed(plugin, Event::Shutdown(budget));
            }
            self.settle();
            while !level.iter().all(|plugin| self.states[plugin].is_resting()) {
                assert!(self.answer_one(), "nobody gets on");
            }
        }
    }

    fn expect_all_ready(&mut self, but: &BTreeSet<PluginName>, when: &str) {
        for (plugin, state) in &self.states {
            let pair = (state.state(), state.phase());
            let as_it_should = if but.contains(plugin) {
                pair.0 == PluginState::Unloaded
            } else {
                pair == (PluginState::Started, Phase::Ready)
            };
            if !as_it_should {
                let why = state.explain();
                self.violations
                    .push(format!("{when}: {plugin} is {pair:?} {why:?}"));
            }
            // What others do costs nobody anything.
            if !self.crashed.contains(plugin) && state.failures() > 0 {
                self.violations
                    .push(format!("{when}: {plugin} paid for a loss"));
            }
        }
    }
}

/// What the world says next to a plugin's machine.
fn answer(state: &State) -> Option<Event> {
    let of_run = |event| Some(Event::Run(state.generation(), event));
    if let Some(hook_id) = state.awaited_hook() {
        let result = Ok(());
        return of_run(RunEvent::HookDone { hook_id, result });
    }
    match state.phase() {
        Phase::Spawning if state.has_run() => of_run(RunEvent::Spawned),
        Phase::Connecting => Some(Event::Opened {
            ready: false,
            resumable: true,
        }),
        Phase::Stopping => of_run(RunEvent::Drained),
        Phase::Unloading => of_run(RunEvent::Exited(Exit {
            code: Some(0),
            ..Exit::default()
        })),
        _ => None,
    }
}

/// Violations of one case.
fn play(seed: u64) -> Vec<String> {
    let (mut world, broken) = World::new(seed);
    world.rest(0);
    world.expect_all_ready(&broken, "after the begin");
    world.rest(6);
    world.expect_all_ready(&broken, "after crashes");
    world.stop_all();
    let up = world.states.values().filter(|state| state.is_available());
    if up.count() > 0 {
        world.violations.push("StopAll left some".to_owned());
    }
    world.act = Act::Run;
    let names: Vec<_> = world.states.keys().cloned().collect();
    for plugin in names {
        if !broken.contains(&plugin) {
            world.feed(&plugin, Event::Request(Request::Start));
        }
    }
    world.rest(2);
    world.expect_all_ready(&broken, "after StartAll");
    world.shut_down();
    if world.peak_starting > SLOTS {
        let peak = world.peak_starting;
        world.violations.push(format!("{peak} started at once"));
    }
    for (index, from) in world.starts.iter().enumerate() {
        if let Some(until) = world.starts.get(index + 64)
            && *until - *from < Duration::from_millis(124)
        {
            world
                .violations
                .push("more starts in a row than the bucket holds".to_owned());
        }
    }
    world.violations
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whole_homes_begin_and_end_in_order(seed in any::<u64>()) {
        let violations = play(seed);
        prop_assert!(violations.is_empty(), "{} with seed {seed}: {:#?}", violations.len(), &violations[..violations.len().min(5)]);
    }
}
