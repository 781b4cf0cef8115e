//! The shim's side of the connection to the agent: one for calls, one per stdio stream.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use saya_agent_api::agent::ProcessRequest;
use saya_agent_api::service::AgentClient;
use saya_agent_api::{AGENT_PORT, LOOPBACK_PORT, STREAM_PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use super::directory::{VSOCK_SOCKET, through};

/// The longest answer to `CONNECT`: `OK <port>` and a newline.
const ANSWER_MAX: usize = 32;

/// A connection to the guest's agent. Clones share it.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentClient,
    vsock: VsockAddress,
    next_stream: Arc<AtomicU64>,
}

/// How the pod's vsock socket is reached.
#[derive(Clone)]
pub(crate) struct VsockAddress {
    directory: Arc<OwnedFd>,
}

impl VsockAddress {
    /// The socket in the pod's open directory.
    pub(crate) fn new(directory: OwnedFd) -> Self {
        Self { directory: Arc::new(directory) }
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// The socket is gone, or nobody listens on the port.
    pub(crate) async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(through(&*self.directory, VSOCK_SOCKET)).await?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        let answer = read_line(&mut stream, ANSWER_MAX).await?;
        if answer.starts_with(b"OK ") {
            return Ok(stream);
        }
        Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("the guest does not listen on vsock port {port}"),
        ))
    }
}

impl Agent {
    /// Connects to the agent of the guest behind `vsock`.
    ///
    /// # Errors
    /// What [`VsockAddress::connect`] returned.
    pub(crate) async fn connect(vsock: VsockAddress) -> io::Result<Self> {
        let stream = vsock.connect(AGENT_PORT).await?;
        let client = AgentClient::new(Client::new(Socket::new(stream)));
        Ok(Self { client, vsock, next_stream: Arc::new(AtomicU64::new(1)) })
    }

    /// The calls.
    pub(crate) fn calls(&self) -> &AgentClient {
        &self.client
    }

    /// Connects to a TCP port of the guest's loopback. Where nobody listens there, the connection ends.
    ///
    /// # Errors
    /// What [`VsockAddress::connect`] returned.
    pub(crate) async fn connect_to_loopback(&self, port: u16) -> io::Result<UnixStream> {
        let mut stream = self.vsock.connect(LOOPBACK_PORT).await?;
        stream.write_all(&port.to_be_bytes()).await?;
        Ok(stream)
    }

    /// Opens a stdio stream and returns its number with it.
    ///
    /// # Errors
    /// What [`VsockAddress::connect`] returned.
    pub(crate) async fn open_stream(&self) -> io::Result<(u64, UnixStream)> {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let mut stream = self.vsock.connect(STREAM_PORT).await?;
        stream.write_all(&number.to_be_bytes()).await?;
        Ok((number, stream))
    }
}

/// A call's context: it may take as long as it takes. The agent answers or its VM ends.
pub(crate) fn no_timeout() -> Context {
    ttrpc::context::with_timeout(0)
}

/// The name of a process for the agent.
pub(crate) fn process(container: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: container.into(), exec_id: exec.into(), ..Default::default() }
}

/// Reads up to and including a newline, byte by byte, so that what follows stays in the stream.
///
/// # Errors
/// More than `limit` bytes without newline, or the end of the stream.
pub(crate) async fn read_line(stream: &mut UnixStream, limit: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < limit {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line longer than {limit} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_is_read_and_what_follows_stays() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"OK 5\nrest").await.unwrap();
        drop(theirs);
        assert_eq!(read_line(&mut ours, 32).await.unwrap(), b"OK 5");
        let mut rest = String::new();
        ours.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "rest");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_without_end_is_refused() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[b'x'; 64]).await.unwrap();
        assert_eq!(read_line(&mut ours, 32).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
