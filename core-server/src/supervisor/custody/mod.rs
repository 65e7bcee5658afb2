//! No process outlives the core, whatever killed it; and none outlives the run that it belongs to.
//!
//! Owns: starting children (`spawner.rs`), the guardian, what the next core has to know, reaping
//! what was adopted, and the end of processes that left their plugin's group. Does not own: one
//! child's exit and group (`process.rs`), what a child may do (`isolation.rs`), nor when a run begins
//! or ends.
//!
//! | layer | what | alone it covers |
//! |---|---|---|
//! | parent death signal | the kernel kills a leader when the thread that forked it ends; that thread ends only with the core | leaders |
//! | guardian | a process of its own session that is told of every group and kills all when the core's end of its socket ends | groups; who took another session, by the cookie in its environment |
//! | the SDK | ends itself with its standard input, or 10 s after its core | leaders |
//! | boot sweep | the next core ends what the run-state file names | everything, at the next start |
//!
//! As subreaper the core also adopts what plugins leave, ends it with its run and reaps it.
//!
//! Invariants
//! - All children are forked by threads that no panic ends: the death signal is sent when the thread
//!   that forked ends, not the process. It is one thread, until a start hangs.
//! - A child tells the guardian of its group before it becomes the plugin (`birth.rs` says how).
//! - A number is signalled only while it is known to be the same process: its zombie is not reaped
//!   yet, or its start was compared while a pidfd held it. A stranger is never killed.
//! - Only children that the core did not start are reaped here, and only where the embedding program
//!   said that it starts none itself. Those that its process had before it was a core (a shell started
//!   them and became the core) are neither ended nor reaped, nor are those of their sessions ended.
//! - The next run of a plugin begins after the sweep of the last one.
//!
//! What happens when: the guardian dies: another within a second, which is told everything. It hangs:
//! when its socket is full it is killed. The run-state file cannot be written: a warning, and the next
//! core finds survivors by nothing. Its disk hangs: the same, and nothing else hangs. A process cannot be killed (another user's, or in the kernel's
//! hands): it is named in the log after [`SWEEP_BUDGET`] and not waited for.
//!
//! Limits: who cleared its environment, wrote another plugin's name into it or made it unreadable, left
//! its session and holds none of its plugin's pipes is ended with its run only if no other plugin can
//! have left it, else with the core. After a kill of the core nothing finds it but a cgroup, unless it
//! still has the core's cookie.

mod belonging;
mod birth;
mod guardian;
mod guardian_process;
mod proc_fs;
mod protocol;
mod reaper;
mod run_state;
mod spawner;
mod starts;
mod sweep;
mod work_thread;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use core_proto::contract::env;
use parking_lot::Mutex;
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::isolation::{Confinement, RunGroup};
use super::process::{Pipes, Process, SpawnError};
use crate::plugin_manager::Command;
use crate::task::TaskScope;
use crate::types::PluginName;
use belonging::{Leader, Strangers};
use birth::Birth;
use guardian::Link;
use protocol::Notice;
use run_state::{Identity, RunState, RunStateFile};
use spawner::{Failed, ForkId, Forking, Own, Spawner};
use starts::Starts;
use work_thread::WorkThread;

pub(in crate::supervisor) use proc_fs::Stream;

pub use guardian::SUBCOMMAND as GUARDIAN_SUBCOMMAND;
pub use guardian_process::run as guardian_main;
pub use run_state::FILE_NAME as RUN_STATE_FILE_NAME;

/// How long what is left of a run is killed again and again.
pub const SWEEP_BUDGET: Duration = Duration::from_secs(2);
/// The same when the core ends, where all together have less time.
const FINAL_SWEEP_BUDGET: Duration = Duration::from_millis(500);
/// How long a child waits for a guardian that is being replaced.
const GUARDIAN_WAIT: Duration = Duration::from_secs(1);
/// How long a start waits for its record; it is written after that too.
const RECORD_WAIT: Duration = Duration::from_secs(1);
/// How long the tasks of this module may take to end.
const CLOSE: Duration = Duration::from_secs(1);

/// Which layers there are to be.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// This core's instance, as in `CORE_COOKIE`.
    pub cookie: String,
    /// The kernel kills leaders with the core.
    pub parent_death_signal: bool,
    /// The program that becomes the guardian when it is started with [`GUARDIAN_SUBCOMMAND`].
    pub guardian: Option<PathBuf>,
    /// The core adopts orphans and reaps them. Only for a process that has no other children.
    pub adopts_orphans: bool,
    /// Where the run-state file is.
    pub run_state: Option<PathBuf>,
}

/// The keeper of all child processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Custody {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    setup: Setup,
    core: Identity,
    /// Whom this process had as children before it was a core.
    strangers: Strangers,
    boot_id: String,
    run_state: Option<RunStateFile>,
    /// Forks, and nothing else. Its end is the end of all leaders.
    spawner: Spawner,
    /// Reads `/proc`, kills.
    clerk: WorkThread,
    /// Writes the run-state file: alone, so that no older state replaces a newer one, and so that a
    /// disk that hangs holds nobody else up.
    recorder: WorkThread,
    starts: Starts,
    own: Mutex<Own>,
    book: Mutex<Book>,
    hasher: RandomState,
    /// Whether a guardian watches.
    guarded: watch::Sender<bool>,
    /// A fork is done.
    forked: Notify,
}

/// What the guardian and the next core are told. Guarded by a short lock, under which the guardian is
/// told too, so that one that is new hears neither less nor in another order.
#[derive(Debug, Default)]
struct Book {
    serial: u64,
    runs: BTreeMap<u64, Entry>,
    link: Option<Link>,
    guardian: Option<u32>,
}

#[derive(Clone, Debug)]
struct Entry {
    leader: Leader,
    /// Of the run's credential: enough to know it again.
    token: u64,
    cgroup: Option<PathBuf>,
}

impl Custody {
    /// Starts its threads. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn new(setup: Setup) -> io::Result<Self> {
        let pid = std::process::id();
        let started = proc_fs::look(pid).map_or(0, |seen| seen.started);
        let inner = Inner {
            core: Identity { pid, started },
            strangers: proc_fs::strangers(),
            boot_id: proc_fs::boot_id().unwrap_or_default(),
            run_state: setup.run_state.clone().map(RunStateFile::new),
            spawner: Spawner::start()?,
            clerk: WorkThread::start("clerk")?,
            recorder: WorkThread::start("recorder")?,
            starts: Starts::default(),
            own: Mutex::default(),
            book: Mutex::default(),
            hasher: RandomState::new(),
            guarded: watch::channel(false).0,
            forked: Notify::new(),
            setup,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Before anything is started: ends what another core left, adopts, and has a guardian watch.
    /// What cannot be had is said in the log, and the core goes on without it.
    pub async fn begin(&self, scope: &TaskScope) {
        if self.inner.run_state.is_some() {
            let inner = Arc::clone(&self.inner);
            self.inner.clerk.run(move || inner.sweep_survivors()).await;
            self.record();
        }
        let adopts = self.inner.setup.adopts_orphans;
        if adopts {
            if let Err(error) = become_subreaper() {
                tracing::warn!(%error, "the core cannot adopt what plugins leave");
            }
            let custody = self.clone();
            scope.spawn("reaper", |stop| custody.reap(stop));
        }
        if self.inner.setup.guardian.is_some() {
            let first = self.start_guardian().await;
            let custody = self.clone();
            scope.spawn("guardian", |stop| custody.keep_guardian(first, stop));
        }
        let layers = self.layers();
        let missing: Vec<_> = LAYERS
            .into_iter()
            .filter(|layer| !layers.contains(layer))
            .collect();
        tracing::info!(in_force = ?layers, ?missing, "no orphans");
    }

    /// The layers in force now, of [`LAYERS`].
    #[must_use]
    pub fn layers(&self) -> Vec<&'static str> {
        let setup = &self.inner.setup;
        let in_force = [
            setup.parent_death_signal,
            *self.inner.guarded.borrow(),
            setup.adopts_orphans,
            setup.run_state.is_some(),
        ];
        let layers = LAYERS.into_iter().zip(in_force);
        layers
            .filter_map(|(layer, is)| is.then_some(layer))
            .collect()
    }

    /// Starts a child on the thread that does nothing else.
    ///
    /// # Errors
    /// See [`SpawnError`]; nothing runs then.
    ///
    /// # Cancel safety
    /// A child whose spawn was given up is killed.
    pub async fn spawn(
        &self,
        plugin: &PluginName,
        command: Command,
        environment: BTreeMap<OsString, OsString>,
        confinement: Confinement,
    ) -> Result<(Process, Pipes), SpawnError> {
        if self.inner.setup.guardian.is_some() {
            let mut guarded = self.inner.guarded.subscribe();
            let guarded = guarded.wait_for(|guarded| *guarded);
            if tokio::time::timeout(GUARDIAN_WAIT, guarded).await.is_err() {
                tracing::warn!(%plugin, "started without a guardian");
            }
        }
        let (custody, plugin) = (self.clone(), plugin.to_string());
        let program = command.program.clone();
        let start = (plugin.clone(), program.clone());
        if self.inner.starts.is_under_way(&start) {
            return Err(SpawnError::Hung { program });
        }
        let spawned = self
            .on_spawner(move |id| {
                // Begun here and not before: one that found no thread must not hold the next one up.
                let _under_way = custody.inner.starts.begin(start);
                custody.fork(id, plugin, &command, &environment, &confinement)
            })
            .await;
        if self.inner.run_state.is_some() {
            let inner = Arc::clone(&self.inner);
            let recorded = self.inner.recorder.run(move || inner.record());
            let _later = tokio::time::timeout(RECORD_WAIT, recorded).await;
        }
        match spawned {
            Ok(spawned) => spawned,
            Err(Failed::Hung(late)) => {
                if let Some(Ok((mut process, _))) = late {
                    // Killed before it was anything, or just in time to be killed now.
                    process.kill();
                    process.exited().await;
                    process.bury().await;
                }
                Err(SpawnError::Hung { program })
            }
            Err(failed) => Err(SpawnError::Resources(failed.into())),
        }
    }

    /// On a thread that forks.
    fn fork(
        self,
        id: ForkId,
        plugin: String,
        command: &Command,
        environment: &BTreeMap<OsString, OsString>,
        confinement: &Confinement,
    ) -> Result<(Process, Pipes), SpawnError> {
        let inner = &self.inner;
        let (serial, link) = {
            let mut book = inner.book.lock();
            book.serial += 1;
            (book.serial, book.link.clone())
        };
        let birth = Birth {
            parent_death_signal: inner.setup.parent_death_signal,
            core: inner.core.pid,
            guardian: link.map(|link| (link.socket, protocol::group_prefix(serial))),
        };
        let mut cgroup = None;
        let arm = |command: &mut _, group: Option<&RunGroup>| {
            cgroup = group.map(|group| group.path().to_owned());
            if let Some(directory) = cgroup.clone() {
                self.tell(&Notice::Cgroup { serial, directory });
            }
            birth::arm(command, birth);
        };
        let forked = {
            let mut forking = Forking::begin(inner, id);
            let forked = Process::spawn(command, environment, confinement, arm);
            forking.child = forked.as_ref().ok().map(|(process, _)| process.id());
            forked
        };
        let (mut process, pipes) = forked.inspect_err(|_| {
            // It may have got as far as telling the guardian.
            self.tell(&Notice::Gone { serial });
        })?;
        let leader = Leader {
            plugin,
            pid: process.id(),
            started: proc_fs::look(process.id()).map_or(0, |seen| seen.started),
            streams: pipes.streams(),
        };
        {
            let mut book = inner.book.lock();
            let token = environment.get(OsStr::new(env::TOKEN));
            let token = token.map_or(b"".as_slice(), |token| token.as_bytes());
            let entry = Entry {
                leader: leader.clone(),
                token: inner.hasher.hash_one(token),
                cgroup,
            };
            // Again, for a guardian that was new meanwhile.
            for notice in entry.notices(serial) {
                book.tell(&notice);
            }
            book.runs.insert(serial, entry);
        }
        process.keep(Ticket {
            custody: self.clone(),
            serial,
            leader,
            released: false,
            struck_off: false,
        });
        Ok((process, pipes))
    }

    /// Ends whatever of any plugin is left, and the guardian; at the end of the core, when all runs
    /// are over. Returns the ids of processes that could not be ended. Takes until `deadline`, but
    /// never less than what a sweep needs, and `CLOSE`.
    pub async fn close(&self, scope: &TaskScope, deadline: Instant) -> Vec<u32> {
        let inner = Arc::clone(&self.inner);
        let swept = self
            .inner
            .clerk
            .run(move || inner.sweep_everything(FINAL_SWEEP_BUDGET));
        let deadline = deadline.max(Instant::now() + 2 * FINAL_SWEEP_BUDGET);
        let left = tokio::time::timeout_at(deadline, swept).await;
        if left.is_err() {
            tracing::warn!("the last sweep was not done in time; plugins may leave processes");
        }
        scope.close(CLOSE).await;
        left.ok().flatten().unwrap_or_default()
    }

    /// Which run a process belongs to that left its group and session: the id of the run's own process. By
    /// the run's token, which no other plugin knows, or by what it writes to: its name alone anybody can
    /// write into an environment. Reads `/proc`.
    #[must_use]
    pub fn owner(&self, pid: u32) -> Option<u32> {
        let token = proc_fs::token(pid).map(|token| self.inner.hasher.hash_one(token.as_slice()));
        let by_token = |entry: &Entry| Some(entry.token) == token;
        let leader = |entry: &Entry| entry.leader.pid;
        let owner = self
            .inner
            .book
            .lock()
            .runs
            .values()
            .find(|e| by_token(e))
            .map(leader);
        if owner.is_some() {
            return owner;
        }
        let streams = proc_fs::standard_streams(pid);
        let by_output = |entry: &Entry| streams.iter().any(|s| entry.leader.streams.contains(s));
        self.inner
            .book
            .lock()
            .runs
            .values()
            .find(|e| by_output(e))
            .map(leader)
    }

    async fn start_guardian(&self) -> Option<Child> {
        let program = self.inner.setup.guardian.clone()?;
        let custody = self.clone();
        let shown = program.display().to_string();
        let started = self.on_spawner(move |id| {
            let mut forking = Forking::begin(&custody.inner, id);
            let started = guardian::start(&program, &custody);
            forking.child = started.as_ref().ok().and_then(guardian::Started::id);
            started
        });
        let cookie = &self.inner.setup.cookie;
        let error = match started.await {
            Ok(Ok(started)) => match guardian::wait_until_ready(&started.link, cookie).await {
                Ok(()) => {
                    self.guardian_found(started.id(), started.link.clone());
                    return started.into_child();
                }
                Err(error) => {
                    // It has heard the cookie: gone before the socket's end.
                    started.end().await;
                    error
                }
            },
            Ok(Err(error)) => error,
            Err(failed) => failed.into(),
        };
        tracing::warn!(program = shown, %error, "no guardian; what plugins start may outlive a killed core");
        None
    }

    fn guardian_found(&self, guardian: Option<u32>, link: Link) {
        let mut book = self.inner.book.lock();
        book.link = Some(link);
        book.guardian = guardian;
        let notices: Vec<_> = book
            .runs
            .iter()
            .flat_map(|(serial, run)| run.notices(*serial))
            .collect();
        for notice in &notices {
            book.tell(notice);
        }
        let watches = book.link.is_some();
        drop(book);
        self.inner.guarded.send_replace(watches);
    }

    /// It is reaped.
    fn guardian_lost(&self) {
        let guardian = {
            let mut book = self.inner.book.lock();
            book.link = None;
            book.guardian.take()
        };
        self.inner.guarded.send_replace(false);
        self.strike_off(guardian);
    }

    /// A child of the core's own is reaped: its number is free.
    fn strike_off(&self, child: Option<u32>) {
        if let Some(child) = child {
            self.inner.own.lock().pids.remove(&child);
        }
    }

    fn tell(&self, notice: &Notice) {
        self.inner.book.lock().tell(notice);
    }

    /// Has the run-state file written, at some time soon.
    fn record(&self) {
        if self.inner.run_state.is_none() {
            return;
        }
        let inner = Arc::clone(&self.inner);
        // With that much to do it writes the newest soon enough: what it writes is what is so then.
        let _later = self.inner.recorder.post(move || inner.record());
    }
}

/// All layers that the core has a part in, as they are called in `core.toml` and in `Introspection`.
pub const LAYERS: [&str; 4] = ["parent_death_signal", "guardian", "subreaper", "boot_sweep"];

impl Inner {
    /// Writes the run-state file. Only on the recorder's thread.
    fn record(&self) {
        let Some(file) = &self.run_state else { return };
        let children = {
            let book = self.book.lock();
            let children = book.runs.values().map(|entry| run_state::Child {
                plugin: entry.leader.plugin.clone(),
                process: Identity {
                    pid: entry.leader.pid,
                    started: entry.leader.started,
                },
            });
            children.collect()
        };
        file.write(&RunState {
            boot_id: self.boot_id.clone(),
            core: self.core.clone(),
            cookie: self.setup.cookie.clone(),
            children,
        });
    }
}

impl Book {
    fn tell(&mut self, notice: &Notice) {
        let Some(link) = &self.link else { return };
        if let Err(error) = link.tell(notice) {
            tracing::warn!(%error, "the guardian does not listen; it is replaced");
            self.link = None;
            if let Some(guardian) = self.guardian.and_then(proc_fs::as_pid) {
                // Not reaped before its link is forgotten: the number is still its own.
                let _gone = rustix::process::kill_process(guardian, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Entry {
    fn notices(&self, serial: u64) -> impl Iterator<Item = Notice> {
        let group = Notice::Group {
            serial,
            leader: self.leader.pid,
        };
        let cgroup = self
            .cgroup
            .clone()
            .map(|directory| Notice::Cgroup { serial, directory });
        std::iter::once(group).chain(cgroup)
    }
}

/// What a live child holds of its keeper. Dropping it strikes the child off the lists.
#[derive(Debug)]
#[must_use]
pub(in crate::supervisor) struct Ticket {
    custody: Custody,
    serial: u64,
    leader: Leader,
    released: bool,
    struck_off: bool,
}

impl Ticket {
    /// Ends what is left of the run outside its group. Called while the leader is not reaped.
    ///
    /// # Cancel safety
    /// It is done to its end by the clerk.
    pub(in crate::supervisor) async fn sweep(&self) {
        let (inner, leader) = (Arc::clone(&self.custody.inner), self.leader.clone());
        let swept = self
            .custody
            .inner
            .clerk
            .run(move || inner.sweep_run(&leader));
        swept.await;
    }

    /// Nothing is left of the run; its leader is not reaped yet.
    pub(in crate::supervisor) fn release(&mut self) {
        if std::mem::replace(&mut self.released, true) {
            return;
        }
        let serial = self.serial;
        {
            let mut book = self.custody.inner.book.lock();
            book.runs.remove(&serial);
            book.tell(&Notice::Gone { serial });
        }
        self.custody.record();
    }

    /// The leader is reaped: its number is free.
    pub(in crate::supervisor) fn reaped(&mut self) {
        if !std::mem::replace(&mut self.struck_off, true) {
            self.custody.strike_off(Some(self.leader.pid));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.release();
        // Of a child that nobody wanted any more: it is killed, and whoever comes first reaps it.
        self.reaped();
    }
}

fn become_subreaper() -> io::Result<()> {
    let this = rustix::process::getpid();
    Ok(rustix::process::set_child_subreaper(Some(this))?)
}
