//! Resource limits (getrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{JailError, step};

/// The most descriptors: what the shared file system may hold (see `fs/limits.rs`), 1,024 connections of vsock, and
/// some for the rest.
const DESCRIPTORS: u64 = 96 * 1024;

/// The size of core dumps, in bytes. A dump would hold what the guest reads, writes and sends. One byte forbids dumps to programs too,
/// which 0 does not (core(5), `do_coredump` in fs/coredump.c); `setfsuid`, by which the file server takes on the guest's users, may make the
/// process dumpable for them (`fs.suid_dumpable`).
const CORE: u64 = 1;

/// Sets them to the VMM's needs. `RLIMIT_FSIZE` stays, since the guest's files are as large as they are; `RLIMIT_NPROC`
/// counts nothing for root, and no thread may start another one anyway.
pub(super) fn set() -> Result<(), JailError> {
    lower(Resource::Core, CORE, "RLIMIT_CORE")?;
    lower(Resource::Msgqueue, 0, "RLIMIT_MSGQUEUE")?;
    lower(Resource::Rtprio, 0, "RLIMIT_RTPRIO")?;
    let descriptors = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    // More than there were takes a privilege. Without it the file system makes do with what there is.
    setrlimit(Resource::Nofile, descriptors)
        .or_else(|_| lower(Resource::Nofile, DESCRIPTORS, "RLIMIT_NOFILE"))
}

/// Makes soft and hard limit the hard one, and `most` at most.
fn lower(resource: Resource, most: u64, name: &'static str) -> Result<(), JailError> {
    let maximum = Some(getrlimit(resource).maximum.map_or(most, |had| had.min(most)));
    setrlimit(resource, Rlimit { current: maximum, maximum }).map_err(step(name))
}
