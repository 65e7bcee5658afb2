//! 38, 39, 40: plugins behind bad networks.

use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::service_registry_watch_response::Item;
use core_proto::v1::{PluginInfo, ServiceRegistryWatchRequest};
use core_tests::{Client, Direction, Faults, Way, signal};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::PLAYER;
use crate::home::{Home, PluginFile, Timeline, plugin};
use crate::measure::ms;
use crate::remote::{self, Declared, Remote};
use crate::report::Row;
use crate::stats::{Stats, descriptors_of};

/// The child that all remote plugins hear and call.
const BASE: &str = "base";
/// Between two of its events.
const PACE: Duration = Duration::from_millis(50);
/// As the row has them.
const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(60);
/// The liveness bound of all random rows, taken here too: ready again so long after the mending.
const RECOVERY: Duration = Duration::from_secs(30);
/// Longer than the longest rule that ends a run for its silence, which is 60 s.
const WATCHED: Duration = Duration::from_secs(70);

fn base() -> PluginFile {
    let pace = PACE.as_millis().to_string();
    plugin(BASE, PLAYER, &["peer", &pace, ""])
}

fn declared(name: &str) -> Declared<'_> {
    Declared {
        name,
        other: BASE,
        pace: PACE,
    }
}

/// Which ways a partition holds.
const PARTITIONS: [(&str, Faults); 3] = [
    ("both", held(true, true)),
    ("up", held(true, false)),
    ("down", held(false, true)),
];

const fn held(up: bool, down: bool) -> Faults {
    const fn way(held: bool) -> Way {
        Way {
            held,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            slice_bytes: None,
            bytes_per_second: None,
            close_delay: Duration::ZERO,
        }
    }
    Faults {
        up: way(up),
        down: way(down),
        refuses: false,
    }
}

pub(crate) async fn partitions(row: Row) -> Result<()> {
    let names = ["both3", "up3", "down3", "both60", "up60", "down60"];
    let (home, mut remotes) = remote::home(&row, &[base()], &names.map(declared)).await?;
    home.all_ready(&[BASE]).await;
    remotes.iter_mut().for_each(Remote::start);
    let before = home.all_ready(&names).await;
    for name in names {
        // It hears, and it is answered.
        let working = async { remote::account(&home.operator, name).await };
        let mut account = working.await?;
        while account.heard.events == 0 || account.answered == 0 {
            account = remote::account(&home.operator, name).await?;
        }
    }
    let timeline = home.timeline().await;
    let (short, long) = remotes.split_at(3);
    let mut changes = registry_changes(&home.operator).await?;
    // All at once: they only wait.
    let mut playing = Vec::new();
    for ((remote, before), (ways, faults)) in short.iter().zip(&before).zip(PARTITIONS) {
        playing.push(cut_shortly(
            &row,
            &home.operator,
            remote,
            before,
            ways,
            faults,
        ));
    }
    let shortly = async {
        for ended in futures_of(playing).await {
            ended?;
        }
        // Of the long ones none has ended yet: whatever is registered now is registered again.
        let again = changes.so_far();
        row.exactly("3 s: registered again", again.len(), "", 0);
        row.require(
            again.is_empty(),
            format!("3 s: registered again: {again:?}"),
        );
        anyhow::Ok(())
    };
    let mut playing = Vec::new();
    for ((remote, before), (ways, faults)) in long.iter().zip(&before[3..]).zip(PARTITIONS) {
        playing.push(cut_long(
            &row, &home, &timeline, remote, before, ways, faults,
        ));
    }
    let longer = async {
        for ended in futures_of(playing).await {
            ended?;
        }
        anyhow::Ok(())
    };
    let (shortly, longer) = tokio::join!(shortly, longer);
    shortly?;
    longer?;

    let mut accounts = Vec::new();
    for remote in &remotes {
        let account = remote::account(&home.operator, &remote.name).await?;
        remote::check_account(&row, &remote.name, &account);
        accounts.push(account);
    }
    let base = remote::account(&home.operator, BASE).await?;
    row.require(
        base.done_twice.is_empty(),
        format!("calls done twice at their provider: {:?}", base.done_twice),
    );
    accounts.push(base);
    row.exactly("duplicates", remote::duplicates(&accounts), "", 0);
    let once: Vec<u64> = accounts[..3].iter().map(|account| account.loads).collect();
    row.require(
        once == [1, 1, 1],
        format!("3 s: on_load ran {once:?} times"),
    );
    remote::nothing_pending(&row, &home.operator, &names).await;
    home.stop(&row).await;
    Ok(())
}

/// Polls all of them together.
async fn futures_of<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in pinned.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The same run goes on, and who called meanwhile is answered.
async fn cut_shortly(
    row: &Row,
    operator: &Client,
    remote: &Remote,
    before: &PluginInfo,
    ways: &str,
    faults: Faults,
) -> Result<()> {
    let name = &remote.name;
    remote.proxy.set(faults);
    let cut = Instant::now();
    let asking = remote.says(operator, "are you there?");
    let mending = async {
        tokio::time::sleep(SHORT).await;
        remote.proxy.mend();
        Instant::now()
    };
    let (answered, mended) = tokio::join!(
        async {
            let answered = asking.await;
            (answered, Instant::now())
        },
        mending
    );
    let (right, at) = answered;
    row.require(
        right,
        format!("3 s {ways}: who calls meanwhile is answered"),
    );
    row.require(
        at.duration_since(cut) >= SHORT,
        format!("3 s {ways}: the network was cut"),
    );
    row.at_most(
        &format!("3 s {ways}: answered after the end"),
        ms(at.saturating_duration_since(mended)),
        "ms",
        1_000.0,
    );
    row.require(
        remote.says(operator, "again").await,
        format!("3 s {ways}: calls work again"),
    );
    let after = operator.plugin(name).await;
    let same = after.generation == before.generation
        && after.restarts == before.restarts
        && remote::registered(&after) == remote::registered(before);
    row.require(
        same,
        format!(
            "3 s {ways}: the same run goes on: {}",
            remote::brief(&after)
        ),
    );
    Ok(())
}

/// Degraded, ended, and back in a new run that lacks nothing.
async fn cut_long(
    row: &Row,
    home: &Home,
    timeline: &Timeline,
    remote: &Remote,
    before: &PluginInfo,
    ways: &str,
    faults: Faults,
) -> Result<()> {
    let name = remote.name.as_str();
    remote.proxy.set(faults);
    let cut = Instant::now();
    let degraded = timeline
        .first(name, LONG, |plugin| plugin.phase == "degraded")
        .await;
    row.at_most(
        &format!("60 s {ways}: degraded after"),
        seconds_to(cut, &degraded),
        "s",
        15.0,
    );
    let left = LONG.saturating_sub(cut.elapsed());
    let ended = timeline
        .first(name, left, |plugin| remote::has_ended(plugin, before))
        .await;
    row.at_most(
        &format!("60 s {ways}: the run ends after"),
        seconds_to(cut, &ended),
        "s",
        30.0,
    );
    tokio::time::sleep_until(cut + LONG).await;
    let ready_again =
        |plugin: &PluginInfo| plugin.generation > before.generation && plugin.phase == "ready";
    let too_early = timeline
        .told()
        .into_iter()
        .any(|(_, plugin)| plugin.name == name && ready_again(&plugin));
    row.require(
        !too_early,
        format!("60 s {ways}: it is not taken for ready while it is cut off"),
    );
    remote.proxy.mend();
    let mended = Instant::now();
    let back = timeline.first(name, RECOVERY, ready_again).await;
    row.at_most(
        &format!("60 s {ways}: ready after the end"),
        seconds_to(mended, &back),
        "s",
        RECOVERY.as_secs_f64(),
    );
    row.require(
        remote.says(&home.operator, "back").await,
        format!("60 s {ways}: calls work again"),
    );
    let after = home.operator.plugin(name).await;
    row.require(
        remote::registered(&after) == remote::registered(before),
        format!(
            "60 s {ways}: it has registered what it had: {}",
            remote::brief(&after)
        ),
    );
    // It hears again, and nothing that it heard before.
    let heard = remote::account(&home.operator, name).await?.heard.events;
    loop {
        let account = remote::account(&home.operator, name).await?;
        if account.heard.events > heard {
            let loads = f64::from(u32::try_from(account.loads)?);
            row.tell(&format!("60 s {ways}: on_load ran"), loads, "times");
            break;
        }
        if mended.elapsed() > RECOVERY {
            row.broken(format!("60 s {ways}: it does not hear again"));
            break;
        }
    }
    Ok(())
}

fn seconds_to(begin: Instant, told: &Option<(Instant, PluginInfo)>) -> f64 {
    told.as_ref().map_or(f64::NAN, |(at, _)| {
        at.saturating_duration_since(begin).as_secs_f64()
    })
}

/// What changes in the registry of services.
struct Changes {
    told: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Changes {
    fn so_far(&mut self) -> Vec<String> {
        self.told.lock().expect("no panic inside").clone()
    }
}

/// Services that are registered from now on; that a plugin becomes unavailable is no registration.
async fn registry_changes(operator: &Client) -> Result<Changes> {
    let mut registry = operator.another_connection().service_registry();
    let watch = registry.watch(ServiceRegistryWatchRequest::default()).await;
    let mut watch = watch.context("a watch")?.into_inner();
    loop {
        let item = watch.message().await.context("a watch")?;
        if let Some(Item::SnapshotEnd(_)) = item.context("a snapshot")?.item {
            break;
        }
    }
    let changes = Changes {
        told: std::sync::Arc::default(),
    };
    let told = std::sync::Arc::clone(&changes.told);
    tokio::spawn(async move {
        while let Ok(Some(message)) = watch.message().await {
            let change = format!("{:?}", message.item);
            told.lock().expect("no panic inside").push(change);
        }
    });
    Ok(changes)
}

pub(crate) async fn bad_links(row: Row) -> Result<()> {
    let links = [
        (
            "late",
            Way {
                latency: Duration::from_millis(500),
                jitter: Duration::from_millis(200),
                ..Way::default()
            },
        ),
        (
            "sliced",
            Way {
                slice_bytes: Some(1),
                ..Way::default()
            },
        ),
        (
            "slow",
            Way {
                bytes_per_second: Some(10_000),
                ..Way::default()
            },
        ),
    ];
    let names = links.map(|(name, _)| name);
    let (home, mut remotes) = remote::home(&row, &[base()], &names.map(declared)).await?;
    home.all_ready(&[BASE]).await;
    for (remote, (_, way)) in remotes.iter_mut().zip(links) {
        // From the first byte.
        remote.proxy.set(Faults::both(way));
        remote.start();
    }
    let before = home.all_ready(&names).await;
    let timeline = home.timeline().await;
    let begin = Instant::now();
    let mut asking = Vec::new();
    for remote in &remotes {
        asking.push(ask_for_a_while(&home.operator, remote, begin + WATCHED));
    }
    let asked = futures_of(asking).await;
    let mut kills = 0;
    for (remote, before) in remotes.iter().zip(&before) {
        let now = home.operator.plugin(&remote.name).await;
        let ended = timeline
            .told()
            .into_iter()
            .any(|(_, plugin)| plugin.name == remote.name && remote::has_ended(&plugin, before));
        kills += usize::from(ended || now.generation != before.generation);
        row.require(!ended, format!("its run goes on: {}", remote::brief(&now)));
    }
    row.exactly("false kills", kills, "", 0);
    row.tell("watched", begin.elapsed().as_secs_f64(), "s");
    for (remote, asked) in remotes.iter().zip(asked) {
        let name = &remote.name;
        row.exactly(&format!("{name}: wrong answers"), asked.wrong, "", 0);
        row.tell(&format!("{name}: calls"), f64::from(asked.right), "");
        row.tell(&format!("{name}: worst call"), ms(asked.worst), "ms");
        let told = timeline.told().into_iter();
        let degraded =
            told.filter(|(_, plugin)| plugin.name == *name && plugin.phase == "degraded");
        row.tell(
            &format!("{name}: degraded"),
            degraded.count() as f64,
            "times",
        );
        let account = remote::account(&home.operator, name).await?;
        remote::check_account(&row, name, &account);
        row.exactly(
            &format!("{name}: on_load ran"),
            usize::try_from(account.loads)?,
            "times",
            1,
        );
        row.tell(
            &format!("{name}: events heard"),
            account.heard.events as f64,
            "",
        );
    }
    remote::nothing_pending(&row, &home.operator, &names).await;
    home.stop(&row).await;
    Ok(())
}

#[derive(Default)]
struct Asked {
    right: u32,
    wrong: usize,
    worst: Duration,
}

/// Calls of several sizes, one after another.
async fn ask_for_a_while(operator: &Client, remote: &Remote, until: Instant) -> Asked {
    let mut asked = Asked::default();
    // The largest needs 3 s each way at 10 KB/s.
    for bytes in [10, 1_000, 30_000].into_iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        let text: String = ('a'..='z').cycle().take(bytes).collect();
        let begin = Instant::now();
        let right = remote.says(operator, &text).await;
        asked.worst = asked.worst.max(begin.elapsed());
        asked.right += u32::from(right);
        asked.wrong += usize::from(!right);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    asked
}

/// What the core holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    tasks: i64,
    connections: i64,
}

async fn held_by(home: &Home) -> Held {
    let stats = Stats::of(&home.operator).await;
    Held {
        descriptors: descriptors_of(home.pid()),
        tasks: stats.get("runtime_tasks"),
        connections: stats.get("connections"),
    }
}

/// What it holds while nothing changes: the same in several looks.
async fn held_at_rest(home: &Home) -> Held {
    let mut last = held_by(home).await;
    let mut same = 0;
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = held_by(home).await;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Waits until the core holds no more than before; how long it took since `begin`.
async fn until_freed(row: &Row, home: &Home, what: &str, before: Held, begin: Instant) {
    let deadline = begin + Duration::from_secs(40);
    let mut now = held_by(home).await;
    let freed = |now: &Held| {
        now.descriptors <= before.descriptors
            && now.tasks <= before.tasks
            && now.connections <= before.connections
    };
    while !freed(&now) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = held_by(home).await;
    }
    let took = if freed(&now) {
        begin.elapsed().as_secs_f64()
    } else {
        f64::NAN
    };
    row.at_most(&format!("{what}: freed after"), took, "s", 30.0);
    row.require(
        freed(&now),
        format!("{what}: back to {before:?}, not {now:?}"),
    );
}

pub(crate) async fn ends_of_connections(row: Row) -> Result<()> {
    // Few events, so that what is held for one in a moment is seen as passing.
    let quiet = |name| Declared {
        name,
        other: BASE,
        pace: Duration::from_secs(1),
    };
    let base = plugin(BASE, PLAYER, &["peer", "1000", ""]);
    let (home, mut remotes) = remote::home(&row, &[base], &["lamp", "guest"].map(quiet)).await?;
    home.all_ready(&[BASE]).await;
    let [lamp, guest] = &mut remotes[..] else {
        unreachable!("two are declared");
    };
    lamp.start();
    let first = home.operator.until_phase("lamp", "ready").await;
    let rest = held_at_rest(&home).await;
    row.tell("descriptors at rest", rest.descriptors as f64, "");
    row.tell("tasks at rest", rest.tasks as f64, "");

    let begin = Instant::now();
    for _ in 0..5 {
        let connections = lamp.proxy.accepted();
        lamp.proxy.reset();
        core_tests::eventually!(lamp.proxy.accepted() >= connections + 2);
    }
    home.operator.until_phase("lamp", "ready").await;
    until_freed(&row, &home, "reset_peer", rest, begin).await;

    for (what, direction) in [
        ("half-close to the core", Direction::Up),
        ("half-close from the core", Direction::Down),
    ] {
        let connections = lamp.proxy.accepted();
        let begin = Instant::now();
        lamp.proxy.half_close(direction);
        core_tests::eventually!(lamp.proxy.accepted() >= connections + 2);
        home.operator.until_phase("lamp", "ready").await;
        until_freed(&row, &home, what, rest, begin).await;
    }
    let last = home.operator.plugin("lamp").await;
    row.require(
        last.generation == first.generation,
        format!("the same run all the time: {}", remote::brief(&last)),
    );

    // A peer that dies while its network keeps the end to itself, longer than keepalive waits.
    guest.start();
    home.operator.until_phase("guest", "ready").await;
    guest.proxy.set(Faults::both(Way {
        close_delay: Duration::from_secs(25),
        ..Way::default()
    }));
    let begin = Instant::now();
    signal(guest.pid(), Signal::KILL);
    until_freed(&row, &home, "slow_close", rest, begin).await;
    remote::nothing_pending(&row, &home.operator, &["lamp", "guest", BASE]).await;
    home.stop(&row).await;
    Ok(())
}
