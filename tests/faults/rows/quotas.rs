//! 58: one plugin floods each surface at ten times its quota, beside one that does what it always does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, PluginMessage};
use core_server::config::{Quota, Quotas};
use core_tests::{Address, Client, Hello, RawPlugin};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Streaming;

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::percentile;
use crate::observe::Watched;
use crate::report::Row;

const HOSTILE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
const HONEST: &str = "123456789abcdef0123456789abcdef0123456789abcdef0";
/// Ten times what is allowed.
const TIMES: u64 = 10;
/// Of the default quotas: asking and refusing is many times as slow in a debug build, and all of it happens
/// on the cores that the honest one needs too.
const PART: u64 = if cfg!(debug_assertions) { 8 } else { 1 };
/// Events that are let in stay in the log, and are no growth to be told here.
const LIMITS: &str = "[limits]\nevent_log_bytes = \"4MiB\"\n";
/// Length of a round, quiet or flooded.
const ROUND: Duration = Duration::from_millis(800);
/// The best of so many counts: whatever else this machine does only ever makes it worse.
const ROUNDS: usize = 6;
/// Between two requests of the honest one, which keeps well within its quota.
const PAUSE: Duration = Duration::from_millis(3);
/// Another plugin's p99 under the flood, of that in peace.
const MOST_TIMES: f64 = 2.0;
/// A difference of less is nothing that a home notices, whatever the ratio. A debug build is many times as
/// slow, and three of them share this machine: there it is the scheduler's.
const NOTHING_MS: f64 = if cfg!(debug_assertions) { 8.0 } else { 1.0 };
const MOST_GROWTH_MIB: f64 = 64.0;

/// The hostile one's, where bytes are flooded.
const LARGE_VALUE: usize = 64 << 10;

/// What is flooded, and how.
struct Surface {
    quota: Quota,
    method: &'static str,
    message: fn(&str, u64) -> Vec<u8>,
    /// What one request takes of the quota.
    cost: u64,
}

static SURFACES: [Surface; 7] = [
    Surface {
        quota: Quota::PublishesPerSecond,
        method: "EventBus/Publish",
        message: |plugin, _| publish(plugin, 16),
        cost: 1,
    },
    Surface {
        quota: Quota::PublishBytesPerSecond,
        method: "EventBus/Publish",
        message: |plugin, _| publish(plugin, 64 << 10),
        cost: 64 << 10,
    },
    Surface {
        quota: Quota::CallsPerSecond,
        method: "ServiceRegistry/Call",
        message: |_, _| {
            v1::ServiceRegistryCallRequest {
                service: "echo.say".to_owned(),
                arguments: "{\"text\":\"x\"}".into(),
                ..Default::default()
            }
            .encode_to_vec()
        },
        cost: 1,
    },
    Surface {
        quota: Quota::StorageWritesPerSecond,
        method: "Storage/Set",
        message: |plugin, number| stored(plugin, number, 2 << 10),
        cost: 1,
    },
    Surface {
        quota: Quota::StorageWriteBytesPerSecond,
        method: "Storage/Set",
        message: |plugin, number| stored(plugin, number, LARGE_VALUE),
        cost: LARGE_VALUE as u64,
    },
    Surface {
        quota: Quota::StorageReadsPerSecond,
        method: "Storage/Get",
        message: |plugin, number| {
            v1::StorageGetRequest {
                namespace: plugin.to_owned(),
                key: format!("k{}", number % 1_000),
            }
            .encode_to_vec()
        },
        cost: 1,
    },
    Surface {
        quota: Quota::StateWritesPerSecond,
        method: "StateEngine/Set",
        message: |plugin, number| {
            v1::StateEngineSetRequest {
                key: format!("{plugin}.k{}", number % 1_000),
                value: number.to_string().into(),
                ..Default::default()
            }
            .encode_to_vec()
        },
        cost: 1,
    },
];

fn stored(plugin: &str, number: u64, bytes: usize) -> Vec<u8> {
    let set = v1::StorageSetRequest {
        namespace: plugin.to_owned(),
        key: format!("k{}", number % 100),
        value: format!("\"{}\"", "x".repeat(bytes - 2)).into(),
        ..Default::default()
    };
    set.encode_to_vec()
}

fn publish(plugin: &str, bytes: usize) -> Vec<u8> {
    let event = v1::NewEvent {
        topic: format!("{plugin}.said"),
        data: vec![b'1'; bytes].into(),
        ..Default::default()
    };
    v1::EventBusPublishRequest { event: Some(event) }.encode_to_vec()
}

/// What became of the hostile one's requests, by reason; "" is those that were let in.
type Answers = BTreeMap<String, u64>;

/// The hostile plugin: it asks at a rate, whatever it is told. It has a thread and a runtime of its own, so
/// that what the honest one waits for is the core.
struct Flood {
    stop: Arc<AtomicBool>,
    asking: std::thread::JoinHandle<Result<(u64, Answers)>>,
}

impl Flood {
    /// Returns once it is let in.
    async fn begin(address: Address, surface: &'static Surface, per_second: u64) -> Result<Self> {
        let (begun, welcomed) = oneshot::channel();
        let stop = Arc::<AtomicBool>::default();
        let stopping = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("a runtime")?;
            runtime.block_on(async {
                let client = Client::new(address).with_token(HOSTILE);
                let (frames, heard) = admitted(&client).await?;
                begun.send(()).ok();
                let mut answers = Answers::new();
                tokio::select! {
                    asked = ask(&frames, surface, per_second, &stopping) => Ok((asked, answers)),
                    ended = hear(heard, &frames, &mut answers) => ended,
                }
            })
        });
        let flood = Self { stop, asking };
        if welcomed.await.is_err() {
            flood.end().await?;
            bail!("the flood ended before it began");
        }
        Ok(flood)
    }

    /// Ends it: how many it asked, and what was answered.
    async fn end(self) -> Result<(u64, Answers)> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = tokio::task::spawn_blocking(|| self.asking.join()).await?;
        ended.map_err(|_| anyhow!("the flood panicked"))?
    }
}

type Frames = mpsc::Sender<Bytes>;

/// A channel of the hostile one, welcomed.
async fn admitted(client: &Client) -> Result<(Frames, Streaming<v1::CoreMessage>)> {
    let (sender, receiver) = mpsc::channel(1_024);
    let hello = Hello::ready().instance(&b"hostile-instance"[..]).0;
    let hello = PluginMessage {
        message: Some(ToCore::Hello(hello)),
    };
    sender.send(hello.encode_to_vec().into()).await.ok();
    let frames = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut heard = RawPlugin::open_stream(client, frames).await?;
    let welcome = heard.message().await?.context("a Welcome")?;
    ensure!(
        matches!(welcome.message, Some(FromCore::Welcome(_))),
        "{welcome:?}"
    );
    Ok((sender, heard))
}

/// Asks until it is stopped, or the channel is; how many times.
async fn ask(frames: &Frames, surface: &Surface, per_second: u64, stop: &AtomicBool) -> u64 {
    let begin = Instant::now();
    let mut number = 0;
    let mut pace = tokio::time::interval(Duration::from_millis(2));
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let due = micros.saturating_mul(per_second) / 1_000_000;
        while number < due && !stop.load(Ordering::Relaxed) {
            let request = ToCore::Request(v1::Request {
                request_id: number + 1,
                method: surface.method.to_owned(),
                message: (surface.message)("hostile", number + 1).into(),
                ..Default::default()
            });
            let frame = PluginMessage {
                message: Some(request),
            };
            if frames.send(frame.encode_to_vec().into()).await.is_err() {
                return number;
            }
            number += 1;
        }
    }
    number
}

/// Counts answers for as long as the channel lasts, which it should for longer than the flood.
async fn hear(
    mut heard: Streaming<v1::CoreMessage>,
    frames: &Frames,
    answers: &mut Answers,
) -> Result<(u64, Answers)> {
    while let Some(message) = heard.message().await.context("the flood's channel")? {
        match message.message {
            Some(FromCore::Response(response)) => {
                let reason = response.error.as_ref().map(reason).unwrap_or_default();
                *answers.entry(reason).or_default() += 1;
            }
            Some(FromCore::Ping(ping)) => {
                let pong = ToCore::Pong(v1::Pong { nonce: ping.nonce });
                let frame = PluginMessage {
                    message: Some(pong),
                };
                frames.send(frame.encode_to_vec().into()).await.ok();
            }
            _ => {}
        }
    }
    bail!("the core ended the flood's channel")
}

/// The reason in an error's details.
fn reason(error: &core_proto::google::rpc::Status) -> String {
    let infos = error
        .details
        .iter()
        .filter(|detail| detail.type_url.ends_with("ErrorInfo"));
    let mut infos = infos.filter_map(|detail| {
        core_proto::google::rpc::ErrorInfo::decode(detail.value.as_slice()).ok()
    });
    infos.next().map(|info| info.reason).unwrap_or_default()
}

/// What an honest plugin's requests take for a while, in p99 milliseconds.
async fn p99(honest: &mut RawPlugin, surface: &Surface, row: Option<&Row>) -> f64 {
    let (begin, mut took, mut number) = (Instant::now(), Vec::new(), 0);
    while begin.elapsed() < ROUND {
        number += 1;
        let message = match surface.quota {
            // It does not say as much itself.
            Quota::PublishBytesPerSecond => publish("honest", 1 << 10),
            Quota::StorageWriteBytesPerSecond => stored("honest", number, 1 << 10),
            _ => (surface.message)("honest", number),
        };
        let asked = Instant::now();
        let request_id = honest.send_encoded(surface.method, message).await;
        let response = honest.response(request_id).await;
        took.push(asked.elapsed());
        if let (Some(error), Some(row)) = (response.error, row) {
            row.broken(format!(
                "the honest plugin's {} failed: {}",
                surface.method, error.message
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
    percentile(&took, 99)
}

struct Met {
    quiet_ms: f64,
    flooded_ms: f64,
    answers: Answers,
    offered: u64,
}

impl Met {
    fn times(&self) -> f64 {
        self.flooded_ms / self.quiet_ms
    }
}

/// The best quiet and the best flooded half of a surface's rounds; the answers are those of the last.
async fn met(
    home: &Scene,
    surface: &'static Surface,
    rounds: usize,
    row: Option<&Row>,
) -> Result<Met> {
    let mut honest = RawPlugin::open(
        &home.honest,
        Hello::ready().instance(&b"honest-instance-"[..]),
    )
    .await
    .context("the honest one")?;
    let mut best: Option<Met> = None;
    for _ in 0..rounds {
        let quiet_ms = p99(&mut honest, surface, row).await;
        let rate = quota_of(surface.quota) * TIMES / surface.cost;
        let flood = Flood::begin(home.address.clone(), surface, rate).await?;
        // The burst is used up.
        tokio::time::sleep(ROUND / 4).await;
        let flooded_ms = p99(&mut honest, surface, row).await;
        let (offered, answers) = flood.end().await?;
        // Each for itself: the ratio of one round would be best where its quiet half was disturbed most.
        let (quiet_before, flooded_before) = best.as_ref().map_or((f64::MAX, f64::MAX), |best| {
            (best.quiet_ms, best.flooded_ms)
        });
        best = Some(Met {
            quiet_ms: quiet_ms.min(quiet_before),
            flooded_ms: flooded_ms.min(flooded_before),
            answers,
            offered,
        });
    }
    best.context("no round")
}

/// A quota of this row.
fn quota_of(quota: Quota) -> u64 {
    Quotas::default().limit(quota) / PART
}

struct Scene {
    home: Home,
    address: Address,
    honest: Client,
}

/// A hostile plugin with these quotas, and an honest one like all others.
async fn scene(quotas: &str) -> Result<Scene> {
    let remote = |name: &str, quotas: &str| {
        let variable = name.to_uppercase();
        format!(
            "[plugins.{name}]\nrun.kind = \"remote\"\ntoken_env = \"{variable}\"\n\
             permissions.call = [\"echo.>\"]\n{quotas}"
        )
    };
    let toml = LIMITS.to_owned() + &remote("hostile", quotas) + &remote("honest", "");
    let core = Home::prepare_with_quotas(&toml, &[plugin("echo", ECHO, &[])])
        .env("HOSTILE", HOSTILE)
        .env("HONEST", HONEST);
    let anyone = core.anonymous();
    let (address, honest) = (anyone.address().clone(), anyone.with_token(HONEST));
    let home = Home::of(core).await;
    home.all_ready(&["echo"]).await;
    Ok(Scene {
        home,
        address,
        honest,
    })
}

pub(crate) async fn flood(row: Row) -> Result<()> {
    let rates = SURFACES.iter().map(|surface| surface.quota);
    let rates = rates.map(|quota| format!("quotas.{} = {}\n", quota.key(), quota_of(quota)));
    let scene = scene(&rates.collect::<String>()).await?;
    row.note(format!(
        "quotas of the hostile one: 1/{PART} of the default; it asks {TIMES} times that"
    ));
    let watched = Watched::begin(&scene.home)?;
    for surface in &SURFACES {
        let what = surface.quota.key();
        let met = met(&scene, surface, ROUNDS, Some(&row)).await?;
        let limited = met.answers.get("RATE_LIMITED").copied().unwrap_or(0);
        row.require(
            limited > 0,
            format!("{what}: refused, not {:?}", met.answers),
        );
        row.note(format!(
            "{what}: {} asked, p99 {:.2} ms in peace, {:.2} ms beside it; answers {:?}",
            met.offered, met.quiet_ms, met.flooded_ms, met.answers
        ));
        let times = if met.flooded_ms - met.quiet_ms < NOTHING_MS {
            met.times().min(1.0)
        } else {
            met.times()
        };
        row.at_most(
            &format!("{what}: another's p99, of that in peace"),
            times,
            "times",
            MOST_TIMES,
        );
    }
    row.at_most(
        "core grows by",
        watched.growth_mib(),
        "MiB",
        MOST_GROWTH_MIB,
    );
    drop(watched);
    scene.home.stop(&row).await;
    control(&row).await
}

/// The same without quotas, for comparison.
async fn control(row: &Row) -> Result<()> {
    let keys = Quota::ALL.map(|quota| format!("quotas.{} = 0\n", quota.key()));
    let scene = scene(&keys.concat()).await?;
    for surface in &SURFACES {
        let met = met(&scene, surface, 1, None).await?;
        row.tell(
            &format!("without quotas, {}", surface.quota.key()),
            met.times(),
            "times",
        );
    }
    scene.home.stop(row).await;
    Ok(())
}
