//! 33: messages that are too large, or say that they are.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use core_tests::{Client, Hello, RawPlugin, patience};
use tokio::net::UnixStream;
use tonic::Code;

use super::http2::{OPEN, credential, home};
use crate::home::Home;
use crate::observe::Watched;
use crate::raw_http2::{HEALTH, RawHttp2, frame, kind, message, open, request, stream_id};
use crate::report::Row;

/// Of a request.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// Largest message.
const LIMIT: u32 = 4 << 20;
const MIB: f64 = 1_048_576.0;

pub(crate) async fn messages(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    let (_, value) = credential();
    let token = value.trim_start_matches("Bearer ");
    let client = Client::new(socket.as_path()).with_token(token);
    let mut peer = RawPlugin::open(&client, Hello::ready())
        .await
        .context("admitted")?;
    let run = peer.welcome.run.clone();
    let known = [
        ("authorization", value.as_str()),
        ("core-run", run.as_str()),
    ];
    let set = "/coreruntime.v1.Storage/Set";
    let zip = [known[0], known[1], ("grpc-encoding", "gzip")];
    let watched = Watched::begin(&home)?;
    let mut bomb = message(0, &gzip_bomb(1 << 20));
    bomb[0] = 1;
    let length = u32::try_from(bomb.len() - 5)?;
    bomb[1..5].copy_from_slice(&length.to_be_bytes());
    let cases: [(&str, &str, Fields<'_>, Vec<u8>, Code); 7] = [
        (
            "5 MiB",
            set,
            &known,
            message(5 << 20, &vec![0; 5 << 20]),
            Code::OutOfRange,
        ),
        (
            "one byte above the limit",
            set,
            &known,
            message(LIMIT + 1, &vec![0; 4 << 20]),
            Code::OutOfRange,
        ),
        (
            "2^32-1 announced",
            set,
            &known,
            message(u32::MAX, b"x"),
            Code::OutOfRange,
        ),
        (
            "2^32-1 announced to a stream",
            "/coreruntime.v1.EventBus/PublishStream",
            &known,
            message(u32::MAX, b"x"),
            Code::OutOfRange,
        ),
        ("a gzip bomb", set, &zip, bomb, Code::Unimplemented),
        (
            "compressed, no encoding named",
            set,
            &known,
            [&[1][..], &4_u32.to_be_bytes(), b"what"].concat(),
            Code::Internal,
        ),
        (
            "5 KiB of a stranger",
            HEALTH,
            &[],
            message(5 << 10, &vec![0; 5 << 10]),
            Code::OutOfRange,
        ),
    ];
    let mut refused = 0;
    let tried = cases.len();
    for (what, path, fields, body, expected) in cases {
        let told = ask(&socket, path, fields, body).await.context(what)?;
        row.require(
            told == expected,
            format!("{what}: {expected:?}, not {told:?}"),
        );
        refused += usize::from(told == expected);
    }
    row.at_most(
        "peak of the core's memory above its rest",
        watched.growth_mib(),
        "MiB",
        f64::from(LIMIT) / MIB * 2.0,
    );
    row.exactly("refused as promised", refused, "", tried);
    // It ends the channel, and nobody else's.
    peer.send_bytes(vec![0; 5 << 20]).await;
    let ended = tokio::time::timeout(patience(), peer.end()).await;
    row.require(ended.is_ok(), "too much on a channel ends it");
    announced(&row, &home, &socket).await?;
    bystander.took(&row);
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// One request with this body, and how it is answered.
async fn ask(socket: &Path, path: &str, fields: Fields<'_>, body: Vec<u8>) -> Result<Code> {
    let stream = UnixStream::connect(socket).await.context("connects")?;
    let (requests, connection) = h2::client::handshake(stream).await.context("HTTP/2")?;
    let connection = tokio::spawn(connection);
    let mut builder = http::Request::post(format!("http://core{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let asking = async {
        let mut requests = requests.ready().await.context("ready")?;
        let (answer, mut sending) = requests.send_request(builder.body(())?, false)?;
        // The core may have answered before it has all.
        sending.send_data(Bytes::from(body), true).ok();
        let answer = answer.await.context("an answer")?;
        let mut status = answer.headers().get("grpc-status").cloned();
        if status.is_none() {
            let mut body = answer.into_body();
            while let Some(data) = body.data().await {
                data.context("data")?;
            }
            let trailers = body.trailers().await.context("trailers")?;
            status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
        }
        let status = status.context("no grpc-status")?;
        anyhow::Ok(Code::from_bytes(status.as_bytes()))
    };
    let told = tokio::time::timeout(patience(), asking)
        .await
        .context("in time")?;
    connection.abort();
    told
}

/// Streams that announce as much as is allowed, and send nothing.
async fn announced(row: &Row, home: &Home, socket: &Path) -> Result<()> {
    const STREAMS: u32 = 64;
    let (name, value) = credential();
    let block = request(OPEN, &[(name, &value)]);
    let watched = Watched::begin(home)?;
    let before = virtual_bytes(home.pid())?;
    let mut attacker = RawHttp2::connect(socket).await?;
    let claim = message(LIMIT, b"");
    for id in (0..STREAMS).map(stream_id) {
        let data = frame(kind::DATA, 0, id, &claim);
        attacker
            .write(&[open(id, &block), data].concat())
            .await
            .context("a claim")?;
    }
    // Long after the core has read it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seen = attacker.seen();
    row.require(
        seen.closed_at.is_none() && seen.resets.is_empty(),
        format!("they stay open: {seen:?}"),
    );
    let reserved = (virtual_bytes(home.pid())? - before) / f64::from(STREAMS) / MIB;
    row.at_most(
        "reserved for each stream that announces 4 MiB",
        reserved,
        "MiB",
        4.5,
    );
    row.at_most(
        "and held for all 64 that send nothing",
        watched.growth_mib(),
        "MiB",
        8.0,
    );
    Ok(())
}

/// Address space of a process.
fn virtual_bytes(pid: u32) -> Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("the core's memory")?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmSize:"))
        .context("VmSize")?;
    let kilobytes: f64 = line
        .split_whitespace()
        .nth(1)
        .context("a number")?
        .parse()?;
    Ok(kilobytes * 1024.0)
}

/// About `size` bytes that become 160 times as many: one block of fixed codes, RFC 1951, section 3.2.6, that
/// repeats the byte before it 258 times, over and over.
fn gzip_bomb(size: usize) -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::with_capacity(size * 8);
    // Codes are written from their highest bit on.
    let mut code = |value: u32, length: u32| {
        bits.extend((0..length).rev().map(|bit| value >> bit & 1 == 1));
    };
    code(0b1, 1); // The last block,
    code(0b10, 2); // of fixed codes: 01, lowest bit first.
    code(0b0011_0000, 8); // A zero.
    for _ in 0..size * 8 / 13 {
        code(0b1100_0101, 8); // 258 times
        code(0b0_0000, 5); // what stands one before.
    }
    code(0, 7); // The end.
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for byte in bits.chunks(8) {
        let set = |(place, bit): (usize, &bool)| u8::from(*bit) << place;
        gzip.push(byte.iter().enumerate().map(set).sum());
    }
    gzip
}
