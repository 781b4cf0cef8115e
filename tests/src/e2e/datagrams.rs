//! A server of UDP datagrams, which the tests run inside a container (busybox has none), and its client.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::context::eventually;

/// How long a client waits for an answer before it asks again: datagrams may be lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends every datagram that comes to `port` back to where it came from, for ever.
///
/// # Errors
/// The port is taken.
pub fn echo(port: u16) -> anyhow::Result<()> {
    // The address of both families.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let mut datagram = [0; 8192];
    loop {
        let (length, client) = socket.recv_from(&mut datagram)?;
        socket.send_to(datagram.get(..length).context("a datagram")?, client)?;
    }
}

/// Sends many datagrams at once. Whether any of them arrives is not looked for.
pub(super) fn burst(address: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(unspecified(address))?;
    // One may be told of the last one's fate.
    (0..32).for_each(|_| drop(socket.send_to(&[0; 7000], address)));
    Ok(())
}

fn unspecified(address: SocketAddr) -> SocketAddr {
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}

/// Expects a datagram back from the server behind `address`, once it is there.
pub(super) fn exchange(address: SocketAddr) -> anyhow::Result<()> {
    const SENT: &[u8] = b"a datagram";
    let socket = UdpSocket::bind(unspecified(address))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut received = [0; 2048];
    eventually(&format!("{address} answers datagrams"), || {
        // Without a server the host is told so, which is an error of the next call.
        let Ok(length) = socket.send(SENT).and_then(|_| socket.recv(&mut received)) else { return Ok(false) };
        ensure!(received.get(..length) == Some(SENT), "{length} other bytes came");
        Ok(true)
    })
}
