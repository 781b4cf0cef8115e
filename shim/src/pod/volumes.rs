//! A pod's volumes: directories and files of the host, mounted in the share at `live/<name>`.
//!
//! Each mount of the share is a file system of its own in the guest. Containers of the pod that want the same of the host
//! in the same way get the same mount, so that sockets, pipes, locks and shared memory work between them.
//!
//! A volume in memory that is the pod's own [is the guest's instead](super::memory_volumes).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::directory::PodDirectory;
use super::memory_volumes::{InMemory, MemoryVolumes};
use crate::mount::{self, Binding, ReadOnly};
use crate::spec::mounts::Volume;
use crate::spec::own_volumes::OwnVolumes;

/// The volumes that are mounted.
#[derive(Debug)]
pub(crate) struct Volumes {
    directory: PodDirectory,
    mounted: Mutex<Mounted>,
    memory: MemoryVolumes,
}

/// Where the guest finds a volume.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    /// In the share.
    Share {
        /// Under this name.
        name: String,
        /// What is mounted below it and is to keep flags of its own in the guest, outermost first.
        submounts: Vec<PathBuf>,
    },
    /// In its own memory.
    Memory(Box<InMemory>),
}

#[derive(Debug, Default)]
struct Mounted {
    next: u64,
    volumes: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    origin: Origin,
    /// The ids of the containers that have it, once for each of their mounts of it.
    users: Vec<String>,
}

/// What of the host is mounted, and how: two that are equal need only one mount.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    mount: u64,
    device: u64,
    inode: u64,
    /// Mounts below it, which a recursive bind takes along, by their paths from there.
    submounts: Vec<PathBuf>,
    binding: Binding,
}

impl Origin {
    fn of(volume: &Volume) -> io::Result<Self> {
        let source = std::fs::canonicalize(&volume.source)?;
        let metadata = std::fs::metadata(&source)?;
        let mount = statx(CWD, &source, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
        // A file has nothing below it, and what is mounted on it is `mount`.
        let takes_submounts = volume.binding.recursive && volume.directory;
        let submounts = if takes_submounts { submounts(&source)? } else { Vec::new() };
        Ok(Self {
            mount,
            device: metadata.dev(),
            inode: metadata.ino(),
            submounts,
            binding: volume.binding.clone(),
        })
    }

    /// The mounts below that are not to become read-only with what they are below, as they would where the guest's kernel
    /// mounts them by itself. With `slave` that is what becomes of all of them, since those that come later are mounted so.
    fn own_flags(&self) -> Vec<PathBuf> {
        let keeps = self.binding.read_only == ReadOnly::Top && !self.binding.slave;
        if keeps { self.submounts.clone() } else { Vec::new() }
    }
}

/// Every mount point below `directory`, by its path from there, the innermost last.
fn submounts(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let below = mount::mounts_below(directory)?;
    let below = below.iter().filter_map(|place| place.strip_prefix(directory).ok());
    Ok(below.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned).collect())
}

impl Volumes {
    /// None yet, in the pod's directory.
    pub(crate) fn new(directory: PodDirectory) -> Self {
        Self { directory, mounted: Mutex::default(), memory: MemoryVolumes::default() }
    }

    /// Gives a container a volume, which may be one of its pod's `own`.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn acquire(
        &self,
        container: &str,
        volume: &Volume,
        own: Option<&OwnVolumes>,
    ) -> io::Result<Place> {
        let in_memory = own.map_or(Ok(None), |own| self.memory.find(&volume.source, own))?;
        match in_memory {
            Some(_) if volume.binding.mapping.is_some() => Err(io::Error::other(
                "uidMappings and gidMappings are not supported here: the volume is the virtual machine's memory",
            )),
            Some(in_memory) => Ok(Place::Memory(Box::new(in_memory))),
            None => self.share(container, volume),
        }
    }

    /// Mounts a volume in the share, unless it is mounted already.
    fn share(&self, container: &str, volume: &Volume) -> io::Result<Place> {
        // Held over the mount: who finds a volume here finds it mounted.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = Origin::of(volume)?;
        if let Some(entry) = mounted.volumes.iter_mut().find(|entry| entry.origin == origin) {
            entry.users.push(container.to_owned());
            return Ok(Place::Share { name: entry.name.clone(), submounts: entry.origin.own_flags() });
        }
        let name = mounted.next.to_string();
        mounted.next += 1;
        if let Err(error) = self.mount(&name, volume) {
            // The error that led here is the one to tell of; the pod's end tries again.
            let _ = self.directory.remove_volume(&name);
            return Err(error);
        }
        let submounts = origin.own_flags();
        mounted.volumes.push(Entry { name: name.clone(), origin, users: vec![container.to_owned()] });
        Ok(Place::Share { name, submounts })
    }

    fn mount(&self, name: &str, volume: &Volume) -> io::Result<()> {
        let target = self.directory.create_volume(name, volume.directory)?;
        mount::bind(&volume.source, &target, &volume.binding)
    }

    /// Unmounts what only this container had, and gives the names. What cannot be unmounted is told of in the log, and
    /// goes with the pod.
    pub(crate) fn release(&self, container: &str) -> Vec<String> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in &mut mounted.volumes {
            entry.users.retain(|user| user != container);
        }
        let unused = mounted.volumes.extract_if(.., |entry| entry.users.is_empty());
        let names: Vec<String> = unused.map(|entry| entry.name).collect();
        for name in &names {
            if let Err(error) = self.directory.remove_volume(name) {
                tracing::error!(container, %error, "a volume stays behind");
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::MountFlags;

    use super::*;

    impl Volumes {
        /// The name and the submounts of a volume in the share.
        fn shared(&self, container: &str, volume: &Volume) -> (String, Vec<PathBuf>) {
            match self.acquire(container, volume, None).unwrap() {
                Place::Share { name, submounts } => (name, submounts),
                Place::Memory(_) => panic!("not in the share"),
            }
        }
    }

    fn volume(source: &Path, read_only: bool) -> Volume {
        Volume {
            source: source.to_owned(),
            mount: 0,
            directory: true,
            binding: Binding {
                recursive: true,
                read_only: if read_only { ReadOnly::Top } else { ReadOnly::Nothing },
                ..Binding::default()
            },
        }
    }

    #[test]
    fn containers_that_want_the_same_in_the_same_way_have_one_mount_until_the_last_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let pod = PodDirectory::below(root.path(), "default", "p1");
        pod.create().unwrap();
        let source = root.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "x").unwrap();

        let volumes = Volumes::new(pod.clone());
        let (first, _) = volumes.shared("c1", &volume(&source, false));
        let (same, _) = volumes.shared("c2", &volume(&source, false));
        let (read_only, _) = volumes.shared("c2", &volume(&source, true));
        assert_eq!(first, same);
        assert_ne!(first, read_only);

        let file = |name: &str| root.path().join("default/p1/share/live").join(name).join("file");
        assert_eq!(volumes.release("c1"), Vec::<String>::new());
        assert!(file(&first).exists());
        assert_eq!(volumes.release("c2"), [first.clone(), read_only]);
        assert!(!file(&first).exists() && source.join("file").exists());
        pod.remove().unwrap();
    }

    #[test]
    fn a_volume_that_cannot_be_mounted_leaves_nothing_for_the_next_to_find() {
        let root = tempfile::tempdir().unwrap();
        let pod = PodDirectory::below(root.path(), "default", "p1");
        pod.create().unwrap();
        let source = root.path().join("file");
        fs::write(&source, "x").unwrap();

        let volumes = Volumes::new(pod.clone());
        // A file cannot be mounted on a directory.
        for container in ["c1", "c2"] {
            volumes.acquire(container, &volume(&source, false), None).unwrap_err();
        }
        assert_eq!(fs::read_dir(root.path().join("default/p1/share/live")).unwrap().count(), 0);
        assert_eq!(volumes.release("c1"), Vec::<String>::new());
        pod.remove().unwrap();
    }

    #[test]
    fn mounts_below_a_volume_that_alone_is_read_only_are_named_to_keep_their_flags() {
        let root = tempfile::tempdir().unwrap();
        let pod = PodDirectory::below(root.path(), "default", "p1");
        pod.create().unwrap();
        let source = root.path().join("source");
        let places = [source.join("a"), source.join("a/b")];
        for place in &places {
            fs::create_dir_all(place).unwrap();
            rustix::mount::mount("tmpfs", place, "tmpfs", MountFlags::empty(), None).unwrap();
        }
        let volumes = Volumes::new(pod.clone());
        let named = |read_only, slave| {
            let mut volume = volume(&source, false);
            volume.binding = Binding { read_only, slave, ..volume.binding };
            volumes.shared("c1", &volume).1
        };
        let found = [
            named(ReadOnly::Nothing, false),
            named(ReadOnly::All, false),
            named(ReadOnly::Top, true),
            named(ReadOnly::Top, false),
        ];
        pod.remove().unwrap();
        for place in places.iter().rev() {
            mount::unmount_all(place).unwrap();
        }
        assert_eq!(found, [vec![], vec![], vec![], vec![PathBuf::from("a"), PathBuf::from("a/b")]]);
    }
}
