//! epoll, for devices that have a thread of their own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Sources of events, each with a number of its own.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches `source`, until it is deleted or its last descriptor is closed.
    pub(crate) fn add(&self, source: impl AsFd, id: u64, events: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(id), events)?)
    }

    /// Changes what `source` is watched for. What is so already is reported, edge-triggered or not.
    pub(crate) fn modify(&self, source: impl AsFd, id: u64, events: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, EventData::new_u64(id), events)?)
    }

    /// Watches `source` no longer.
    pub(crate) fn delete(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }

    /// Waits for events, at most for `timeout`, and puts them in place of those in `events`, up to its capacity.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        // What does not fit a timespec is as good as for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
