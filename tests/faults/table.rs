//! The rows: what is injected, what must hold, how each is run.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::report::Row;
use crate::rows::{
    calls, chaos, clock, database, dependencies, descriptors, disk, exits, floods, graph, http2,
    identity, kills, liveness, machines, mutations, network, orphans, output, oversize, policy,
    power, quotas, resources, shutdown, slow_readers, slowloris, soak, start, stop, storm, swizzle,
    upgrade,
};

/// How a row shares the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// It waits for seconds or only computes: runs beside others.
    Patient,
    /// It measures milliseconds or burns the CPU: runs by itself.
    Alone,
}

type Playing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// One row.
pub(crate) struct Fault {
    pub(crate) id: &'static str,
    /// The fault.
    pub(crate) name: &'static str,
    /// The promise.
    pub(crate) must: &'static str,
    pub(crate) lane: Lane,
    /// It is ended after this.
    pub(crate) bound: Duration,
    pub(crate) run: fn(Row) -> Playing,
}

macro_rules! faults {
    ($($id:literal $name:literal, $must:literal, $lane:ident $bound:literal => $run:path;)+) => {
        /// All of them, in order.
        pub(crate) const FAULTS: &[Fault] = &[$(Fault {
            id: $id,
            name: $name,
            must: $must,
            lane: Lane::$lane,
            bound: Duration::from_secs($bound),
            run: |row| Box::pin($run(row)),
        }),+];
    };
}

faults! {
    "01" "plugin exits 1 after ready",
        "restarted after 250 to 312 ms; others untouched", Alone 60 => exits::after_ready;
    "02" "plugin SIGKILLed 100 times",
        "restarted each time; routes gone <= 50 ms; callers answered UNAVAILABLE <= 100 ms, none hangs",
        Alone 120 => exits::killed;
    "03" "crash on start, for ever",
        "delays double; crash_loop at the 8th failure, 31.75 to 39.7 s; slow retry at 300 to 375 s",
        Patient 60 => policy::crash_on_start;
    "04" "slow crasher, dies each 20 s",
        "never resets; crash_loop at the 8th failure", Patient 60 => policy::slow_crasher;
    "05" "recovers after 5 crashes",
        "consecutive = 0 after 60 s ready, next delay 250 ms", Patient 60 => policy::recovers;
    "06" "exit 78; wrong wire version; binary missing",
        "no respawn, reason exact; changed file -> retried", Patient 90 => start::final_failures;
    "07" "50 plugins die at once",
        "start slots and bucket hold; control RPC p99 < 100 ms meanwhile", Alone 120 => storm::fifty;
    "08" "never connects",
        "killed at 10 s, counted, no zombie", Patient 60 => start::never_connects;
    "09" "connects, never finishes on_load or on_start",
        "killed at 30 s; with extensions lives to 5 min at most", Patient 90 => start::never_finishes;
    "10" "SIGSTOP",
        "degraded <= 15 s, replaced <= 20 s + start", Patient 90 => liveness::stopped;
    "11" "deadlocked dispatch, chatty publisher",
        "degraded <= 15 s, restart <= 65 s", Patient 120 => liveness::deadlocked;
    "12" "plugin at 100 % CPU x 8 threads, healthy",
        "not killed in 60 s", Patient 120 => liveness::busy;
    "13" "ignores on_stop",
        "TERM <= 7 s, gone <= 9.1 s", Alone 60 => stop::ignores_hook;
    "14" "ignores on_stop and SIGTERM, forks children",
        "KILL <= 9 s, whole group gone <= 10 s", Alone 60 => stop::ignores_everything;
    "15" "grandchild setsid, ignores TERM, holds stdout",
        "stop still ends <= 10 s; pipes closed; escapee killed", Alone 60 => stop::escapee;
    "16" "core killed -9 with 10 plugins, one ignoring stdin, one with a group child, one with a setsid child",
        "leaders and groups gone <= 1 s, setsid children <= 2 s, guardian gone <= 3 s",
        Alone 60 => orphans::core_killed;
    "17" "each no-orphan layer alone",
        "layer 1: leaders <= 1 s; 2: groups <= 1 s, setsid <= 2 s; 3: SDK leaders <= 11 s; 4: everything at the next boot; guardian killed: replaced <= 1 s",
        Alone 120 => orphans::layers;
    "18" "core as PID 1 with 200 double-forked orphans",
        "zombies = 0 within 1 s, no ECHILD on own children", Alone 60 => orphans::as_init;
    "19" "core SIGTERM with 3 levels, one hung plugin",
        "reverse level order kept; total within the shutdown timeout; storage closed; exit 0",
        Alone 60 => shutdown::levels;
    "20" "second SIGTERM",
        "out <= 1.5 s, database passes integrity_check", Alone 60 => shutdown::hurried;
    "21" "dependency killed, each on_loss mode",
        "notify: DependencyChanged < 100 ms, fail fast; restart: reverse then forward order; all ready again",
        Alone 60 => dependencies::lost;
    "22" "dependency fails for 5 min, then returns",
        "dependents return unaided, own budget uncharged", Patient 60 => policy::dependency_away;
    "23" "cycle, missing, diamond, random graphs of 200 plugins",
        "refuse with the path; never start before requires ready; StopAll never stops before dependents",
        Alone 180 => graph::random;
    "24" "stale run speaks (old core-run, old token)",
        "FAILED_PRECONDITION STALE_RUN / UNAUTHENTICATED, no state change", Patient 60 => identity::stale_run;
    "25" "two processes claim one plugin",
        "second refused, first unharmed; same instance replaces its own channel at once",
        Patient 60 => identity::second_process;
    "26" "100,000 messages of 40 B, receiver paused 2 s, each way",
        "no GOAWAY, order kept; bites when run with 1 MiB / 1 MiB windows", Alone 90 => slow_readers::paused;
    "27" "rapid reset: 10,000 HEADERS and RST_STREAM",
        "that connection ends with ENHANCE_YOUR_CALM; other client's p99 < 2x; RSS +< 20 MiB",
        Alone 60 => http2::rapid_reset;
    "28" "forced local resets (bad frames) x 10,000",
        "connection closed by the local-reset limit", Alone 60 => http2::forced_resets;
    "29" "CONTINUATION flood; 1 MiB metadata; 10,000 headers",
        "refused; RSS flat", Alone 60 => floods::headers;
    "30" "10,000 streams on one connection",
        "never more than the limit open; surplus REFUSED_STREAM, beyond the local-reset limit ENHANCE_YOUR_CALM; others unaffected",
        Alone 60 => http2::many_streams;
    "31" "slowloris: 500 sockets, 1 B/s or silent",
        "closed at 5 s, at the cap the oldest unidentified one gives way; a good client connects < 200 ms throughout",
        Alone 60 => slowloris::silent;
    "32" "ping, SETTINGS, empty DATA floods, window overflow",
        "connection closed or bounded; CPU < 1 core for < 5 s", Alone 90 => floods::frames;
    "33" "message over 4 MiB; gzip bomb; length prefix 2^32-1",
        "OUT_OF_RANGE / UNIMPLEMENTED, never more than the limit reserved per stream",
        Alone 60 => oversize::messages;
    "34" "no descriptors left: RLIMIT_NOFILE 64 and sockets",
        "no spin (CPU < 20 %), recovers < 1 s after release, existing plugins live",
        Alone 60 => descriptors::exhausted;
    "35" "random and mutated envelopes",
        "no panic, no hang > 1 s, no effect on other plugins", Alone 700 => mutations::envelopes;
    "36" "caller cancels / deadline mid-route",
        "callee told < 50 ms, pending table back to 0", Alone 120 => calls::given_up;
    "37" "provider of a non-idempotent service dies with 1,000 calls pending",
        "each caller gets exactly one answer, <= 100 ms", Alone 60 => calls::provider_killed;
    "38" "partition of a remote plugin, both ways and one way, 3 s / 60 s",
        "3 s: same run resumes, nothing registered again; 60 s: degraded <= 15 s, run ends <= 30 s, comes back clean",
        Patient 240 => network::partitions;
    "39" "latency 500 ms +- 200, slicer 1 B, bandwidth 10 KB/s",
        "correct, no false liveness kill", Patient 180 => network::bad_links;
    "40" "reset_peer, half-close, slow_close",
        "resources freed <= 30 s", Patient 240 => network::ends_of_connections;
    "41" "swizzle-clog of 5 plugins, over proxies and simulated",
        "order per publisher, each call ends once, no loss beyond the stated gap, registrations right; all ready <= 30 s after the last release",
        Patient 3600 => swizzle::five_plugins;
    "42" "core kill -9 during storage writes, 200 times",
        "every acknowledged write present, no half transaction, integrity_check ok", Alone 300 => kills::killed;
    "43" "torn tail: log cut at and inside each frame, bytes flipped",
        "opens to some commit prefix, never an error to callers", Alone 300 => kills::torn;
    "44" "disk full",
        "DISK_LOW, reads and deletes go on, works again when freed, plugins stay up", Alone 120 => disk::full;
    "45" "fsync fails at the Nth call",
        "never acknowledged; outcome unknown said; storage reopens; watches COMPACTED; no later false acknowledgement",
        Alone 120 => disk::unsynced;
    "46" "power lost: unsynced writes dropped or torn",
        "durability full: no acknowledged loss; normal: a consistent prefix, loss reported",
        Patient 300 => power::lost;
    "47" "database damaged, locked by another process, of a newer schema",
        "clear refusal, file never overwritten", Patient 120 => database::refused;
    "48" "log flood 100 MB/s; a 50 MB line; no newline; binary",
        "plugin never blocked, RSS +< 2 MiB each, suppressed count exact", Alone 120 => output::floods;
    "49" "memory hog, fork bomb",
        "cgroup: oom reason, group killed; without: RSS restart <= 20 s; core and others live",
        Alone 120 => resources::hogs;
    "50" "sandbox probes: read outside, setuid binary, ptrace core, leaked fds, env secrets",
        "all denied, or status says partial; required refuses to start", Alone 60 => resources::probes;
    "51" "upgrade under 200 calls/s: new version never ready / crashes at 10 s / fine",
        "rolled back once / once / the new one stays; no double answers", Alone 180 => upgrade::under_load;
    "52" "clock jumps +-1 h, suspend, boot at 1970 then NTP",
        "no restarts, no mass expiry, no lock-out", Patient 240 => clock::jumps;
    "53" "chaos: random kill/stop/cont/exit on 6 plugins, 60 s",
        "per-publisher order, no loss beyond the stated gap, ledger ok, zombies 0, all ready <= 30 s after the end",
        Alone 2400 => chaos::six_plugins;
    "54" "soak: 90 s at half of the capacity",
        "RSS slope < 1 MiB/h (with --long, 8 h; else no lost object for each operation), descriptors and tasks flat, p99 drift < 20 %",
        Alone 30000 => soak::half_load;
    "57" "plugins on other machines: cable pulled for 3 s / 60 s, a late link, one that loses packets, renewal, revocation",
        "each joins by one command; rules of row 38; packets lost: all calls answered; who renews goes on, who is revoked ends <= 1 s",
        Patient 240 => machines::elsewhere;
    "58" "one plugin floods each surface at ten times its quota",
        "refused with RATE_LIMITED and the true wait; another plugin's p99 on the same surface <= 2x; RSS bounded",
        Alone 180 => quotas::flood;
}

/// The row of this id.
pub(crate) fn find(id: &str) -> Result<&'static Fault> {
    let Some(fault) = FAULTS.iter().find(|fault| fault.id == id) else {
        bail!("there is no row {id:?}; `cargo xtask faults --list` shows them");
    };
    Ok(fault)
}
