//! The file systems of the guest itself.

use std::ffi::CStr;

use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::{BootError, Step};

struct FileSystem {
    kind: &'static CStr,
    target: &'static CStr,
    flags: MountFlags,
    options: &'static CStr,
    /// What a [`BootError`] says when it fails.
    step: &'static str,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

const DEV: FileSystem = FileSystem {
    kind: c"devtmpfs",
    target: c"/dev",
    flags: DEVICES,
    options: c"mode=755",
    step: "mount devtmpfs on /dev",
};

const REMAINING: [FileSystem; 7] = [
    FileSystem { kind: c"proc", target: c"/proc", flags: SAFE, options: c"", step: "mount proc on /proc" },
    FileSystem { kind: c"sysfs", target: c"/sys", flags: SAFE, options: c"", step: "mount sysfs on /sys" },
    FileSystem {
        kind: c"cgroup2",
        target: c"/sys/fs/cgroup",
        flags: SAFE,
        options: c"nsdelegate",
        step: "mount cgroup2 on /sys/fs/cgroup",
    },
    FileSystem {
        kind: c"tmpfs",
        target: c"/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=755",
        step: "mount tmpfs on /run",
    },
    FileSystem {
        kind: c"devpts",
        target: c"/dev/pts",
        flags: DEVICES,
        options: c"ptmxmode=0666,mode=0620,gid=5",
        step: "mount devpts on /dev/pts",
    },
    FileSystem {
        kind: c"tmpfs",
        target: c"/dev/shm",
        flags: SAFE,
        // As large as container runtimes make it.
        options: c"mode=1777,size=65536k",
        step: "mount tmpfs on /dev/shm",
    },
    FileSystem {
        kind: c"mqueue",
        target: c"/dev/mqueue",
        flags: SAFE,
        options: c"",
        step: "mount mqueue on /dev/mqueue",
    },
];

/// Mounts /dev, without which the agent has no log.
pub(super) fn devices() -> Result<(), BootError> {
    mount_one(&DEV)
}

/// Mounts everything else.
pub(super) fn remaining() -> Result<(), BootError> {
    REMAINING.iter().try_for_each(mount_one)
}

fn mount_one(file_system: &FileSystem) -> Result<(), BootError> {
    let FileSystem { kind, target, flags, options, step } = *file_system;
    match mkdir(target, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step(step),
    }
    mount(kind, target, kind, flags, options).step(step)
}
