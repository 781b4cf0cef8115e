//! The packets of virtio-vsock (virtio 1.2, 5.10.6).

/// The host's address, which every guest sees its host at (virtio 1.2, 5.10.4; `VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;

/// Bytes of a packet's header on the wire.
pub(super) const HEADER_SIZE: usize = 44;

/// The smallest buffer for packets to the guest that is of use: a header and one byte.
pub(super) const SMALLEST_BUFFER: usize = HEADER_SIZE + 1;

/// The only socket type that this device knows, `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (`VIRTIO_VSOCK_OP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    /// Connect.
    Request = 1,
    /// Connected.
    Response = 2,
    /// There is no such connection, or there is none any more.
    Reset = 3,
    /// No more of what the flags say.
    Shutdown = 4,
    /// Bytes of the stream.
    ReadWrite = 5,
    /// Only the credit fields matter.
    CreditUpdate = 6,
    /// Asks for a [`CreditUpdate`](Self::CreditUpdate).
    CreditRequest = 7,
}

impl Operation {
    /// The operation with this number on the wire.
    pub(super) fn from_wire(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::ReadWrite,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == number)
    }
}

/// `struct virtio_vsock_hdr`, unchecked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes that follow the header.
    pub(super) len: u32,
    /// The socket type, `type` on the wire.
    pub(super) socket_type: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Takes a header apart. Every value of every field is possible.
    pub(super) fn from_wire(wire: [u8; HEADER_SIZE]) -> Self {
        let mut fields = Fields(&wire);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            socket_type: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Puts a header together.
    pub(super) fn to_wire(self) -> [u8; HEADER_SIZE] {
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.socket_type.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut wire = [0; HEADER_SIZE];
        for (to, from) in wire.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        wire
    }

    /// The answer to a packet that belongs to no connection. `None` for a reset: two ends without a connection
    /// would otherwise reset each other for ever.
    pub(super) fn reset_reply(&self) -> Option<Self> {
        (self.op != Operation::Reset as u16).then(|| Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: Operation::Reset as u16,
            ..Self::default()
        })
    }
}

/// The bytes of a header that are still to be taken apart.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        // The fields add up to HEADER_SIZE, so that there is always a next one.
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_the_wire(wire in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
            let mut bytes = [0; HEADER_SIZE];
            bytes[..32].copy_from_slice(&wire);
            bytes[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::from_wire(bytes).to_wire(), bytes);
        }
    }

    #[test]
    fn the_fields_lie_where_the_specification_has_them() {
        let mut wire = [0; HEADER_SIZE];
        wire[0] = 3;
        wire[8] = 2;
        wire[16..20].copy_from_slice(&1024_u32.to_le_bytes());
        wire[20..24].copy_from_slice(&1025_u32.to_le_bytes());
        wire[24] = 7;
        wire[28] = 1;
        wire[30] = 5;
        wire[32] = 2;
        wire[38] = 4;
        wire[40] = 9;
        let header = Header::from_wire(wire);
        let expected = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1024,
            dst_port: 1025,
            len: 7,
            socket_type: TYPE_STREAM,
            op: Operation::ReadWrite as u16,
            flags: SHUTDOWN_SEND,
            buf_alloc: 256 * 1024,
            fwd_cnt: 9,
        };
        assert_eq!(header, expected);
    }

    #[test]
    fn a_reset_is_never_answered() {
        let reset = Header { op: Operation::Reset as u16, ..Header::default() };
        assert_eq!(reset.reset_reply(), None);
    }

    #[test]
    fn numbers_that_name_no_operation_are_none() {
        assert_eq!(Operation::from_wire(0), None);
        assert_eq!(Operation::from_wire(8), None);
        assert_eq!(Operation::from_wire(3), Some(Operation::Reset));
    }
}
