//! 41, simulated: the core as a library and five peers of the SDK, each on a host of its own of a simulated
//! network with a simulated clock. Minutes pass in seconds, and a seed can be played again.
//!
//! One seed is one process: everything on one thread, time of turmoil, and the system's random numbers and
//! wall clock replaced (`fixtures/simulated.c`; without a C compiler schedules and delays still follow from
//! the seed, but not hash tables and jitter). What the core does on threads of its own, opening its storage
//! above all, happens while time stands still. What is left of chance: the moment at which a thread of the
//! core is heard. Most seeds take the same course again, to the last message; how many did not is told.
//!
//! Links are clogged and released, cut (what is sent meanwhile is lost, and connections with it) and
//! mended, and peers crash and begin anew, all at random. In the end everything works again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use core_server::Runtime;
use core_server::config::{CallPermission, Config, Need, Quotas};
use core_server::plugin_manager::{Kind, Manifest};
use core_server::security::Token;
use core_server::supervisor::lifecycle::Phase;
use core_server::types::{Pattern, PluginName};
use core_tests::peer::{Account, Peer};
use plugin_sdk::client::{self, Dialer};
use plugin_sdk::host::{self, Settings};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::report::Row;
use crate::rows::swizzle::{Step, swizzle};

const CORE: &str = "core";
const PEERS: [&str; 5] = ["one", "two", "three", "four", "five"];
const PORT: u16 = 7070;
/// Between two events or calls of a peer.
const PACE: Duration = Duration::from_millis(100);
/// How finely time passes.
const TICK: Duration = Duration::from_millis(5);
/// Simulated time with faults, and afterwards without.
const FAULTS: Duration = Duration::from_secs(90);
const RECOVERY: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(5);
/// Seeds of a run, and of one with `--long`; how many of them are played twice.
const SEEDS: u64 = 4;
const LONG_SEEDS: u64 = 300;
const TWICE: u64 = 1;
/// Seeds at once.
const SIDE_BY_SIDE: usize = 2;
/// What is preloaded into a simulation.
const SHIM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/fixtures/simulated.c");

/// What came of one seed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    seed: u64,
    /// Broken promises.
    broken: Vec<String>,
    /// Simulated, until all were ready after the last fault.
    recovered_ms: Option<u64>,
    clogs: u32,
    cuts: u32,
    crashes: u32,
    events: u64,
    calls: u64,
    failed_calls: u64,
    runs: u64,
    /// Of everything that happened: each change of each plugin with its time, and the accounts.
    trace: u64,
    simulated_ms: u64,
}

/// Plays many seeds, each in a process of its own, some of them twice.
pub(crate) async fn many_seeds(row: &Row) -> Result<()> {
    let directory = tempfile::tempdir().context("a directory")?;
    let shim = build_shim(directory.path()).await;
    if shim.is_none() {
        row.skip_part("seeds played twice: no C compiler here to build the shim");
    }
    let count = if row.is_long() { LONG_SEEDS } else { SEEDS };
    let twice = if shim.is_some() { TWICE } else { 0 };
    let seeds: Vec<u64> = (0..count)
        .chain(0..twice)
        .map(|index| row.seed().wrapping_add(index))
        .collect();
    let begin = Instant::now();
    let places = Arc::new(tokio::sync::Semaphore::new(SIDE_BY_SIDE));
    let mut playing = Vec::new();
    for seed in seeds {
        let (places, shim) = (Arc::clone(&places), shim.clone());
        playing.push(tokio::spawn(async move {
            let _place = places.acquire().await;
            play_elsewhere(seed, shim.as_deref()).await
        }));
    }
    let mut outcomes = Vec::new();
    for played in playing {
        outcomes.push(played.await??);
    }
    let (first, again) = outcomes.split_at(usize::try_from(count)?);
    let failures = first.iter().filter(|outcome| !outcome.broken.is_empty());
    row.exactly("simulation: seeds that failed", failures.count(), "", 0);
    for outcome in first.iter().filter(|outcome| !outcome.broken.is_empty()) {
        let Outcome { seed, broken, .. } = outcome;
        row.broken(format!("simulation, --seed {seed}: {broken:?}"));
    }
    row.tell("simulation: seeds", count as f64, "");
    let worst = first
        .iter()
        .filter_map(|outcome| outcome.recovered_ms)
        .max();
    let worst = worst.map_or(f64::NAN, |ms| ms as f64 / 1000.0);
    row.at_most(
        "simulation: all ready, worst",
        worst,
        "s",
        RECOVERY.as_secs_f64(),
    );
    let differ = again
        .iter()
        .zip(first)
        .filter(|(again, first)| again.trace != first.trace);
    let differ = differ.count() as f64;
    row.tell(
        &format!("simulation: other course, of {} played again", again.len()),
        differ,
        "",
    );
    let sum = |of: fn(&Outcome) -> u64| first.iter().map(of).sum::<u64>() as f64;
    row.tell("simulation: clogs", sum(|outcome| outcome.clogs.into()), "");
    row.tell("simulation: cuts", sum(|outcome| outcome.cuts.into()), "");
    row.tell(
        "simulation: crashes",
        sum(|outcome| outcome.crashes.into()),
        "",
    );
    row.tell("simulation: runs", sum(|outcome| outcome.runs), "");
    row.tell(
        "simulation: events heard",
        sum(|outcome| outcome.events),
        "",
    );
    row.tell("simulation: calls", sum(|outcome| outcome.calls), "");
    row.tell(
        "simulation: calls that failed",
        sum(|outcome| outcome.failed_calls),
        "",
    );
    row.tell(
        "simulation: simulated",
        sum(|outcome| outcome.simulated_ms) / 1000.0,
        "s",
    );
    row.tell("simulation: took", begin.elapsed().as_secs_f64(), "s");
    Ok(())
}

async fn play_elsewhere(seed: u64, shim: Option<&Path>) -> Result<Outcome> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["simulate", "--seed", &seed.to_string()]);
    if let Some(shim) = shim {
        command
            .env("LD_PRELOAD", shim)
            .env("FAULTS_RANDOM_SEED", seed.to_string());
    }
    let played = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .context("a simulation's process")?;
    ensure!(played.status.success(), "seed {seed}: {}", played.status);
    serde_json::from_slice(&played.stdout).with_context(|| format!("what seed {seed} found"))
}

async fn build_shim(directory: &Path) -> Option<PathBuf> {
    let library = directory.join("simulated.so");
    let built = tokio::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .args([SHIM, "-ldl"])
        .stdin(Stdio::null())
        .status()
        .await;
    built
        .is_ok_and(|status| status.success())
        .then_some(library)
}

/// What is asked of the core's host.
enum Ask {
    /// All accounts, into [`Shared::accounts`].
    Accounts,
}

/// What hosts show the driver. All is one thread; the locks are never contended.
#[derive(Default)]
struct Shared {
    runtime: Mutex<Option<Arc<Runtime>>>,
    accounts: Mutex<Option<Vec<Account>>>,
    /// What is asked of the core. One at a time.
    asked: Mutex<Option<mpsc::Sender<Ask>>>,
}

impl Shared {
    fn runtime(&self) -> Option<Arc<Runtime>> {
        self.runtime.lock().expect("no panic inside").clone()
    }
}

/// Plays one seed in this thread; if it `tells`, it prints each change of a plugin.
pub(crate) fn play(seed: u64, tells: bool) -> Result<Outcome> {
    let directory = tempfile::tempdir().context("a directory")?;
    let shared = Arc::<Shared>::default();
    let mut simulation = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3_600))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(100))
        .tcp_capacity(1 << 16)
        .enable_tokio_io()
        .build();
    let config = configuration(directory.path(), seed);
    let of_core = Arc::clone(&shared);
    simulation.host(CORE, move || serve(config.clone(), Arc::clone(&of_core)));
    for (name, other) in PEERS.iter().zip(PEERS.iter().cycle().skip(1)) {
        simulation.host(*name, move || work(name, other, seed));
    }
    let mut driver = Driver {
        simulation,
        shared,
        shown: Vec::new(),
        trace: DefaultHasher::new(),
        tells,
        outcome: Outcome {
            seed,
            ..Outcome::default()
        },
    };
    driver.play(seed)?;
    let Driver {
        mut outcome,
        simulation,
        trace,
        shared,
        ..
    } = driver;
    outcome.trace = trace.finish();
    outcome.simulated_ms = u64::try_from(simulation.elapsed().as_millis())?;
    // The core's own threads end with it; nothing is asked of its end here.
    drop((simulation, shared));
    Ok(outcome)
}

fn token_of(name: &str, seed: u64) -> String {
    format!("{name:-<32}{seed:032x}")
}

fn configuration(directory: &Path, seed: u64) -> Config {
    let mut config = Config::for_tests(directory);
    config.quotas = Quotas::UNLIMITED;
    config.plugins = PEERS
        .iter()
        .zip(PEERS.iter().cycle().skip(1))
        .map(|(name, other)| {
            let token = Token::from_text(&token_of(name, seed)).expect("long enough");
            let plugin = PluginName::parse(name).expect("a name");
            let mut manifest = Manifest::new(plugin, Kind::Remote { token: Some(token) });
            let of_other = || Pattern::parse(&format!("{other}.>")).expect("a pattern");
            manifest.permissions.subscribe.push(of_other());
            manifest.permissions.call.push(CallPermission {
                services: of_other(),
                need: Need::Required,
            });
            // As in the row of chaos: what fails often is awaited all the same.
            manifest.restart.max_failures = 0;
            manifest.restart.backoff_max = Duration::from_secs(2);
            manifest
        })
        .collect();
    config
        .plugins
        .sort_by(|one, other| one.name.cmp(&other.name));
    config
}

/// The core's host.
async fn serve(config: Config, shared: Arc<Shared>) -> turmoil::Result {
    // tokio's paused clock stands still while a blocking task runs: the threads that open the storage
    // and begin to look after children take no simulated time.
    let (started, starts) = std::sync::mpsc::channel::<()>();
    let standing_still = tokio::task::spawn_blocking(move || starts.recv().is_err());
    let runtime = Arc::new(Runtime::builder(config).start().await?);
    drop(started);
    // Not awaited: time may go on a moment before its end is told, and nothing may depend on that.
    drop(standing_still);
    *shared.runtime.lock().expect("no panic inside") = Some(Arc::clone(&runtime));
    let (asks, mut asked) = mpsc::channel(1);
    *shared.asked.lock().expect("no panic inside") = Some(asks);
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let listener = turmoil::net::TcpListener::bind(address).await?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, peer) = accepted?;
                runtime.serve_connection(stream, peer);
            }
            Some(Ask::Accounts) = asked.recv() => {
                let (runtime, shared) = (Arc::clone(&runtime), Arc::clone(&shared));
                tokio::spawn(async move {
                    let accounts = accounts(&runtime).await;
                    *shared.accounts.lock().expect("no panic inside") = Some(accounts);
                });
            }
        }
    }
}

async fn accounts(runtime: &Runtime) -> Vec<Account> {
    let mut accounts = Vec::new();
    for name in PEERS {
        loop {
            match runtime.call(&format!("{name}.account"), &()).await {
                Ok(account) => break accounts.push(account),
                Err(_) => tokio::time::sleep(PACE).await,
            }
        }
    }
    accounts
}

/// A peer's host: a process that begins anew when it crashes.
async fn work(name: &str, other: &str, seed: u64) -> turmoil::Result {
    let dialer = Dialer::through(CORE, || turmoil::net::TcpStream::connect((CORE, PORT)));
    let settings = Settings::over(dialer, client::Token::new(token_of(name, seed)));
    let peer = Peer {
        name: name.to_owned(),
        other: other.to_owned(),
        pace: PACE,
        // The simulated time; never 0, and never twice the same of one peer.
        incarnations: Arc::new(|| {
            let nanos = turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_nanos());
            u64::try_from(nanos).unwrap_or(u64::MAX) + 1
        }),
    };
    let ending = host::run(peer.plugin(), settings, CancellationToken::new()).await;
    Err(format!("{name} ended: {ending:?}").into())
}

/// Moves the simulation and looks at it.
struct Driver {
    simulation: turmoil::Sim<'static>,
    shared: Arc<Shared>,
    /// What was last seen of each plugin.
    shown: Vec<(String, u64, &'static str)>,
    trace: DefaultHasher,
    /// Each change is printed.
    tells: bool,
    outcome: Outcome,
}

impl Driver {
    fn play(&mut self, seed: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(seed);
        if !self.until(RECOVERY, Self::all_ready)? {
            self.broken("not all are ready in the beginning");
        }
        let end = self.simulation.elapsed() + FAULTS;
        while self.simulation.elapsed() < end {
            match random.random_range(0..4) {
                0 => self.crash(&mut random)?,
                1 => self.cut(&mut random)?,
                _ => {
                    for step in swizzle(PEERS.len(), &mut random) {
                        self.clog(step)?;
                    }
                }
            }
        }
        let released = self.simulation.elapsed();
        if self.until(RECOVERY, Self::all_ready)? {
            let recovered = self.simulation.elapsed() - released;
            self.outcome.recovered_ms = Some(u64::try_from(recovered.as_millis())?);
        } else {
            let shown = format!("{:?}", self.shown);
            self.broken(format!(
                "not all are ready 30 s after the last release: {shown}"
            ));
        }
        self.pass(QUIET)?;
        self.check()
    }

    fn broken(&mut self, what: impl Into<String>) {
        self.outcome.broken.push(what.into());
    }

    fn clog(&mut self, step: Step) -> Result<()> {
        self.pass(step.after)?;
        let name = PEERS[step.plugin];
        // Turmoil holds both ways or none.
        if step.up || step.down {
            self.outcome.clogs += 1;
            self.simulation.hold(CORE, name);
        } else {
            self.simulation.release(CORE, name);
        }
        Ok(())
    }

    /// Nothing passes for a while, and what was sent meanwhile never does.
    fn cut(&mut self, random: &mut StdRng) -> Result<()> {
        let name = PEERS[random.random_range(0..PEERS.len())];
        self.outcome.cuts += 1;
        let both = random.random_bool(0.5);
        let (from, to) = if random.random_bool(0.5) {
            (CORE, name)
        } else {
            (name, CORE)
        };
        if both {
            self.simulation.partition(CORE, name);
        } else {
            self.simulation.partition_oneway(from, to);
        }
        self.pass(Duration::from_millis(random.random_range(100..25_000)))?;
        if both {
            self.simulation.repair(CORE, name);
        } else {
            self.simulation.repair_oneway(from, to);
        }
        self.pass(Duration::from_millis(random.random_range(0..5_000)))
    }

    fn crash(&mut self, random: &mut StdRng) -> Result<()> {
        let name = PEERS[random.random_range(0..PEERS.len())];
        self.outcome.crashes += 1;
        self.simulation.crash(name);
        self.pass(Duration::from_millis(random.random_range(0..3_000)))?;
        self.simulation.bounce(name);
        self.pass(Duration::from_millis(random.random_range(0..5_000)))
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) -> Result<()> {
        let end = self.simulation.elapsed() + time;
        while self.simulation.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    /// Lets time pass until something holds; `false`: it did not.
    fn until(&mut self, time: Duration, holds: fn(&Self) -> bool) -> Result<bool> {
        let end = self.simulation.elapsed() + time;
        while !holds(self) {
            if self.simulation.elapsed() >= end {
                return Ok(false);
            }
            self.step()?;
        }
        Ok(true)
    }

    fn step(&mut self) -> Result<()> {
        let stepped = self.simulation.step();
        stepped.map_err(|error| anyhow::anyhow!("a host failed: {error}"))?;
        let Some(runtime) = self.shared.runtime() else {
            return Ok(());
        };
        let plugins = runtime.plugin_manager().list();
        let shown: Vec<_> = plugins
            .iter()
            .map(|plugin| {
                let generation = plugin.generation.0;
                (plugin.name.to_string(), generation, plugin.phase.as_str())
            })
            .collect();
        if shown != self.shown {
            (self.simulation.elapsed(), &shown).hash(&mut self.trace);
            if self.tells {
                eprintln!("{:?} {shown:?}", self.simulation.elapsed());
            }
            self.shown = shown;
        }
        Ok(())
    }

    fn all_ready(&self) -> bool {
        self.shown.len() == PEERS.len()
            && self
                .shown
                .iter()
                .all(|(_, _, phase)| *phase == Phase::Ready.as_str())
    }

    fn has_accounts(&self) -> bool {
        self.shared
            .accounts
            .lock()
            .expect("no panic inside")
            .is_some()
    }

    /// The invariants, at the end.
    fn check(&mut self) -> Result<()> {
        let asks = self.shared.asked.lock().expect("no panic inside").clone();
        let asked = asks.context("the core serves")?.try_send(Ask::Accounts);
        asked.context("the core is asked once")?;
        if !self.until(RECOVERY, Self::has_accounts)? {
            self.broken("not all peers give account");
            return Ok(());
        }
        let accounts = self.shared.accounts.lock().expect("no panic inside").take();
        let accounts = accounts.context("accounts")?;
        for (name, account) in PEERS.iter().zip(&accounts) {
            let Account {
                heard,
                asked,
                answered,
                failed,
                hung,
                answered_wrong,
                done_twice,
                ..
            } = account;
            for (what, holds) in [
                (
                    "hears in order, without loss but where it is stated",
                    heard.violations.is_empty(),
                ),
                ("has no call that hangs", *hung == 0),
                ("is answered what was done", answered_wrong.is_empty()),
                ("is asked nothing twice", done_twice.is_empty()),
                ("has an end of each call", account.under_way() <= 1),
                ("hears and is answered", heard.events > 0 && *answered > 0),
            ] {
                if !holds {
                    self.broken(format!("{name} {what}: {account:?}"));
                }
            }
            self.outcome.events += heard.events;
            self.outcome.calls += asked;
            self.outcome.failed_calls += failed;
            (heard.events, heard.gaps, asked, answered, failed).hash(&mut self.trace);
        }
        self.check_core()
    }

    /// State and registrations say what is so.
    fn check_core(&mut self) -> Result<()> {
        let runtime = self.shared.runtime().context("the core runs")?;
        for plugin in runtime.plugin_manager().list() {
            let name = plugin.name.as_str();
            self.outcome.runs += plugin.generation.0;
            let services = ["account", "once", "say"].map(|verb| format!("{name}.{verb}"));
            if plugin.services != services {
                self.broken(format!("{name} has registered {:?}", plugin.services));
            }
            if plugin.subscriptions.len() != 1 {
                self.broken(format!("{name} has subscribed {:?}", plugin.subscriptions));
            }
        }
        Ok(())
    }
}
