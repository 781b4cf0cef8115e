//! Requests that wait for something on the host without holding up others.
//!
//! Each waits on a thread of its own, which ends with the wait. The number of threads is bounded. A thread touches
//! neither guest memory nor the server's state: it reports its result, and the server's thread sends the reply.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The most requests that may wait at one time.
const MOST_WAITERS: usize = 64;
/// A waiter makes one system call.
const STACK_BYTES: usize = 64 * 1024;

/// Names a waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// The waiting requests.
#[derive(Debug)]
pub(super) struct Waiters {
    results: Receiver<(Ticket, Result<(), Errno>)>,
    report: Sender<(Ticket, Result<(), Errno>)>,
    wakeup: Arc<EventFd>,
    waiting: usize,
    next: u64,
}

impl Waiters {
    /// Nothing waits.
    ///
    /// # Errors
    /// What `eventfd` returned.
    pub(super) fn new() -> std::io::Result<Self> {
        let (report, results) = channel();
        let wakeup = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { results, report, wakeup, waiting: 0, next: 0 })
    }

    /// Runs `wait` on a thread of its own.
    ///
    /// # Errors
    /// `ENOLCK` when as many wait as may, or when there can be no thread.
    pub(super) fn begin(
        &mut self,
        wait: impl FnOnce() -> Result<(), Errno> + Send + 'static,
    ) -> Result<Ticket, Errno> {
        if self.waiting >= MOST_WAITERS {
            return Err(Errno::NOLCK);
        }
        let ticket = Ticket(self.next);
        let (report, wakeup) = (self.report.clone(), Arc::clone(&self.wakeup));
        std::thread::Builder::new()
            .name("fs-wait".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // When the server has ended meanwhile, nobody wants to know.
                if report.send((ticket, wait())).is_ok() {
                    let _ = wakeup.write(1);
                }
            })
            .map_err(|_| Errno::NOLCK)?;
        self.next += 1;
        self.waiting += 1;
        Ok(ticket)
    }

    /// Becomes readable when a wait has ended.
    pub(super) fn wakeup(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd owns the descriptor and lives as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.wakeup.as_raw_fd()) }
    }

    /// The next wait that has ended.
    pub(super) fn next_ended(&mut self) -> Option<(Ticket, Result<(), Errno>)> {
        let ended = self.results.try_recv().or_else(|_| {
            // A wait that ends from here on makes it readable again; one that ended just before is there now.
            let _ = self.wakeup.read();
            self.results.try_recv()
        });
        let ended = ended.ok()?;
        self.waiting -= 1;
        Some(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for_one(waiters: &mut Waiters) -> (Ticket, Result<(), Errno>) {
        loop {
            let line = waiters.wakeup();
            let mut descriptors = [rustix::event::PollFd::new(&line, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut descriptors, None).unwrap();
            if let Some(ended) = waiters.next_ended() {
                return ended;
            }
        }
    }

    #[test]
    fn a_wait_reports_its_result_under_its_ticket() {
        let mut waiters = Waiters::new().unwrap();
        let (release, held) = channel::<()>();
        let slow = waiters.begin(move || held.recv().map_err(|_| Errno::IO)).unwrap();
        let quick = waiters.begin(|| Err(Errno::NOLCK)).unwrap();
        assert_eq!(wait_for_one(&mut waiters), (quick, Err(Errno::NOLCK)));
        release.send(()).unwrap();
        assert_eq!(wait_for_one(&mut waiters), (slow, Ok(())));
        assert!(waiters.next_ended().is_none());
    }

    #[test]
    fn waiters_are_bounded() {
        let mut waiters = Waiters::new().unwrap();
        let mut releases = Vec::new();
        for _ in 0..MOST_WAITERS {
            let (release, held) = channel::<()>();
            releases.push(release);
            waiters.begin(move || held.recv().map_err(|_| Errno::IO)).unwrap();
        }
        assert_eq!(waiters.begin(|| Ok(())), Err(Errno::NOLCK));
        drop(releases);
        for _ in 0..MOST_WAITERS {
            assert_eq!(wait_for_one(&mut waiters).1, Err(Errno::IO));
        }
        assert!(waiters.begin(|| Ok(())).is_ok());
    }
}
