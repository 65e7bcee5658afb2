//! A connection that ends when its peer floods it with frames that carry nothing, and that reads little at
//! a time while its peer is not known.
//!
//! A request needs a few dozen bytes, and memory for a task: a stranger who sends a thousand of them at
//! once must not have them all begun before the first is refused. After each bite others have their turn.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;
use tokio::time::Instant;

use super::frames::FrameMeter;
use super::serve::Stats;
use super::standing::Standing;

/// What is read at a time of a peer that is not known.
const BITE: usize = 1 << 10;

/// A connection whose frames are metered ([`FrameMeter`]). After a flood it reads nothing more.
#[derive(Debug)]
pub(super) struct Metered<T> {
    io: T,
    meter: FrameMeter,
    standing: Standing,
    /// The last bite is not digested yet.
    bitten: bool,
    stats: Arc<Stats>,
}

impl<T> Metered<T> {
    /// A connection that first hands out `preface` bytes that are no frames.
    pub(super) fn new(io: T, preface: usize, standing: Standing, stats: Arc<Stats>) -> Self {
        Self {
            io,
            meter: FrameMeter::new(preface, Instant::now()),
            standing,
            bitten: false,
            stats,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if this.standing.is_known() {
            ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        } else if std::mem::take(&mut this.bitten) {
            let () = ready!(let_others_run(context));
        } else {
            ready!(poll_bite(Pin::new(&mut this.io), context, buffer))?;
            this.bitten = true;
        }
        let read = &buffer.filled()[before..];
        Poll::Ready(this.meter.read(read, Instant::now).map_err(|flooding| {
            this.stats.flooding.fetch_add(1, Ordering::Relaxed);
            // hyper drops the connection on an error of reading: no work is spent on a goodbye.
            io::Error::other(flooding)
        }))
    }
}

/// Ends this turn of the task, by using up what tokio lets it do in one. A plain `Pending` would not: hyper
/// asks again after each request that it has found, and would find them all.
fn let_others_run(context: &mut Context<'_>) -> Poll<()> {
    // Twice what tokio gives: should it ever give more, a turn for others is lost, no more.
    for _ in 0..256 {
        ready!(coop::poll_proceed(context)).made_progress();
    }
    Poll::Ready(())
}

/// Reads at most [`BITE`] bytes.
fn poll_bite<T: AsyncRead>(
    io: Pin<&mut T>,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let mut bytes = [0; BITE];
    let mut bite = ReadBuf::new(&mut bytes[..BITE.min(buffer.remaining())]);
    ready!(io.poll_read(context, &mut bite))?;
    buffer.put_slice(bite.filled());
    Poll::Ready(Ok(()))
}

impl<T: AsyncWrite + Unpin> Metered<T> {
    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.meter.wrote(*bytes);
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn metered<T>(io: T, stats: &Arc<Stats>) -> (Metered<T>, super::super::standing::Place) {
        let place = super::super::standing::tests::place();
        let standing = place.standing().clone();
        (Metered::new(io, 0, standing, Arc::clone(stats)), place)
    }

    #[tokio::test]
    async fn a_flood_of_pings_ends_the_connection_and_is_counted() {
        let (mut peer, io) = tokio::io::duplex(1 << 16);
        let stats = Arc::<Stats>::default();
        let (mut io, _place) = metered(io, &stats);
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        // Ends with the connection.
        let flooding = async move { while peer.write_all(&ping.repeat(1_000)).await.is_ok() {} };
        let reading = async move {
            let mut buffer = vec![0; 1 << 14];
            let mut read = 0;
            loop {
                match io.read(&mut buffer).await {
                    Ok(bytes) => read += bytes,
                    Err(error) => return (read, error),
                }
            }
        };
        let ((), (read, error)) = tokio::join!(flooding, reading);
        assert!(error.to_string().contains("flood"), "{error}");
        assert!(read >= ping.len() * 10_000, "{read}");
        assert_eq!(stats.flooding.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn of_a_stranger_little_is_read_at_a_time_and_others_have_their_turn() {
        let (mut peer, io) = tokio::io::duplex(1 << 16);
        let (mut io, place) = metered(io, &Arc::default());
        let data = [&[0, 0x40, 0, 0, 0, 0, 0, 0, 1][..], &[0; 1 << 14]].concat();
        peer.write_all(&data).await.expect("written");
        let mut buffer = vec![0; 1 << 14];
        assert_eq!(io.read(&mut buffer).await.expect("a bite"), BITE);
        let mut next = std::pin::pin!(io.read(&mut buffer));
        assert!(
            futures_util::poll!(next.as_mut()).is_pending(),
            "a turn for others"
        );
        assert_eq!(next.await.expect("a bite"), BITE);
        place
            .standing()
            .identify(super::super::standing::tests::slot());
        let rest = io.read(&mut buffer).await.expect("all of it");
        assert_eq!(rest, data.len() - 2 * BITE);
    }
}
