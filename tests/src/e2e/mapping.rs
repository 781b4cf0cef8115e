//! Two processes that map one file, which the tests run inside containers.

use std::fs::OpenOptions;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// How long a process waits for another that maps the same file.
const PATIENCE: Duration = Duration::from_secs(120);

/// Counts itself in the first word of `file`, in a mapping that all who map it share, and waits until there are two.
///
/// # Errors
/// The file cannot be mapped, or nobody else comes.
pub fn meet_in(file: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(file).context("cannot open the file")?;
    let both = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let page = unsafe { mmap(ptr::null_mut(), 4096, both, MapFlags::SHARED, &file, 0) }?;
    // SAFETY: the mapping begins with a whole, aligned word, is never unmapped, and is accessed by atomic operations alone.
    let count = unsafe { AtomicU32::from_ptr(page.cast()) };
    count.fetch_add(1, Ordering::SeqCst);
    let begin = Instant::now();
    while count.load(Ordering::SeqCst) < 2 {
        ensure!(begin.elapsed() < PATIENCE, "nobody else has mapped the file");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
