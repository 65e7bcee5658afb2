//! One direction of one connection.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{CHUNK_BYTES, Counted, Direction, Faults, Orders, QUEUE, Way};

/// Longest piece of a way that is slow: so that its connections take turns.
const SLOW_SLICE_BYTES: usize = 256;

/// Either side ended it by a reset.
#[derive(Debug)]
pub(super) struct Broken;

/// What all connections share in one direction: its speed.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Until then bytes pass that were let in already. Short lock: no await inside.
    busy_until: Mutex<Option<Instant>>,
}

impl Link {
    /// When so many bytes have passed.
    fn pass(&self, bytes: usize, bytes_per_second: u32) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_second.max(1)));
        let mut busy_until = self.busy_until.lock().expect("no panic inside");
        let now = Instant::now();
        let passed = busy_until.unwrap_or(now).max(now) + takes;
        *busy_until = Some(passed);
        passed
    }
}

/// What passes.
enum Item {
    Bytes(Vec<u8>),
    /// The sender sends no more.
    End,
    /// The sender is gone.
    Reset,
}

pub(super) struct Pump {
    pub(super) direction: Direction,
    pub(super) faults: watch::Receiver<Faults>,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) link: Arc<Link>,
    pub(super) random: StdRng,
    pub(super) counted: Arc<Counted>,
}

impl Pump {
    /// Carries bytes until their end has passed.
    pub(super) async fn run(self, read: ReadHalf<'_>, write: WriteHalf<'_>) -> Result<(), Broken> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let Self {
            direction,
            faults,
            mut orders,
            link,
            mut random,
            counted,
        } = self;
        let arriving = {
            let faults = faults.clone();
            async move {
                let mut last = Instant::now();
                arrive(read, sender, move || {
                    // None overtakes another.
                    let way = way(&faults.borrow(), direction);
                    last = last.max(Instant::now() + delay(way, &mut random));
                    last
                })
                .await;
                Ok(())
            }
        };
        let mut leaving = Leaving {
            direction,
            faults,
            link,
            counted,
            write,
        };
        let half_closes = move |orders: &Orders| match direction {
            Direction::Up => orders.half_closes_up,
            Direction::Down => orders.half_closes_down,
        };
        let before = half_closes(&orders.borrow());
        let half_closed = async move {
            let is_ordered = |now: &Orders| half_closes(now) > before;
            let gone = orders.wait_for(is_ordered).await.is_err();
            // The proxy is gone: the connection ends by that.
            if gone {
                std::future::pending::<()>().await;
            }
        };
        let leave = async move {
            let mut receiver = receiver;
            let closed_by_order = tokio::select! {
                biased;
                () = half_closed => true,
                left = leaving.run(&mut receiver) => { left?; false }
            };
            if closed_by_order {
                leaving.write.shutdown().await.ok();
            }
            // Whatever comes after the end is lost.
            while let Some((_, item)) = receiver.recv().await {
                if let Item::Reset = item {
                    return Err(Broken);
                }
            }
            Ok(())
        };
        tokio::try_join!(arriving, leave).map(drop)
    }
}

fn way(faults: &Faults, direction: Direction) -> Way {
    match direction {
        Direction::Up => faults.up,
        Direction::Down => faults.down,
    }
}

/// How late a chunk is.
fn delay(way: Way, random: &mut StdRng) -> Duration {
    if way.jitter.is_zero() {
        return way.latency;
    }
    let least = way.latency.saturating_sub(way.jitter);
    random.random_range(least..=way.latency + way.jitter)
}

/// Reads, and notes when each chunk is due on the other side.
async fn arrive(
    mut read: ReadHalf<'_>,
    sender: mpsc::Sender<(Instant, Item)>,
    mut due: impl FnMut() -> Instant,
) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let item = match read.read(&mut chunk).await {
            Ok(0) => Item::End,
            Ok(length) => {
                chunk.truncate(length);
                Item::Bytes(chunk)
            }
            Err(_) => Item::Reset,
        };
        let is_last = !matches!(item, Item::Bytes(_));
        if sender.send((due(), item)).await.is_err() || is_last {
            return;
        }
    }
}

struct Leaving<'a> {
    direction: Direction,
    faults: watch::Receiver<Faults>,
    link: Arc<Link>,
    counted: Arc<Counted>,
    write: WriteHalf<'a>,
}

impl Leaving<'_> {
    async fn run(&mut self, items: &mut mpsc::Receiver<(Instant, Item)>) -> Result<(), Broken> {
        while let Some((due, item)) = items.recv().await {
            sleep_until(due).await;
            let way = self.released(self.direction).await;
            match item {
                Item::Bytes(bytes) => {
                    if self.write(&bytes).await.is_err() {
                        // The receiver is gone. The sender learns of it over the other way.
                        let back = match self.direction {
                            Direction::Up => Direction::Down,
                            Direction::Down => Direction::Up,
                        };
                        let way = self.released(back).await;
                        tokio::time::sleep(way.close_delay).await;
                        self.released(back).await;
                        return Err(Broken);
                    }
                }
                Item::End => {
                    tokio::time::sleep(way.close_delay).await;
                    self.released(self.direction).await;
                    self.write.shutdown().await.ok();
                    return Ok(());
                }
                Item::Reset => {
                    tokio::time::sleep(way.close_delay).await;
                    self.released(self.direction).await;
                    return Err(Broken);
                }
            }
        }
        Ok(())
    }

    /// Waits until a way is not held.
    async fn released(&mut self, direction: Direction) -> Way {
        let is_free = |faults: &Faults| !way(faults, direction).held;
        let free = self.faults.wait_for(is_free).await;
        let free = free.map(|faults| way(&faults, direction)).ok();
        match free {
            Some(way) => way,
            // The proxy is gone: the connection ends by that.
            None => std::future::pending().await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let way = self.released(self.direction).await;
            let slow = way.bytes_per_second.map(|_| SLOW_SLICE_BYTES);
            let most = [way.slice_bytes, slow].into_iter().flatten().min();
            let (piece, rest) = left.split_at(most.unwrap_or(left.len()).clamp(1, left.len()));
            if let Some(speed) = way.bytes_per_second {
                sleep_until(self.link.pass(piece.len(), speed)).await;
            }
            self.write.write_all(piece).await?;
            self.counted.writes.fetch_add(1, Ordering::Relaxed);
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            self.counted.bytes.fetch_add(length, Ordering::Relaxed);
            if way.slice_bytes.is_some() {
                // Others run: a receiver may see each slice alone.
                tokio::task::yield_now().await;
            }
            left = rest;
        }
        Ok(())
    }
}
