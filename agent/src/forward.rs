//! Connections of the host to servers that listen on the guest's loopback: each begins with the server's port, and
//! everything after that is passed on.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::transport::{Connection, Listener};

/// How long a connection may take to say its port.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes connections from `listener` for ever.
pub(crate) async fn serve(listener: Listener) {
    loop {
        let connection = listener.next("a connection to loopback").await;
        tokio::spawn(forward(connection));
    }
}

/// Passes a connection on. Whoever is refused sees it closed.
async fn forward(mut connection: Connection) {
    let mut port = [0; 2];
    match tokio::time::timeout(PATIENCE, connection.read_exact(&mut port)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return log::warn!("a connection to loopback ended before its port: {error}"),
        Err(_) => return log::warn!("a connection to loopback did not say its port in time"),
    }
    let port = u16::from_be_bytes(port);
    match connect(port).await {
        // How such a connection ends is a matter of its two ends.
        Ok(mut server) => drop(copy_bidirectional(&mut connection, &mut server).await),
        Err(error) => log::info!("cannot connect to port {port} of loopback: {error}"),
    }
}

/// A server may listen on either loopback; most listen on IPv4's.
async fn connect(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(server) => Ok(server),
        Err(_) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;

    /// Serves on a socket in `directory` on a thread of its own, for as long as the test runs.
    fn serving(directory: &std::path::Path) -> UnixStream {
        let path = directory.join("forwards");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { serve(Listener::new(listener.into()).unwrap()).await });
        });
        UnixStream::connect(path).unwrap()
    }

    #[test]
    fn a_connection_reaches_the_server_on_either_loopback_and_ends_as_it_does() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(server) = TcpListener::bind(loopback) else {
                eprintln!("skipped: this machine has no {loopback}");
                continue;
            };
            let port = server.local_addr().unwrap().port();
            let directory = tempfile::tempdir().unwrap();
            let mut client = serving(directory.path());
            client.write_all(&[&port.to_be_bytes()[..], b"question"].concat()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let (mut accepted, _) = server.accept().unwrap();
            let mut text = String::new();
            accepted.read_to_string(&mut text).unwrap();
            assert_eq!(text, "question");
            accepted.write_all(b"answer").unwrap();
            drop(accepted);
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "answer");
        }
    }

    #[test]
    fn a_port_where_nobody_listens_is_an_end_of_file() {
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let mut client = serving(directory.path());
        client.write_all(&unused.to_be_bytes()).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}
