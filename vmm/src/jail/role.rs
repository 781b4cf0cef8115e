//! What threads are there for.

use std::fmt;

/// What a thread is there for. It decides which system calls it may make, and whether it keeps capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The control socket, rng and balloon, and the process's end.
    Main,
    /// Runs the guest and answers its exits.
    Vcpu,
    /// Serves the shared file system.
    Fs,
    /// Moves bytes between the guest's sockets and the host's.
    Vsock,
    /// Moves frames between the guest's interfaces and the host's taps.
    Net,
    /// Reads and writes the host's block devices for the guest.
    Blk,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Main, Self::Vcpu, Self::Fs, Self::Vsock, Self::Net, Self::Blk];

    /// The name, as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Fs => "fs",
            Self::Vsock => "vsock",
            Self::Net => "net",
            Self::Blk => "blk",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
