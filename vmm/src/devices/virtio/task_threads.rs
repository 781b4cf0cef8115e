//! Threads on which the queues of all devices of a kind are served. They are there before the guest runs: who activates
//! a device may make no threads.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Interrupt;
use super::poller::Poller;
use super::ring::RingError;
use crate::jail::{Confinement, Role};

/// Events taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 32;
/// A thread's stack. Nothing there recurses, and all buffers are guest memory or on the heap.
const STACK_SIZE: usize = 128 * 1024;
/// The most sources that a task has, which numbers them from 0.
const MOST_SOURCES: u64 = 4;
/// The number of the event that tells a thread of commands. No task has it.
const COMMANDS: u64 = u64::MAX;

/// Which of a task's sources have had an event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ready(u8);

impl Ready {
    /// Whether the source of this number has.
    pub(super) fn has(self, source: usize) -> bool {
        self.0 & 1 << source != 0
    }
}

/// Something that is served on a thread.
pub(super) trait Task {
    /// What it waits for, edge-triggered, in an order that does not change.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// Does what there is to do, for a bounded time. True: there is more, without another event.
    fn work(&mut self, ready: Ready) -> Result<bool, RingError>;

    /// By which the driver learns that it has broken the device.
    fn interrupt(&self) -> &Interrupt;
}

/// Makes a task on the thread that is to serve it. What a task keeps of guest memory cannot be sent to one.
pub(super) type MakeTask = Box<dyn FnOnce() -> Box<dyn Task> + Send>;

enum Command {
    Add(u64, MakeTask, Sender<io::Result<()>>),
    /// Drops the task, and then the sender.
    Remove(u64, Sender<()>),
}

/// Threads for devices of one kind. Clones share them; they end with the last.
#[derive(Clone)]
pub struct TaskThreads(Arc<Mutex<Vec<Thread>>>);

struct Thread {
    /// Dropped to end it.
    commands: Option<Sender<Command>>,
    wake: EventFd,
    handle: Option<JoinHandle<()>>,
    next_task: u64,
}

/// A task on a thread. Dropping it takes the task off: when that returns, the task is gone.
pub(super) struct Registration {
    threads: TaskThreads,
    thread: usize,
    task: u64,
}

impl TaskThreads {
    /// So many threads, for what this role does.
    ///
    /// # Errors
    /// The host's refusal of a thread.
    pub fn start(role: Role, count: usize, confinement: &Confinement) -> io::Result<Self> {
        let threads = (0..count).map(|index| Thread::start(role, index, confinement));
        Ok(Self(Arc::new(Mutex::new(threads.collect::<io::Result<_>>()?))))
    }

    /// Serves a task on the thread of this number, counted round and round.
    pub(super) fn add(&self, number: usize, make_task: MakeTask) -> io::Result<Registration> {
        let (sender, added) = channel();
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = number % threads.len().max(1);
        let gone = || io::Error::other("the thread that serves the device has ended");
        let thread = threads.get_mut(index).ok_or_else(gone)?;
        let task = thread.next_task;
        thread.next_task += 1;
        thread.tell(Command::Add(task, make_task, sender))?;
        drop(threads);
        added.recv().map_err(|_| gone())??;
        Ok(Registration { threads: self.clone(), thread: index, task })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (sender, removed) = channel();
        let threads = self.threads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = match threads.get(self.thread) {
            Some(thread) => thread.tell(Command::Remove(self.task, sender)),
            None => return,
        };
        drop(threads);
        if told.is_ok() {
            // Nothing is ever sent: it returns when the thread has dropped its end.
            let _ = removed.recv();
        }
    }
}

impl Thread {
    fn start(role: Role, index: usize, confinement: &Confinement) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let woken = wake.try_clone()?;
        let poller = Poller::new()?;
        poller.add(borrow(&woken), COMMANDS, EventFlags::IN)?;
        let (commands, received) = channel();
        let name = if index == 0 { role.to_string() } else { format!("{role}{index}") };
        let (report, confined) = sync_channel(1);
        let confinement = confinement.clone();
        let body = move || {
            let entered = confinement.enter(role);
            let is_confined = entered.is_ok();
            // Who starts the thread waits for the answer.
            let _ = report.send(entered);
            if is_confined {
                Loop { role, poller, woken, commands: received, tasks: BTreeMap::new() }.run();
            }
        };
        let handle = std::thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(body)?;
        confined
            .recv()
            .map_err(|_| io::Error::other("the thread that is to serve devices has panicked"))??;
        Ok(Self { commands: Some(commands), wake, handle: Some(handle), next_task: 0 })
    }

    fn tell(&self, command: Command) -> io::Result<()> {
        let gone = || io::Error::other("the thread that serves the device has ended");
        self.commands.as_ref().ok_or_else(gone)?.send(command).map_err(|_| gone())?;
        self.wake.write(1)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.commands.take());
        // The counter is read as soon as it is written, so that it cannot be full.
        let _ = self.wake.write(1);
        if let Some(handle) = self.handle.take() {
            // A thread that has panicked has served nobody since; there is nothing to be saved.
            let _ = handle.join();
        }
    }
}

/// One task and what it has to do.
struct Entry {
    task: Box<dyn Task>,
    ready: Ready,
    is_due: bool,
    is_broken: bool,
}

/// What runs on a thread.
struct Loop {
    role: Role,
    poller: Poller,
    woken: EventFd,
    commands: Receiver<Command>,
    tasks: BTreeMap<u64, Entry>,
}

impl Loop {
    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            let due = self.tasks.values().any(|entry| entry.is_due);
            if let Err(error) = self.poller.wait(&mut events, due.then_some(Duration::ZERO)) {
                // Not for any reason that epoll_wait(2) names: then no device works, and each driver hears of it.
                eprintln!("{}: epoll: {error}", self.role);
                self.tasks.values_mut().for_each(Entry::break_device);
                return;
            }
            for event in &events {
                match event.data.u64() {
                    COMMANDS if !self.obey() => return,
                    COMMANDS => {}
                    number => self.note(number),
                }
            }
            self.tasks.values_mut().filter(|entry| entry.is_due).for_each(Entry::work);
        }
    }

    /// Does what it was told. False: to end.
    fn obey(&mut self) -> bool {
        // The counter only wakes; what there is to do is in the channel.
        let _ = self.woken.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Add(number, make_task, sender)) => {
                    // Who has asked waits for the answer.
                    let _ = sender.send(self.add(number, make_task()));
                }
                Ok(Command::Remove(number, _sender)) => self.remove(number),
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, number: u64, task: Box<dyn Task>) -> io::Result<()> {
        for (index, source) in (0..MOST_SOURCES).zip(task.sources()) {
            let id = number * MOST_SOURCES + index;
            if let Err(error) = self.poller.add(source, id, EventFlags::IN | EventFlags::ET) {
                self.forget(&*task);
                return Err(error);
            }
        }
        // What was there before needs no event to be seen.
        let entry = Entry { task, ready: Ready(u8::MAX), is_due: true, is_broken: false };
        self.tasks.insert(number, entry);
        Ok(())
    }

    fn remove(&mut self, number: u64) {
        if let Some(entry) = self.tasks.remove(&number) {
            self.forget(&*entry.task);
        }
    }

    /// The sources outlive the task, since the device and the transport have them as well.
    fn forget(&self, task: &dyn Task) {
        for source in task.sources() {
            // One that could not be added is not there to be deleted.
            let _ = self.poller.delete(source);
        }
    }

    fn note(&mut self, id: u64) {
        if let Some(entry) = self.tasks.get_mut(&(id / MOST_SOURCES)) {
            entry.ready.0 |= 1 << (id % MOST_SOURCES);
            entry.is_due = !entry.is_broken;
        }
    }
}

impl Entry {
    fn work(&mut self) {
        match self.task.work(std::mem::take(&mut self.ready)) {
            Ok(more) => self.is_due = more,
            Err(_) => self.break_device(),
        }
    }

    /// The driver has broken its rings: nothing is done for it before it resets the device.
    fn break_device(&mut self) {
        self.is_due = false;
        self.is_broken = true;
        // Should the interrupt fail, the driver still finds it in the status.
        let _ = self.task.interrupt().needs_reset();
    }
}

fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `eventfd`, which the lifetime borrows.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
