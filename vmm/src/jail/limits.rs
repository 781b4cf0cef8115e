//! Resource limits (getrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{JailError, step};

/// The most descriptors: what the shared file system may hold (see `fs/limits.rs`), 1,024 connections of vsock, and
/// some for the rest.
const DESCRIPTORS: u64 = 96 * 1024;

/// Sets them to the VMM's needs. `RLIMIT_FSIZE` stays, since the guest's files are as large as they are; `RLIMIT_NPROC`
/// counts nothing for root, and no thread may start another one anyway.
pub(super) fn set() -> Result<(), JailError> {
    // A dump would hold the guest's memory.
    lower(Resource::Core, 0, "RLIMIT_CORE")?;
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
