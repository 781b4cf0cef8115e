//! The words that a host client says before it is connected to the guest: `CONNECT <port>\n`, answered by
//! `OK <host port>\n`. Firecracker made this the convention for a vsock behind a Unix socket.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::RecvFlags;

/// The longest line that is looked at: `CONNECT 4294967295\n` has 19 bytes.
const LONGEST_LINE: usize = 32;

/// How far a client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete.
    Waiting,
    /// It wants to be connected to this port of the guest.
    Connect(u32),
    /// What it said, or did not say before it left, is not the convention.
    Refused,
}

/// A host client that has not said yet what it wants.
#[derive(Debug)]
pub(super) struct Handshake {
    socket: UnixStream,
}

impl Handshake {
    /// A client that has just been accepted.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Looks at what the client has said. `hung_up`: it will say no more. Not one byte beyond the line is taken,
    /// so that what the client sends without waiting for the answer reaches the guest.
    pub(super) fn advance(&self, hung_up: bool) -> Progress {
        let mut line = [0_u8; LONGEST_LINE];
        let said = match self.receive(&mut line, RecvFlags::PEEK) {
            Ok(0) => return Progress::Refused,
            Ok(count) => line.get(..count).unwrap_or_default(),
            Err(Errno::WOULDBLOCK) if !hung_up => return Progress::Waiting,
            Err(_) => return Progress::Refused,
        };
        let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
            let refused = hung_up || said.len() == LONGEST_LINE;
            return if refused { Progress::Refused } else { Progress::Waiting };
        };
        let wanted = parse(said.get(..end).unwrap_or_default());
        let mut consumed = [0_u8; LONGEST_LINE];
        let consumed = consumed.get_mut(..=end).unwrap_or_default();
        match (wanted, self.receive(consumed, RecvFlags::empty())) {
            (Some(port), Ok(count)) if count == end + 1 => Progress::Connect(port),
            _ => Progress::Refused,
        }
    }

    /// The socket, from which the line has been taken.
    pub(super) fn into_socket(self) -> UnixStream {
        self.socket
    }

    fn receive(&self, into: &mut [u8], flags: RecvFlags) -> rustix::io::Result<usize> {
        retry_on_intr(|| rustix::net::recv(&self.socket, &mut *into, flags | RecvFlags::DONTWAIT))
            .map(|(count, _)| count)
    }
}

impl AsFd for Handshake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The line that tells the client that it is connected, from this port of the host's.
pub(super) fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;

    fn after(said: &[u8], hung_up: bool) -> Progress {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(said).unwrap();
        if hung_up {
            client.shutdown(Shutdown::Write).unwrap();
        }
        Handshake::new(server).advance(hung_up)
    }

    #[test]
    fn the_convention_names_a_port() {
        assert_eq!(after(b"CONNECT 1024\n", false), Progress::Connect(1024));
        assert_eq!(after(b"CONNECT 4294967295\n", false), Progress::Connect(u32::MAX));
        assert_eq!(after(b"CONNECT 1024\n", true), Progress::Connect(1024), "a client may half-close early");
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT 4294967296\n",
            "CONNECT +1\n",
            "connect 1\n",
            "CONNECT 1 \n",
        ] {
            assert_eq!(after(line.as_bytes(), false), Progress::Refused, "{line:?}");
        }
        assert_eq!(after(b"CONNECT \xff\n", false), Progress::Refused);
    }

    #[test]
    fn a_line_without_an_end_is_waited_for_only_so_far() {
        assert_eq!(after(b"", false), Progress::Waiting);
        assert_eq!(after(b"CONNECT 10", false), Progress::Waiting);
        assert_eq!(after(b"CONNECT 10", true), Progress::Refused);
        assert_eq!(after(b"", true), Progress::Refused);
        assert_eq!(after(&[b'0'; LONGEST_LINE], false), Progress::Refused);
    }

    #[test]
    fn bytes_behind_the_line_stay_in_the_socket() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT 7\nhello").unwrap();
        drop(client);
        let handshake = Handshake::new(server);
        assert_eq!(handshake.advance(true), Progress::Connect(7));
        let mut rest = String::new();
        handshake.into_socket().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }
}
