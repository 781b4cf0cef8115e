//! A pod's volumes in memory: a tmpfs of the host's that nobody but the pod has becomes one of the guest's.
//!
//! What its containers write there is then theirs, counted against their limits in the guest. In a tmpfs of the host's, written to
//! by the VMM, it would be counted against the pod as a whole, for whose containers the virtual machine has memory already.
//!
//! Once one container has been given a volume in one way, all others of the pod are: nothing is ever in two places.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxFlags, statfs, statvfs, statx};
use saya_agent_api::MEMORY_PATH;
use saya_agent_api::agent::{MemoryDirectory, MemoryVolume};

use crate::mount::{self, MountPoint};
use crate::spec::own_volumes::OwnVolumes;

/// The most directories that a volume may have which a kubelet has made in it, for its `subPath`s.
const DIRECTORIES_MAX: usize = 256;

/// What is mounted with a flag in memory of the host's is so in that of the guest.
const OPTIONS: [(StatVfsMountFlags, &str); 4] = [
    (StatVfsMountFlags::RDONLY, "ro"),
    (StatVfsMountFlags::NOSUID, "nosuid"),
    (StatVfsMountFlags::NODEV, "nodev"),
    (StatVfsMountFlags::NOEXEC, "noexec"),
];

/// Which of the host's file systems are in the guest's memory, and which are not although they might.
#[derive(Debug, Default)]
pub(super) struct MemoryVolumes {
    known: Mutex<Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    device: String,
    place: PathBuf,
    /// Its name in the guest. None where it holds something of the host's, and is shared as any other volume.
    name: Option<String>,
}

/// A volume in the guest's memory, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InMemory {
    /// What the agent has to make.
    pub(crate) volume: MemoryVolume,
    /// Where the guest finds what is bound.
    pub(crate) path: String,
    /// Options of the bind.
    pub(crate) options: Vec<&'static str>,
}

impl MemoryVolumes {
    /// Looks at what is to be bound. None where it is no memory of the pod's own.
    ///
    /// # Errors
    /// What the system returned.
    pub(super) fn find(&self, source: &Path, own: &OwnVolumes) -> io::Result<Option<InMemory>> {
        if statfs(source)?.f_type != libc::TMPFS_MAGIC {
            return Ok(None);
        }
        let source = fs::canonicalize(source)?;
        let table = mount::mount_points()?;
        let Some((whole, inside)) = own_file_system(&table, &source, own)? else { return Ok(None) };
        let Some(name) = self.name(whole)? else { return Ok(None) };
        let path: PathBuf = Path::new(MEMORY_PATH).join(&name).iter().chain(&inside).collect();
        let volume =
            MemoryVolume { directories: directories(&source, &inside)?, ..described(name, &whole.place)? };
        let flags = statvfs(&source)?.f_flag;
        let options = OPTIONS.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name);
        Ok(Some(InMemory { volume, path: text(&path)?, options: options.collect() }))
    }

    /// The name of a volume in the guest, where it is there: decided when the first container comes.
    fn name(&self, volume: &MountPoint) -> io::Result<Option<String>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) =
            known.iter().find(|known| known.device == volume.device && known.place == volume.place)
        {
            return Ok(known.name.clone());
        }
        let name = if holds_files(&volume.place)? {
            tracing::info!(volume = %volume.place.display(), "a volume in memory that holds files stays the host's");
            None
        } else {
            Some(known.len().to_string())
        };
        known.push(Known { device: volume.device.clone(), place: volume.place.clone(), name: name.clone() });
        Ok(name)
    }
}

/// The file system that `source` is in, if it is the pod's own, and where in it.
fn own_file_system<'a>(
    table: &'a [MountPoint],
    source: &Path,
    own: &OwnVolumes,
) -> io::Result<Option<(&'a MountPoint, PathBuf)>> {
    let id = statx(CWD, source, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let Some(mount) = table.iter().find(|mount| mount.id == id) else { return Ok(None) };
    let is_whole = |candidate: &&MountPoint| {
        candidate.device == mount.device
            && candidate.root == Path::new("/")
            && (own.is_empty_dir(&candidate.place) || own.is_shared_memory(&candidate.place))
    };
    let Some(whole) = table.iter().find(is_whole) else { return Ok(None) };
    let inside = mount.root.join(source.strip_prefix(&mount.place).map_err(io::Error::other)?);
    Ok(Some((whole, inside.iter().skip(1).collect())))
}

fn described(name: String, place: &Path) -> io::Result<MemoryVolume> {
    let (status, space) = (fs::metadata(place)?, statvfs(place)?);
    Ok(MemoryVolume {
        name,
        size: space.f_blocks.saturating_mul(space.f_frsize),
        mode: status.mode() & 0o7777,
        uid: status.uid(),
        gid: status.gid(),
        ..MemoryVolume::default()
    })
}

/// The directory inside a volume that is to be bound, which the guest may not have yet.
fn directories(source: &Path, inside: &Path) -> io::Result<Vec<MemoryDirectory>> {
    let status = fs::metadata(source)?;
    if inside.as_os_str().is_empty() || !status.is_dir() {
        return Ok(Vec::new());
    }
    Ok(vec![MemoryDirectory {
        path: text(inside)?,
        mode: status.mode() & 0o7777,
        uid: status.uid(),
        gid: status.gid(),
        ..MemoryDirectory::default()
    }])
}

/// Whether there is anything in `directory` but a few directories, which can be made anew.
fn holds_files(directory: &Path) -> io::Result<bool> {
    let device = fs::metadata(directory)?.dev();
    let mut directories = vec![directory.to_owned()];
    let mut looked_at = 0;
    while let Some(directory) = directories.get(looked_at).cloned() {
        for entry in fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()? {
            let status = entry.metadata()?;
            if !status.is_dir() || status.dev() != device || directories.len() > DIRECTORIES_MAX {
                return Ok(true);
            }
            directories.push(entry.path());
        }
        looked_at += 1;
    }
    Ok(false)
}

fn text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::other(format!("{}: the name is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::mount::{MountFlags, mount, mount_bind};
    use serde_json::json;

    use super::*;
    use crate::mount::unmount_all;
    use crate::spec::Document;

    /// A tmpfs of one MiB where a kubelet of the pod `u-1` would have it.
    struct Memory {
        root: tempfile::TempDir,
        place: PathBuf,
    }

    impl Memory {
        fn mount() -> Self {
            let root = tempfile::tempdir().unwrap();
            let place = root.path().join("pods/u-1/volumes/kubernetes.io~empty-dir/cache");
            fs::create_dir_all(&place).unwrap();
            mount("tmpfs", &place, "tmpfs", MountFlags::NOEXEC, c"size=1m,mode=2770,gid=7").unwrap();
            Self { root, place }
        }

        /// A part of it, elsewhere, as a kubelet has it for a `subPath`.
        fn part(&self, path: &str) -> PathBuf {
            let place = self.root.path().join("pods/u-1/volume-subpaths/cache/main/0");
            fs::create_dir_all(&place).unwrap();
            fs::create_dir_all(self.place.join(path)).unwrap();
            fs::set_permissions(self.place.join(path), fs::Permissions::from_mode(0o750)).unwrap();
            mount_bind(self.place.join(path), &place).unwrap();
            place
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            for place in mount::mounts_below(self.root.path()).unwrap().iter().rev() {
                unmount_all(place).unwrap();
            }
        }
    }

    fn pod(uid: &str) -> OwnVolumes {
        let annotations = json!({"io.kubernetes.cri.sandbox-uid": uid, "io.kubernetes.cri.sandbox-id": "s"});
        OwnVolumes::of(&Document::from_value(json!({"annotations": annotations})).unwrap()).unwrap()
    }

    #[test]
    fn a_pods_own_memory_is_the_guests_as_large_and_open_as_the_hosts_and_its_parts_are_in_it() {
        let memory = Memory::mount();
        let volumes = MemoryVolumes::default();
        let part = memory.part("a/b");
        let found = volumes.find(&memory.place, &pod("u-1")).unwrap().unwrap();
        assert_eq!((found.path.as_str(), found.options.as_slice()), ("/run/saya/memory/0", &["noexec"][..]));
        let whole = &found.volume;
        assert_eq!((whole.name.as_str(), whole.size, whole.mode), ("0", 1 << 20, 0o2770));
        assert_eq!((whole.uid, whole.gid, whole.directories.len()), (0, 7, 0));
        let found = volumes.find(&part, &pod("u-1")).unwrap().unwrap();
        assert_eq!(found.path, "/run/saya/memory/0/a/b");
        let [directory] = found.volume.directories.as_slice() else { panic!("one directory") };
        assert_eq!((directory.path.as_str(), directory.mode), ("a/b", 0o750));
    }

    #[test]
    fn memory_that_is_anothers_stays_the_hosts() {
        let memory = Memory::mount();
        let volumes = MemoryVolumes::default();
        assert_eq!(volumes.find(&memory.place, &pod("u-2")).unwrap(), None);
        let elsewhere = memory.root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        mount("tmpfs", &elsewhere, "tmpfs", MountFlags::empty(), None).unwrap();
        for of_the_host in [elsewhere.as_path(), memory.root.path()] {
            assert_eq!(volumes.find(of_the_host, &pod("u-1")).unwrap(), None);
        }
    }

    #[test]
    fn memory_with_a_file_of_the_hosts_stays_the_hosts_for_all_the_pods_containers() {
        let memory = Memory::mount();
        let volumes = MemoryVolumes::default();
        let part = memory.part("a");
        fs::write(memory.place.join("a/file"), "").unwrap();
        assert_eq!(volumes.find(&part, &pod("u-1")).unwrap(), None);
        fs::remove_file(memory.place.join("a/file")).unwrap();
        for place in [&memory.place, &part] {
            assert_eq!(volumes.find(place, &pod("u-1")).unwrap(), None);
        }
    }
}
