//! What the shim keeps of root's rights (capabilities(7)).
//!
//! The bounding set stays whole, and there is no `no_new_privs`: hooks and loggers are programs of the host's administrator,
//! which the shim executes with all that they would have under any other runtime. Limits (getrlimit(2)) are left alone for
//! the same reason, since those programs would inherit them.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What the shim needs as long as it lives, because containers come and go with it.
const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN // mounts, namespaces, the program on the socket lookup
    .union(CapabilitySet::NET_ADMIN) // taps, redirections
    .union(CapabilitySet::SYS_PTRACE) // namespaces of other processes, by /proc
    .union(CapabilitySet::KILL) // loggers that have become another user's
    .union(CapabilitySet::SETUID) // id mappings of mounts
    .union(CapabilitySet::SETGID) // the same
    .union(OF_OVERLAYS);

/// overlayfs acts on its layers with the rights of whoever mounted it (Documentation/filesystems/overlayfs.rst,
/// "Permission model"), and so do directories, fifos and logs of other users want them.
const OF_OVERLAYS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Gives up the calling thread's other capabilities, and with it those of the threads that it starts from now on. Nobody but a
/// tracer with `CAP_SYS_PTRACE` reads this process's memory from now on, which has the containers' environments in it.
///
/// # Errors
/// What capset(2) or prctl(2) returned.
pub(super) fn reduce() -> io::Result<()> {
    let has = capabilities(None)?;
    let kept = |set: CapabilitySet| set.intersection(NEEDED);
    let sets = CapabilitySets {
        effective: kept(has.effective),
        permitted: kept(has.permitted),
        // What this has is handed on to programs, which is not for this process to change.
        inheritable: has.inheritable,
    };
    set_capabilities(None, sets)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::{fs, thread};

    use super::*;

    fn effective(status: &str) -> u64 {
        let field = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        u64::from_str_radix(field.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_keeps_what_is_needed_and_programs_that_it_starts_have_all_that_there_is() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let before = fs::read_to_string("/proc/thread-self/status").unwrap();
        let visit = thread::spawn(|| {
            reduce().unwrap();
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let child = Command::new("cat").arg("/proc/self/status").output().unwrap();
            (status, String::from_utf8(child.stdout).unwrap())
        });
        let (status, child) = visit.join().unwrap();
        assert_eq!(effective(&status), effective(&before) & NEEDED.bits());
        assert_ne!(effective(&status), effective(&before));
        assert_eq!(effective(&child), effective(&before));
    }
}
