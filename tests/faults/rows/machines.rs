//! 57: plugins on other machines. Each is a network namespace with a cable to this one, which can be
//! pulled, or be bad: then packets are lost, as no proxy can lose them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use core_proto::contract::env;
use core_proto::v1::{AccessInviteRequest, AccessRevokeCredentialRequest, PluginInfo};
use core_tests::{Client, Faults, Proxy, Way};
use core_tls::CredentialsDir;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::home::{Home, Timeline, plugin};
use crate::measure::{count, ms, percentile, worst};
use crate::namespace::{BadCable, Machine};
use crate::remote::{self, PATIENT};
use crate::report::Row;
use crate::{CORE, PLAYER};

/// The child that all others hear and call.
const BASE: &str = "base";
/// Milliseconds between two events of a peer.
const PACE: &str = "50";
/// What a peer is told.
const PEER: [&str; 2] = [PACE, BASE];
const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(60);
/// Ready again so long after the mending.
const RECOVERY: Duration = Duration::from_secs(30);
/// The plugins: one for each way to be elsewhere.
const NAMES: [&str; 3] = ["near", "far", "late"];
/// And one whose cable is bad, where there can be such a cable.
const LOSSY: &str = "lossy";
/// The bad cable, each way.
const LOST_PER_MILLE: u64 = 20;
const DELAY_MS: u64 = 40;
/// Over the bad cable: callers at once, and for how long.
const CALLERS: usize = 4;
const CALLING: Duration = Duration::from_secs(45);
/// The shortest that a configuration may say: each is renewed after two thirds of it, and the first one
/// of the plugin that is cut off for a minute expires meanwhile.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(60);

pub(crate) async fn elsewhere(row: Row) -> Result<()> {
    let corectl = Path::new(CORE).with_file_name("corectl");
    if !corectl.is_file() {
        row.skip("corectl is not built; `cargo xtask faults` builds it");
        return Ok(());
    }
    let mut machines = Vec::new();
    for index in 0..4 {
        match Machine::make(index).await {
            Ok(machine) => machines.push(machine),
            Err(error) => {
                row.skip(format!("no machine can be made of a namespace: {error:#}"));
                return Ok(());
            }
        }
    }
    let [near, far, late, lossy] = machines.as_slice() else {
        unreachable!("four were made");
    };
    let bad = lossy.worsen(LOST_PER_MILLE, DELAY_MS, row.seed()).await;
    let bad =
        bad.inspect_err(|error| row.skip_part(format!("no cable can lose packets: {error:#}")));
    let bad = bad.ok();
    let home = home(near.here).await;
    home.all_ready(&[BASE]).await;
    let core = tls_address(&home.operator).await?;

    // One command each: the SDK's own, or corectl's.
    let began = Instant::now();
    let join = invite(&home.operator, "near").await?;
    let _near = near.plugin("near", PEER, &[(env::JOIN, &join)])?;
    let join = invite(&home.operator, "far").await?;
    far.runs(&corectl, &["join", &join, "--out", &far.credentials()])
        .await?;
    let _far = far.plugin("far", PEER, &[])?;
    let join = invite(&home.operator, "late").await?;
    late.runs(&corectl, &["join", &join, "--out", &late.credentials()])
        .await?;
    let proxy = Proxy::between(near.here.into(), core, row.seed()).await;
    proxy.set(Faults::both(Way {
        latency: Duration::from_millis(500),
        jitter: Duration::from_millis(200),
        ..Way::default()
    }));
    let through = proxy.address().to_string();
    let _late = late.plugin("late", PEER, &[(env::ADDR, &through)])?;
    let mut _lossy = None;
    if bad.is_some() {
        let join = invite(&home.operator, LOSSY).await?;
        _lossy = Some(lossy.plugin(LOSSY, PEER, &[(env::JOIN, &join)])?);
    }
    let names: Vec<_> = NAMES
        .into_iter()
        .chain(bad.as_ref().map(|_| LOSSY))
        .collect();
    let before = home.all_ready(&names).await;
    row.tell("all joined and ready after", ms(began.elapsed()), "ms");

    let timeline = home.timeline().await;
    let shortly = async {
        pulled_shortly(&row, &home.operator, near, &before[0]).await?;
        renewed(&row, &home.operator, near, &corectl, &before[0]).await?;
        renews_itself(&row, &home.operator, &timeline, near, &before[0]).await
    };
    let losing = async {
        match bad {
            Some(bad) => losing(&row, &home.operator, &timeline, bad, &before[3]).await,
            None => Ok(()),
        }
    };
    let (shortly, long, losing) = tokio::join!(
        shortly,
        pulled_long(&row, &home.operator, &timeline, far, &before[1]),
        losing
    );
    shortly?;
    long?;
    losing?;

    let kills = timeline
        .told()
        .into_iter()
        .filter(|(_, plugin)| plugin.name == "late" && remote::has_ended(plugin, &before[2]))
        .count();
    row.exactly("late link: false kills", kills, "", 0);
    row.require(says(&home.operator, "late").await, "the late one answers");
    for name in NAMES {
        let account = remote::account(&home.operator, name).await?;
        remote::check_account(&row, name, &account);
    }
    for name in ["late", "near"] {
        revoked(&row, &home.operator, &timeline, name).await?;
    }
    home.stop(&row).await;
    Ok(())
}

async fn home(address: Ipv4Addr) -> Home {
    let life = CERTIFICATE_LIFE.as_secs();
    let mut toml = format!(
        "[listen]\ntls = [\"{address}:0\"]\ntls_names = [\"{address}\"]\n\
         [security]\ncertificate_life = \"{life}s\"\n"
    );
    for name in NAMES.into_iter().chain([LOSSY]) {
        toml += &format!(
            "[plugins.{name}]\nrun.kind = \"remote\"\n{PATIENT}\
             permissions.subscribe = [\"{BASE}.>\"]\npermissions.call = [\"{BASE}.>\"]\n"
        );
    }
    let base = plugin(BASE, PLAYER, &["peer", PACE, ""]);
    Home::of(Home::prepare(&toml, &[base])).await
}

async fn tls_address(operator: &Client) -> Result<SocketAddr> {
    let addresses = remote::addresses(operator).await?;
    let mut addresses = addresses.iter();
    let address = addresses.find_map(|address| address.strip_prefix("tls:"));
    Ok(address.context("it listens with TLS")?.parse()?)
}

async fn invite(operator: &Client, name: &str) -> Result<String> {
    let request = AccessInviteRequest {
        plugin: name.to_owned(),
        ..Default::default()
    };
    let invited = operator.access().invite(request).await?;
    Ok(invited.into_inner().join)
}

async fn says(operator: &Client, name: &str) -> bool {
    let service = format!("{name}.say");
    let said = operator.call(&service, json!({ "text": "?" })).await;
    said.is_ok_and(|said| said == json!("?"))
}

/// The same run goes on.
async fn pulled_shortly(
    row: &Row,
    operator: &Client,
    machine: &Machine,
    before: &PluginInfo,
) -> Result<()> {
    machine.cable("down").await?;
    // The fault is that it is away for so long.
    tokio::time::sleep(SHORT).await;
    machine.cable("up").await?;
    let mended = Instant::now();
    while !says(operator, &before.name).await {
        ensure!(mended.elapsed() < RECOVERY, "{} is lost", before.name);
        tokio::time::sleep(core_tests::POLL).await;
    }
    row.at_most("3 s: answers after", ms(mended.elapsed()), "ms", 10_000.0);
    same_run(row, operator, before, "3 s without a cable").await;
    Ok(())
}

async fn same_run(row: &Row, operator: &Client, before: &PluginInfo, what: &str) {
    let after = operator.plugin(&before.name).await;
    let same = after.generation == before.generation
        && remote::registered(&after) == remote::registered(before);
    let brief = remote::brief(&after);
    row.require(same, format!("{what}: the same run goes on: {brief}"));
}

/// Degraded, ended, and back in a new run.
async fn pulled_long(
    row: &Row,
    operator: &Client,
    timeline: &Timeline,
    machine: &Machine,
    before: &PluginInfo,
) -> Result<()> {
    let name = before.name.as_str();
    let kept = CredentialsDir::new(machine.credentials());
    let first = kept.read()?.expires_at;
    machine.cable("down").await?;
    let cut = Instant::now();
    let after = |from: Instant, told: Option<(Instant, PluginInfo)>| {
        told.map_or(f64::NAN, |(at, _)| {
            at.saturating_duration_since(from).as_secs_f64()
        })
    };
    let degraded = timeline
        .first(name, LONG, |plugin| plugin.phase == "degraded")
        .await;
    row.at_most("60 s: degraded after", after(cut, degraded), "s", 15.0);
    let left = LONG.saturating_sub(cut.elapsed());
    let ended = timeline
        .first(name, left, |plugin| remote::has_ended(plugin, before))
        .await;
    row.at_most("60 s: the run ends after", after(cut, ended), "s", 30.0);
    tokio::time::sleep_until(cut + LONG).await;
    machine.cable("up").await?;
    let mended = Instant::now();
    let back = timeline
        .first(name, RECOVERY, |plugin| {
            plugin.generation > before.generation && plugin.phase == "ready"
        })
        .await;
    let limit = RECOVERY.as_secs_f64();
    row.at_most("60 s: ready after the end", after(mended, back), "s", limit);
    row.require(says(operator, name).await, "60 s: calls work again");
    let renewed = kept.read()?.expires_at > first;
    row.require(
        renewed,
        "60 s: its certificate, which expired meanwhile, was renewed",
    );
    Ok(())
}

/// Another certificate for the same key, while the plugin runs.
async fn renewed(
    row: &Row,
    operator: &Client,
    machine: &Machine,
    corectl: &Path,
    before: &PluginInfo,
) -> Result<()> {
    let certificates = || {
        let mut found: Vec<_> = std::fs::read_dir(machine.credentials())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                (
                    entry.path(),
                    std::fs::read(entry.path()).unwrap_or_default(),
                )
            })
            .collect();
        found.sort();
        found
    };
    let old = certificates();
    let renew = ["join", "--renew", "--out", &machine.credentials()];
    machine.runs(corectl, &renew).await?;
    row.require(certificates() != old, "a renewal brings a new certificate");
    // New connections show it.
    machine.cable("down").await?;
    // The fault is that it is away for so long.
    tokio::time::sleep(SHORT).await;
    machine.cable("up").await?;
    row.require(
        says(operator, &before.name).await,
        "it goes on with its new certificate",
    );
    same_run(row, operator, before, "a renewal").await;
    Ok(())
}

/// By the SDK, in time: nothing of the plugin's life is seen to change, though the certificate that its
/// connection began with expires.
async fn renews_itself(
    row: &Row,
    operator: &Client,
    timeline: &Timeline,
    machine: &Machine,
    before: &PluginInfo,
) -> Result<()> {
    let kept = CredentialsDir::new(machine.credentials());
    let old = kept.read()?.expires_at;
    let began = Instant::now();
    let has_expired = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| now.as_secs() > old)
    };
    let (mut calls, mut refused, mut renewed) = (0, 0, None);
    while !has_expired() {
        calls += 1;
        refused += usize::from(!says(operator, &before.name).await);
        if renewed.is_none() && kept.read().is_ok_and(|kept| kept.expires_at > old) {
            renewed = Some(began.elapsed());
        }
        tokio::time::sleep(core_tests::POLL).await;
    }
    let took = renewed.map_or(f64::NAN, |took| took.as_secs_f64());
    let limit = CERTIFICATE_LIFE.as_secs_f64();
    row.at_most("the SDK renewed after", took, "s", limit);
    row.require(calls > 0, "it is called meanwhile");
    row.exactly("renewal by the SDK: calls not answered", refused, "", 0);
    let interrupted = timeline.told().into_iter().filter(|(at, plugin)| {
        *at > began && plugin.name == before.name && plugin.phase != "ready"
    });
    row.exactly(
        "renewal by the SDK: interruptions",
        interrupted.count(),
        "",
        0,
    );
    same_run(row, operator, before, "a renewal by the SDK").await;
    Ok(())
}

/// A cable that loses packets: slower, and nothing else.
async fn losing(
    row: &Row,
    operator: &Client,
    timeline: &Timeline,
    cable: BadCable,
    before: &PluginInfo,
) -> Result<()> {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call_for(operator.clone(), CALLING));
    }
    let called = callers.join_all().await;
    let unanswered = called.iter().map(|(_, unanswered)| unanswered).sum();
    let took: Vec<_> = called.into_iter().flat_map(|(took, _)| took).collect();
    let what = |what| format!("2 % lost, 40 ms late: {what}");
    row.exactly(&what("calls not answered"), unanswered, "", 0);
    row.tell(&what("calls answered"), count(took.len()), "");
    row.tell(&what("p50"), percentile(&took, 50), "ms");
    row.tell(&what("p99"), percentile(&took, 99), "ms");
    row.tell(&what("worst"), worst(&took), "ms");
    let fastest = took.iter().min().map_or(f64::NAN, |took| ms(*took));
    row.at_least(&what("fastest"), fastest, "ms", 80.0);
    let away = timeline.told().into_iter().filter(|(_, plugin)| {
        plugin.name == LOSSY && (remote::has_ended(plugin, before) || plugin.phase == "degraded")
    });
    row.exactly(&what("false restarts, false alarms"), away.count(), "", 0);
    let account = remote::account(operator, LOSSY).await?;
    remote::check_account(row, LOSSY, &account);
    row.require(
        account.failed == 0,
        format!("{LOSSY}: all of its own calls are answered: {account:?}"),
    );
    let (seen, lost) = cable.end().await?;
    row.between(&what("packets lost"), lost / seen * 100.0, "%", 1.0, 3.0);
    Ok(())
}

/// What its calls took, and how many were not answered.
async fn call_for(operator: Client, time: Duration) -> (Vec<Duration>, usize) {
    let until = Instant::now() + time;
    let (mut took, mut unanswered) = (Vec::new(), 0);
    while Instant::now() < until {
        let began = Instant::now();
        if says(&operator, LOSSY).await {
            took.push(began.elapsed());
        } else {
            unanswered += 1;
        }
    }
    (took, unanswered)
}

async fn revoked(row: &Row, operator: &Client, timeline: &Timeline, name: &str) -> Result<()> {
    let before = operator.plugin(name).await;
    let request = AccessRevokeCredentialRequest {
        plugin: name.to_owned(),
        ..Default::default()
    };
    let began = Instant::now();
    operator.access().revoke_credential(request).await?;
    let ended = timeline
        .first(name, RECOVERY, |plugin| remote::has_ended(plugin, &before))
        .await;
    let took = ended.map_or(f64::NAN, |(at, _)| ms(at.saturating_duration_since(began)));
    let figure = format!("{name} revoked: the run ends after");
    row.at_most(&figure, took, "ms", 1_000.0);
    Ok(())
}
