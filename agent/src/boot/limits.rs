//! Resource limits of the first process, which its children inherit.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// As many open files as the kernel allows at all by default (`fs.nr_open`). The kernel gives the first process
/// 4,096, less than what containers that name no limit have elsewhere.
const OPEN_FILES: u64 = 1 << 20;

/// Raises what the kernel set low.
pub(super) fn raise() -> io::Result<()> {
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    Ok(setrlimit(Resource::Nofile, limit)?)
}
