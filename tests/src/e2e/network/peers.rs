//! The host as the other end of a container's connections.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::e2e::context::{Running, eventually};

/// The port at which [`ECHO`] listens.
pub(in crate::e2e) const ECHO_PORT: u16 = 7000;
/// How much goes each way, so that it takes many segments of the largest size.
pub(in crate::e2e) const VOLUME: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// What a container runs that sends back what it gets at [`ECHO_PORT`].
pub(in crate::e2e) const ECHO: [&str; 6] = ["nc", "-ll", "-p", "7000", "-e", "cat"];

/// Sends a container's echo server a lot, and expects it back.
pub(in crate::e2e) fn exchange(address: SocketAddr) -> anyhow::Result<()> {
    let stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sent = pattern();
    let mut received = Vec::with_capacity(VOLUME);
    thread::scope(|scope| {
        let writing = scope.spawn(|| -> std::io::Result<()> {
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        (&stream).read_to_end(&mut received)?;
        writing.join().map_err(|_| std::io::Error::other("the writer panicked"))?
    })
    .with_context(|| format!("talking to {address}"))?;
    ensure!(received == sent, "{address} sent {} bytes back that are not those sent", received.len());
    Ok(())
}

/// Connects as soon as the container listens.
pub(in crate::e2e) fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut connected = None;
    eventually(&format!("{address} listens"), || {
        connected = TcpStream::connect_timeout(&address, PATIENCE).ok();
        Ok(connected.is_some())
    })?;
    connected.context("no connection")
}

/// Has a container fetch a lot from a server on the host at `address`, and counts it.
pub(in crate::e2e) fn serve_to(container: &Running, exec_id: &str, address: IpAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind((address, 0)).with_context(|| format!("listening on {address}"))?;
    let port = listener.local_addr()?.port();
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(&pattern())
    });
    let script = format!("nc {address} {port} < /dev/null | wc -c");
    let ended = container.exec(exec_id, &["sh", "-c", &script])?.expect_status(0)?;
    ensure!(ended.text().trim() == VOLUME.to_string(), "{ended:?}");
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(())
}

/// Bytes of no period that segments or pages have.
fn pattern() -> Vec<u8> {
    (0..VOLUME as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The address that [`answer_query`] gives for every name.
pub(in crate::e2e) const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// A socket for a name server at `address`, in the thread's network namespace.
pub(in crate::e2e) fn name_server(address: IpAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 53)).with_context(|| format!("binding port 53 of {address}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Has a container ask a name server, by UDP, and looks for the answer.
pub(in crate::e2e) fn resolve_from(
    container: &Running,
    exec_id: &str,
    socket: &UdpSocket,
) -> anyhow::Result<()> {
    let name = socket.local_addr()?.ip().to_string();
    thread::scope(|scope| {
        let server = scope.spawn(|| answer_query(socket));
        let ended = container.exec(exec_id, &["nslookup", "-type=a", "pod.test", &name])?;
        server.join().map_err(|_| anyhow::anyhow!("the name server panicked"))??;
        ensure!(ended.text().contains(&ANSWER.to_string()), "{ended:?}");
        Ok(())
    })
}

/// Answers one query for an A record (RFC 1035, section 4).
fn answer_query(socket: &UdpSocket) -> anyhow::Result<()> {
    let mut query = [0; 512];
    let (length, client) = socket.recv_from(&mut query).context("no query came")?;
    let query = query.get(..length).context("a query")?;
    let question = query.get(12..).context("a query without question")?;
    let mut answer = query.get(..2).context("a query without id")?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question);
    // The name of the question, type A, class IN, a minute, four bytes.
    answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ANSWER.octets());
    socket.send_to(&answer, client)?;
    Ok(())
}
