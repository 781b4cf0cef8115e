//! What the VMM keeps of its rights once it knows what it is to run: next to nothing.
//!
//! A guest that has taken over the VMM has what the VMM has. So before anything of the guest runs, the process gives
//! up what it does not need, in this order:
//!
//! 1. descriptors that nobody handed to it ([`close_all_but`]) and limits beyond its needs;
//! 2. the host's file systems, network, processes and IPC: it enters mount, ipc, uts, network and cgroup namespaces of
//!    its own, whose root directory is the share; the pid namespace is made by whoever starts it
//!    ([`in_new_pid_namespace`]);
//! 3. capabilities, but for those that serving files as the guest's users needs, which the thread named `fs` alone
//!    keeps; the way to new ones is closed (`no_new_privs`, secure bits, bounding set);
//! 4. with Landlock, where the kernel has it, files outside the share, programs to execute, TCP, and signals and
//!    abstract sockets of others;
//! 5. system calls: every thread has a seccomp filter by its role ([`Role`]) before it touches anything of the guest.
//!
//! Any step that fails stops the start, with a message that names it. Threads share memory and descriptors: what the
//! `fs` thread may do is what a VMM that was taken over may do, and no other thread's filter takes that away.

mod capabilities;
mod confinement;
mod descriptors;
mod landlock;
mod limits;
mod namespaces;
mod pid_namespace;
mod role;
mod seccomp;

use std::io;
use std::os::fd::OwnedFd;

pub use capabilities::drop_capabilities;
pub use confinement::{Confinement, ConfinementError};
pub use descriptors::close_all_but;
pub use landlock::{LandlockError, left_by_landlock};
pub use pid_namespace::in_new_pid_namespace;
pub use role::Role;
pub use seccomp::{Condition, FilterError, Rule, report_violations_to, rules};

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The process has not been started as the first of a pid namespace.
    #[error(
        "the VMM has process number {0} and not 1: it must be started in a pid namespace of its own, as the shim does"
    )]
    PidNamespace(i32),
    /// The kernel refused a step.
    #[error("the VMM's jail: {step}: {source}")]
    Step {
        /// What was asked of the kernel.
        step: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Landlock is there and refuses.
    #[error(transparent)]
    Landlock(#[from] LandlockError),
    /// A filter cannot be built.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Names the step that an error belongs to.
fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError::Step { step, source: error.into() }
}

/// What a jailed process works with.
#[derive(Debug)]
pub struct Jail {
    /// The root directory, which is the share, as the process's own mount namespace has it.
    pub root: OwnedFd,
    /// This process's `/proc/self/fd`, on a mount of its own: no `..` leads out of it.
    pub descriptor_directory: OwnedFd,
    /// What every thread calls first.
    pub confinement: Confinement,
}

/// Jails the process: the calling thread, which must be its only one, and all that it starts from now on. `share` is
/// any descriptor of a directory at which something is mounted; what is mounted below it later, by whoever mounted
/// it, appears in the jail.
///
/// The thread keeps the capabilities of [`Role::Fs`] until it calls [`drop_capabilities`] or takes on a role.
///
/// # Errors
/// The first step that failed.
pub fn enter(share: OwnedFd) -> Result<Jail, JailError> {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    if process != 1 {
        return Err(JailError::PidNamespace(process));
    }
    let confinement = Confinement::filters()?;
    limits::set()?;
    let (root, descriptor_directory) = namespaces::enter(share)?;
    capabilities::keep_for_files_only()?;
    landlock::restrict(&root)?;
    Ok(Jail { root, descriptor_directory, confinement })
}
