//! One thread that waits for many descriptors: the queues of devices that need no thread of their own, and the
//! control socket.
//!
//! Handlers may be added and removed from any thread, without waiting for the loop: the vCPU thread on which a device
//! is activated or reset does. So the loop can in turn wait for vCPU threads.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll;

pub use rustix::event::epoll::EventFlags;

/// Events that one wait returns.
const BATCH: usize = 16;

/// What is called when a descriptor is ready.
pub trait Handler: Send + Sync {
    /// The descriptor is ready. It must not block: every other handler waits for it.
    fn ready(&self, ready: EventFlags);
}

#[derive(Default)]
struct Handlers {
    next: u64,
    by_token: BTreeMap<u64, Arc<dyn Handler>>,
}

struct Inner {
    epoll: OwnedFd,
    handlers: Mutex<Handlers>,
}

/// The loop. Clones share it.
#[derive(Clone)]
pub struct EventLoop(Arc<Inner>);

/// A descriptor in the loop; dropping it takes the descriptor out. A call of the handler that is under way on the
/// loop's thread may still finish: a handler guards what it must not use any more by a lock of its own.
pub struct Registration {
    event_loop: EventLoop,
    descriptor: OwnedFd,
    token: u64,
}

impl EventLoop {
    /// An empty loop.
    ///
    /// # Errors
    /// What epoll_create1(2) returned.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Inner { epoll, handlers: Mutex::default() })))
    }

    /// Calls `handler` whenever `descriptor` is ready for `interest`. The loop keeps a duplicate of the descriptor.
    ///
    /// # Errors
    /// What the host returned.
    pub fn add(
        &self,
        descriptor: BorrowedFd<'_>,
        interest: EventFlags,
        handler: Arc<dyn Handler>,
    ) -> io::Result<Registration> {
        let descriptor = descriptor.try_clone_to_owned()?;
        let token = self.insert(handler);
        if let Err(error) = epoll::add(&self.0.epoll, &descriptor, epoll::EventData::new_u64(token), interest)
        {
            self.take(token);
            return Err(error.into());
        }
        Ok(Registration { event_loop: self.clone(), descriptor, token })
    }

    /// Waits and calls handlers until `done` says so; it is asked after every wait.
    ///
    /// # Errors
    /// What epoll_wait(2) returned.
    pub fn run(&self, mut done: impl FnMut() -> bool) -> io::Result<()> {
        let mut events = Vec::with_capacity(BATCH);
        while !done() {
            events.clear();
            match epoll::wait(&self.0.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                // An event of a descriptor that has been taken out meanwhile finds no handler.
                if let Some(handler) = self.handler(event.data.u64()) {
                    handler.ready(event.flags);
                }
            }
        }
        Ok(())
    }

    fn insert(&self, handler: Arc<dyn Handler>) -> u64 {
        let mut handlers = self.0.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let token = handlers.next;
        handlers.next += 1;
        handlers.by_token.insert(token, handler);
        token
    }

    fn take(&self, token: u64) {
        let mut handlers = self.0.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let handler = handlers.by_token.remove(&token);
        drop(handlers);
        // Only now, since dropping a handler may drop other registrations.
        drop(handler);
    }

    fn handler(&self, token: u64) -> Option<Arc<dyn Handler>> {
        let handlers = self.0.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.by_token.get(&token).cloned()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The duplicate is ours alone, so that it is there to be deleted.
        let _ = epoll::delete(&self.event_loop.0.epoll, self.descriptor.as_fd());
        self.event_loop.take(self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Sum {
        source: EventFd,
        total: AtomicU64,
    }

    impl Handler for Sum {
        fn ready(&self, _ready: EventFlags) {
            self.total.fetch_add(self.source.read().unwrap(), Ordering::SeqCst);
        }
    }

    fn sum() -> Arc<Sum> {
        Arc::new(Sum { source: EventFd::new(EFD_NONBLOCK).unwrap(), total: AtomicU64::new(0) })
    }

    fn borrowed(eventfd: &EventFd) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open as long as `eventfd`, which the lifetime borrows.
        unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
    }

    #[test]
    fn a_ready_descriptor_calls_its_handler() {
        let event_loop = EventLoop::new().unwrap();
        let (first, second) = (sum(), sum());
        let _a = event_loop.add(borrowed(&first.source), EventFlags::IN, first.clone()).unwrap();
        let _b = event_loop.add(borrowed(&second.source), EventFlags::IN, second.clone()).unwrap();
        second.source.write(3).unwrap();
        event_loop.run(|| second.total.load(Ordering::SeqCst) == 3).unwrap();
        assert_eq!(first.total.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_removed_descriptor_calls_nobody_and_drops_its_handler() {
        let event_loop = EventLoop::new().unwrap();
        let (gone, stays) = (sum(), sum());
        let registration = event_loop.add(borrowed(&gone.source), EventFlags::IN, gone.clone()).unwrap();
        let _kept = event_loop.add(borrowed(&stays.source), EventFlags::IN, stays.clone()).unwrap();
        gone.source.write(1).unwrap();
        drop(registration);
        assert_eq!(Arc::strong_count(&gone), 1);
        stays.source.write(1).unwrap();
        event_loop.run(|| stays.total.load(Ordering::SeqCst) == 1).unwrap();
        assert_eq!(gone.total.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_descriptor_can_be_added_while_the_loop_waits() {
        let event_loop = EventLoop::new().unwrap();
        let late = sum();
        std::thread::scope(|scope| {
            let looping = event_loop.clone();
            let seen = late.clone();
            scope.spawn(move || looping.run(|| seen.total.load(Ordering::SeqCst) == 9).unwrap());
            late.source.write(9).unwrap();
            let registration = event_loop.add(borrowed(&late.source), EventFlags::IN, late.clone()).unwrap();
            std::mem::forget(registration);
        });
    }
}
