//! Numbers that look random and are the same in each run.

/// Marsaglia's xorshift64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.word() % limit
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.word() as usize % choice.len()]
    }

    /// Once in so many times.
    pub(crate) fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }
}
