//! The lab's ends of the ports to the host.

use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

const CONTROL: &str = "/dev/vport0p1";
const INPUT: &str = "/dev/vport0p2";

/// Opens the port for frames of the protocol, for reading and writing, once the host is connected to it.
///
/// # Errors
///
/// The device cannot be opened.
pub(super) fn control() -> Result<File> {
    open(Path::new(CONTROL))
}

/// Opens the port for standard input.
///
/// # Errors
///
/// The device cannot be opened.
pub(super) fn input() -> Result<File> {
    open(Path::new(INPUT))
}

fn open(path: &Path) -> Result<File> {
    wait_for_node(path)?;
    let port = OpenOptions::new().read(true).write(true).open(path);
    let port = port.with_context(|| format!("opening {}", path.display()))?;
    wait_for_host(&port)?;
    Ok(port)
}

/// The driver learns of the ports one after the other from the host: waits until the node is made.
fn wait_for_node(path: &Path) -> Result<()> {
    let watcher = inotify::init(inotify::CreateFlags::empty())?;
    inotify::add_watch(&watcher, "/dev", WatchFlags::CREATE)?;
    let mut buffer = [MaybeUninit::uninit(); 1024];
    while !path.exists() {
        inotify::Reader::new(&watcher, &mut buffer)
            .next()
            .map(|event| event.events().contains(ReadFlags::QUEUE_OVERFLOW))?;
    }
    Ok(())
}

/// A port whose other end is not open yet reads as ended and polls as hung up: waits for the change of that.
fn wait_for_host(port: &File) -> Result<()> {
    let watcher = epoll::create(CreateFlags::CLOEXEC)?;
    let interests = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    epoll::add(&watcher, port.as_fd(), EventData::new_u64(0), interests)?;
    loop {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let count = epoll::wait(&watcher, &mut events, None)?;
        if events.iter().take(count).any(|event| !{ event.flags }.contains(EventFlags::HUP)) {
            return Ok(());
        }
    }
}
