//! Unary gRPC calls over a Unix socket (gRPC over HTTP/2, PROTOCOL-HTTP2.md): all that CRI needs, and containerd's own
//! services.

use std::path::Path;

use anyhow::{Context, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request};
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// How a call failed, in the server's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("code {code}: {message}")]
pub struct Status {
    /// The code (google.rpc.Code).
    pub code: i32,
    /// The message.
    pub message: String,
}

/// A connection. Calls wait for their answers, from any thread.
pub(crate) struct Connection {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    namespace: Option<&'static str>,
}

impl Connection {
    /// Connects; `namespace` is containerd's, for services that want one.
    pub(crate) fn open(socket: &Path, namespace: Option<&'static str>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let requests = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await?;
            let (requests, connection) = h2::client::handshake(stream).await?;
            // It ends with the last of the requests; what goes wrong is their error.
            tokio::spawn(connection);
            anyhow::Ok(requests)
        })?;
        Ok(Self { runtime, requests, namespace })
    }

    /// Calls a method by its path.
    pub(crate) fn call<Answer: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
    ) -> anyhow::Result<Answer> {
        let body = framed(request);
        let answer = self.runtime.block_on(exchange(self.requests.clone(), path, self.namespace, body));
        let answer = answer.with_context(|| path.to_owned())?;
        Answer::decode(answer).with_context(|| format!("the answer to {path}"))
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put(message.encode_to_vec().as_slice());
    frame.freeze()
}

/// Sends one message and receives one.
async fn exchange(
    requests: SendRequest<Bytes>,
    path: &str,
    namespace: Option<&str>,
    body: Bytes,
) -> anyhow::Result<Bytes> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(namespace) = namespace {
        request = request.header("containerd-namespace", namespace);
    }
    let request = request.body(())?;
    let mut requests = requests.ready().await?;
    let (response, mut stream) = requests.send_request(request, false)?;
    stream.send_data(body, true)?;

    let (head, mut body) = response.await?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        answer.extend_from_slice(&data);
    }
    // A call that fails at once has its status among the headers.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    check(&trailers)?;
    ensure!(answer.len() >= PREFIX, "an answer of {} bytes", answer.len());
    answer.advance(PREFIX);
    Ok(answer.freeze())
}

fn check(trailers: &HeaderMap) -> anyhow::Result<()> {
    let text =
        |name: &str| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let code = text("grpc-status").context("an answer without grpc-status")?.parse()?;
    if code == 0 {
        return Ok(());
    }
    Err(Status { code, message: text("grpc-message").unwrap_or_default() }.into())
}
