//! Stream sockets: what the agent listens on and what it accepts.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys::watch::watch;

/// A listening stream socket of any family.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Takes a listening, non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE)? })
    }

    /// Waits for the next connection.
    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted =
            self.socket.async_io(Interest::READABLE, |socket| Ok(accept_with(socket, flags)?)).await?;
        Connection::new(accepted)
    }
}

/// A connected stream socket of any family.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Takes a connected, non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Reads what has come, at most as much as `buffer` holds; 0 is the end of the stream.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.async_io(Interest::READABLE, |socket| Ok(rustix::io::read(socket, &mut *buffer)?)).await
    }

    /// Reads exactly as much as `buffer` holds.
    pub(crate) async fn read_exact(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = self.read(buffer).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = buffer.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    pub(crate) async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        write_all(&self.socket, bytes).await
    }

    /// Ends the stream towards the peer; it reads end of file after what was written before.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        Ok(shutdown(self.socket.get_ref(), Shutdown::Write)?)
    }
}

/// Writes all of `bytes` to a non-blocking descriptor.
pub(crate) async fn write_all(target: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written =
            target.async_io(Interest::WRITABLE, |target| Ok(rustix::io::write(target, bytes)?)).await?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut readiness = ready!(self.socket.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match readiness.try_io(|socket| Ok(rustix::io::read(socket.get_ref(), unfilled)?)) {
                Ok(result) => return Poll::Ready(result.map(|count| buffer.advance(count))),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut readiness = ready!(self.socket.poll_write_ready(context))?;
            match readiness.try_io(|socket| Ok(rustix::io::write(socket.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end_writing())
    }
}
