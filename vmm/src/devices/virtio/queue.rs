//! Serving a queue whose requests are answered at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::MAX_DESCRIPTORS;
use super::device::{ActivationError, DeviceQueue};
use super::{Activation, Interrupt};
use crate::event_loop::{EventFlags, EventLoop, Handler, Registration};
use crate::memory::GuestMemory;

/// A chain of descriptors that the driver has made available.
pub type Chain<'a> = DescriptorChain<&'a GuestMemory>;

/// The descriptors of `chain` that the device may read. A chain that has more descriptors than one may have, of whatever kind
/// and however short, is cut off: an indirect table has room for 65,535.
pub fn readable(chain: Chain<'_>) -> impl Iterator<Item = Descriptor> {
    chain.take(MAX_DESCRIPTORS).filter(|descriptor| !descriptor.is_write_only())
}

/// The same for those that the device may write.
pub fn writable(chain: Chain<'_>) -> impl Iterator<Item = Descriptor> {
    chain.take(MAX_DESCRIPTORS).filter(Descriptor::is_write_only)
}

/// A queue that the driver has brought into a state that no driver may.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings.
    #[error("the driver has broken its queue: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// The interrupt could not be raised or the queue not be notified.
    #[error("eventfd: {0}")]
    EventFd(#[from] io::Error),
}

/// Answers requests of one queue.
pub trait Service: Send {
    /// Answers the request in `chain` and returns how many bytes it has written. A request that makes no sense is
    /// answered with nothing: whatever is in it, the device goes on.
    fn serve(&mut self, memory: &GuestMemory, queue: usize, chain: Chain<'_>) -> u32;
}

/// Serves everything that is available in the queue right now, one round: a driver that keeps adding is served again
/// when the loop comes round.
///
/// # Errors
/// A queue in an impossible state.
pub fn serve_queue(
    memory: &GuestMemory,
    index: usize,
    device_queue: &mut DeviceQueue,
    interrupt: &Interrupt,
    service: &mut dyn Service,
) -> Result<(), QueueError> {
    let queue = &mut device_queue.queue;
    let mut served = false;
    for _ in 0..queue.size() {
        let Some(chain) = queue.iter(memory)?.next() else { break };
        let head = chain.head_index();
        let written = service.serve(memory, index, chain);
        queue.add_used(memory, head, written)?;
        served = true;
    }
    if served && queue.needs_notification(memory)? {
        interrupt.used_buffer()?;
    }
    // What the driver has added after the last look it need not notify again.
    if queue.enable_notification(memory)? {
        device_queue.notification.write(1)?;
    }
    Ok(())
}

struct Active {
    memory: GuestMemory,
    queues: Vec<Option<DeviceQueue>>,
    interrupt: Interrupt,
}

struct State {
    active: Option<Active>,
    service: Box<dyn Service>,
}

/// The queues of a device that are served on the event loop.
pub struct Server {
    event_loop: EventLoop,
    state: Arc<Mutex<State>>,
    registrations: Vec<Registration>,
}

struct Notified {
    state: Arc<Mutex<State>>,
    queue: usize,
    notification: EventFd,
}

impl Handler for Notified {
    fn ready(&self, _ready: EventFlags) {
        // First, and of a broken device as well, since a notification that nobody reads wakes the loop for ever. Nobody else reads
        // it, and a counter that is already zero is not an error worth more than a look.
        let _ = self.notification.read();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { active, service } = &mut *state;
        let Some(Active { memory, queues, interrupt }) = active else { return };
        let Some(Some(queue)) = queues.get_mut(self.queue) else { return };
        if serve_queue(memory, self.queue, queue, interrupt, service.as_mut()).is_err() {
            // The driver has broken the device; it alone can mend it.
            let _ = interrupt.needs_reset();
            *active = None;
        }
    }
}

impl Server {
    /// A server that has no queues yet.
    pub fn new(event_loop: EventLoop, service: Box<dyn Service>) -> Self {
        let state = Arc::new(Mutex::new(State { active: None, service }));
        Self { event_loop, state, registrations: Vec::new() }
    }

    /// Starts serving the queues that the driver has enabled.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn start(&mut self, activation: Activation) -> Result<(), ActivationError> {
        let Activation { memory, queues, interrupt, features: _ } = activation;
        let mut descriptors = Vec::new();
        for (index, queue) in queues.iter().enumerate() {
            let Some(queue) = queue else { continue };
            let descriptor = queue.notification.try_clone();
            descriptors.push((index, descriptor.map_err(|source| host("dup of an eventfd", source))?));
        }
        self.lock().active = Some(Active { memory, queues, interrupt });
        for (queue, notification) in descriptors {
            let handler = Arc::new(Notified { state: Arc::clone(&self.state), queue, notification });
            // SAFETY: the descriptor is open as long as `handler`, which outlives the borrow.
            let descriptor = unsafe { BorrowedFd::borrow_raw(handler.notification.as_raw_fd()) };
            let registration =
                self.event_loop.add(descriptor, EventFlags::IN, Arc::clone(&handler) as Arc<dyn Handler>);
            self.registrations.push(registration.map_err(|source| host("epoll_ctl", source))?);
        }
        Ok(())
    }

    /// Stops serving. When it returns nobody touches guest memory any more.
    pub fn stop(&mut self) {
        self.registrations.clear();
        self.lock().active = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn host(what: &'static str, source: io::Error) -> ActivationError {
    ActivationError::Host { what, source }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::devices::virtio::test_driver::{self, DriverQueue, InterruptLine};
    use crate::devices::virtio::testing::{INDIRECT, TestQueue, WRITE};

    /// Counts what it is asked.
    #[derive(Clone, Default)]
    struct Counter(Arc<AtomicU64>);

    impl Counter {
        fn count(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl Service for Counter {
        fn serve(&mut self, _memory: &GuestMemory, _queue: usize, _chain: Chain<'_>) -> u32 {
            self.0.fetch_add(1, Ordering::SeqCst);
            0
        }
    }

    impl Handler for Counter {
        fn ready(&self, _ready: EventFlags) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Has the loop look at everything that is ready now: it gets to this last.
    fn look_at_all(event_loop: &EventLoop) {
        let last = Counter::default();
        let signal = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let _registration = event_loop.add(signal.as_fd(), EventFlags::IN, Arc::new(last.clone())).unwrap();
        event_loop.run(|| last.count() > 0).unwrap();
    }

    #[test]
    fn a_queue_without_requests_interrupts_nobody() {
        let mut queue = TestQueue::new(64);
        queue.serve(0, &mut Counter::default()).unwrap();
        assert_eq!(queue.interrupts(), 0);
    }

    #[test]
    fn a_driver_that_keeps_adding_gets_one_round_at_a_time() {
        struct Insatiable {
            driver: DriverQueue,
            served: u16,
        }
        impl Service for Insatiable {
            fn serve(&mut self, _memory: &GuestMemory, _queue: usize, _chain: Chain<'_>) -> u32 {
                self.served += 1;
                self.driver.offer(0);
                0
            }
        }
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 16);
        driver.offer(0);
        let mut queue = driver.device_queue();
        let (interrupt, line) = InterruptLine::new();
        let mut service = Insatiable { driver, served: 0 };
        serve_queue(&memory, 0, &mut queue, &interrupt, &mut service).unwrap();
        assert_eq!(service.served, 16);
        assert_eq!(line.count(), 1);
        assert_eq!(queue.notification.read().unwrap(), 1, "it comes round again without the driver");
    }

    #[test]
    fn of_a_chain_without_bytes_so_many_descriptors_are_looked_at_and_no_more() {
        /// Counts the descriptors that it gets to see.
        struct Looker {
            readable: usize,
            writable: usize,
        }
        impl Service for Looker {
            fn serve(&mut self, _memory: &GuestMemory, _queue: usize, chain: Chain<'_>) -> u32 {
                self.readable += readable(chain.clone()).count();
                self.writable += writable(chain).count();
                0
            }
        }
        let mut queue = TestQueue::new(64);
        let table = queue.indirect_table(u16::MAX, |index| (0x8000, 0, if index < 24 { WRITE } else { 0 }));
        queue.descriptor(0, table, 16 * u32::from(u16::MAX), INDIRECT, 0);
        queue.offer(0);
        let mut looker = Looker { readable: 0, writable: 0 };
        queue.serve(0, &mut looker).unwrap();
        assert_eq!((looker.readable, looker.writable), (1000, 24));
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri's epoll is edge-triggered only")]
    fn a_notification_of_a_broken_device_is_taken_all_the_same() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 16);
        let (interrupt, _line) = InterruptLine::new();
        let event_loop = EventLoop::new().unwrap();
        let mut server = Server::new(event_loop.clone(), Box::new(Counter::default()));
        server.start(test_driver::activation(&memory, &[&driver], interrupt, 0)).unwrap();
        driver.set_available(65);
        driver.notify();
        look_at_all(&event_loop);
        assert!(server.lock().active.is_none(), "the device is not broken");

        driver.notify();
        look_at_all(&event_loop);
        assert!(!driver.is_notified(), "the notification wakes the loop for ever");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri's epoll is edge-triggered only")]
    fn a_queue_is_served_when_it_is_notified_and_not_after_the_stop() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 16);
        let (interrupt, line) = InterruptLine::new();
        let event_loop = EventLoop::new().unwrap();
        let served = Counter::default();
        let mut server = Server::new(event_loop.clone(), Box::new(served.clone()));
        server.start(test_driver::activation(&memory, &[&driver], interrupt, 0)).unwrap();
        driver.offer(0);
        driver.notify();
        event_loop.run(|| served.count() == 1).unwrap();
        assert_eq!((line.count(), driver.take_used()), (1, Some((0, 0))));

        server.stop();
        driver.offer(0);
        driver.notify();
        look_at_all(&event_loop);
        assert_eq!((served.count(), driver.take_used()), (1, None));
    }
}
