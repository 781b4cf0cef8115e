//! Stream sockets: what the agent listens on and what it accepts.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys::watch::watch;

/// How long an error is given to pass before a connection is accepted again.
const PAUSE: Duration = Duration::from_millis(100);

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

    /// Waits for the next connection, whatever comes in between; `what` says in the log what it is for.
    ///
    /// An error may last, as when all descriptors are in use, and the socket stays readable meanwhile: a pause leaves
    /// time for others to give theirs back.
    pub(crate) async fn next(&self, what: &str) -> Connection {
        loop {
            match self.accept().await {
                Ok(connection) => return connection,
                Err(error) => log::error!("cannot accept {what}: {error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn accept(&self) -> io::Result<Connection> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket_with};

    use super::*;

    #[tokio::test]
    async fn a_connection_comes_after_an_error_that_lasts_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let later = socket.try_clone().unwrap();
        let listener = Listener::new(socket).unwrap();
        // A socket that does not listen yet is readable, and accepts nothing.
        assert_eq!(listener.accept().await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let client = async {
            // The listener has its turn before this: its first attempt fails.
            tokio::task::yield_now().await;
            listen(&later, 1).unwrap();
            UnixStream::connect(&path).unwrap()
        };
        let (connection, client) = tokio::join!(biased; listener.next("a connection"), client);
        drop(client);
        assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
    }
}
