//! Messages of netlink(7): a header, a structure of the message's type, attributes.

/// The size of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// Messages and attributes begin at multiples of this (`NLMSG_ALIGNTO`, `RTA_ALIGNTO`).
const ALIGNMENT: usize = 4;

/// A request under construction.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of a type (`RTM_*`) with flags (`NLM_F_*`) and the structure that belongs to the type.
    pub(super) fn new(kind: u16, flags: i32, structure: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0_u32.to_ne_bytes()); // The length, when it is known.
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags as u16).to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes()); // The sequence number: one request is answered before the next is made.
        bytes.extend(0_u32.to_ne_bytes()); // The port: the kernel knows.
        bytes.extend(structure);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Adds an attribute.
    #[must_use]
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        append(&mut self.bytes, kind, value);
        self
    }

    /// Adds an attribute if there is a value for it.
    #[must_use]
    pub(super) fn with_some(self, kind: u16, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.with(kind, value),
            None => self,
        }
    }

    /// The whole message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = (self.bytes.len() as u32).to_ne_bytes();
        for (to, from) in self.bytes.iter_mut().zip(length) {
            *to = from;
        }
        self.bytes
    }
}

/// The bytes of one attribute, to be the value of another.
pub(super) fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, kind, value);
    bytes
}

/// Values are numbers, addresses and names of interfaces, all checked: far shorter than the 65,531 bytes that fit.
fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((value.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// A string as the kernel takes it.
pub(super) fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// One message of a reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    /// What follows the header.
    pub(super) body: &'a [u8],
}

/// The messages of a datagram. What does not add up ends it.
pub(super) fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = number(bytes, 0)? as usize;
        let message = bytes.get(..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        let [kind_low, kind_high, flags_low, flags_high] = *message.get(4..8)?.first_chunk()?;
        Some(Reply {
            kind: u16::from_ne_bytes([kind_low, kind_high]),
            flags: u16::from_ne_bytes([flags_low, flags_high]),
            body: message.get(HEADER..)?,
        })
    })
}

/// The attributes in `bytes`: types and values. What does not add up ends it.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [length_low, length_high, kind_low, kind_high] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([length_low, length_high]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind_low, kind_high]), value))
    })
}

/// The 32-bit number at an offset.
pub(super) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_reads_as_it_was_written() {
        let bytes =
            Request::new(16, 5, &[1; 16]).with(3, b"eth0\0").with_some(9, None).with(4, &[7; 4]).finish();
        let all: Vec<Reply<'_>> = replies(&bytes).collect();
        assert_eq!((all.len(), all[0].kind, all[0].flags), (1, 16, 5));
        let read: Vec<_> = attributes(&all[0].body[16..]).collect();
        assert_eq!(read, [(3, b"eth0\0".as_slice()), (4, &[7; 4])]);
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_end_the_reading(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for reply in replies(&bytes).take(1000) {
                prop_assert!(attributes(reply.body).take(1000).count() < 1000);
            }
        }
    }
}
