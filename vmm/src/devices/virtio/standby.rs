//! Threads that are there before the guest runs.
//!
//! A device is activated by a vCPU thread, which may make no threads and has no rights to pass on. So the thread that is
//! to serve the device exists from the start, is confined to its role, and waits for work.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::jail::{Confinement, Role};

/// What a thread is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThreadPlan<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Bytes of its stack.
    pub(super) stack: usize,
    /// What it is there for.
    pub(super) role: Role,
    /// How it is confined to that.
    pub(super) confinement: &'a Confinement,
}

/// A thread that does one piece of work after another. Dropping it waits for the thread's end.
#[derive(Debug)]
pub(super) struct Standby<W> {
    /// Dropped to end the thread.
    work: Option<Sender<(W, SyncSender<()>)>>,
    thread: Option<JoinHandle<()>>,
}

/// A piece of work that was begun.
#[derive(Debug)]
pub(super) struct Begun(Receiver<()>);

impl Begun {
    /// Waits until it is done, or the thread has panicked.
    pub(super) fn wait(self) {
        // Nothing is ever sent: it returns when the thread has dropped its end.
        let _ = self.0.recv();
    }
}

/// Work that goes on until it is told to stop.
#[derive(Debug)]
pub(super) struct UntilStopped<W> {
    pub(super) work: W,
    /// Readable when it is to end.
    pub(super) stop: EventFd,
}

/// Such work, begun.
#[derive(Debug)]
pub(super) struct Session {
    begun: Begun,
    stop: EventFd,
}

impl Session {
    /// Tells the thread to stop, and waits until it has.
    pub(super) fn end(self) {
        // The counter cannot be full after one write, which is the only way to fail.
        let _ = self.stop.write(1);
        self.begun.wait();
    }
}

impl<W: Send + 'static> Standby<UntilStopped<W>> {
    /// Has the thread do `work` until the session is ended.
    ///
    /// # Errors
    /// The host has no eventfd left, or the thread has panicked.
    pub(super) fn begin_session(&self, work: W) -> io::Result<Session> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let begun = self.begin(UntilStopped { work, stop: stop.try_clone()? })?;
        Ok(Session { begun, stop })
    }
}

impl<W: Send + 'static> Standby<W> {
    /// Starts the thread. `prepare` is called on it before it is confined, and makes what does the work.
    ///
    /// # Errors
    /// The host's refusal of the thread or of its confinement, or what `prepare` returned.
    pub(super) fn start<P, D>(plan: ThreadPlan<'_>, prepare: P) -> io::Result<Self>
    where
        P: FnOnce() -> io::Result<D> + Send + 'static,
        D: FnMut(W),
    {
        let (work, works) = channel::<(W, SyncSender<()>)>();
        let (report, started) = sync_channel(1);
        let (role, confinement) = (plan.role, plan.confinement.clone());
        let body = move || {
            let mut ready = prepare().and_then(|doing| {
                confinement.enter(role)?;
                Ok(doing)
            });
            // Who started the thread waits for the answer.
            let _ =
                report.send(ready.as_ref().map(|_| ()).map_err(|error| io::Error::other(error.to_string())));
            if let Ok(doing) = &mut ready {
                works.iter().for_each(|(work, _done)| doing(work));
            }
        };
        let thread = Builder::new().name(plan.name.into()).stack_size(plan.stack).spawn(body)?;
        started.recv().map_err(|_| gone())??;
        Ok(Self { work: Some(work), thread: Some(thread) })
    }

    /// Has the thread do `work` when it has done what it was told before.
    ///
    /// # Errors
    /// The thread has panicked.
    pub(super) fn begin(&self, work: W) -> io::Result<Begun> {
        let (done, begun) = sync_channel(0);
        self.work.as_ref().ok_or_else(gone)?.send((work, done)).map_err(|_| gone())?;
        Ok(Begun(begun))
    }
}

impl<W> Drop for Standby<W> {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed where it happened.
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the device's thread has panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start<D: FnMut(u32)>(
        prepare: impl FnOnce() -> io::Result<D> + Send + 'static,
    ) -> io::Result<Standby<u32>> {
        let confinement = Confinement::none();
        let plan = ThreadPlan { name: "test", stack: 64 * 1024, role: Role::Net, confinement: &confinement };
        Standby::start(plan, prepare)
    }

    #[test]
    fn work_is_done_in_order_on_one_thread() {
        let (sender, receiver) = channel();
        let standby =
            start(move || Ok(move |work| sender.send((work, std::thread::current().id())).unwrap())).unwrap();
        for work in [1, 2] {
            standby.begin(work).unwrap().wait();
        }
        drop(standby);
        let done: Vec<_> = receiver.iter().collect();
        assert_eq!((done[0].0, done[1].0), (1, 2));
        assert_eq!(done[0].1, done[1].1);
    }

    #[test]
    fn what_cannot_be_prepared_is_told_at_the_start() {
        let error = start(|| Err::<fn(u32), _>(io::Error::other("no such thing"))).unwrap_err();
        assert_eq!(error.to_string(), "no such thing");
    }

    #[test]
    fn a_panic_ends_the_wait_and_the_next_work_is_refused() {
        let standby = start(|| Ok(|_| panic!("as the test wants it"))).unwrap();
        standby.begin(1).unwrap().wait();
        while standby.begin(2).is_ok() {
            std::thread::yield_now();
        }
    }
}
