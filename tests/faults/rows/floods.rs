//! 29, 32: frames without end, and headers without end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::patience;
use tokio::time::Instant;

use super::http2::{OPEN, credential, home};
use crate::home::Home;
use crate::measure::count;
use crate::observe::Watched;
use crate::raw_http2::{
    HEALTH, RawHttp2, Seen, code, flag, frame, kind, message, open, request, stream_id,
    window_update,
};
use crate::report::Row;

/// Memory of a process is never quite still.
const FLAT_MIB: f64 = 4.0;
/// What one connection may hold of a header block that does not end, and of reading it.
const HELD_MIB: f64 = 0.25;

pub(crate) async fn headers(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    // Whatever the first connections leave in the allocator is no growth of the attack.
    let refused = |seen: &Seen| seen.closed_at.is_some() || seen.answered > 0;
    let attacks = [
        ("1 MiB of metadata", large_metadata()),
        ("10,000 headers", many_headers()),
        ("10,000 small CONTINUATIONs", continuations()),
    ];
    let watched = Watched::begin(&home)?;
    for (what, attack) in &attacks {
        let begin = watched.growth_mib();
        let mut told = String::new();
        for _ in 0..20 {
            let mut attacker = RawHttp2::connect(&socket).await?;
            attacker.write(attack).await.ok();
            let seen = attacker.until(patience(), refused).await;
            row.require(refused(&seen), format!("{what}: refused, not {seen:?}"));
            told = seen
                .goaway
                .map_or("refused".to_owned(), |(_, _, text)| text);
        }
        let grown = watched.growth_mib() - begin;
        row.at_most(
            &format!("{what}, 20 times: core grows by"),
            grown,
            "MiB",
            FLAT_MIB,
        );
        row.note(format!("{what}: {told}"));
    }
    unfinished(&row, &home, &socket).await?;
    bystander.took(&row);
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// Splits a header block into HEADERS and CONTINUATIONs.
fn in_frames(block: &[u8], size: usize, ends: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pieces: Vec<_> = block.chunks(size).collect();
    for (index, piece) in pieces.iter().enumerate() {
        let last = ends && index + 1 == pieces.len();
        let kind = if index == 0 {
            kind::HEADERS
        } else {
            kind::CONTINUATION
        };
        let flags = if last { flag::END_HEADERS } else { flag::NONE };
        bytes.extend(frame(kind, flags, 1, piece));
    }
    bytes
}

fn large_metadata() -> Vec<u8> {
    let value = "x".repeat(1 << 20);
    in_frames(&request(HEALTH, &[("x-large", &value)]), 16 << 10, true)
}

fn many_headers() -> Vec<u8> {
    let names: Vec<String> = (0..10_000).map(|number| format!("x-{number}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    in_frames(&request(HEALTH, &fields), 16 << 10, true)
}

fn continuations() -> Vec<u8> {
    let mut bytes = frame(kind::HEADERS, flag::NONE, 1, &request(HEALTH, &[]));
    for _ in 0..10_000 {
        bytes.extend(frame(
            kind::CONTINUATION,
            flag::NONE,
            1,
            &[0, 1, b'x', 1, b'y'],
        ));
    }
    bytes
}

/// As many strangers as there may be, each with as much of a header block as the core takes, and then
/// silence.
async fn unfinished(row: &Row, home: &Home, socket: &Path) -> Result<()> {
    const CONNECTIONS: usize = 64;
    let watched = Watched::begin(home)?;
    // One value that is longer than all of it: nothing can be decoded.
    let block = request(HEALTH, &[("x-large", &"x".repeat(1 << 20))]);
    let all = in_frames(&block, 64 << 10, false);
    let most = &all[..2 * ((64 << 10) + 9)];
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stranger = RawHttp2::connect(socket).await?;
        stranger.write(most).await.ok();
        connections.push(stranger);
    }
    // Some were sent away, the others are silent; the core has read what it reads.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let open = connections
        .iter()
        .filter(|stranger| stranger.seen().closed_at.is_none());
    row.tell(
        "unfinished headers: connections that hold them",
        count(open.count()),
        "",
    );
    let limit = count(CONNECTIONS) * HELD_MIB;
    row.at_most(
        "unfinished headers: core grows by",
        watched.growth_mib(),
        "MiB",
        limit,
    );
    Ok(())
}

/// How long each flood goes on, if it is not ended.
const FLOOD: Duration = Duration::from_secs(5);
/// What strangers may make the core write into its log.
const MOST_LOG: u64 = 64 << 10;

pub(crate) async fn frames(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    let (name, value) = credential();
    let block = request(OPEN, &[(name, &value)]);
    let ping = |flags| frame(kind::PING, flags, 0, b"12345678");
    // 50 settings of the initial window, up and down.
    let settings: Vec<u8> = (0..50_u32)
        .flat_map(|number| [&[0, 4][..], &(65_535 + number % 2).to_be_bytes()].concat())
        .collect();
    let log = home.directory().join("core.log");
    let size = || std::fs::metadata(&log).map_or(0, |log| log.len());
    let log_before = size();
    let mut total = 0.0;
    let mut slowest = Duration::ZERO;
    let floods = [
        ("pings", ping(flag::NONE)),
        ("answers to pings", ping(flag::ACK)),
        ("settings", frame(kind::SETTINGS, flag::NONE, 0, &settings)),
        ("empty DATA", frame(kind::DATA, flag::NONE, 1, &[])),
        ("window updates by 1", window_update(0, 1)),
        ("window updates of a stream", window_update(1, 1)),
        (
            "priorities",
            frame(kind::PRIORITY, flag::NONE, 1, &[0, 0, 0, 3, 9]),
        ),
        (
            "unknown frames",
            frame(kind::UNKNOWN, flag::NONE, 1, b"what?"),
        ),
    ];
    for (what, flooding) in &floods {
        let watched = Watched::begin(&home)?;
        let mut attacker = RawHttp2::connect(&socket).await?;
        attacker.write(&open(1, &block)).await.context("a stream")?;
        let begin = Instant::now();
        let many = flooding.repeat(1_000);
        let mut sent = 0;
        while begin.elapsed() < FLOOD && attacker.write(&many).await.is_ok() {
            sent += 1_000;
        }
        let took = begin.elapsed();
        slowest = slowest.max(took);
        // The kernel's buffers are read and thrown away.
        let seen = attacker.until_closed(Duration::from_secs(1)).await;
        row.require(
            seen.closed_at.is_some(),
            format!("{what}: the connection is closed"),
        );
        total += watched.cpu_seconds();
        row.note(format!(
            "{what}: {sent} written, closed after {:.0} ms, {:.2} s of CPU",
            took.as_secs_f64() * 1e3,
            watched.cpu_seconds()
        ));
    }
    row.at_most("CPU of all floods", total, "s", 5.0);
    row.at_most("longest flood", slowest.as_secs_f64(), "s", 5.0);
    overflow(&row, &socket, &block).await?;
    row.at_most(
        "its log grows by",
        size().saturating_sub(log_before) as f64,
        "bytes",
        MOST_LOG as f64,
    );
    bystander.took(&row);
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// More window than there can be, and more data than the window.
async fn overflow(row: &Row, socket: &Path, block: &[u8]) -> Result<()> {
    let large = i32::MAX.unsigned_abs();
    let data = [message(1 << 20, &[]), vec![0; 16 << 10]].concat();
    let too_much: Vec<u8> = (0..16)
        .flat_map(|_| frame(kind::DATA, flag::NONE, 1, &data))
        .collect();
    for (what, attack) in [
        ("of the connection", window_update(0, large)),
        ("of a stream", window_update(stream_id(0), large)),
        ("by data", too_much),
    ] {
        let mut attacker = RawHttp2::connect(socket).await?;
        attacker
            .write(&[open(1, block), attack].concat())
            .await
            .ok();
        let refused = |seen: &Seen| {
            seen.went_away_with(code::FLOW_CONTROL_ERROR)
                || seen.resets_with(code::FLOW_CONTROL_ERROR) > 0
        };
        let seen = attacker.until(patience(), refused).await;
        row.require(
            refused(&seen),
            format!("window overflow {what}: FLOW_CONTROL_ERROR, not {seen:?}"),
        );
    }
    Ok(())
}
