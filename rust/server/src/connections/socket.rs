//! A socket that does not wait for ever for its peer to read.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::Ticket;
use crate::limits::CLOSE_HANDSHAKE;

/// How much longer than a session the socket waits, so that it is the session that says why.
const AFTER_THE_SESSION: Duration = Duration::from_secs(1);

/// Bytes read at once of what nobody wants any more.
const LEFTOVERS_BYTES: usize = 1 << 14;

/// A connection's bytes. Holds the connection's ticket: upgraded to a WebSocket, it lives on.
///
/// Dropped, it reads on for a moment: closing with unread data would reset the connection, and the
/// peer could lose what it was told last.
pub(super) struct Socket {
    /// There until it is dropped.
    stream: Option<TcpStream>,
    patience: Duration,
    /// When a write that makes no progress is given up.
    stuck: Option<Pin<Box<Sleep>>>,
    ticket: Arc<Ticket>,
}

impl Socket {
    /// Gives up a write that makes no progress for a little more than `patience`.
    pub(super) fn new(stream: TcpStream, patience: Duration, ticket: Arc<Ticket>) -> Self {
        let patience = patience + AFTER_THE_SESSION;
        Self { stream: Some(stream), patience, stuck: None, ticket }
    }

    /// What `write` makes of it, or the end of patience.
    fn within<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(stream) = &mut self.stream else { return gone() };
        if let Poll::Ready(written) = write(Pin::new(stream), cx) {
            self.stuck = None;
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let stuck =
            self.stuck.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(ErrorKind::NotConnected.into()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        let ticket = Arc::clone(&self.ticket);
        // Without a runtime the process is ending.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let leftovers = async {
                let mut bytes = vec![0; LEFTOVERS_BYTES];
                stream.shutdown().await?;
                while stream.read(&mut bytes).await? > 0 {}
                io::Result::Ok(())
            };
            // Whatever comes of it: there is nothing more to be done for the peer.
            let _ = timeout(CLOSE_HANDSHAKE, leftovers).await;
            drop(ticket);
        });
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else { return gone() };
        Pin::new(stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.within(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.within(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}
