//! Flow control of one stream (virtio 1.2, 5.10.6.3), counted in bytes modulo 2^32 as on the wire.

use std::num::Wrapping;

/// The buffer that a connection promises to its guest while the device has promised little.
pub(super) const LARGE_BUFFER: u32 = 256 * 1024;
/// The buffer that a connection promises once the device has promised [`LARGE_BUFFERS_TOTAL`].
pub(super) const SMALL_BUFFER: u32 = 16 * 1024;
/// What all large promises together may come to.
pub(super) const LARGE_BUFFERS_TOTAL: u32 = 32 * 1024 * 1024;

/// What the device has promised to buffer for all its connections together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    promised: u32,
}

impl Budget {
    /// The size of the next connection's buffer.
    pub(super) fn promise(&mut self) -> u32 {
        let size =
            if self.promised + LARGE_BUFFER <= LARGE_BUFFERS_TOTAL { LARGE_BUFFER } else { SMALL_BUFFER };
        self.promised += size;
        size
    }

    /// A connection is gone that had been promised `size`.
    pub(super) fn release(&mut self, size: u32) {
        self.promised = self.promised.saturating_sub(size);
    }

    /// The bytes promised.
    #[cfg(test)]
    pub(super) fn promised(&self) -> u32 {
        self.promised
    }
}

/// The guest sent more than it had been told there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun;

/// Both directions of one stream's credit.
#[derive(Debug)]
pub(super) struct Credit {
    /// Bytes of buffer that the guest has been promised.
    buf_alloc: u32,
    /// Bytes that the guest has sent.
    received: Wrapping<u32>,
    /// Of those, the bytes that have left the buffer.
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest was told last.
    advertised: Wrapping<u32>,
    /// Bytes of buffer that the guest has promised.
    peer_buf_alloc: u32,
    /// Bytes that the guest says have left its buffer.
    peer_forwarded: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
}

impl Credit {
    /// A stream at its start. The guest has promised nothing yet.
    pub(super) fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            advertised: Wrapping(0),
            peer_buf_alloc: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
        }
    }

    /// Bytes of buffer that the guest has been promised.
    pub(super) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// The guest tells what it has room for; every packet of its does.
    pub(super) fn peer_tells(&mut self, buf_alloc: u32, forwarded: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_forwarded = Wrapping(forwarded);
    }

    /// Bytes that may be sent to the guest now. Whatever the guest claims, this is no more than it has promised.
    pub(super) fn sendable(&self) -> u32 {
        let in_flight = (self.sent - self.peer_forwarded).0;
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// `count` bytes were sent to the guest; no more than [`sendable`](Self::sendable).
    pub(super) fn note_sent(&mut self, count: u32) {
        self.sent += count;
    }

    /// The guest has sent `count` bytes.
    pub(super) fn receive(&mut self, count: u32) -> Result<(), Overrun> {
        let buffered = (self.received - self.forwarded).0;
        match buffered.checked_add(count) {
            Some(buffered) if buffered <= self.buf_alloc => {
                self.received += count;
                Ok(())
            }
            _ => Err(Overrun),
        }
    }

    /// `count` of the received bytes have left the buffer.
    pub(super) fn forward(&mut self, count: u32) {
        self.forwarded += count.min((self.received - self.forwarded).0);
    }

    /// Whether the guest should be told of freed room, although there is nothing else to send. Half the buffer is
    /// early enough for it not to run dry and late enough not to answer every packet with another.
    pub(super) fn update_due(&self) -> bool {
        (self.forwarded - self.advertised).0 >= self.buf_alloc / 2
    }

    /// The `fwd_cnt` of a packet that is about to be sent.
    pub(super) fn advertise(&mut self) -> u32 {
        self.advertised = self.forwarded;
        self.forwarded.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the two ends of a stream do.
    #[derive(Debug, Clone)]
    enum Step {
        GuestSends(u32),
        HostTakes(u32),
        DeviceTells,
        DeviceSends(u32),
        GuestTakes(u32),
        GuestTells,
    }

    fn step() -> impl Strategy<Value = Step> {
        let count = 0..100_000_u32;
        prop_oneof![
            count.clone().prop_map(Step::GuestSends),
            count.clone().prop_map(Step::HostTakes),
            Just(Step::DeviceTells),
            count.clone().prop_map(Step::DeviceSends),
            count.prop_map(Step::GuestTakes),
            Just(Step::GuestTells),
        ]
    }

    proptest! {
        /// A guest that keeps to what it was told never overruns, whatever the order of things and however often
        /// the counters have wrapped; and the device never sends more than the guest has room for.
        #[test]
        fn an_honest_guest_never_overruns_and_is_never_overrun(
            start in any::<u32>(),
            guest_buffer in 0..200_000_u32,
            steps in proptest::collection::vec(step(), 0..crate::steps(400)),
        ) {
            let mut credit = Credit::new(LARGE_BUFFER);
            for counter in [&mut credit.received, &mut credit.forwarded, &mut credit.advertised,
                &mut credit.peer_forwarded, &mut credit.sent] {
                *counter = Wrapping(start);
            }
            credit.peer_tells(guest_buffer, start);
            // To the host: what the guest may still send by what it was told, and what lies in our buffer.
            let (mut room, mut buffered, mut untold) = (LARGE_BUFFER, 0_u32, 0_u32);
            // To the guest: what lies in its buffer, and what it has taken since it told us.
            let (mut guest_holds, mut taken, mut guest_untold) = (0_u32, Wrapping(start), 0_u32);
            for step in steps {
                match step {
                    Step::GuestSends(count) => {
                        let count = count.min(room);
                        prop_assert_eq!(credit.receive(count), Ok(()));
                        room -= count;
                        buffered += count;
                    }
                    Step::HostTakes(count) => {
                        let count = count.min(buffered);
                        credit.forward(count);
                        buffered -= count;
                        untold += count;
                        prop_assert_eq!(credit.update_due(), untold >= LARGE_BUFFER / 2);
                    }
                    Step::DeviceTells => {
                        credit.advertise();
                        room += std::mem::take(&mut untold);
                        prop_assert_eq!(room + buffered, LARGE_BUFFER);
                    }
                    Step::DeviceSends(count) => {
                        let count = count.min(credit.sendable());
                        credit.note_sent(count);
                        guest_holds += count;
                        prop_assert!(guest_holds + guest_untold <= guest_buffer);
                    }
                    Step::GuestTakes(count) => {
                        let count = count.min(guest_holds);
                        guest_holds -= count;
                        taken += count;
                        guest_untold += count;
                    }
                    Step::GuestTells => {
                        credit.peer_tells(guest_buffer, taken.0);
                        guest_untold = 0;
                        prop_assert_eq!(credit.sendable(), guest_buffer - guest_holds);
                    }
                }
            }
            // A guest that has no room left by what it knows hears of it as soon as the buffer is empty.
            if room == 0 && buffered == 0 {
                prop_assert!(credit.update_due());
            }
        }

        #[test]
        fn a_lying_guest_is_never_sent_more_than_it_promised(
            tells in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..50),
        ) {
            let mut credit = Credit::new(SMALL_BUFFER);
            for (buf_alloc, forwarded, send) in tells {
                credit.peer_tells(buf_alloc, forwarded);
                prop_assert!(credit.sendable() <= buf_alloc);
                credit.note_sent(send.min(credit.sendable()));
            }
        }
    }

    #[test]
    fn one_byte_more_than_promised_is_an_overrun_and_counts_nothing() {
        let mut credit = Credit::new(SMALL_BUFFER);
        assert_eq!(credit.receive(SMALL_BUFFER), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        assert_eq!(credit.receive(u32::MAX), Err(Overrun));
        credit.forward(1);
        assert_eq!(credit.receive(1), Ok(()));
    }

    #[test]
    fn no_more_leaves_the_buffer_than_came() {
        let mut credit = Credit::new(SMALL_BUFFER);
        for (received, forwarded, told) in [(10, 10, 10), (5, u32::MAX, 15), (0, 1, 15)] {
            assert_eq!(credit.receive(received), Ok(()));
            credit.forward(forwarded);
            assert_eq!(credit.advertise(), told);
        }
    }

    #[test]
    fn more_connections_than_the_budget_has_large_buffers_for_get_small_ones() {
        let mut budget = Budget::default();
        let sizes: Vec<u32> = (0..1023).map(|_| budget.promise()).collect();
        assert_eq!(sizes.iter().filter(|size| **size == LARGE_BUFFER).count(), 128);
        assert!(budget.promised() < 47 * 1024 * 1024);
        for size in sizes {
            budget.release(size);
        }
        assert_eq!(budget.promised(), 0);
    }
}
