//! What the agent and the child that sets a process up say to each other, over a pair of `SOCK_SEQPACKET` sockets:
//! one packet is one message, its first byte the kind.
//!
//! The child's end closes when it execs, so the end of the channel after [`Go::Start`] is the success of a start.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::watch::watch;

/// The most bytes of one message; what is longer is cut.
const LIMIT: usize = 8192;

/// What the child says.
#[derive(Debug)]
pub(crate) enum Report {
    /// It is in a user namespace that has no mappings yet.
    NeedsMappings,
    /// It has made the process that goes on in its place, and ends.
    Successor(i32),
    /// It has made a terminal; this is the agent's side of it.
    Terminal(OwnedFd),
    /// Everything is done but the exec.
    Ready,
    /// It has failed, and ends.
    Failed(String),
}

/// What the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    /// The mappings are written, or the successor is known.
    On,
    /// Exec now.
    Start,
}

const NEEDS_MAPPINGS: u8 = b'm';
const SUCCESSOR: u8 = b's';
const TERMINAL: u8 = b't';
const READY: u8 = b'r';
const FAILED: u8 = b'f';
const ON: u8 = b'O';
const START: u8 = b'S';

/// The child's end. It blocks.
#[derive(Debug)]
pub(crate) struct ChildEnd(OwnedFd);

/// The agent's end.
#[derive(Debug)]
pub(crate) struct AgentEnd(AsyncFd<OwnedFd>);

/// Makes a channel.
pub(crate) fn pair() -> io::Result<(AgentEnd, ChildEnd)> {
    let (agent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&agent, true)?;
    Ok((AgentEnd(watch(agent, Interest::READABLE)?), ChildEnd(child)))
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ChildEnd {
    /// Sends a report.
    pub(crate) fn report(&self, report: &Report) -> io::Result<()> {
        match report {
            Report::NeedsMappings => self.send(&[NEEDS_MAPPINGS]),
            Report::Successor(pid) => {
                let [a, b, c, d] = pid.to_be_bytes();
                self.send(&[SUCCESSOR, a, b, c, d])
            }
            Report::Ready => self.send(&[READY]),
            Report::Failed(message) => {
                let message = message.as_bytes();
                let message = message.get(..LIMIT - 1).unwrap_or(message);
                self.send(&[&[FAILED], message].concat())
            }
            Report::Terminal(terminal) => self.send_with(&[TERMINAL], terminal.as_fd()),
        }
    }

    /// Waits for the agent; fails when the agent has closed its end.
    pub(crate) fn wait(&self) -> io::Result<Go> {
        let mut byte = [0];
        // Not recv(2): what runs here may be under the container's own seccomp filter, which knows read(2).
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Ok(1) if byte == [ON] => return Ok(Go::On),
                Ok(1) if byte == [START] => return Ok(Go::Start),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.0, packet)?;
        Ok(())
    }

    fn send_with(&self, packet: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&self.0, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl AgentEnd {
    /// The child's next report; `None` when it has exec'ed or ended.
    pub(crate) async fn next(&self) -> io::Result<Option<Report>> {
        self.0.async_io(Interest::READABLE, receive).await
    }

    /// Sends a word to the child.
    pub(crate) fn go(&self, go: Go) -> io::Result<()> {
        let byte = match go {
            Go::On => ON,
            Go::Start => START,
        };
        rustix::io::write(self.0.get_ref(), &[byte])?;
        Ok(())
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Option<Report>> {
    let mut packet = vec![0; LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut ancillary, flags)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let packet = packet.get(..received.bytes).unwrap_or_default();
    match (packet.split_first(), descriptor) {
        (None, _) => Ok(None),
        (Some((&NEEDS_MAPPINGS, _)), _) => Ok(Some(Report::NeedsMappings)),
        (Some((&SUCCESSOR, &[a, b, c, d])), _) => {
            Ok(Some(Report::Successor(i32::from_be_bytes([a, b, c, d]))))
        }
        (Some((&READY, _)), _) => Ok(Some(Report::Ready)),
        (Some((&FAILED, text)), _) => Ok(Some(Report::Failed(String::from_utf8_lossy(text).into_owned()))),
        (Some((&TERMINAL, _)), Some(descriptor)) => Ok(Some(Report::Terminal(descriptor))),
        (Some(_), _) => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_child_reports_arrives_and_its_end_is_told_apart() {
        let (agent, child) = pair().unwrap();
        child.report(&Report::Failed("x".repeat(2 * LIMIT))).unwrap();
        child.report(&Report::Ready).unwrap();
        agent.go(Go::Start).unwrap();
        assert_eq!(child.wait().unwrap(), Go::Start);
        drop(child);
        let Some(Report::Failed(message)) = agent.next().await.unwrap() else { panic!("no failure") };
        assert_eq!(message.len(), LIMIT - 1);
        assert!(matches!(agent.next().await.unwrap(), Some(Report::Ready)));
        assert!(agent.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_descriptor_arrives_as_the_same_file() {
        let (agent, child) = pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        child.report(&Report::Terminal(writer)).unwrap();
        let Some(Report::Terminal(received)) = agent.next().await.unwrap() else { panic!("no terminal") };
        rustix::io::write(&received, b"same").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 4);
    }
}
