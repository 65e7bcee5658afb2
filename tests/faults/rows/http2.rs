//! 27, 28, 30: streams opened to be thrown away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::patience;

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::{count, percentile, worst};
use crate::observe::{Bystander, Comparison, Watched};
use crate::raw_http2::{
    HEALTH, RawHttp2, Seen, WATCH_HEALTH, code, flag, frame, kind, message, open, request, reset,
    stream_id, window_update,
};
use crate::report::Row;

/// Streams of one attack.
const STREAMS: u32 = 10_000;
/// Streams that are opened, and then reset, at a time.
const BATCH: u32 = 100;
/// Between two calls of the other client.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two attacks: connecting anew costs the attacker something too.
const REST: Duration = Duration::from_millis(20);
/// How the core lets such connections go.
const CALM: &str = "the connection ends with ENHANCE_YOUR_CALM";

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
/// An RPC that waits for a message and needs nothing but a credential.
pub(super) const OPEN: &str = "/coreruntime.v1.PluginChannel/Open";
/// Somebody with a credential.
const PEER: &str = "[plugins.peer]\nrun.kind = \"remote\"\ntoken_env = \"PEER_TOKEN\"\n";

/// A core with a plugin that another client calls.
pub(super) async fn home() -> Result<(Home, Bystander, PathBuf)> {
    let core = Home::prepare(PEER, &[plugin("child", ECHO, &[])]).env("PEER_TOKEN", TOKEN);
    let home = Home::of(core).await;
    home.all_ready(&["child"]).await;
    let bystander = Bystander::begin(&home.operator, "child.say", PAUSE);
    let socket = home.directory().join("data/run/core.sock");
    Ok((home, bystander, socket))
}

/// The header that makes a request somebody's.
pub(super) fn credential() -> (&'static str, String) {
    ("authorization", format!("Bearer {TOKEN}"))
}

pub(crate) async fn rapid_reset(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    let (name, value) = credential();
    let block = request(OPEN, &[(name, &value)]);
    let flood: Vec<u8> = (0..STREAMS)
        .map(stream_id)
        .flat_map(|id| [open(id, &block), reset(id)].concat())
        .collect();
    let watched = Watched::begin(&home)?;
    let mut accepted = Vec::new();
    let mut comparison = Comparison::begin(&row, &bystander);
    while comparison.goes_on().await {
        let mut attacker = RawHttp2::connect(&socket).await?;
        // The core may close while it is written to.
        attacker.write(&flood).await.ok();
        let seen = attacker.until_closed(patience()).await;
        row.require(seen.went_away_with(code::ENHANCE_YOUR_CALM), CALM);
        accepted.extend(seen.goaway.map(|(last, ..)| last.div_ceil(2)));
        tokio::time::sleep(REST).await;
    }
    let compared = comparison.end();
    let most = accepted.iter().max().copied().unwrap_or_default();
    row.at_most(
        "resets accepted of 10,000, at most",
        f64::from(most),
        "",
        1_024.0,
    );
    row.tell("attacks", count(accepted.len()), "");
    compared.tell(&row);
    row.at_most("core grows by", watched.growth_mib(), "MiB", 20.0);
    in_turns(&row, &home, &bystander, &socket).await?;
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// The patient kind: each stream is answered before it is reset, so that none counts as pending. It costs
/// the attacker as much as the core, and nobody else anything.
async fn in_turns(row: &Row, home: &Home, bystander: &Bystander, socket: &Path) -> Result<()> {
    let mut attacker = RawHttp2::connect(socket).await?;
    let (name, value) = credential();
    attacker
        .write(&open(stream_id(0), &request(OPEN, &[(name, &value)])))
        .await
        .context("is known from now on")?;
    let block = request(WATCH_HEALTH, &[]);
    let watched = Watched::begin(home)?;
    bystander.took(row);
    let mut sent = 0;
    while sent < STREAMS {
        let ids = || (sent + 1..=sent + BATCH).map(stream_id);
        let opened: Vec<u8> = ids()
            .flat_map(|id| {
                let empty = frame(kind::DATA, flag::END_STREAM, id, &message(0, b""));
                [open(id, &block), empty].concat()
            })
            .collect();
        let answered = attacker.seen().answered + usize::try_from(BATCH)?;
        attacker.write(&opened).await.context("opens")?;
        attacker
            .until(patience(), |seen| seen.answered >= answered)
            .await;
        let resets: Vec<u8> = ids().flat_map(reset).collect();
        attacker.write(&resets).await.context("resets")?;
        sent += BATCH;
    }
    let seen = attacker.seen();
    row.require(
        seen.closed_at.is_none(),
        format!("the patient kind is no flood: {:?}", seen.goaway),
    );
    let meanwhile = bystander.took(row);
    row.tell("in turns: resets taken", f64::from(sent), "");
    row.tell(
        "in turns: another client's p99",
        percentile(&meanwhile, 99),
        "ms",
    );
    row.at_most("in turns: core grows by", watched.growth_mib(), "MiB", 20.0);
    Ok(())
}

/// A stream whose frames oblige the core to reset it, in several ways.
fn forced_reset(number: u32, block: &[u8], mistaken: &[u8], long: &[u8]) -> Vec<u8> {
    let id = stream_id(number);
    match number % 4 {
        // More window than there can be.
        0 => [open(id, block), window_update(id, i32::MAX.unsigned_abs())].concat(),
        // A field that HTTP/2 forbids.
        1 => open(id, mistaken),
        // Less data than was announced.
        2 => [
            open(id, long),
            frame(kind::DATA, flag::END_STREAM, id, &message(0, b"")),
        ]
        .concat(),
        // A stream that depends on itself.
        _ => [
            open(id, block),
            frame(
                kind::PRIORITY,
                flag::NONE,
                id,
                &[&id.to_be_bytes()[..], &[0]].concat(),
            ),
        ]
        .concat(),
    }
}

pub(crate) async fn forced_resets(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    // Of somebody known: strangers have fewer requests at once.
    let (name, value) = credential();
    let known = [(name, value.as_str())];
    let block = request(OPEN, &known);
    let mistaken = request(HEALTH, &[("connection", "close")]);
    let long = request(OPEN, &[known[0], ("content-length", "1000")]);
    let watched = Watched::begin(&home)?;
    let mut attacker = RawHttp2::connect(&socket).await?;
    let mut sent: u32 = 0;
    while sent < STREAMS {
        let some: Vec<u8> = (sent..sent + 50)
            .flat_map(|number| forced_reset(number, &block, &mistaken, &long))
            .collect();
        if attacker.write(&some).await.is_err() {
            break;
        }
        sent += 50;
    }
    let seen = attacker.until_closed(patience()).await;
    row.require(seen.went_away_with(code::ENHANCE_YOUR_CALM), CALM);
    row.require(
        seen.goaway
            .as_ref()
            .is_some_and(|(_, _, text)| text == "too_many_internal_resets"),
        format!("by the limit of local resets, not {:?}", seen.goaway),
    );
    let last = seen
        .goaway
        .as_ref()
        .map_or(0, |(last, ..)| last.div_ceil(2));
    row.between(
        "streams that the core had to reset",
        f64::from(last),
        "",
        1_000.0,
        1_100.0,
    );
    row.tell("resets seen by the peer", count(seen.resets.len()), "");
    row.at_most("core grows by", watched.growth_mib(), "MiB", 20.0);
    bystander.took(&row);
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn many_streams(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    let (name, value) = credential();
    // Requests whose body never comes: each stays open.
    let block = request(OPEN, &[(name, &value)]);
    let watched = Watched::begin(&home)?;
    let mut peak = 0;
    let mut refused = Vec::new();
    let mut comparison = Comparison::begin(&row, &bystander);
    while comparison.goes_on().await {
        let mut attacker = RawHttp2::connect(&socket).await?;
        for first in (0..STREAMS).step_by(100) {
            let some: Vec<u8> = (first..first + 100)
                .flat_map(|number| open(stream_id(number), &block))
                .collect();
            if attacker.write(&some).await.is_err() {
                break;
            }
        }
        let seen = attacker.until_closed(patience()).await;
        row.require(seen.went_away_with(code::ENHANCE_YOUR_CALM), CALM);
        peak = peak.max(most_open(&seen));
        refused.push(seen.resets_with(code::REFUSED_STREAM));
        tokio::time::sleep(REST).await;
    }
    let compared = comparison.end();
    row.exactly("most streams open at once", peak, "", 1_024);
    let least = refused.iter().min().copied().unwrap_or_default();
    row.between(
        "surplus refused before the end",
        count(least),
        "",
        1_000.0,
        1_024.0,
    );
    let slowest = worst(&bystander.took(&row)).max(compared.slowest_ms());
    row.at_most("another client's slowest call", slowest, "ms", 250.0);
    row.tell("core grows by", watched.growth_mib(), "MiB");
    strangers(&row, &home, &socket).await?;
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// Streams that the core took: none of them ever ends, and those that it refused do not count.
fn most_open(seen: &Seen) -> usize {
    let last = seen.goaway.as_ref().map_or(0, |(last, ..)| *last);
    usize::try_from(last.div_ceil(2)).unwrap_or(usize::MAX)
}

/// What nobody known may hold: a few requests for each of the few connections.
async fn strangers(row: &Row, home: &Home, socket: &Path) -> Result<()> {
    const CONNECTIONS: usize = 64;
    const REQUESTS: u32 = 1_000;
    let watched = Watched::begin(home)?;
    let block = request(HEALTH, &[]);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stranger = RawHttp2::connect(socket).await?;
        let requests: Vec<u8> = (0..REQUESTS)
            .flat_map(|number| open(stream_id(number), &block))
            .collect();
        stranger.write(&requests).await.context("its requests")?;
        connections.push(stranger);
    }
    let mut held = 0;
    let mut cut = 0;
    for stranger in &connections {
        let expected = usize::try_from(REQUESTS).unwrap_or_default() - 16;
        let seen = stranger
            .until(patience(), |seen| seen.answered >= expected)
            .await;
        cut += usize::from(seen.closed_at.is_some());
        let answered = seen.answered;
        held = held.max(usize::try_from(REQUESTS).unwrap_or_default() - answered);
    }
    row.exactly(
        "strangers: requests in progress on one connection",
        held,
        "",
        16,
    );
    row.exactly("strangers: connections lost", cut, "", 0);
    row.at_most(
        "strangers: core grows by",
        watched.growth_mib(),
        "MiB",
        64.0,
    );
    Ok(())
}
