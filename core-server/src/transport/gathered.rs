//! A connection that gives others a turn before it writes, so that answers leave together.
//!
//! The task of a connection is woken by the first answer that is ready and, being woken last, runs next: while
//! the answers of a whole commit are ready, it would send each in a system call of its own. So when something
//! is to be written it lets the tasks that can run have their turn first, once; what they answer meanwhile
//! goes with it. Where nobody else has anything to do, that costs one more round of the scheduler.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose writes wait for a turn of the other tasks.
#[derive(Debug)]
pub(super) struct Gathered<T> {
    io: T,
    /// Others have had their turn since the last flush.
    gathered: bool,
}

impl<T> Gathered<T> {
    pub(super) fn new(io: T) -> Self {
        Self {
            io,
            gathered: false,
        }
    }

    fn let_others_answer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.gathered, true) {
            return Poll::Ready(());
        }
        // A task that wakes itself goes to the end of the queue.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.let_others_answer(context));
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.let_others_answer(context));
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All of it is written: what comes next is gathered anew.
        self.gathered = false;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::try_join_all;
    use http::{Request, Response};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Semaphore;

    use super::*;

    const ANSWERS: usize = 64;

    /// Counts writes.
    struct Counting<T> {
        io: T,
        writes: Arc<AtomicUsize>,
    }

    impl<T: AsyncRead + Unpin> AsyncRead for Counting<T> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(context, buffer)
        }
    }

    impl<T: AsyncWrite + Unpin> AsyncWrite for Counting<T> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.io).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn each_flush_is_preceded_by_one_turn_for_others() {
        let (mut peer, io) = tokio::io::duplex(1 << 10);
        let mut io = Gathered::new(io);
        for text in [b"one", b"two"] {
            {
                let mut writing = std::pin::pin!(io.write_all(text));
                assert!(futures_util::poll!(writing.as_mut()).is_pending());
                writing.await.expect("written in its own turn");
            }
            io.write_all(b"more").await.expect("goes with it");
            io.flush().await.expect("flushed");
            let mut read = [0; 7];
            peer.read_exact(&mut read).await.expect("read");
            assert_eq!(&read[..3], text);
        }
    }

    /// On one worker thread, as the core has: there a task that is woken runs before those that waited longer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    #[expect(
        clippy::disallowed_methods,
        reason = "tasks as bare as the runtime makes them"
    )]
    async fn answers_that_are_ready_together_leave_together() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let writes = Arc::<AtomicUsize>::default();
        let server = Gathered::new(Counting {
            io: server,
            writes: Arc::clone(&writes),
        });
        let (begun, commit) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (arrived, committed) = (Arc::clone(&begun), Arc::clone(&commit));
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(server).await.expect("HTTP/2");
            while let Some(request) = connection.accept().await {
                let (_, mut respond) = request.expect("a request");
                let (arrived, committed) = (Arc::clone(&arrived), Arc::clone(&committed));
                tokio::spawn(async move {
                    arrived.add_permits(1);
                    committed.acquire().await.expect("open").forget();
                    respond
                        .send_response(Response::new(()), true)
                        .expect("answered");
                });
            }
        });
        let (client, connection) = h2::client::handshake(client).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut answers = Vec::new();
        let mut client = client.ready().await.expect("ready");
        for _ in 0..ANSWERS {
            let request = Request::get("http://core/").body(()).expect("a request");
            let (answer, _) = client.send_request(request, true).expect("sent");
            answers.push(answer);
        }
        let all = u32::try_from(ANSWERS).expect("small");
        begun.acquire_many(all).await.expect("open").forget();
        let before = writes.load(Ordering::SeqCst);
        // A task of the same worker, as the one is that hears of a commit.
        let release = tokio::spawn(async move { commit.add_permits(ANSWERS) });
        release.await.expect("released");
        try_join_all(answers).await.expect("answered");
        let taken = writes.load(Ordering::SeqCst) - before;
        assert!(taken < ANSWERS / 8, "{taken} writes for {ANSWERS} answers");
    }
}
