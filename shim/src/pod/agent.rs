//! The shim's side of the connection to the agent: one for calls, one per stdio stream.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use saya_agent_api::agent::{ContainerRequest, ProcessRequest};
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

/// How many times its patience the shim waits for a call while the agent answers others: setting up a container runs
/// hooks and reads files that may be on a slow disk.
const LIVELY_ROUNDS: u32 = 10;

/// A connection to the guest's agent. Clones share it.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentClient,
    vsock: VsockAddress,
    next_stream: Arc<AtomicU64>,
    patience: Duration,
}

/// How the pod's vsock socket is reached.
#[derive(Clone)]
pub(crate) struct VsockAddress {
    directory: Arc<OwnedFd>,
    patience: Duration,
}

impl VsockAddress {
    /// The socket in the pod's open directory. A guest that says nothing for as long as `patience` is given up.
    pub(crate) fn new(directory: OwnedFd, patience: Duration) -> Self {
        Self { directory: Arc::new(directory), patience }
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// The socket is gone, nobody listens on the port, or nobody says so in time (`TimedOut`).
    pub(crate) async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        match tokio::time::timeout(self.patience, self.shake_hands(port)).await {
            Ok(connected) => connected,
            Err(_) => {
                let silence = silence(&format!("a connection to its vsock port {port}"), self.patience);
                Err(io::Error::new(io::ErrorKind::TimedOut, silence))
            }
        }
    }

    async fn shake_hands(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(through(&*self.directory, VSOCK_SOCKET)).await?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        let ended = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("it did not take a connection to its vsock port {port}, and the VMM has ended that"),
            ),
            _ => error,
        };
        let answer = read_line(&mut stream, ANSWER_MAX).await.map_err(ended)?;
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
        let patience = vsock.patience;
        Ok(Self { client, vsock, next_stream: Arc::new(AtomicU64::new(1)), patience })
    }

    /// The calls. Most are to be [asked](Self::ask); those that wait for the workload may take for ever.
    pub(crate) fn calls(&self) -> &AgentClient {
        &self.client
    }

    /// Waits for the answer to a call, but not for ever: an agent that is silent, or lively and does not answer this one
    /// for [`LIVELY_ROUNDS`], is given up.
    ///
    /// # Errors
    /// The agent's, or `Others`, in words, when it is given up.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> ttrpc::Result<T> {
        let mut call = pin!(call);
        for _ in 0..LIVELY_ROUNDS {
            if let Ok(answer) = tokio::time::timeout(self.patience, call.as_mut()).await {
                return answer;
            }
            tokio::select! {
                answer = call.as_mut() => return answer,
                lives = self.shows_life() => if !lives {
                    return Err(ttrpc::Error::Others(silence("a call", self.patience)));
                }
            }
        }
        Err(ttrpc::Error::Others(silence("a call, but others,", self.longest_patience())))
    }

    /// Waits for the answer to a call that does little and whose caller wants an end. Whatever else the agent answers, it
    /// is given up without this.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub(crate) async fn ask_at_once<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> ttrpc::Result<T> {
        let silent = |_| Err(ttrpc::Error::Others(silence("a call", self.patience)));
        tokio::time::timeout(self.patience, call).await.unwrap_or_else(silent)
    }

    /// The longest that anything may take which does not wait for the workload.
    pub(crate) fn longest_patience(&self) -> Duration {
        self.patience * LIVELY_ROUNDS
    }

    /// Whether the agent answers anything in time: that there is no container without a name will do.
    async fn shows_life(&self) -> bool {
        let nobody = ContainerRequest::default();
        let call = self.client.list_processes(no_timeout(), &nobody);
        let answer = tokio::time::timeout(self.patience, call).await;
        answer.is_ok_and(|answer| !is_lost(&answer))
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

/// Whether an answer is none of the agent's own: it is gone, or was given up.
pub(crate) fn is_lost<T>(answer: &ttrpc::Result<T>) -> bool {
    matches!(answer, Err(error) if !matches!(error, ttrpc::Error::RpcStatus(_)))
}

/// In words, that the agent has not answered something for so long.
fn silence(what: &str, patience: Duration) -> String {
    format!(
        "the agent in the guest has not answered {what} for {} s (configuration key agent_timeout)",
        patience.as_secs_f64()
    )
}

/// A call's context: the agent is not told of any time. How long the shim waits is for [`Agent::ask`] to say.
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
    async fn a_connection_that_ends_before_it_is_taken_names_its_port() {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(directory.path().join(VSOCK_SOCKET)).unwrap();
        let address = VsockAddress::new(std::fs::File::open(directory.path()).unwrap().into(), Duration::MAX);
        let vmm = async { read_line(&mut listener.accept().await.unwrap().0, ANSWER_MAX).await.unwrap() };
        let (asked, connected) = tokio::join!(vmm, address.connect(77));
        assert_eq!(asked, b"CONNECT 77");
        let error = connected.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains("vsock port 77"), "{error}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_without_end_is_refused() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[b'x'; 64]).await.unwrap();
        assert_eq!(read_line(&mut ours, 32).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
