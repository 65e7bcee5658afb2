//! The log: a ring of the last events, encoded. Pure.
//!
//! Events lie one behind the other in chunks of 64 KiB; a record per event says where, and what a
//! subscription may select it by. A chunk that is full is sealed: from then on runs of events in it
//! are handed out as slices of the one allocation, so that many readers of old events share it.
//!
//! The *horizon* is where slowness begins: an event older than it has been followed by more events, or
//! more bytes, than a subscriber may be behind without being called slow. It only moves forward.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::event::Label;

/// Where a chunk ends, and the most that a segment or a delivery holds beside one larger event.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// Shorter runs of a sealed chunk are copied: handing out a slice keeps the whole chunk alive.
const SLICE_FROM_BYTES: usize = 4 << 10;

/// Bounds of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) slow_events: usize,
    pub(super) slow_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Log {
    bounds: Bounds,
    /// One per event, the oldest first. Seqs have no holes, so a seq is an index.
    records: VecDeque<Record>,
    oldest_seq: u64,
    chunks: VecDeque<Chunk>,
    /// Id of the first chunk; ids have no holes either.
    first_chunk: u64,
    /// Bytes of the events in the log.
    bytes: usize,
    horizon_seq: u64,
    /// Bytes of the events from the horizon on.
    bytes_since_horizon: usize,
    /// Time of the newest event that has left the log.
    left_at: Option<Duration>,
}

#[derive(Debug)]
struct Record {
    label: Arc<Label>,
    /// Since 1970; the highest so far, so that it never falls along the log.
    time: Duration,
    chunk: u64,
    start: u32,
    length: u32,
}

#[derive(Debug)]
enum Chunk {
    Open(Vec<u8>),
    Sealed(Bytes),
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Entries, in order.
    pub(super) pieces: Vec<Bytes>,
    /// How many.
    pub(super) events: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// Where to go on.
    pub(super) next_seq: u64,
}

impl Log {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            records: VecDeque::new(),
            oldest_seq: 1,
            chunks: VecDeque::new(),
            first_chunk: 0,
            bytes: 0,
            horizon_seq: 1,
            bytes_since_horizon: 0,
            left_at: None,
        }
    }

    /// Seq of the oldest event; of the next one if there is none.
    pub(super) fn oldest_seq(&self) -> u64 {
        self.oldest_seq
    }

    /// Seq that the next event gets.
    pub(super) fn next_seq(&self) -> u64 {
        self.oldest_seq + self.records.len() as u64
    }

    pub(super) fn events(&self) -> usize {
        self.records.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whoever is at an older event than this is slow.
    pub(super) fn horizon_seq(&self) -> u64 {
        self.horizon_seq
    }

    /// Bytes of the events from `seq` on.
    pub(super) fn bytes_from(&self, seq: u64) -> usize {
        let index = index(seq.max(self.oldest_seq) - self.oldest_seq);
        let records = self.records.range(index.min(self.records.len())..);
        records.map(|record| record.length as usize).sum()
    }

    /// Appends an event and lets the oldest go.
    pub(super) fn push(&mut self, label: Arc<Label>, time: SystemTime, entry: &Entry<'_>) {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = self.records.back().map(|record| record.time);
        let time = latest
            .or(self.left_at)
            .map_or(time, |latest| time.max(latest));
        let length = entry.len();
        let start = self.store(entry);
        self.records.push_back(Record {
            label,
            time,
            chunk: self.first_chunk + self.chunks.len() as u64 - 1,
            start,
            length: u32::try_from(length).expect("an entry is bounded by the largest event"),
        });
        self.bytes += length;
        self.bytes_since_horizon += length;
        self.trim();
        self.move_horizon();
    }

    fn store(&mut self, entry: &Entry<'_>) -> u32 {
        let entry = match entry {
            Entry::Large(bytes) => {
                self.seal();
                self.chunks.push_back(Chunk::Sealed(bytes.clone()));
                return 0;
            }
            Entry::Small(entry) => entry,
        };
        if let Some(Chunk::Open(data)) = self.chunks.back_mut()
            && data.len() + entry.len() <= CHUNK_BYTES
        {
            let start = u32::try_from(data.len()).expect("a chunk has at most 64 KiB");
            data.extend_from_slice(entry);
            return start;
        }
        self.seal();
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        data.extend_from_slice(entry);
        self.chunks.push_back(Chunk::Open(data));
        0
    }

    fn seal(&mut self) {
        if let Some(chunk) = self.chunks.back_mut()
            && let Chunk::Open(data) = chunk
        {
            *chunk = Chunk::Sealed(Bytes::from(std::mem::take(data)));
        }
    }

    /// The newest event stays, whatever its size.
    fn trim(&mut self) {
        while self.records.len() > 1
            && (self.records.len() > self.bounds.events || self.bytes > self.bounds.bytes)
            && let Some(record) = self.records.pop_front()
        {
            self.oldest_seq += 1;
            self.bytes -= record.length as usize;
            self.left_at = Some(record.time);
            if self
                .records
                .front()
                .is_some_and(|next| next.chunk != record.chunk)
            {
                self.chunks.pop_front();
                self.first_chunk += 1;
            }
            if self.horizon_seq < self.oldest_seq {
                self.horizon_seq = self.oldest_seq;
                self.bytes_since_horizon -= record.length as usize;
            }
        }
    }

    fn move_horizon(&mut self) {
        while self.next_seq() - self.horizon_seq > self.bounds.slow_events as u64
            || self.bytes_since_horizon > self.bounds.slow_bytes
        {
            let Some(record) = self.records.get(index(self.horizon_seq - self.oldest_seq)) else {
                return;
            };
            self.bytes_since_horizon -= record.length as usize;
            self.horizon_seq += 1;
        }
    }

    /// Seq of the first event at or after `time`, and whether older ones of that kind have left the
    /// log.
    pub(super) fn seek(&self, time: SystemTime) -> (u64, bool) {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let index = self.records.partition_point(|record| record.time < time);
        let seq = self.oldest_seq + index as u64;
        (seq, self.left_at.is_some_and(|left_at| left_at >= time))
    }

    /// Looks at up to `examine` events from `next_seq` on and takes those that are accepted, up to
    /// `budget` bytes or one event.
    pub(super) fn scan(
        &self,
        next_seq: u64,
        examine: usize,
        budget: usize,
        accepts: impl FnMut(&Label) -> bool,
    ) -> Found {
        let mut accepts = once_per_label(accepts);
        let mut taken = Taken::default();
        let mut found = Found {
            next_seq,
            ..Found::default()
        };
        for record in self.from(next_seq).take(examine) {
            let length = record.length as usize;
            if accepts(&record.label) {
                if found.events > 0 && found.bytes + length > budget {
                    break;
                }
                taken.add(self, record);
                found.events += 1;
                found.bytes += length;
            }
            found.next_seq += 1;
        }
        found.pieces = taken.finish(self);
        found
    }

    /// Looks at up to `examine` events of [from, to): the first and last seq that is accepted, and
    /// where to go on.
    pub(super) fn probe(
        &self,
        from: u64,
        to: u64,
        examine: usize,
        accepts: impl FnMut(&Label) -> bool,
    ) -> (Option<(u64, u64)>, u64) {
        let mut accepts = once_per_label(accepts);
        let mut range = None;
        let mut seq = from;
        let most = examine.min(index(to.saturating_sub(from)));
        for record in self.from(from).take(most) {
            if accepts(&record.label) {
                range = Some((range.map_or(seq, |(first, _)| first), seq));
            }
            seq += 1;
        }
        (range, seq)
    }

    fn from(&self, seq: u64) -> impl Iterator<Item = &Record> {
        let index = index(seq - self.oldest_seq);
        self.records.range(index.min(self.records.len())..)
    }

    fn chunk(&self, id: u64) -> &Chunk {
        &self.chunks[index(id - self.first_chunk)]
    }
}

/// An entry to be stored in the log and in lanes.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    /// To be copied.
    Small(&'a [u8]),
    /// To be shared.
    Large(Bytes),
}

impl Entry<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Small(entry) => entry.len(),
            Self::Large(entry) => entry.len(),
        }
    }
}

/// Collects records into pieces: slices of sealed chunks for long runs, copies for the rest.
#[derive(Default)]
struct Taken {
    pieces: Vec<Bytes>,
    copied: Vec<u8>,
    /// Chunk, start and end of events that lie side by side.
    run: Option<(u64, usize, usize)>,
}

impl Taken {
    fn add(&mut self, log: &Log, record: &Record) {
        let start = record.start as usize;
        let end = start + record.length as usize;
        match &mut self.run {
            Some((chunk, _, run_end)) if *chunk == record.chunk && *run_end == start => {
                *run_end = end;
            }
            _ => {
                self.end_run(log);
                self.run = Some((record.chunk, start, end));
            }
        }
    }

    fn end_run(&mut self, log: &Log) {
        let Some((chunk, start, end)) = self.run.take() else {
            return;
        };
        match log.chunk(chunk) {
            Chunk::Sealed(bytes) if end - start >= SLICE_FROM_BYTES => {
                self.end_copy();
                self.pieces.push(bytes.slice(start..end));
            }
            Chunk::Sealed(bytes) => self.copied.extend_from_slice(&bytes[start..end]),
            Chunk::Open(data) => self.copied.extend_from_slice(&data[start..end]),
        }
    }

    fn end_copy(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push(std::mem::take(&mut self.copied).into());
        }
    }

    fn finish(mut self, log: &Log) -> Vec<Bytes> {
        self.end_run(log);
        self.end_copy();
        self.pieces
    }
}

/// Neighbours often share one label: it is then judged once.
fn once_per_label(mut accepts: impl FnMut(&Label) -> bool) -> impl FnMut(&Arc<Label>) -> bool {
    let mut last: Option<(*const Label, bool)> = None;
    move |label| {
        let address = Arc::as_ptr(label);
        match last {
            Some((known, answer)) if known == address => answer,
            _ => {
                let answer = accepts(label);
                last = Some((address, answer));
                answer
            }
        }
    }
}

fn index(distance: u64) -> usize {
    usize::try_from(distance).expect("distances in the log are bounded by its length")
}
