//! 52: the wall clock jumps, the machine sleeps, the core boots before its clock is set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use core_proto::v1;
use core_tests::{Client, CoreProcess, Hello, RawPlugin, signal, within};
use core_tls::{ClientTls, EnrollError, Enrolled};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::home::{Home, plugin};
use crate::report::Row;
use crate::{ECHO, MISBEHAVING};

const HOUR: i64 = 3_600;
/// After each jump everything is watched for so long: longer than a heartbeat and its miss.
const WATCHED: Duration = Duration::from_secs(11);
/// How long the core sleeps: longer than any silence that it forgives a plugin.
const ASLEEP: Duration = Duration::from_secs(30);
/// What is preloaded into the core.
const SHIM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/fixtures/wall_clock.c");

/// Sleeps, jumps and certificates have cores of their own, and are played at the same time.
pub(crate) async fn jumps(row: Row) -> Result<()> {
    tokio::try_join!(Box::pin(asleep(&row)), Box::pin(with_another_clock(&row)))?;
    Ok(())
}

async fn asleep(row: &Row) -> Result<()> {
    // In the middle of its start when the core falls asleep: it needs more time than it has, if the
    // sleep counts.
    let slow = plugin("slow", MISBEHAVING, &["takes", "load", "35000"])
        .sections("[timeouts]\nstart = \"15s\"\n");
    let [lamp, switch] = plugins();
    let home = Home::start(&[lamp, switch, slow]).await;
    home.all_ready(&["lamp", "switch"]).await;
    home.operator.until_phase("slow", "loading").await;
    suspend(row, &home).await?;
    home.stop(row).await;
    Ok(())
}

async fn with_another_clock(row: &Row) -> Result<()> {
    let directory = tempfile::tempdir().context("a directory")?;
    let Some(library) = build_shim(directory.path()).await else {
        row.skip_part("jumps of the wall clock: no C compiler here to build the shim");
        return Ok(());
    };
    let clock = |name| Clock::new(directory.path().join(name));
    let (jumping, of_certificates) = (clock("jumping")?, clock("certificates")?);
    tokio::try_join!(
        Box::pin(jumped(row, &library, &jumping)),
        Box::pin(certificates(row, &library, &of_certificates))
    )?;
    Ok(())
}

async fn jumped(row: &Row, library: &Path, clock: &Clock) -> Result<()> {
    clock.set(nineteen_seventy()?)?;
    let core = clock.given_to(library, Home::prepare("", &plugins()));
    let home = Home::of(core).await;
    home.all_ready(&["lamp", "switch"]).await;
    let year = year_of(&home).await?;
    row.require(
        year == 1970,
        format!("the core believes in 1970, not {year}"),
    );
    // An hour is jumped over; this lasts for half of one.
    let lasting = v1::StorageSetRequest {
        namespace: "notes".to_owned(),
        key: "lasting".to_owned(),
        value: "1".into(),
        ttl: Some(prost_types::Duration {
            seconds: HOUR / 2,
            nanos: 0,
        }),
        ..Default::default()
    };
    let written = home.operator.storage().set(lasting).await;
    written.context("written in 1970")?;
    for (what, offset) in [
        ("set by NTP", 0),
        ("an hour ahead", HOUR),
        ("two hours back", -HOUR),
        ("right again", 0),
    ] {
        clock.set(offset)?;
        works(row, &home, what).await;
        let lasting = home.operator.stored("notes", "lasting").await;
        row.require(
            matches!(lasting, Ok(Some(_))),
            format!("{what}: what lasts for half an hour is there: {lasting:?}"),
        );
    }
    restarts(row, &home, "wall clock").await?;
    home.stop(row).await;
    Ok(())
}

/// Certificates by a clock that is not set yet, is set, runs on, and is lost again: nobody is locked out, and
/// what is over is over.
async fn certificates(row: &Row, library: &Path, clock: &Clock) -> Result<()> {
    let nineteen_seventy = nineteen_seventy()?;
    clock.set(nineteen_seventy)?;
    let core = Home::prepare("[listen]\ntls = [\"127.0.0.1:0\"]\n", &[]);
    let mut home = Home::of(clock.given_to(library, core)).await;
    let board = join(&home, "board").await?;
    clock.set(0)?;
    let admitted = opens(&home, &board).await?;
    row.require(
        admitted.is_ok(),
        format!("what was issued in 1970 is good once the clock is set: {admitted:?}"),
    );
    let shed = join(&home, "shed").await?;
    for (what, offset, good, renewable) in [
        ("a day later", 25 * HOUR, false, true),
        ("a month later", 32 * 24 * HOUR, false, false),
        ("right again", 0, true, true),
    ] {
        clock.set(offset)?;
        let admitted = opens(&home, &shed).await?;
        row.require(
            admitted.is_ok() == good,
            format!("{what}: the certificate is good: {good}, not {admitted:?}"),
        );
        let renewed = renew(&home, &shed).await?;
        row.require(
            renewed.is_ok() == renewable,
            format!("{what}: it can be renewed: {renewable}, not {renewed:?}"),
        );
    }
    // The battery is empty: after a power cut it is 1970 again.
    home.core().kill().await;
    clock.set(nineteen_seventy)?;
    home.operator = home.core().start().await;
    for (name, enrolled) in [("board", &board), ("shed", &shed)] {
        let admitted = opens(&home, enrolled).await?;
        row.require(
            admitted.is_ok(),
            format!("{name} is let in while the clock is behind: {admitted:?}"),
        );
    }
    home.stop(row).await;
    Ok(())
}

async fn tls_address(home: &Home) -> Result<SocketAddr> {
    let request = v1::IntrospectionGetInfoRequest::default();
    let info = home.operator.introspection().get_info(request).await?;
    let addresses = info.into_inner().addresses;
    let address = addresses.iter().find_map(|text| text.strip_prefix("tls:"));
    Ok(address.context("it speaks TLS")?.parse()?)
}

async fn join(home: &Home, plugin: &str) -> Result<Enrolled> {
    let request = v1::AccessInviteRequest {
        plugin: plugin.to_owned(),
        ..Default::default()
    };
    let invited = home.operator.access().invite(request).await?.into_inner();
    let invitation = invited.join.parse().context("a join string")?;
    // One attempt a second is allowed from one address.
    loop {
        match core_tls::join(&invitation).await {
            Ok((enrolled, _)) => return Ok(enrolled),
            Err(EnrollError::Refused(status)) if status.code() == Code::ResourceExhausted => {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Err(error) => return Err(error).context("joined"),
        }
    }
}

fn tls(enrolled: &Enrolled) -> Result<ClientTls> {
    let identity = (
        enrolled.certificate_pem.as_bytes(),
        enrolled.key_pem.as_bytes(),
    );
    Ok(ClientTls::from_pem(
        enrolled.ca_pem.as_bytes(),
        Some(identity),
    )?)
}

/// Whether a new connection with this certificate gets a channel.
async fn opens(home: &Home, enrolled: &Enrolled) -> Result<Result<(), Status>> {
    let client = Client::over_tls(tls_address(home).await?, tls(enrolled)?);
    match RawPlugin::open(&client, Hello::ready()).await {
        Ok(plugin) => {
            plugin.bye("done").await;
            plugin.close().await;
            Ok(Ok(()))
        }
        Err(refused) => Ok(Err(refused)),
    }
}

async fn renew(home: &Home, enrolled: &Enrolled) -> Result<Result<(), EnrollError>> {
    let addresses = [tls_address(home).await?.to_string()];
    loop {
        match core_tls::renew(&addresses, &tls(enrolled)?, &enrolled.key_pem).await {
            // One a second is allowed, and this clock is not the one that was set.
            Err(EnrollError::Refused(status))
                if status.code() == tonic::Code::ResourceExhausted =>
            {
                tokio::time::sleep(core_tests::POLL).await;
            }
            renewed => return Ok(renewed.map(drop)),
        }
    }
}

fn plugins() -> [crate::home::PluginFile; 2] {
    [
        plugin("lamp", ECHO, &[]),
        plugin("switch", ECHO, &[]).top("requires = [\"lamp\"]"),
    ]
}

/// The core alone stands still, as everything does when the machine sleeps and as plugins see an
/// overloaded core.
async fn suspend(row: &Row, home: &Home) -> Result<()> {
    signal(home.pid(), Signal::STOP);
    tokio::time::sleep(ASLEEP).await;
    signal(home.pid(), Signal::CONT);
    let woken = Instant::now();
    works(row, home, "after a sleep of the core").await;
    let slow = home.operator.plugin("slow").await;
    row.require(
        slow.phase == "ready" && slow.generation == 1,
        format!(
            "the sleep is not held against a plugin that was starting: {} {}, run {}",
            slow.phase, slow.reason, slow.generation
        ),
    );
    row.tell(
        "watched after the sleep",
        woken.elapsed().as_secs_f64(),
        "s",
    );
    // The whole machine: plugins too.
    let infos = home.all_ready(&["lamp", "switch"]).await;
    let pids: Vec<u32> = infos
        .iter()
        .map(|info| info.pid)
        .chain([home.pid()])
        .collect();
    for pid in &pids {
        signal(*pid, Signal::STOP);
    }
    tokio::time::sleep(ASLEEP).await;
    for pid in &pids {
        signal(*pid, Signal::CONT);
    }
    works(row, home, "after a sleep of all").await;
    restarts(row, home, "sleep").await
}

/// A request that failed.
struct Failed {
    request: &'static str,
    after: Duration,
    error: tonic::Status,
}

/// Calls, events, state and storage work, now and for a while.
async fn works(row: &Row, home: &Home, what: &str) {
    let failed = requests(home).await;
    row.exactly(&format!("{what}: failed requests"), failed.len(), "", 0);
    for Failed {
        request,
        after,
        error,
    } in failed
    {
        row.broken(format!("{what}: a {request} after {after:?}: {error}"));
    }
}

/// Calls, events, writes and state for a while; those that failed.
async fn requests(home: &Home) -> Vec<Failed> {
    let begin = Instant::now();
    let mut heard = home.operator.subscribe(&["lamp.noted"]).await;
    let mut failed = Vec::new();
    let mut asked = 0;
    while begin.elapsed() < WATCHED {
        let arguments = json!({ "topic": "lamp.noted", "data": asked });
        asked += 1;
        let emitted = home.operator.call("lamp.emit", arguments).await.map(drop);
        if emitted.is_ok() {
            within("the event is heard", heard.event()).await;
        }
        let stored = home.operator.store("notes", "k", "1").await.map(drop);
        let state = home
            .operator
            .set_state("operator.note", "1")
            .await
            .map(drop);
        for (request, result) in [("call", emitted), ("write", stored), ("state", state)] {
            failed.extend(result.err().map(|error| Failed {
                request,
                after: begin.elapsed(),
                error,
            }));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    failed
}

async fn restarts(row: &Row, home: &Home, what: &str) -> Result<()> {
    let mut restarts = 0;
    for name in ["lamp", "switch"] {
        let info = home.operator.plugin(name).await;
        restarts += info.restarts + (info.generation - 1);
        row.require(info.phase == "ready", format!("{name} is {}", info.phase));
    }
    row.exactly(
        &format!("restarts ({what})"),
        usize::try_from(restarts)?,
        "",
        0,
    );
    Ok(())
}

/// The year in which the core believes to be: that of an event.
async fn year_of(home: &Home) -> Result<i64> {
    let mut heard = home.operator.subscribe(&["lamp.noted"]).await;
    let arguments = json!({ "topic": "lamp.noted", "data": null });
    home.operator
        .call("lamp.emit", arguments)
        .await
        .context("emitted")?;
    let event = within("the event is heard", heard.event()).await;
    let seconds = event.time.context("a time")?.seconds;
    Ok(1970 + seconds / 31_556_952)
}

/// How far the core's wall clock is off.
struct Clock {
    path: PathBuf,
}

impl Clock {
    fn new(path: PathBuf) -> Result<Self> {
        std::fs::write(&path, 0_i64.to_ne_bytes()).context("the offset")?;
        Ok(Self { path })
    }

    /// The core with this clock in place of the machine's.
    fn given_to(&self, library: &Path, core: CoreProcess) -> CoreProcess {
        core.env("LD_PRELOAD", &library.to_string_lossy())
            .env("FAULTS_WALL_CLOCK", &self.path.to_string_lossy())
    }

    fn set(&self, seconds: i64) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        // In place: the core has the file mapped.
        let file = std::fs::File::options().write(true).open(&self.path);
        let file = file.context("the offset")?;
        file.write_all_at(&seconds.to_ne_bytes(), 0)
            .context("the offset")
    }
}

/// How far off a clock is that was not set yet: it says that it is a minute after the beginning of 1970.
fn nineteen_seventy() -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(60 - i64::try_from(now.context("a time")?.as_secs())?)
}

async fn build_shim(directory: &Path) -> Option<PathBuf> {
    let library = directory.join("wall_clock.so");
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
