//! A watcher of a directory, which the tests run inside a container: busybox has none.

use std::mem::MaybeUninit;
use std::path::Path;

use anyhow::Context;
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// What is printed once what happens in the directory is told.
pub(super) const WATCHING: &str = "watching";
/// The name of the last file that is waited for.
pub(super) const LAST: &str = "the-last";

/// Prints the names of files that inotify(7) says were made in `directory`, until [`LAST`] is.
///
/// # Errors
/// The directory cannot be watched.
pub fn print_names(directory: &Path) -> anyhow::Result<()> {
    let inotify = init(CreateFlags::CLOEXEC)?;
    add_watch(&inotify, directory, WatchFlags::CREATE)
        .with_context(|| format!("cannot watch {}", directory.display()))?;
    println!("{WATCHING}");
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&inotify, &mut buffer);
    loop {
        let event = events.next()?;
        let name = event.file_name().map(std::ffi::CStr::to_string_lossy).unwrap_or_default();
        println!("{name}");
        if name == LAST {
            return Ok(());
        }
    }
}
