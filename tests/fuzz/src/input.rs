//! Values taken from a fuzzer's bytes, one after another.

/// What is left of an input.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next bytes; `None` at the end.
    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next bytes, as many as the byte before them says, or as there are.
    pub(crate) fn block(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        self.bytes(length)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    /// A little-endian number of `N` bytes, 8 at most.
    pub(crate) fn number<const N: usize>(&mut self) -> Option<u64> {
        let mut number = [0; 8];
        number.get_mut(..N)?.copy_from_slice(self.bytes(N)?);
        Some(u64::from_le_bytes(number))
    }
}
