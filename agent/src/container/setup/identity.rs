//! Whom the process becomes, and which rights it keeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, fchown, fstat};
use rustix::io::Errno;
use rustix::process::umask;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::error::{Context, Result};
use crate::container::plan::{CAPABILITY_COUNT, Capabilities, ProcessPlan, User};

/// Mode bits that new files do not get when the spec names none.
const DEFAULT_UMASK: u32 = 0o022;

/// Lets the user open what /dev/stdin and its kin lead to.
pub(super) fn own_streams(uid: u32) -> Result<()> {
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [input.as_fd(), output.as_fd(), errors.as_fd()];
    streams.into_iter().try_for_each(|stream| own(stream, uid)).context(|| "give the user its streams")
}

fn own(stream: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    let status = fstat(stream)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    let terminal = kind == FileType::CharacterDevice && rustix::termios::isatty(stream);
    // /dev/null belongs to everybody.
    if kind != FileType::Fifo && !terminal {
        return Ok(());
    }
    match fchown(stream, Some(Uid::from_raw(uid)), None) {
        // In a user namespace the pipe's owner may have no id; it can be used through its descriptor all the same.
        Err(Errno::INVAL | Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

/// Gives up what the process shall not have, and becomes its user.
pub(super) fn assume(plan: &ProcessPlan) -> Result<()> {
    drop_bounding(plan.capabilities.bounding).context(|| "process.capabilities.bounding")?;
    set_keep_capabilities(true).context(|| "keep capabilities across the change of user")?;
    change_user(&plan.user)?;
    set_keep_capabilities(false).context(|| "stop keeping capabilities")?;
    set_sets(&plan.capabilities)?;
    umask(rustix::fs::Mode::from_raw_mode(plan.user.umask.unwrap_or(DEFAULT_UMASK)));
    Ok(())
}

fn drop_bounding(bounding: u64) -> io::Result<()> {
    for number in 0..CAPABILITY_COUNT {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if bounding & capability.bits() != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel is older than the capability.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn change_user(user: &User) -> Result<()> {
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)
        .context(|| format!("process.user.additionalGids {:?}", user.additional_gids))?;
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).context(|| format!("process.user.gid {}", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).context(|| format!("process.user.uid {}", user.uid))
}

fn set_sets(capabilities: &Capabilities) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(capabilities.effective),
        permitted: CapabilitySet::from_bits_retain(capabilities.permitted),
        inheritable: CapabilitySet::from_bits_retain(capabilities.inheritable),
    };
    set_capabilities(None, sets).context(|| "process.capabilities")?;
    clear_ambient_capability_set().context(|| "clear the ambient capabilities")?;
    // One that is not both permitted and inheritable cannot be ambient (capabilities(7)).
    let possible = capabilities.ambient & capabilities.permitted & capabilities.inheritable;
    for number in (0..CAPABILITY_COUNT).filter(|number| possible & (1 << number) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
            .context(|| "process.capabilities.ambient")?;
    }
    Ok(())
}
