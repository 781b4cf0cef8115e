//! The thread that serves the queues.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::gather;
use crate::devices::virtio::{DeviceQueue, Interrupt};
use crate::fs::buffers::Buffers;
use crate::fs::{Served, Server};
use crate::memory::GuestMemory;

/// How many requests of one queue are served before the other queue, and an order to stop, get their turn.
const TURN: usize = 64;
/// How many replies wait for the driver to be told of them while there is more to do.
const UNANNOUNCED: usize = 8;

/// What the thread waits for. A queue's event carries its index.
const STOP: u64 = u64::MAX;

/// Serves the queues until it is told to stop.
pub(super) struct Worker<'s> {
    server: &'s mut Server,
    queues: Vec<WorkerQueue>,
    interrupt: Interrupt,
    /// Readable when the thread is to end.
    _stop: EventFd,
    epoll: OwnedFd,
}

struct WorkerQueue {
    queue: Queue,
    /// Never read: its edges are what counts, and they come with every notification.
    notification: EventFd,
    /// The driver broke the rules of the ring itself. The queue rests until a reset.
    broken: bool,
}

/// What else there is to do.
#[derive(Debug, PartialEq, Eq)]
enum Wakeup {
    /// Nothing but what queues hold.
    Requests,
    /// The device is being reset.
    Stop,
}

/// What a turn left behind.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing: the driver notifies when there is more.
    Drained,
    /// More requests.
    Unfinished,
}

/// Makes both sides announce by index what they want to be told of, if that was agreed on.
pub(super) fn use_event_idx(queues: &mut [Option<DeviceQueue>], enabled: bool) {
    for queue in queues.iter_mut().flatten() {
        queue.queue.set_event_idx(enabled);
    }
}

impl<'s> Worker<'s> {
    /// Prepares everything; events are waited for from now on.
    pub(super) fn new(
        server: &'s mut Server,
        queues: Vec<Option<DeviceQueue>>,
        interrupt: Interrupt,
        stop: EventFd,
    ) -> io::Result<Self> {
        let queues: Vec<WorkerQueue> = queues
            .into_iter()
            .flatten()
            .map(|queue| WorkerQueue { queue: queue.queue, notification: queue.notification, broken: false })
            .collect();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, borrow(&stop), STOP, epoll::EventFlags::IN)?;
        for (index, queue) in (0..).zip(&queues) {
            let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
            watch(&epoll, borrow(&queue.notification), index, edges)?;
        }
        Ok(Self { server, queues, interrupt, _stop: stop, epoll })
    }

    /// Serves until it is told to stop, or until the host fails it.
    pub(super) fn run(&mut self, memory: &GuestMemory) {
        let mut buffers = Buffers::new();
        let mut events = Vec::with_capacity(1 + self.queues.len());
        // What the driver made available before this thread watched is served without a notification.
        let mut due: Vec<bool> = self.queues.iter().map(|_| true).collect();
        loop {
            match self.wait(&mut events, &mut due) {
                Ok(Wakeup::Requests) => {}
                Ok(Wakeup::Stop) => return,
                Err(error) => {
                    eprintln!("fs: epoll: {error}");
                    // A guest that does not hear it waits for its files; there is nobody else to tell.
                    let _ = self.interrupt.needs_reset();
                    return;
                }
            }
            for (index, due) in due.iter_mut().enumerate() {
                if std::mem::take(due) {
                    *due = self.take_turn(index, memory, &mut buffers) == Turn::Unfinished;
                }
            }
        }
    }

    /// Waits for an event, or only looks for one when there is something to do, and marks the queues that have one.
    fn wait(&self, events: &mut Vec<epoll::Event>, due: &mut [bool]) -> Result<Wakeup, rustix::io::Errno> {
        let work_waits = due.iter().any(|due| *due);
        let no_time = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = work_waits.then_some(&no_time);
        events.clear();
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        let mut wakeup = Wakeup::Requests;
        for event in events.iter() {
            match event.data.u64() {
                STOP => wakeup = Wakeup::Stop,
                index => {
                    if let Some(due) = usize::try_from(index).ok().and_then(|index| due.get_mut(index)) {
                        *due = true;
                    }
                }
            }
        }
        Ok(wakeup)
    }

    fn take_turn<'m>(&mut self, index: usize, memory: &'m GuestMemory, buffers: &mut Buffers<'m>) -> Turn {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.broken) else {
            return Turn::Drained;
        };
        let mut turn = QueueTurn { server: self.server, buffers, interrupt: &self.interrupt };
        turn.serve(&mut queue.queue, memory).unwrap_or_else(|_| {
            queue.broken = true;
            // As above.
            let _ = self.interrupt.needs_reset();
            Turn::Drained
        })
    }
}

/// One queue's turn.
struct QueueTurn<'t, 'm> {
    server: &'t mut Server,
    buffers: &'t mut Buffers<'m>,
    interrupt: &'t Interrupt,
}

impl<'m> QueueTurn<'_, 'm> {
    /// Serves up to [`TURN`] requests of a queue.
    ///
    /// # Errors
    /// When the ring itself is not as it must be: it lies outside memory, or its index has leapt.
    fn serve(&mut self, queue: &mut Queue, memory: &'m GuestMemory) -> Result<Turn, QueueError> {
        let mut unannounced = 0;
        for _ in 0..TURN {
            match queue.iter(memory)?.next() {
                Some(chain) => {
                    self.serve_one(queue, memory, chain)?;
                    unannounced += 1;
                }
                None if !queue.enable_notification(memory)? => {
                    if unannounced > 0 {
                        announce(queue, memory, self.interrupt)?;
                    }
                    return Ok(Turn::Drained);
                }
                // The driver has added one since.
                None => {}
            }
            if unannounced == UNANNOUNCED {
                announce(queue, memory, self.interrupt)?;
                unannounced = 0;
            }
        }
        announce(queue, memory, self.interrupt)?;
        Ok(Turn::Unfinished)
    }

    fn serve_one(
        &mut self,
        queue: &mut Queue,
        memory: &'m GuestMemory,
        chain: DescriptorChain<&'m GuestMemory>,
    ) -> Result<(), QueueError> {
        let head = chain.head_index();
        if gather(memory, chain, self.buffers).is_err() {
            // A chain that cannot be followed ends without a reply: there is no place that one could be written to.
            return use_chain(queue, memory, head, 0);
        }
        match self.server.serve(self.buffers) {
            Served::Reply(length) => use_chain(queue, memory, head, length),
            Served::NoReply => use_chain(queue, memory, head, 0),
        }
    }
}

/// Gives a chain back to the driver.
fn use_chain(queue: &mut Queue, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
    match queue.add_used(memory, head, written) {
        // The driver made up the index of a descriptor that it does not have: it can get nothing back for it.
        Err(QueueError::InvalidDescriptorIndex) => Ok(()),
        result => result,
    }
}

/// Tells the driver of what was used, if it wants to know.
fn announce(queue: &mut Queue, memory: &GuestMemory, interrupt: &Interrupt) -> Result<(), QueueError> {
    if queue.needs_notification(memory)? {
        // An interrupt that cannot be raised is one that is pending already.
        let _ = interrupt.used_buffer();
    }
    Ok(())
}

fn watch(
    epoll: &OwnedFd,
    descriptor: BorrowedFd<'_>,
    data: u64,
    events: epoll::EventFlags,
) -> io::Result<()> {
    Ok(epoll::add(epoll.as_fd(), descriptor, epoll::EventData::new_u64(data), events)?)
}

/// The descriptor of an eventfd, which the crate hands out as a bare number only.
fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor and is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
