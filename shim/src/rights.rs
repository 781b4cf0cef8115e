//! What the shim keeps of root's rights (capabilities(7)).
//!
//! The bounding set stays whole, and there is no `no_new_privs`: hooks and loggers are programs of the host's administrator,
//! which the shim executes with all that they would have under any other runtime. Limits (getrlimit(2)) are left alone for
//! the same reason, since those programs would inherit them.

use std::{io, thread};

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

/// What a thread of its own has [for a moment](with): no other has it in effect, overlays among them, which would exceed quotas
/// with it.
const AT_TIMES: CapabilitySet = CapabilitySet::SYS_RESOURCE; // OOM scores below those that a process has had

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
    let sets = CapabilitySets {
        effective: has.effective.intersection(NEEDED),
        permitted: has.permitted.intersection(NEEDED.union(AT_TIMES)),
        // What this has is handed on to programs, which is not for this process to change.
        inheritable: has.inheritable,
    };
    set_capabilities(None, sets)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Does something that needs a capability of [`AT_TIMES`], on a thread that ends with it. Where the shim does not have it, it is
/// tried without.
///
/// # Errors
/// Those of `work`, and what making a thread or capset(2) returned.
pub(crate) fn with<T: Send>(
    capability: CapabilitySet,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let raised = move || {
        let has = capabilities(None)?;
        let effective = has.effective.union(capability.intersection(has.permitted));
        set_capabilities(None, CapabilitySets { effective, ..has })?;
        work()
    };
    thread::scope(|scope| {
        let helper = thread::Builder::new().spawn_scoped(scope, raised)?;
        helper.join().unwrap_or_else(|_| Err(io::Error::other("the helper thread has panicked")))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

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

    #[test]
    fn a_capability_for_a_moment_is_in_effect_for_that_and_for_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let own_status = || fs::read_to_string("/proc/thread-self/status");
        let there_is = effective(&own_status().unwrap()) & AT_TIMES.bits();
        let visit = thread::spawn(move || {
            reduce().unwrap();
            let within = with(AT_TIMES, own_status).unwrap();
            (within, own_status().unwrap())
        });
        let (within, after) = visit.join().unwrap();
        assert_eq!(effective(&within), effective(&after) | there_is);
        assert_eq!(effective(&after) & AT_TIMES.bits(), 0);
    }
}
