//! Floods of output.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Bytes of one write of a flood.
const CHUNK: usize = 64 << 10;
/// The length of a line that is far too long.
const LONG_LINE: u64 = 50_000_000;
/// Bytes per second that a flood wants to reach.
const RATE: u64 = 100_000_000;

/// How a flood goes.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    lines: AtomicU64,
    bytes: AtomicU64,
    slowest_write_us: AtomicU64,
    done: AtomicBool,
}

impl Flood {
    /// Begins a flood of this kind in a thread of its own, for so long.
    pub(crate) fn begin(kind: &str, time: Duration) -> Arc<Self> {
        let flood = Arc::new(Self::default());
        let chunk = chunk(kind);
        let lines_per_chunk = chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
        let limit = match kind {
            "lines" => u64::MAX,
            _ => LONG_LINE,
        };
        let ends_with_newline = kind == "long-line";
        let writing = Arc::clone(&flood);
        std::thread::spawn(move || {
            writing.write(&chunk, lines_per_chunk, limit, time);
            if ends_with_newline {
                writing.put(b"\n");
                writing.lines.fetch_add(1, Ordering::Relaxed);
            }
            writing.done.store(true, Ordering::Release);
        });
        flood
    }

    fn write(&self, chunk: &[u8], lines_per_chunk: u64, limit: u64, time: Duration) {
        let began = Instant::now();
        let mut written: u64 = 0;
        while began.elapsed() < time && written < limit {
            // Not faster than wanted: as fast as possible would only measure the pipe.
            let due = u128::from(RATE) * began.elapsed().as_micros() / 1_000_000;
            if u128::from(written) > due {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            self.put(chunk);
            written += chunk.len() as u64;
            self.lines.fetch_add(lines_per_chunk, Ordering::Relaxed);
        }
    }

    fn put(&self, bytes: &[u8]) {
        let began = Instant::now();
        // Not through the buffer of standard output: each write is measured.
        let mut output = std::io::stdout().lock();
        output
            .write_all(bytes)
            .and_then(|()| output.flush())
            .expect("the core reads");
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest_write_us.fetch_max(took, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// For whoever asks.
    pub(crate) fn report(&self) -> Value {
        json!({
            "lines": self.lines.load(Ordering::Relaxed),
            "bytes": self.bytes.load(Ordering::Relaxed),
            "slowest_write_ms": self.slowest_write_us.load(Ordering::Relaxed) as f64 / 1000.0,
            "done": self.done.load(Ordering::Acquire),
        })
    }
}

fn chunk(kind: &str) -> Vec<u8> {
    match kind {
        "lines" => {
            let line = b"a line of far too many, and nothing in it that anybody would want\n";
            let count = CHUNK / line.len();
            line.repeat(count)
        }
        // Every byte there is but the newline: zeros, escapes, broken UTF-8.
        "binary" => {
            let bytes = (0..=u8::MAX).filter(|byte| *byte != b'\n');
            bytes.cycle().take(CHUNK).collect()
        }
        _ => vec![b'x'; CHUNK],
    }
}
