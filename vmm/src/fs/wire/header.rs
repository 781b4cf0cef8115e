//! The headers of requests and replies.

use super::{Wire, wire_struct};

wire_struct! {
    /// `struct fuse_in_header`.
    pub struct InHeader: 40 {
        /// Length of the whole request, this header included.
        pub length: u32,
        /// See [`Opcode`](super::Opcode).
        pub opcode: u32,
        /// Names the request in its reply.
        pub unique: u64,
        /// The inode that the request is about.
        pub node: u64,
        /// The caller's user id.
        pub uid: u32,
        /// The caller's group id.
        pub gid: u32,
        /// The caller's process id.
        pub pid: u32,
        /// Length of the extensions at the request's end, in units of 8 bytes.
        pub extension_length: u16,
        /// Zero.
        pub padding: u16,
    }
}

wire_struct! {
    /// `struct fuse_out_header`.
    pub struct OutHeader: 16 {
        /// Length of the whole reply, this header included.
        pub length: u32,
        /// Zero, or a negated errno.
        pub error: i32,
        /// The request's.
        pub unique: u64,
    }
}

impl OutHeader {
    /// Writes the header over the first bytes of `reply`, which has room for it.
    pub fn put_over(&self, reply: &mut [u8]) {
        let words = [u64::from(self.length) | (u64::from(self.error.cast_unsigned()) << 32), self.unique];
        for (word, room) in words.iter().zip(reply.chunks_exact_mut(u64::SIZE)) {
            room.copy_from_slice(&word.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_written_over_is_the_same_as_one_appended() {
        let header = OutHeader { length: 0x1234_5678, error: -libc::ENOENT, unique: 0xfedc_ba98_7654_3210 };
        let mut appended = Vec::new();
        header.put(&mut appended);
        appended.push(7);
        let mut over = vec![0; 16];
        over.push(7);
        header.put_over(&mut over);
        assert_eq!(over, appended);
    }
}
