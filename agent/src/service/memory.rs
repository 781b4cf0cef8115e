//! The pod's volumes in memory: each a tmpfs of the guest's, which containers bind and which lasts as long as the pod.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, open, openat};
use rustix::mount::{MountFlags, mount};
use rustix::system::sysinfo;
use saya_agent_api::MEMORY_PATH;
use saya_agent_api::agent::{MemoryDirectory, MemoryVolume};

use crate::error::{Action, Error, Result};
use crate::paths::Root;

/// The volumes that are there.
#[derive(Debug, Default)]
pub(super) struct MemoryVolumes {
    mounted: Mutex<HashSet<String>>,
}

impl MemoryVolumes {
    /// Makes volumes that are not there yet, and directories in them.
    pub(super) fn prepare(&self, volumes: &[MemoryVolume]) -> Result<()> {
        // Held over the mount: who finds a volume here finds it mounted.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        for volume in volumes {
            let place = place(&volume.name)?;
            let action = || format!("make the volume in memory {}", place.display());
            if !mounted.contains(&volume.name) {
                fs::create_dir_all(&place).action(action)?;
                let options = CString::new(options(volume, guest_memory())).action(action)?;
                mount("tmpfs", &place, "tmpfs", MountFlags::empty(), options.as_c_str()).action(action)?;
                mounted.insert(volume.name.clone());
            }
            let root = Root::new(open(&place, PLACE, Mode::empty()).action(action)?);
            volume.directories.iter().try_for_each(|directory| make(&root, directory)).action(action)?;
        }
        Ok(())
    }
}

const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn place(name: &str) -> Result<PathBuf> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::InvalidRequest(format!("name {name:?} of a volume in memory is not a number")));
    }
    Ok(Path::new(MEMORY_PATH).join(name))
}

/// What the kernel gives processes of this guest, in bytes.
fn guest_memory() -> u64 {
    let known = sysinfo();
    known.totalram.saturating_mul(known.mem_unit.into())
}

/// Options of the file system. One that is larger than all memory would have its writers killed before it is full, so it is as large as
/// the kernel makes one of which nothing is said, which is half of the memory.
fn options(volume: &MemoryVolume, memory: u64) -> String {
    let MemoryVolume { size, mode, uid, gid, .. } = volume;
    let options = format!("mode={mode:o},uid={uid},gid={gid}");
    if (1..=memory).contains(size) { format!("{options},size={size}") } else { options }
}

/// Makes a directory and those that lead to it. What is there already stays as it is.
fn make(root: &Root, wanted: &MemoryDirectory) -> io::Result<()> {
    let mut path = PathBuf::from(".");
    let mut parent = root.find(&path)?;
    for name in Path::new(&wanted.path) {
        path.push(name);
        parent = match root.find(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mkdirat(&parent, name, Mode::RWXU)?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&parent, name, flags, Mode::empty())?;
                fchown(&made, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
                fchmod(&made, Mode::from_raw_mode(wanted.mode & 0o7777))?;
                made
            }
            found => found?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_volume_is_as_large_as_it_is_to_be_unless_the_guest_has_less() {
        let volume = |size| MemoryVolume { size, mode: 0o2777, uid: 1, gid: 2000, ..MemoryVolume::default() };
        assert_eq!(options(&volume(65_536), 1 << 20), "mode=2777,uid=1,gid=2000,size=65536");
        assert_eq!(options(&volume(1 << 20), 1 << 20), "mode=2777,uid=1,gid=2000,size=1048576");
        for size in [0, (1 << 20) + 1, u64::MAX] {
            assert_eq!(options(&volume(size), 1 << 20), "mode=2777,uid=1,gid=2000");
        }
    }

    #[test]
    fn a_name_that_could_lead_elsewhere_is_refused() {
        for name in ["", "..", "0/..", "a", "-1"] {
            assert!(place(name).unwrap_err().to_string().contains("is not a number"), "{name}");
        }
        assert_eq!(place("12").unwrap(), Path::new("/run/saya/memory/12"));
    }

    #[test]
    fn directories_of_a_volume_are_made_once_and_inside_of_it() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let root = Root::new(open(inside.path(), PLACE, Mode::empty()).unwrap());
        let uid = fs::metadata(inside.path()).unwrap().uid();
        let wanted = |path: &str, mode| {
            let gid = fs::metadata(inside.path()).unwrap().gid();
            MemoryDirectory { path: path.to_owned(), mode, uid, gid, ..MemoryDirectory::default() }
        };
        make(&root, &wanted("a/b", 0o2771)).unwrap();
        for made in ["a", "a/b"] {
            assert_eq!(fs::metadata(inside.path().join(made)).unwrap().mode() & 0o7777, 0o2771, "{made}");
        }
        fs::set_permissions(inside.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        make(&root, &wanted("a/b", 0o777)).unwrap();
        assert_eq!(fs::metadata(inside.path().join("a")).unwrap().mode() & 0o7777, 0o700);

        symlink(outside.path(), inside.path().join("out")).unwrap();
        make(&root, &wanted("out/c", 0o700)).unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
