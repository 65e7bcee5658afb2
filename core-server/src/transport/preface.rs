//! The HTTP/2 connection preface, read before HTTP/2 is: hyper bounds nothing before it
//! (hyper issue 4172).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::pass_writes::pass_writes;
use crate::stall;

/// RFC 9113, section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Its length.
pub(super) const BYTES: usize = PREFACE.len();

/// A connection whose preface has been read and is handed out again first.
#[derive(Debug)]
pub(super) struct Prefaced<T> {
    handed_out: usize,
    io: T,
}

/// Reads the preface, for at most `timeout`.
///
/// # Errors
/// `TimedOut`, `InvalidData` for another protocol, or what reading gave.
pub(super) async fn read<T: AsyncRead + Unpin>(
    mut io: T,
    timeout: Duration,
) -> io::Result<Prefaced<T>> {
    let mut preface = [0; PREFACE.len()];
    stall::timeout(timeout, io.read_exact(&mut preface))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if preface != *PREFACE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not HTTP/2"));
    }
    Ok(Prefaced { handed_out: 0, io })
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefaced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &PREFACE[self.handed_out..];
        if left.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let length = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..length]);
        self.handed_out += length;
        Poll::Ready(Ok(()))
    }
}

pass_writes!(Prefaced);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn the_preface_is_handed_out_again_with_what_follows() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(PREFACE).await.expect("written");
        client.write_all(b"more").await.expect("written");
        let mut io = read(server, TIMEOUT).await.expect("read");
        let mut bytes = [0; 28];
        io.read_exact(&mut bytes).await.expect("read");
        assert_eq!(&bytes[..24], PREFACE);
        assert_eq!(&bytes[24..], b"more");
    }

    #[tokio::test(start_paused = true)]
    async fn another_protocol_and_a_slow_peer_are_refused() {
        let (mut client, server) = tokio::io::duplex(64);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .expect("written");
        assert_eq!(
            read(server, TIMEOUT).await.expect_err("refused").kind(),
            io::ErrorKind::InvalidData
        );
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI").await.expect("written");
        assert_eq!(
            read(server, TIMEOUT).await.expect_err("refused").kind(),
            io::ErrorKind::TimedOut
        );
    }
}
