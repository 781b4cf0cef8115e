//! What the process asks of the host for itself.

use std::io;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Has the host kill this process when its parent dies: the thread that started it, precisely (prctl(2)), which
/// therefore has to live as long as the VMM is to.
pub(super) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Keeps the C library from giving every thread an arena of its own: the VMM allocates little and seldom.
pub(super) fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt changes how later allocations are made, not those that exist.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}
