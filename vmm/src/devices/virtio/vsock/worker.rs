//! The device's thread: waits for the guest, the host's clients and the clock, and moves packets.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{Event, EventFlags};
use vmm_sys_util::eventfd::EventFd;

use super::connector::Connector;
use super::multiplexer::{FIRST_ID, Multiplexer};
use super::packet::{HEADER_SIZE, Header, SMALLEST_BUFFER};
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::poller::Poller;
use crate::devices::virtio::ring::{Ring, RingError};
use crate::memory::GuestMemory;

/// Events taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 32;
/// How long clients are left in the backlog when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const STOP: u64 = 0;
const RX_NOTIFICATION: u64 = 1;
const TX_NOTIFICATION: u64 = 2;
const LISTENER: u64 = 3;
const _: () = assert!(LISTENER < FIRST_ID);

/// What outlives an activation of the device.
pub(super) struct HostSide {
    listener: UnixListener,
    connector: Box<dyn Connector + Send>,
    /// A guest that breaks its rings over and over fills no log.
    has_complained: bool,
}

impl HostSide {
    pub(super) fn new(listener: UnixListener, connector: Box<dyn Connector + Send>) -> Self {
        Self { listener, connector, has_complained: false }
    }
}

/// What an activation of the device brings.
#[derive(Debug)]
pub(super) struct GuestSide {
    pub(super) guest_cid: u64,
    pub(super) memory: GuestMemory,
    /// Packets to the guest.
    pub(super) rx: Ring,
    /// Packets from the guest.
    pub(super) tx: Ring,
    pub(super) interrupt: Interrupt,
}

/// Why the thread ended before it was asked to.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("epoll: {0}")]
    Poll(#[from] io::Error),
}

/// Whether clients are being accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// There are as many as there may be.
    Full,
    /// The kernel has no descriptor or memory to spare; tried again then.
    Paused(Instant),
    /// The socket does not listen any more.
    Never,
}

/// Serves the guest until `stop` is written to, or until it has broken its rings: then its driver learns that the
/// device needs a reset, and nothing else happens before that.
pub(super) fn run(guest: GuestSide, host: &mut HostSide, stop: &EventFd) {
    let interrupt = guest.interrupt.clone();
    let result = Worker::new(guest, host, stop).map_err(WorkerError::Poll).and_then(Worker::run);
    if let Err(error) = result {
        // Should the interrupt fail, the driver still finds it in the status.
        let _ = interrupt.needs_reset();
        if !std::mem::replace(&mut host.has_complained, true) {
            eprintln!("vsock: the device stops until the guest resets it: {error}");
        }
    }
}

/// The thread's state.
struct Worker<'a> {
    guest: GuestSide,
    host: &'a mut HostSide,
    poller: Rc<Poller>,
    multiplexer: Multiplexer,
    accepting: Accepting,
}

impl<'a> Worker<'a> {
    /// Prepares everything; events are waited for from now on.
    fn new(guest: GuestSide, host: &'a mut HostSide, stop: &EventFd) -> io::Result<Self> {
        host.listener.set_nonblocking(true)?;
        let poller = Rc::new(Poller::new()?);
        // SAFETY: `stop` is open, and borrowed for longer than this call.
        let stop = unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) };
        poller.add(stop, STOP, EventFlags::IN)?;
        // Edge-triggered: every notification is an event, and none needs to be read away.
        poller.add(guest.rx.as_fd(), RX_NOTIFICATION, EventFlags::IN | EventFlags::ET)?;
        poller.add(guest.tx.as_fd(), TX_NOTIFICATION, EventFlags::IN | EventFlags::ET)?;
        poller.add(&host.listener, LISTENER, EventFlags::IN)?;
        let multiplexer = Multiplexer::new(guest.guest_cid, Rc::clone(&poller));
        Ok(Self { guest, host, poller, multiplexer, accepting: Accepting::Yes })
    }

    /// Works until it is told to stop.
    fn run(mut self) -> Result<(), WorkerError> {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        // What the driver made available before the thread was there needs no notification to be seen.
        let mut more = true;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.patience(Instant::now()) };
            self.poller.wait(&mut events, timeout)?;
            let now = Instant::now();
            for event in &events {
                if event.data.u64() == STOP {
                    return Ok(());
                }
                self.dispatch(*event, now);
            }
            self.multiplexer.expire(now);
            let from_guest = self.take_packets(now)?;
            let to_guest = self.give_packets(now)?;
            more = from_guest || to_guest;
            self.resume_accepting(now)?;
        }
    }

    fn patience(&self, now: Instant) -> Option<Duration> {
        let resume = match self.accepting {
            Accepting::Paused(until) => Some(until.saturating_duration_since(now)),
            _ => None,
        };
        self.multiplexer.patience(now).into_iter().chain(resume).min()
    }

    fn dispatch(&mut self, event: Event, now: Instant) {
        match event.data.u64() {
            // Both rings are looked at after every batch of events.
            RX_NOTIFICATION | TX_NOTIFICATION => {}
            LISTENER => self.accept(now),
            id => self.multiplexer.on_event(id, event.flags, now),
        }
    }

    /// Takes packets from the guest, at most a ring full. True: there are more.
    fn take_packets(&mut self, now: Instant) -> Result<bool, WorkerError> {
        let GuestSide { memory, tx, interrupt, .. } = &mut self.guest;
        tx.suppress_notifications()?;
        let mut left = tx.size();
        let more = loop {
            if !self.multiplexer.accepts_packets() {
                // Looked at again when the guest has made room for the answers.
                break false;
            }
            if left == 0 {
                break true;
            }
            left -= 1;
            let Some(chain) = tx.pop(memory)? else {
                if tx.request_notification()? {
                    continue;
                }
                break false;
            };
            let head = chain.head_index();
            // A chain that cannot be understood is given back like any other; whose stream misses a packet by
            // that is the guest's business.
            if let Ok(chain) = Chain::parse(memory, chain, tx.size()) {
                take_packet(&mut self.multiplexer, chain, self.host.connector.as_mut(), now);
            }
            tx.push_used(head, 0)?;
        };
        tx.signal(interrupt)?;
        Ok(more)
    }

    /// Gives packets to the guest, at most a ring full. True: there are more, or packets of the guest have waited
    /// for these to go.
    fn give_packets(&mut self, now: Instant) -> Result<bool, WorkerError> {
        let GuestSide { memory, rx, interrupt, .. } = &mut self.guest;
        let held_back = !self.multiplexer.accepts_packets();
        rx.suppress_notifications()?;
        let mut left = rx.size();
        let more = loop {
            if !self.multiplexer.has_packets() {
                break false;
            }
            if left == 0 {
                break true;
            }
            left -= 1;
            let Some(chain) = rx.pop(memory)? else {
                if rx.request_notification()? {
                    continue;
                }
                break false;
            };
            let head = chain.head_index();
            let buffer =
                Chain::parse(memory, chain, rx.size()).map(|chain| chain.writable).unwrap_or_default();
            if buffer.len() < SMALLEST_BUFFER {
                // Of no use for anything; given back so that the driver notices.
                rx.push_used(head, 0)?;
                continue;
            }
            match self.multiplexer.next_packet(buffer, now) {
                // As long as a chain at most, which is less than 4 GiB.
                Some(length) => rx.push_used(head, u32::try_from(length).unwrap_or(u32::MAX))?,
                None => rx.unpop(),
            }
        };
        rx.signal(interrupt)?;
        Ok(more || (held_back && self.multiplexer.accepts_packets()))
    }

    fn accept(&mut self, now: Instant) {
        while self.multiplexer.accepts_clients() {
            match self.host.listener.accept() {
                Ok((socket, _)) => self.multiplexer.add_client(socket, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some(why) = reason_to_stop(&error, now) {
                        return self.stop_accepting(why);
                    }
                }
            }
        }
        self.stop_accepting(Accepting::Full);
    }

    fn stop_accepting(&mut self, why: Accepting) {
        self.accepting = why;
        // It cannot fail for a descriptor that is watched.
        let _ = self.poller.modify(&self.host.listener, LISTENER, EventFlags::empty());
    }

    fn resume_accepting(&mut self, now: Instant) -> io::Result<()> {
        let resume = match self.accepting {
            Accepting::Full => self.multiplexer.accepts_clients(),
            Accepting::Paused(until) => now >= until,
            Accepting::Yes | Accepting::Never => false,
        };
        if resume {
            self.accepting = Accepting::Yes;
            self.poller.modify(&self.host.listener, LISTENER, EventFlags::IN)?;
        }
        Ok(())
    }
}

/// What an error of `accept` does to the clients that come next; `None` where it concerns that one client or that one call.
fn reason_to_stop(error: &io::Error, now: Instant) -> Option<Accepting> {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::Interrupted | ErrorKind::ConnectionAborted, _) => None,
        (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
            Some(Accepting::Paused(now + ACCEPT_PAUSE))
        }
        _ => Some(Accepting::Never),
    }
}

fn take_packet(multiplexer: &mut Multiplexer, chain: Chain<'_>, connector: &mut dyn Connector, now: Instant) {
    let mut data = chain.readable;
    let mut header = [0; HEADER_SIZE];
    let Ok(front) = data.split_to(HEADER_SIZE) else { return };
    if front.copy_to(&mut header).is_err() {
        return;
    }
    let mut header = Header::from_wire(header);
    match usize::try_from(header.len) {
        Ok(length) if length <= data.len() => data.truncate(length),
        // It promises bytes that it does not bring. No operation has this number, so the stream is reset.
        _ => header.op = 0,
    }
    multiplexer.on_packet(&header, data, connector, now);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::test_driver::{self, DriverQueue, InterruptLine, WRITE};
    use crate::devices::virtio::vsock::UnixSocketConnector;
    use crate::devices::virtio::vsock::multiplexer::{HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, MAX_REPLIES};
    use crate::devices::virtio::vsock::packet::Operation;
    use crate::devices::virtio::vsock::test_guest::{GUEST_CID, TestGuest};

    const RING: u16 = 16;
    const TX_BUFFER: u64 = 0x10_0000;
    const RX_BUFFERS: u64 = 0x20_0000;

    /// A driver that has offered nothing yet, and a host without services.
    struct Bench {
        rx: DriverQueue,
        tx: DriverQueue,
        guest: Option<GuestSide>,
        host: HostSide,
        stop: EventFd,
        directory: tempfile::TempDir,
        _line: InterruptLine,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vsock");
            let connector = Box::new(UnixSocketConnector::new(&path));
            let host = HostSide::new(UnixListener::bind(&path).unwrap(), connector);
            let memory = test_driver::memory();
            let (rx, tx) =
                (DriverQueue::new(&memory, 0x1_0000, RING), DriverQueue::new(&memory, 0x2_0000, RING));
            let (interrupt, line) = InterruptLine::new();
            let ring = |driver: &DriverQueue| Ring::new(driver.device_queue(), memory.clone(), true);
            let (rx_ring, tx_ring) = (ring(&rx), ring(&tx));
            let guest = GuestSide { guest_cid: GUEST_CID, memory, rx: rx_ring, tx: tx_ring, interrupt };
            let stop = EventFd::new(0).unwrap();
            Self { rx, tx, guest: Some(guest), host, stop, directory, _line: line }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("vsock")
        }

        /// The thread's state, and the driver's queues for packets to the guest and from it.
        fn worker(&mut self) -> (Worker<'_>, &mut DriverQueue, &mut DriverQueue) {
            let worker = Worker::new(self.guest.take().unwrap(), &mut self.host, &self.stop).unwrap();
            (worker, &mut self.rx, &mut self.tx)
        }
    }

    /// Offers as many packets as the ring has room for, each of which is answered with a reset.
    fn offer_strays(tx: &mut DriverQueue) {
        let stray = TestGuest::header(1, 2, Operation::CreditUpdate).to_wire();
        tx.memory.write_slice(&stray, GuestAddress(TX_BUFFER)).unwrap();
        for head in 0..RING {
            tx.describe_chain(head, &[(TX_BUFFER, HEADER_SIZE as u32, 0)]);
            tx.offer(head);
        }
    }

    /// Offers `count` buffers of `size` bytes.
    fn offer_buffers(rx: &mut DriverQueue, count: u16, size: usize) {
        for head in 0..count {
            rx.describe_chain(head, &[(RX_BUFFERS + 0x1000 * u64::from(head), size as u32, WRITE)]);
            rx.offer(head);
        }
    }

    /// Whether a client waits in the backlog and is to be accepted.
    fn is_called_to_accept(worker: &Worker<'_>) -> bool {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        worker.poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().any(|event| event.data.u64() == LISTENER)
    }

    #[test]
    fn a_client_waits_until_there_may_be_a_descriptor_for_it_again() {
        let mut bench = Bench::new();
        let path = bench.path();
        let (mut worker, ..) = bench.worker();
        let now = Instant::now();
        assert_eq!(worker.patience(now), None);
        let none_left = io::Error::from_raw_os_error(libc::EMFILE);
        worker.stop_accepting(reason_to_stop(&none_left, now).unwrap());
        let _client = UnixStream::connect(path).unwrap();
        assert!(!is_called_to_accept(&worker));
        assert_eq!(worker.patience(now), Some(ACCEPT_PAUSE));
        worker.resume_accepting(now + ACCEPT_PAUSE - Duration::from_nanos(1)).unwrap();
        assert!(!is_called_to_accept(&worker));
        worker.resume_accepting(now + ACCEPT_PAUSE).unwrap();
        assert!(is_called_to_accept(&worker));
        worker.accept(now);
        assert_eq!(worker.multiplexer.connections(), 1);
        assert_eq!(worker.patience(now), Some(HANDSHAKE_TIMEOUT));
    }

    #[test]
    fn clients_beyond_the_most_wait_until_others_have_gone() {
        let mut bench = Bench::new();
        let path = bench.path();
        let (mut worker, ..) = bench.worker();
        let now = Instant::now();
        let _clients: Vec<UnixStream> =
            (0..=MAX_HANDSHAKES).map(|_| UnixStream::connect(&path).unwrap()).collect();
        worker.accept(now);
        assert_eq!(worker.multiplexer.connections(), MAX_HANDSHAKES);
        worker.resume_accepting(now).unwrap();
        assert!(!is_called_to_accept(&worker));
        worker.multiplexer.expire(now + HANDSHAKE_TIMEOUT);
        worker.resume_accepting(now).unwrap();
        assert!(is_called_to_accept(&worker));
        worker.accept(now);
        assert_eq!(worker.multiplexer.connections(), 1);
    }

    #[test]
    fn only_a_socket_that_does_not_listen_ends_accepting_for_good() {
        let now = Instant::now();
        let reason = |number| reason_to_stop(&io::Error::from_raw_os_error(number), now);
        for number in [libc::EINTR, libc::ECONNABORTED] {
            assert_eq!(reason(number), None, "{number}");
        }
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(reason(number), Some(Accepting::Paused(now + ACCEPT_PAUSE)), "{number}");
        }
        assert_eq!(reason(libc::EINVAL), Some(Accepting::Never));
    }

    #[test]
    fn after_a_ring_full_of_packets_others_have_their_turn() {
        let mut bench = Bench::new();
        let (mut worker, rx, tx) = bench.worker();
        let now = Instant::now();
        assert!(!worker.take_packets(now).unwrap());
        assert!(!worker.give_packets(now).unwrap());
        for _ in 0..2 {
            offer_strays(tx);
            assert!(worker.take_packets(now).unwrap(), "there may be more");
            assert!(!worker.take_packets(now).unwrap());
            assert_eq!(tx.used_since_last_look(), RING);
        }
        for (more, queued) in [(true, usize::from(RING)), (false, 0)] {
            offer_buffers(rx, RING, SMALLEST_BUFFER);
            assert_eq!(worker.give_packets(now).unwrap(), more);
            assert_eq!((rx.used_since_last_look(), worker.multiplexer.queued()), (RING, queued));
        }
    }

    #[test]
    fn packets_that_waited_for_the_answers_to_others_are_taken_when_those_have_gone() {
        let mut bench = Bench::new();
        let (mut worker, rx, tx) = bench.worker();
        let now = Instant::now();
        for _ in 0..MAX_REPLIES / usize::from(RING) {
            offer_strays(tx);
            worker.take_packets(now).unwrap();
            tx.used_since_last_look();
        }
        offer_strays(tx);
        assert!(!worker.take_packets(now).unwrap(), "that would not change by itself");
        assert!(!worker.give_packets(now).unwrap());
        assert_eq!(tx.used_since_last_look(), 0);
        offer_buffers(rx, 1, SMALLEST_BUFFER);
        assert!(worker.give_packets(now).unwrap());
        worker.take_packets(now).unwrap();
        assert_eq!(tx.used_since_last_look(), 1);
    }
}
