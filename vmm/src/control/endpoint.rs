//! The two ends of a control socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Event, Request};

/// The longest message in bytes.
const MESSAGE_LIMIT: usize = 64 * 1024;
/// The most descriptors that one message carries: as many as the kernel lets one carry (`SCM_MAX_FD`, <net/scm.h>).
const DESCRIPTOR_LIMIT: usize = 253;

/// The shim's end: sends [`Request`]s and receives [`Event`]s.
pub type ShimEnd = Endpoint<Request, Event>;
/// The VMM's end: sends [`Event`]s and receives [`Request`]s.
pub type VmmEnd = Endpoint<Event, Request>;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed. [`io::ErrorKind::WouldBlock`] where the socket does not block and is not ready;
    /// [`io::ErrorKind::BrokenPipe`] or [`io::ErrorKind::ConnectionReset`] where the other end is closed.
    #[error("control socket: {0}")]
    Socket(#[from] io::Error),
    /// A message to send is longer than the protocol allows.
    #[error("control message of {0} bytes exceeds the limit of {MESSAGE_LIMIT}")]
    TooLong(usize),
    /// More descriptors to send than the protocol allows.
    #[error("control message with {0} descriptors exceeds the limit of {DESCRIPTOR_LIMIT}")]
    TooManyDescriptors(usize),
    /// A received message exceeds the limits; its descriptors were closed.
    #[error("control message received that exceeds {MESSAGE_LIMIT} bytes or {DESCRIPTOR_LIMIT} descriptors")]
    Truncated,
    /// A message that cannot be written or read as JSON of the expected shape.
    #[error("control message is not of the expected shape: {0}")]
    Shape(#[from] serde_json::Error),
}

impl ControlError {
    /// Whether the socket does not block and was not ready.
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// One end of a control socket, which sends `Out` and receives `In`. It blocks or not as its descriptor is set.
#[derive(Debug)]
pub struct Endpoint<Out, In> {
    socket: OwnedFd,
    direction: PhantomData<fn(Out) -> In>,
}

/// Makes a control socket: close-on-exec, blocking.
///
/// # Errors
/// What socketpair(2) returned.
pub fn pair() -> io::Result<(ShimEnd, VmmEnd)> {
    let (shim, vmm) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((ShimEnd::from(shim), VmmEnd::from(vmm)))
}

impl<Out, In> From<OwnedFd> for Endpoint<Out, In> {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, direction: PhantomData }
    }
}

impl<Out, In> From<Endpoint<Out, In>> for OwnedFd {
    fn from(endpoint: Endpoint<Out, In>) -> Self {
        endpoint.socket
    }
}

impl<Out, In> AsFd for Endpoint<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<Out, In> AsRawFd for Endpoint<Out, In> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<Out: Serialize, In: DeserializeOwned> Endpoint<Out, In> {
    /// Makes the descriptor non-blocking (for an event loop), or blocking again.
    ///
    /// # Errors
    /// What ioctl(FIONBIO) returned.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, nonblocking)?)
    }

    /// Sends a message with descriptors, whole or not at all. It waits for room if the descriptor blocks.
    ///
    /// # Errors
    /// A message beyond the limits, a full socket that does not block, or a closed other end.
    pub fn send(&self, message: &Out, descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        self.send_with(message, descriptors, SendFlags::empty())
    }

    /// As [`send`](Self::send), but never waits: a full socket is an error of kind [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_send(&self, message: &Out, descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        self.send_with(message, descriptors, SendFlags::DONTWAIT)
    }

    fn send_with(&self, message: &Out, fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<(), ControlError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_LIMIT {
            return Err(ControlError::TooLong(bytes.len()));
        }
        if fds.len() > DESCRIPTOR_LIMIT {
            return Err(ControlError::TooManyDescriptors(fds.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ControlError::TooManyDescriptors(fds.len()));
        }
        let flags = flags | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, flags))
            .map_err(io::Error::from)?;
        Ok(())
    }

    /// Receives the next message and the descriptors (close-on-exec) that came with it; `None` once the other end
    /// is closed and everything it sent has been received.
    ///
    /// # Errors
    /// A message beyond the limits or of the wrong shape, nothing there on a descriptor that does not block, or what
    /// recvmsg(2) returned.
    pub fn receive(&self) -> Result<Option<(In, Vec<OwnedFd>)>, ControlError> {
        let mut bytes = vec![0; MESSAGE_LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let buffers = &mut [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                // ECONNRESET is told once, before what is there to be read: the other end has gone without reading all that it was sent
                // (`unix_release_sock`, net/unix/af_unix.c).
                Err(Errno::INTR | Errno::CONNRESET) => {}
                received => break received.map_err(io::Error::from)?,
            }
        };
        let descriptors = collect_descriptors(&mut ancillary);
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ControlError::Truncated);
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        let message = bytes.get(..received.bytes).ok_or(ControlError::Truncated)?;
        Ok(Some((serde_json::from_slice(message)?, descriptors)))
    }
}

fn collect_descriptors(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::control::{Boot, FileRole, Share, StopReason, Writers};

    fn boot() -> Boot {
        Boot {
            vcpus: 2,
            memory_mib: 256,
            guest_cid: 3,
            kernel_parameters: "noxsave".into(),
            console_verbose: false,
            shares: vec![Share { name: "live".into(), writers: Writers::GuestAndHost }],
            interfaces: Vec::new(),
            later_queue_pairs: 1,
            files: vec![FileRole::Kernel],
        }
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (shim, vmm) = pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kernel").unwrap();
        file.rewind().unwrap();

        shim.send(&Request::Boot(boot()), &[file.as_fd()]).unwrap();
        let (message, mut descriptors) = vmm.receive().unwrap().unwrap();

        assert_eq!(message, Request::Boot(boot()));
        assert_eq!(descriptors.len(), 1);
        let mut content = String::new();
        File::from(descriptors.remove(0)).read_to_string(&mut content).unwrap();
        assert_eq!(content, "kernel");
    }

    #[test]
    fn messages_keep_their_borders_and_their_order() {
        let (shim, vmm) = pair().unwrap();
        vmm.send(&Event::GuestConnected { port: 1024 }, &[]).unwrap();
        vmm.send(&Event::Stopped { reason: StopReason::PoweredOff, console: String::new() }, &[]).unwrap();
        drop(vmm);

        assert_eq!(shim.receive().unwrap().unwrap().0, Event::GuestConnected { port: 1024 });
        assert!(matches!(shim.receive().unwrap().unwrap().0, Event::Stopped { .. }));
        assert!(shim.receive().unwrap().is_none(), "a closed end is the end of the messages");
    }

    #[test]
    fn the_last_words_of_an_end_that_has_not_read_everything_arrive() {
        let (shim, vmm) = pair().unwrap();
        shim.send(&Request::Counters, &[]).unwrap();
        vmm.send(&Event::Stopped { reason: StopReason::PoweredOff, console: String::new() }, &[]).unwrap();
        drop(vmm);
        assert!(matches!(shim.receive().unwrap().unwrap().0, Event::Stopped { .. }));
        assert!(shim.receive().unwrap().is_none());
    }

    #[test]
    fn a_full_socket_refuses_instead_of_waiting() {
        let (_shim, vmm) = pair().unwrap();
        let error = loop {
            if let Err(error) = vmm.try_send(&Event::GuestConnected { port: 7 }, &[]) {
                break error;
            }
        };
        assert!(error.would_block(), "{error}");
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_by_the_sender() {
        let (shim, _vmm) = pair().unwrap();
        let long = Boot { kernel_parameters: "x".repeat(MESSAGE_LIMIT), ..boot() };
        assert!(matches!(shim.send(&Request::Boot(long), &[]), Err(ControlError::TooLong(_))));
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_by_the_receiver() {
        let (shim, vmm) = pair().unwrap();
        rustix::net::send(&vmm, &vec![b' '; MESSAGE_LIMIT + 1], SendFlags::empty()).unwrap();
        assert!(matches!(shim.receive(), Err(ControlError::Truncated)));
    }

    #[test]
    fn a_message_of_another_shape_is_an_error_and_the_next_one_is_read() {
        let (shim, vmm) = pair().unwrap();
        rustix::net::send(&vmm, br#"{"GuestConnected":{"port":1,"more":2}}"#, SendFlags::empty()).unwrap();
        vmm.send(&Event::GuestConnected { port: 5 }, &[]).unwrap();
        assert!(matches!(shim.receive(), Err(ControlError::Shape(_))));
        assert_eq!(shim.receive().unwrap().unwrap().0, Event::GuestConnected { port: 5 });
    }

    #[test]
    fn descriptors_beyond_the_limit_are_refused() {
        let (shim, vmm) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); DESCRIPTOR_LIMIT + 1];
        assert!(matches!(shim.send(&Request::Stop, &many), Err(ControlError::TooManyDescriptors(_))));
        drop((shim, vmm));
    }
}
