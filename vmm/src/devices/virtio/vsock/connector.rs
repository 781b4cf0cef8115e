//! Where connections go that the guest opens to the host.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects the guest to services of the host.
pub trait Connector {
    /// Opens a stream to whoever serves `port` of the host (CID 2). Runs on the device's thread: it must not wait.
    ///
    /// # Errors
    /// Nobody serves the port, or not now: the guest's connection is refused.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;
}

/// Connects port `n` to the Unix socket `<base>_<n>`, Firecracker's convention.
#[derive(Debug)]
pub struct UnixSocketConnector {
    base: PathBuf,
}

impl UnixSocketConnector {
    /// Services are found at `base` with an underscore and their port appended.
    pub fn new(base: &Path) -> Self {
        Self { base: base.to_owned() }
    }
}

impl Connector for UnixSocketConnector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.base.as_os_str().to_owned();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(Path::new(&path))?;
        // Non-blocking, because connecting waits while the service's backlog is full.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_port_is_served_by_the_socket_that_has_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("vsock");
        let mut connector = UnixSocketConnector::new(&base);
        assert_eq!(connector.connect(52).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(directory.path().join("vsock_52")).unwrap();
        let connected = connector.connect(52).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        drop(connected);
        assert_eq!(io::Read::read(&mut &accepted, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_service_whose_backlog_is_full_refuses_instead_of_making_the_device_wait() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("v_1")).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut connector = UnixSocketConnector::new(&directory.path().join("v"));
        let mut connected = Vec::new();
        let refusal = loop {
            match connector.connect(1) {
                Ok(socket) => connected.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock, "after {}", connected.len());
    }
}
