//! The pid namespace, which a process cannot enter by itself: it holds the children of whoever made it.

use std::fs::File;
use std::io;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::os::fd::AsFd;

/// Calls `spawn`, whose child becomes the first process of a pid namespace of its own: it sees no other process, and
/// no signal of another one in there. The calling thread's later children are born where it lives again. `spawn` must
/// not make threads, which the kernel refuses meanwhile.
///
/// # Errors
/// What `spawn` returned, or the kernel's refusal of the namespace (`EPERM` without `CAP_SYS_ADMIN`).
pub fn in_new_pid_namespace<T>(spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/pid")?;
    // SAFETY: CLONE_NEWPID is for later children and takes nothing away that this process relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    let spawned = spawn();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    spawned
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_child_is_the_first_of_its_namespace_and_the_next_one_is_not() {
        let number = || Command::new("/bin/sh").args(["-c", "echo $$"]).output();
        let Ok(inside) = in_new_pid_namespace(number) else {
            eprintln!("skipped: no right to make namespaces");
            return;
        };
        assert_eq!(inside.stdout, b"1\n");
        assert_ne!(number().unwrap().stdout, b"1\n");
    }
}
