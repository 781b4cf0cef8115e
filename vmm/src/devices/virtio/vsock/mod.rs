//! virtio-vsock: streams between the guest and its host, over Unix sockets on the host's side.
//!
//! - The host connects to the device's Unix socket and says `CONNECT <port>\n`; `OK <host port>\n` comes back when
//!   the guest has accepted, and from then on the socket is the stream.
//! - The guest connects to CID 2; a [`Connector`] says who on the host serves the port.
//!
//! Either end may close one direction and go on in the other.
//!
//! # What a guest can cost its host
//! Up to 1023 connections of one descriptor each, less than 47 MiB for bytes that the host does not read, and 64
//! descriptors for clients that have not said what they want. Whatever it writes, its packets are answered, or
//! ignored, or their stream is reset; if it breaks its rings the device is dead until it is reset.

mod connection;
mod connector;
mod credit;
mod deadlines;
mod device;
mod handshake;
mod host_stream;
mod multiplexer;
mod packet;
mod stream;
mod table;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
mod tests;
mod worker;

pub use connector::{Connector, UnixSocketConnector};
pub use device::{Vsock, VsockConfig};
pub use packet::HOST_CID;
