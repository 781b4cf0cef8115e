//! Two byte streams, one each way, against the simplest model of them: what goes in comes out, in order, once,
//! and the end comes last. Everything between is random: how packets and buffers are cut, who reads when, who
//! closes which direction when.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use crate::devices::virtio::vsock::packet::{Header, Operation, SHUTDOWN_SEND, SMALLEST_BUFFER};
use crate::devices::virtio::vsock::test_guest::TestGuest;

const HOST: u32 = 1024;
const GUEST: u32 = 5000;

#[derive(Debug, Clone)]
enum Step {
    GuestWrites(usize),
    HostReads(usize),
    HostWrites(usize),
    /// The guest offers so many buffers of this size.
    GuestOffers(usize, usize),
    /// The guest's program reads, and perhaps tells the device.
    GuestReads(u32, bool),
    GuestAsksForCredit,
    GuestEnds,
    HostEnds,
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![1..10_usize, 1..5000_usize, 1..100_000_usize];
    prop_oneof![
        6 => count.clone().prop_map(Step::GuestWrites),
        6 => count.clone().prop_map(Step::HostReads),
        6 => count.prop_map(Step::HostWrites),
        6 => (1..20_usize, SMALLEST_BUFFER..6000).prop_map(|(count, size)| Step::GuestOffers(count, size)),
        4 => (1..50_000_u32, any::<bool>()).prop_map(|(count, tells)| Step::GuestReads(count, tells)),
        1 => Just(Step::GuestAsksForCredit),
        1 => Just(Step::GuestEnds),
        1 => Just(Step::HostEnds),
        4 => Just(Step::Poll),
    ]
}

/// The bytes of a stream: each can be told from its neighbours.
fn content(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|index| (index % 251) as u8).collect()
}

/// Both ends of a connection and what has passed between them.
struct Model {
    guest: TestGuest,
    host: UnixStream,
    guest_buffer: u32,
    guest_sent: usize,
    guest_ended: bool,
    host_received: usize,
    host_saw_end: bool,
    host_sent: usize,
    host_ended: bool,
    guest_received: usize,
    guest_saw_end: bool,
    /// What the guest's program has taken.
    guest_read: u32,
    /// `buf_alloc` and `fwd_cnt` of the last packet of the device.
    device_credit: (u32, u32),
}

impl Model {
    fn new(guest_buffer: u32) -> Self {
        let mut guest = TestGuest::new();
        let request =
            Header { buf_alloc: guest_buffer, ..TestGuest::header(HOST, GUEST, Operation::Request) };
        guest.send(&request, &[]);
        let (response, _) = guest.receive().unwrap();
        let host = guest.connector.accepted.borrow_mut().pop().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&host, 4096).unwrap();
        Self {
            guest,
            host,
            guest_buffer,
            guest_sent: 0,
            guest_ended: false,
            host_received: 0,
            host_saw_end: false,
            host_sent: 0,
            host_ended: false,
            guest_received: 0,
            guest_saw_end: false,
            guest_read: 0,
            device_credit: (response.buf_alloc, response.fwd_cnt),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::GuestWrites(count) => self.guest_writes(count),
            Step::HostReads(count) => self.host_reads(count),
            Step::HostWrites(count) => self.host_writes(count),
            Step::GuestOffers(count, size) => self.guest_offers(count, size),
            Step::GuestReads(count, tells) => self.guest_reads(count, tells),
            Step::GuestAsksForCredit => self.guest_sends(Operation::CreditRequest, 0, &[]),
            Step::GuestEnds => {
                self.guest_ended = true;
                self.guest_sends(Operation::Shutdown, SHUTDOWN_SEND, &[]);
            }
            Step::HostEnds => {
                self.host_ended = true;
                self.host.shutdown(Shutdown::Write).unwrap();
            }
            Step::Poll => self.guest.poll(),
        }
    }

    fn guest_sends(&mut self, operation: Operation, flags: u32, data: &[u8]) {
        let header = TestGuest::header(HOST, GUEST, operation);
        let header = Header { flags, buf_alloc: self.guest_buffer, fwd_cnt: self.guest_read, ..header };
        self.guest.send(&header, data);
    }

    /// As Linux does: no more than the credit.
    fn guest_writes(&mut self, count: usize) {
        if self.guest_ended {
            return;
        }
        let (buf_alloc, fwd_cnt) = self.device_credit;
        let in_flight = self.guest_sent - fwd_cnt as usize;
        let count = count.min(buf_alloc as usize - in_flight);
        self.guest_sends(Operation::ReadWrite, 0, &content(self.guest_sent, count));
        self.guest_sent += count;
    }

    fn host_reads(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        match (&self.host).read(&mut bytes) {
            Ok(0) => {
                assert!(self.guest_ended, "an end that nobody has sent");
                assert_eq!(self.host_received, self.guest_sent, "an end before the last byte");
                self.host_saw_end = true;
            }
            Ok(read) => {
                assert_eq!(bytes[..read], content(self.host_received, read));
                self.host_received += read;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn host_writes(&mut self, count: usize) {
        if self.host_ended {
            return;
        }
        match (&self.host).write(&content(self.host_sent, count)) {
            Ok(written) => self.host_sent += written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn guest_offers(&mut self, count: usize, size: usize) {
        for _ in 0..count {
            let Some((header, data)) = self.guest.receive_into(size) else { return };
            self.device_credit = (header.buf_alloc, header.fwd_cnt);
            match Operation::from_wire(header.op).unwrap() {
                Operation::ReadWrite => {
                    assert!(!self.guest_saw_end, "bytes after the end");
                    assert_eq!(data, content(self.guest_received, data.len()));
                    self.guest_received += data.len();
                    assert!(
                        self.guest_received <= (self.guest_read + self.guest_buffer) as usize,
                        "no credit"
                    );
                }
                Operation::Shutdown => {
                    assert!(self.host_ended);
                    assert_eq!(self.guest_received, self.host_sent, "an end before the last byte");
                    assert_ne!(header.flags & SHUTDOWN_SEND, 0);
                    self.guest_saw_end = true;
                }
                Operation::CreditRequest => self.guest_sends(Operation::CreditUpdate, 0, &[]),
                Operation::CreditUpdate => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn guest_reads(&mut self, count: u32, tells: bool) {
        let buffered = u32::try_from(self.guest_received).unwrap() - self.guest_read;
        self.guest_read += count.min(buffered);
        if tells {
            self.guest_sends(Operation::CreditUpdate, 0, &[]);
        }
    }

    /// Everybody reads whatever there is until nothing moves any more.
    fn settle(&mut self) {
        let progress = |model: &Self| {
            let ends = (model.host_saw_end, model.guest_saw_end);
            (model.host_received, model.guest_received, model.guest_read, ends)
        };
        // What the guest tells at the end of one round shows in the next.
        let mut idle_rounds = 0;
        while idle_rounds < 2 {
            let before = progress(self);
            self.guest.poll();
            self.guest_offers(1000, 4096);
            self.guest_reads(u32::MAX, true);
            self.host_reads(1 << 20);
            idle_rounds = if before == progress(self) { idle_rounds + 1 } else { 0 };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn what_goes_in_comes_out_in_order_and_the_end_comes_last(
        guest_buffer in prop_oneof![1..100_u32, 1..300_000_u32],
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut model = Model::new(guest_buffer);
        for step in steps {
            model.step(&step);
        }
        model.settle();
        prop_assert_eq!(model.host_received, model.guest_sent);
        prop_assert_eq!(model.guest_received, model.host_sent);
        prop_assert_eq!(model.host_saw_end, model.guest_ended);
        prop_assert_eq!(model.guest_saw_end, model.host_ended);
        // Not one byte of credit has been lost on the way: all of it is free again.
        model.guest_sends(Operation::CreditRequest, 0, &[]);
        model.guest_offers(10, 4096);
        prop_assert_eq!(model.device_credit.1 as usize, model.guest_sent);
    }
}
