//! What the host and the lab say to each other over a virtio-serial port: frames of one byte for the kind, four bytes
//! for the length (little endian) and the content.
//!
//! Standard input goes over a port of its own, so that a command that does not read it holds up nothing else.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Longer frames are a sign that the two sides have lost step.
const LONGEST: u32 = 1 << 20;

/// What the host wants of the lab; the first frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The command and its arguments; none for preparing containerd's state.
    pub command: Vec<String>,
    /// Where to run it.
    pub directory: PathBuf,
    /// The command's environment.
    pub environment: Vec<(String, String)>,
    /// Run it on a terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// Where the lab's kernel modules are.
    pub modules: PathBuf,
    /// Image archives to import into containerd's state, when that is being prepared.
    pub images: Vec<PathBuf>,
    /// Whether containerd is wanted at all.
    pub containerd: bool,
    /// Files to copy before the command runs.
    pub installs: Vec<Install>,
    /// The directory that is shared with the host for reading and writing.
    pub results: PathBuf,
}

impl Job {
    /// The files and directories of the host that the job needs.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let installed = self.installs.iter().map(|install| &install.from);
        [&self.directory, &self.modules].into_iter().chain(&self.images).chain(installed).cloned().collect()
    }
}

/// A file of the host to be copied to a place in the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Install {
    /// The file on the host.
    pub from: PathBuf,
    /// Its place in the lab.
    pub to: PathBuf,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What the host sends.
#[derive(Debug)]
pub enum ToLab {
    /// The job, once.
    Job(Box<Job>),
    /// Answer with [`FromLab::Alive`].
    Ping,
    /// The host's terminal has another size now.
    Resize(TerminalSize),
}

/// What the lab sends.
#[derive(Debug)]
pub enum FromLab {
    /// The lab's server has started.
    Hello,
    /// The answer to a ping.
    Alive,
    /// All is set up, the command starts now.
    Ready,
    /// Bytes of the command's standard output.
    Output(Vec<u8>),
    /// Bytes of its standard error.
    Error(Vec<u8>),
    /// The command has ended with this status (128 + n after signal n), and all it wrote has been sent.
    Exited(i32),
    /// The lab could not be set up, or the command could not be started.
    Failed(String),
}

impl ToLab {
    /// Writes the message as one frame.
    ///
    /// # Errors
    ///
    /// The port is closed.
    pub fn write(&self, port: &mut impl Write) -> Result<()> {
        match self {
            Self::Job(job) => write_frame(port, b'J', &serde_json::to_vec(job)?),
            Self::Ping => write_frame(port, b'P', &[]),
            Self::Resize(size) => write_frame(port, b'R', &serde_json::to_vec(size)?),
        }
    }

    /// Reads the next message; `None` at the end.
    ///
    /// # Errors
    ///
    /// The frame is cut short or of no known kind.
    pub fn read(port: &mut impl Read) -> Result<Option<Self>> {
        let Some((kind, content)) = read_frame(port)? else { return Ok(None) };
        Ok(Some(match kind {
            b'J' => Self::Job(serde_json::from_slice(&content)?),
            b'P' => Self::Ping,
            b'R' => Self::Resize(serde_json::from_slice(&content)?),
            other => bail!("the host sent a frame of unknown kind {other:#x}"),
        }))
    }
}

impl FromLab {
    /// Writes the message as one frame.
    ///
    /// # Errors
    ///
    /// The port is closed.
    pub fn write(&self, port: &mut impl Write) -> Result<()> {
        match self {
            Self::Hello => write_frame(port, b'H', &[]),
            Self::Alive => write_frame(port, b'A', &[]),
            Self::Ready => write_frame(port, b'Y', &[]),
            Self::Output(bytes) => write_frame(port, b'O', bytes),
            Self::Error(bytes) => write_frame(port, b'E', bytes),
            Self::Exited(status) => write_frame(port, b'X', &status.to_le_bytes()),
            Self::Failed(message) => write_frame(port, b'F', message.as_bytes()),
        }
    }

    /// Reads the next message; `None` at the end.
    ///
    /// # Errors
    ///
    /// The frame is cut short or of no known kind.
    pub fn read(port: &mut impl Read) -> Result<Option<Self>> {
        let Some((kind, content)) = read_frame(port)? else { return Ok(None) };
        Ok(Some(match kind {
            b'H' => Self::Hello,
            b'A' => Self::Alive,
            b'Y' => Self::Ready,
            b'O' => Self::Output(content),
            b'E' => Self::Error(content),
            b'X' => {
                let status =
                    content.try_into().map_err(|_| anyhow::anyhow!("an exit status of odd length"))?;
                Self::Exited(i32::from_le_bytes(status))
            }
            b'F' => Self::Failed(String::from_utf8_lossy(&content).into_owned()),
            other => bail!("the lab sent a frame of unknown kind {other:#x}"),
        }))
    }
}

/// Standard input in frames, so that its end can be told: an empty frame.
///
/// # Errors
///
/// The port is closed.
pub fn write_input(port: &mut impl Write, bytes: &[u8]) -> Result<()> {
    write_frame(port, b'I', bytes)
}

/// The next piece of standard input; empty at its end.
///
/// # Errors
///
/// The frame is cut short.
pub fn read_input(port: &mut impl Read) -> Result<Vec<u8>> {
    Ok(read_frame(port)?.map(|(_, content)| content).unwrap_or_default())
}

fn write_frame(port: &mut impl Write, kind: u8, content: &[u8]) -> Result<()> {
    let length = u32::try_from(content.len()).ok().filter(|&length| length <= LONGEST);
    let length =
        length.with_context(|| format!("a frame of {} bytes is longer than {LONGEST}", content.len()))?;
    let mut frame = Vec::with_capacity(content.len() + 5);
    frame.push(kind);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(content);
    port.write_all(&frame)?;
    port.flush()?;
    Ok(())
}

fn read_frame(port: &mut impl Read) -> Result<Option<(u8, Vec<u8>)>> {
    let mut kind = [0];
    if !read_or_end(port, &mut kind)? {
        return Ok(None);
    }
    let mut length = [0; 4];
    port.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        bail!("a frame says that it has {length} bytes, more than {LONGEST}");
    }
    let mut content = vec![0; length as usize];
    port.read_exact(&mut content)?;
    let [kind] = kind;
    Ok(Some((kind, content)))
}

/// Reads one byte; false at the end.
fn read_or_end(port: &mut impl Read, byte: &mut [u8; 1]) -> io::Result<bool> {
    loop {
        match port.read(byte) {
            Ok(count) => return Ok(count == 1),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let mut bytes = Vec::new();
        FromLab::Output(b"hello".to_vec()).write(&mut bytes).unwrap();
        FromLab::Exited(137).write(&mut bytes).unwrap();
        let mut port = bytes.as_slice();
        assert!(matches!(FromLab::read(&mut port).unwrap(), Some(FromLab::Output(text)) if text == b"hello"));
        assert!(matches!(FromLab::read(&mut port).unwrap(), Some(FromLab::Exited(137))));
        assert!(FromLab::read(&mut port).unwrap().is_none());
    }

    #[test]
    fn an_absurd_length_is_refused_before_memory_is_taken_for_it() {
        let mut port: &[u8] = &[b'O', 0xff, 0xff, 0xff, 0xff];
        assert!(FromLab::read(&mut port).unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        let mut port: &[u8] = &[b'O', 5, 0, 0, 0, b'h'];
        assert!(FromLab::read(&mut port).is_err());
    }
}
