//! The host's end of a connection: a Unix stream socket, and the guest's bytes that it would not take yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use crate::devices::virtio::chain::GuestSlices;

/// What reading from the host brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now.
    WouldBlock,
    /// Nothing ever again.
    End,
}

/// What writing to the host came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes that the device no longer keeps, because the host has them or because nobody wants them.
    pub(super) forwarded: usize,
    /// The host receives no more.
    pub(super) refused: bool,
}

/// The host's end of a connection.
#[derive(Debug)]
pub(super) struct HostStream {
    socket: UnixStream,
    /// What the guest has sent and the socket has not taken: `limit` bytes at most, by the connection's credit.
    unsent: VecDeque<u8>,
    limit: usize,
    refuses: bool,
}

impl HostStream {
    /// Takes over a connected socket, of a guest that was promised a buffer of `limit` bytes.
    pub(super) fn new(socket: UnixStream, limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { socket, unsent: VecDeque::new(), limit, refuses: false }
    }

    /// Whether bytes wait for the socket to become writable.
    pub(super) fn is_blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads into guest memory, which has room for at least one byte.
    pub(super) fn receive(&self, into: &GuestSlices<'_>) -> Received {
        received(receive_vectored(self.socket.as_fd(), &into.iovecs()))
    }

    /// Whether there is something to read, without reading it: `Bytes` if so.
    pub(super) fn peek(&self) -> Received {
        let mut byte = [0_u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let result = retry_on_intr(|| rustix::net::recv(&self.socket, &mut byte[..], flags));
        received(result.map(|(count, _)| count).map_err(io::Error::from))
    }

    /// Sends the guest's bytes on, keeping what the socket does not take.
    pub(super) fn send(&mut self, data: &mut GuestSlices<'_>) -> Sent {
        if self.refuses {
            return Sent { forwarded: data.len(), refused: true };
        }
        let written = if self.is_blocked() || data.is_empty() {
            0
        } else {
            match send_vectored(self.socket.as_fd(), &data.iovecs()) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return self.refuse(data.len()),
            }
        };
        if data.split_to(written).is_ok() {
            self.keep(data);
        }
        Sent { forwarded: written, refused: false }
    }

    /// Sends the device's own words, the answer of the handshake. The socket is fresh and takes them whole.
    pub(super) fn send_line(&mut self, line: &str) -> Sent {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| rustix::net::send(&self.socket, line.as_bytes(), flags)) {
            Ok(written) if written == line.len() => Sent { forwarded: 0, refused: false },
            _ => self.refuse(0),
        }
    }

    /// Sends what the socket did not take before.
    pub(super) fn flush(&mut self) -> Sent {
        let mut forwarded = 0;
        while self.is_blocked() {
            let (front, back) = self.unsent.as_slices();
            let parts = [IoSlice::new(front), IoSlice::new(back)];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let send =
                || rustix::net::sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), flags);
            match retry_on_intr(send) {
                Ok(written) => {
                    self.unsent.drain(..written.min(self.unsent.len()));
                    forwarded += written;
                }
                Err(Errno::WOULDBLOCK) => return Sent { forwarded, refused: false },
                Err(_) => return self.refuse(forwarded),
            }
        }
        // A stream that once was blocked does not keep its buffer for the rest of its life.
        self.unsent = VecDeque::new();
        Sent { forwarded, refused: false }
    }

    /// The host is to read an end of file. Only when nothing [is blocked](Self::is_blocked).
    pub(super) fn shut_down_sending(&self) {
        // It fails when the host has closed its end, who then reads nothing anyway.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    /// The host's writes are to fail from now on.
    pub(super) fn shut_down_receiving(&self) {
        // As above.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }

    fn keep(&mut self, data: &GuestSlices<'_>) {
        if data.is_empty() {
            return;
        }
        let kept = self.unsent.len();
        // All that may come at once: it would grow to twice of that otherwise. Pages that nothing comes to cost nothing.
        self.unsent.reserve_exact(self.limit.saturating_sub(kept));
        self.unsent.resize(kept + data.len(), 0);
        // Growing may leave the buffer in two halves, and guest memory copies to one.
        let room = self.unsent.make_contiguous().get_mut(kept..).unwrap_or_default();
        // As long as the data, so that it cannot fail.
        let _ = data.copy_to(room);
    }

    fn refuse(&mut self, forwarded: usize) -> Sent {
        let dropped = std::mem::take(&mut self.unsent).len();
        self.refuses = true;
        Sent { forwarded: forwarded + dropped, refused: true }
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn received(result: io::Result<usize>) -> Received {
    match result {
        Ok(0) => Received::End,
        Ok(count) => Received::Bytes(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Received::WouldBlock,
        // The host closed its end with bytes of the guest unread: an end as well.
        Err(_) => Received::End,
    }
}

fn receive_vectored(socket: BorrowedFd<'_>, into: &[libc::iovec]) -> io::Result<usize> {
    let mut message = message(into);
    interruptible(|| {
        // SAFETY: `message` is a valid msghdr whose vector is `into`; every piece of it is mapped guest memory that
        // the caller borrows for the duration of the call.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
    })
}

fn send_vectored(socket: BorrowedFd<'_>, from: &[libc::iovec]) -> io::Result<usize> {
    let message = message(from);
    interruptible(|| {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` is a valid msghdr whose vector is `from`; every piece of it is mapped guest memory that
        // the caller borrows for the duration of the call. The kernel does not write through it.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }
    })
}

fn message(vector: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is a plain C struct for which all zeroes is a value: no address, no control data, no vector.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.as_ptr().cast_mut();
    // `as _`: the field's type differs between C libraries. A chain has at most a few thousand pieces.
    message.msg_iovlen = vector.len().min(libc::UIO_MAXIOV as usize) as _;
    message
}

/// Repeats a call that a signal has interrupted.
fn interruptible(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
