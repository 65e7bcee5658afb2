//! Notes when something is read from a connection, whatever it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::pass_writes::pass_writes;
use crate::channel::LastRead;

/// A connection whose reads are noted.
#[derive(Debug)]
pub(super) struct Heard<T> {
    pub(super) io: T,
    pub(super) last_read: LastRead,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        // The end of a connection reads nothing: nobody is heard by it.
        if buffer.filled().len() > before {
            self.last_read.note(Instant::now());
        }
        polled
    }
}

pass_writes!(Heard);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reading_is_noted_and_waiting_writing_and_the_end_are_not() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let (mut peer, io) = tokio::io::duplex(64);
        let last_read = LastRead::new(begin);
        let mut io = Heard {
            io,
            last_read: last_read.clone(),
        };
        tokio::time::advance(second).await;
        io.write_all(b"ping").await.expect("written");
        assert!(futures_util::poll!(std::pin::pin!(io.read_u8())).is_pending());
        assert_eq!(last_read.at(), begin);
        peer.write_all(b"x").await.expect("written");
        io.read_u8().await.expect("read");
        assert_eq!(last_read.at(), begin + second);
        tokio::time::advance(second).await;
        drop(peer);
        assert!(io.read_u8().await.is_err());
        assert_eq!(last_read.at(), begin + second);
    }
}
