//! The streams of Exec, Attach and PortForward: a WebSocket (RFC 6455) to the place that the runtime names, each message of
//! which begins with the number of a channel (Kubernetes' protocol `v4.channel.k8s.io`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Channels of a command; those of a forwarded port are the first two, for data and for errors.
pub const STDIN: u8 = 0;
/// What the command prints.
pub const STDOUT: u8 = 1;
/// What it prints to its standard error.
pub const STDERR: u8 = 2;
/// How it ended.
const STATUS: u8 = 3;
/// The size of its terminal.
const RESIZE: u8 = 4;
/// How many there are.
const CHANNELS: usize = 5;
/// The data of a forwarded port.
pub const DATA: u8 = 0;

const PROTOCOL: &str = "v4.channel.k8s.io";
/// Any 16 bytes in base64: they tell a server from a cache, of which there is none here (RFC 6455, section 1.3).
const KEY: &str = "c2F5YSBzYXlzIGhlbGxvIQ==";
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest message that is taken.
const LARGEST: u64 = 1 << 20;

/// Frames of RFC 6455, section 5.2: a last fragment with its opcode, and what marks a masked payload.
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const MASKED: u8 = 0x80;

/// An open connection with its channels.
pub struct Channels {
    stream: BufReader<TcpStream>,
    received: [Vec<u8>; CHANNELS],
    closed: bool,
}

impl Channels {
    /// Connects to the place that the runtime has named.
    ///
    /// # Errors
    /// Nobody listens, or there is no WebSocket.
    pub(super) fn open(url: &str) -> anyhow::Result<Self> {
        let place = url.strip_prefix("http://").with_context(|| format!("no URL of HTTP: {url:?}"))?;
        let (host, path) = place.split_once('/').with_context(|| format!("no path in {url:?}"))?;
        let stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let head = read_head(&mut stream)?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "the server does not take a WebSocket: {head}");
        Ok(Self { stream, received: Default::default(), closed: false })
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// The server has closed.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        self.send_frame(BINARY, &[&[channel], bytes].concat())
    }

    /// Tells the size of the command's terminal.
    ///
    /// # Errors
    /// The server has closed.
    pub fn resize(&mut self, columns: u16, rows: u16) -> anyhow::Result<()> {
        self.send(RESIZE, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes())
    }

    /// What has come on a channel.
    pub fn received(&self, channel: u8) -> &[u8] {
        self.received.get(usize::from(channel)).map_or(&[], Vec::as_slice)
    }

    /// The same as text.
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.received(channel)).into_owned()
    }

    /// Receives until all that has come on a channel has `part` in it.
    ///
    /// # Errors
    /// The server closes before, or says nothing for long.
    pub fn expect(&mut self, channel: u8, part: &[u8]) -> anyhow::Result<()> {
        while !self.received(channel).windows(part.len()).any(|window| window == part) {
            let wanted = String::from_utf8_lossy(part).into_owned();
            ensure!(!self.closed, "closed without {wanted:?} on channel {channel}: {:?}", self.texts());
            self.receive().with_context(|| format!("waiting for {wanted:?}: {:?}", self.texts()))?;
        }
        Ok(())
    }

    /// Receives until something more has come on a channel.
    ///
    /// # Errors
    /// The server closes before, or says nothing for long.
    pub fn expect_more(&mut self, channel: u8) -> anyhow::Result<()> {
        let before = self.received(channel).len();
        while self.received(channel).len() == before {
            ensure!(!self.closed, "closed: {:?}", self.texts());
            self.receive().with_context(|| format!("waiting for more: {:?}", self.texts()))?;
        }
        Ok(())
    }

    /// Receives until the server closes.
    ///
    /// # Errors
    /// It does not.
    pub fn drain(&mut self) -> anyhow::Result<()> {
        while !self.closed {
            self.receive().with_context(|| format!("waiting for the end: {:?}", self.texts()))?;
        }
        Ok(())
    }

    /// Receives until the command has ended, and gives its exit status.
    ///
    /// # Errors
    /// It does not end, or the server does not say how.
    pub fn exit_status(&mut self) -> anyhow::Result<i32> {
        self.drain()?;
        let status: Value = serde_json::from_slice(self.received(STATUS))
            .with_context(|| format!("the status in {:?}", self.texts()))?;
        if status.get("status").and_then(Value::as_str) == Some("Success") {
            return Ok(0);
        }
        // A Status of Kubernetes' API, whose reason is NonZeroExitCode.
        let code = status.pointer("/details/causes/0/message").and_then(Value::as_str);
        code.and_then(|code| code.parse().ok()).with_context(|| format!("{status}"))
    }

    fn texts(&self) -> Vec<String> {
        self.received.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Receives one frame.
    fn receive(&mut self) -> anyhow::Result<()> {
        let (opcode, payload) = self.read_frame()?;
        match opcode {
            BINARY => {
                let (channel, bytes) = payload.split_first().context("a message without channel")?;
                let received = self.received.get_mut(usize::from(*channel));
                received.with_context(|| format!("channel {channel}"))?.extend_from_slice(bytes);
            }
            CLOSE => self.closed = true,
            PING => bail!("a ping, which no server of containerd's sends"),
            other => bail!("a frame that begins with {other:#x}"),
        }
        Ok(())
    }

    fn read_frame(&mut self) -> anyhow::Result<(u8, Vec<u8>)> {
        let [opcode, length] = self.read_array()?;
        let length = match length {
            126 => u64::from(u16::from_be_bytes(self.read_array()?)),
            127 => u64::from_be_bytes(self.read_array()?),
            short => u64::from(short),
        };
        ensure!(length <= LARGEST, "a frame of {length} bytes");
        let mut payload = Vec::new();
        self.stream.by_ref().take(length).read_to_end(&mut payload)?;
        ensure!(payload.len() as u64 == length, "the connection ended within a frame");
        Ok((opcode, payload))
    }

    fn read_array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A client has to mask what it sends; with zeros it stays what it is (section 5.3).
    fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> anyhow::Result<()> {
        let length = u16::try_from(payload.len()).context("a message that is too long for a test")?;
        let mut frame = vec![opcode];
        match length {
            ..126 => frame.push(MASKED | payload.len() as u8),
            _ => {
                frame.push(MASKED | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        Ok(self.stream.get_mut().write_all(&frame)?)
    }
}

/// The head of the server's answer.
fn read_head(stream: &mut impl BufRead) -> anyhow::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(stream.read_line(&mut head)? > 0, "the server closed: {head}");
    }
    Ok(head)
}
