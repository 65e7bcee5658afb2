//! HTTP/2 by hand, over a unix socket: frames that no library would send. What the core answers is read
//! all the time, so that nothing stands still for want of a reader.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// RFC 9113, section 3.4.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames, RFC 9113, section 6.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0x0;
    pub(crate) const HEADERS: u8 = 0x1;
    pub(crate) const PRIORITY: u8 = 0x2;
    pub(crate) const RST_STREAM: u8 = 0x3;
    pub(crate) const SETTINGS: u8 = 0x4;
    pub(crate) const PING: u8 = 0x6;
    pub(crate) const GOAWAY: u8 = 0x7;
    pub(crate) const WINDOW_UPDATE: u8 = 0x8;
    pub(crate) const CONTINUATION: u8 = 0x9;
    /// Of no RFC.
    pub(crate) const UNKNOWN: u8 = 0xbe;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
}

/// Error codes, RFC 9113, section 7.
pub(crate) mod code {
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 0x3;
    pub(crate) const REFUSED_STREAM: u32 = 0x7;
    pub(crate) const CANCEL: u32 = 0x8;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;
}

/// An RPC that strangers may use.
pub(crate) const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Another, whose answer goes on.
pub(crate) const WATCH_HEALTH: &str = "/grpc.health.v1.Health/Watch";

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The id of a client's stream of this number.
pub(crate) fn stream_id(number: u32) -> u32 {
    2 * number + 1
}

/// RST_STREAM.
pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(
        kind::RST_STREAM,
        flag::NONE,
        stream,
        &code::CANCEL.to_be_bytes(),
    )
}

/// WINDOW_UPDATE.
pub(crate) fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, flag::NONE, stream, &by.to_be_bytes())
}

/// The header block of a gRPC request: literals, without tables, so that each stands for itself.
pub(crate) fn request(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "core"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in usual.iter().chain(more) {
        literal(&mut block, name, value);
    }
    block
}

/// A field without indexing and with a new name: RFC 7541, section 6.2.2.
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        integer(block, text.len());
        block.extend(text.as_bytes());
    }
}

/// With a prefix of 7 bits: RFC 7541, section 5.1.
fn integer(block: &mut Vec<u8>, value: usize) {
    let byte = |value: usize| u8::try_from(value).expect("masked");
    if value < 127 {
        block.push(byte(value));
        return;
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(byte(rest % 128 + 128));
        rest /= 128;
    }
    block.push(byte(rest));
}

/// HEADERS of a request whose body follows.
pub(crate) fn open(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, block)
}

/// A gRPC message, uncompressed, with whatever length it claims.
pub(crate) fn message(claimed: u32, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(claimed.to_be_bytes());
    message.extend(bytes);
    message
}

/// What the core did on a connection so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Streams and codes of RST_STREAM.
    pub(crate) resets: Vec<(u32, u32)>,
    /// Last stream, code and text of the last GOAWAY.
    pub(crate) goaway: Option<(u32, u32, String)>,
    /// Streams that were answered, each HEADERS counted.
    pub(crate) answered: usize,
    /// Answers to pings.
    pub(crate) pongs: usize,
    /// Nothing more comes.
    pub(crate) closed_at: Option<Instant>,
}

impl Seen {
    /// Whether the connection was ended with this code.
    pub(crate) fn went_away_with(&self, expected: u32) -> bool {
        matches!(self.goaway, Some((_, code, _)) if code == expected)
    }

    /// Streams that were reset with this code.
    pub(crate) fn resets_with(&self, expected: u32) -> usize {
        self.resets
            .iter()
            .filter(|(_, code)| *code == expected)
            .count()
    }
}

/// A connection.
pub(crate) struct RawHttp2 {
    writer: OwnedWriteHalf,
    seen: Arc<Mutex<Seen>>,
    reading: JoinHandle<()>,
}

impl RawHttp2 {
    /// Connects and says nothing.
    pub(crate) async fn silent(socket: &Path) -> Result<Self> {
        let (reader, writer) = UnixStream::connect(socket)
            .await
            .context("connects")?
            .into_split();
        let seen = Arc::<Mutex<Seen>>::default();
        let reading = tokio::spawn(read(reader, Arc::clone(&seen)));
        Ok(Self {
            writer,
            seen,
            reading,
        })
    }

    /// Connects and begins as it should: preface, SETTINGS.
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let mut connection = Self::silent(socket).await?;
        let begin = [PREFACE, &frame(kind::SETTINGS, flag::NONE, 0, &[])].concat();
        connection.write(&begin).await.context("the preface")?;
        Ok(connection)
    }

    /// Writes, for at most 10 s: whoever reads nothing more bounds an attack too.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.writer.write_all(bytes);
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, written)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic inside").clone()
    }

    /// Waits until something was seen, or the core has closed, or `limit` is over.
    pub(crate) async fn until(&self, limit: Duration, holds: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.seen();
            if seen.closed_at.is_some() || holds(&seen) || Instant::now() > deadline {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for the core to close the connection, for at most `limit`.
    pub(crate) async fn until_closed(&self, limit: Duration) -> Seen {
        self.until(limit, |_| false).await
    }
}

impl Drop for RawHttp2 {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn read(mut reader: OwnedReadHalf, seen: Arc<Mutex<Seen>>) {
    let mut header = [0; 9];
    let mut payload = Vec::new();
    while reader.read_exact(&mut header).await.is_ok() {
        let [high, middle, low, kind, flags, stream @ ..] = header;
        payload.resize(
            usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low),
            0,
        );
        if reader.read_exact(&mut payload).await.is_err() {
            break;
        }
        let word = |at: usize| {
            let bytes = payload
                .get(at..at + 4)
                .and_then(|word| word.try_into().ok());
            u32::from_be_bytes(bytes.unwrap_or_default())
        };
        let stream = u32::from_be_bytes(stream);
        let mut seen = seen.lock().expect("no panic inside");
        match kind {
            kind::RST_STREAM => seen.resets.push((stream, word(0))),
            kind::GOAWAY => {
                let text = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                seen.goaway = Some((word(0), word(4), text.into_owned()));
            }
            kind::HEADERS => seen.answered += 1,
            kind::PING if flags & flag::ACK != 0 => seen.pongs += 1,
            _ => {}
        }
    }
    seen.lock().expect("no panic inside").closed_at = Some(Instant::now());
}
