//! Files of the cgroup tree whose changes the kernel announces by inotify(7): `cgroup.events`, `memory.events`.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Action, Result};
use crate::sys::watch::watch;

/// Announces each change of one file.
#[derive(Debug)]
pub(crate) struct Changes {
    announcements: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Begins to watch `file`.
    pub(crate) fn of(file: &Path) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, file, inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE_SELF)?;
        Ok(Self { announcements: watch(inotify, Interest::READABLE)? })
    }

    /// Waits until the file has changed since the last time.
    pub(crate) async fn next(&self) -> io::Result<()> {
        self.announcements.async_io(Interest::READABLE, drain).await
    }
}

/// Reads all announcements; what they say is known.
fn drain(inotify: &OwnedFd) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut some = false;
    loop {
        match rustix::io::read(inotify, &mut buffer) {
            Ok(_) => some = true,
            Err(Errno::WOULDBLOCK) if some => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `done` holds for what the file says. A file that is gone has nothing more to say.
pub(crate) async fn wait_for(file: &Path, done: impl Fn(&str) -> bool) -> Result<()> {
    let action = || format!("watch {}", file.display());
    let changes = match Changes::of(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.action(action)?,
    };
    loop {
        match fs::read_to_string(file) {
            Ok(text) if done(&text) => return Ok(()),
            Ok(_) => changes.next().await.action(action)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(error).action(action),
        }
    }
}

/// The number behind `key` in a file of lines `key number`.
pub(crate) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_taken_for_one_that_it_begins() {
        let text = "oom 3\noom_kill 5\noom_group_kill 1\n";
        assert_eq!(value(text, "oom"), Some(3));
        assert_eq!(value(text, "oom_kill"), Some(5));
        assert_eq!(value(text, "oom_"), None);
    }

    #[tokio::test]
    async fn a_change_between_reading_and_waiting_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("events");
        fs::write(&file, "populated 1\n").unwrap();
        let changes = Changes::of(&file).unwrap();
        fs::write(&file, "populated 0\n").unwrap();
        changes.next().await.unwrap();
        wait_for(&file, |text| value(text, "populated") == Some(0)).await.unwrap();
    }
}
