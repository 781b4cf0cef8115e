//! netlink(7) over a blocking socket: one request at a time.

use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// How often a listing is begun anew because the kernel says that it changed on the way.
const LISTINGS: usize = 16;

/// A connection to the kernel, for the network namespace that the thread was in when it was made. Its messages are those of
/// rtnetlink(7), or of another protocol.
pub(super) struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    sequence: u32,
    messages: PhantomData<M>,
}

impl Netlink {
    /// # Errors
    /// What socket(2) or connect(2) returned.
    pub(super) fn new() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }
}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone> Netlink<M> {
    /// As [`new`](Netlink::new), for the `protocol` that has these messages.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, messages: PhantomData })
    }

    /// Has the kernel do something. `flags` are those of `NLM_F_CREATE` and its like.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn request(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for answer in self.receive()? {
                if let NetlinkPayload::Error(error) = answer.payload {
                    return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                }
            }
        }
    }

    /// Lists what the kernel has.
    ///
    /// # Errors
    /// The kernel's answer; or what is listed does not keep still.
    pub(super) fn list(&mut self, message: &M) -> io::Result<Vec<M>> {
        for _ in 0..LISTINGS {
            if let Some(listed) = self.list_once(message.clone())? {
                return Ok(listed);
            }
        }
        Err(io::Error::other("the network configuration keeps changing while it is read"))
    }

    /// `None`: it changed on the way (`NLM_F_DUMP_INTR`), and may be inconsistent.
    fn list_once(&mut self, message: M) -> io::Result<Option<Vec<M>>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut listed = Vec::new();
        let mut is_consistent = true;
        loop {
            for answer in self.receive()? {
                is_consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => listed.push(message),
                    NetlinkPayload::Done(_) => return Ok(is_consistent.then_some(listed)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// The messages of one datagram that answer the last request.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<M>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}
