//! A pod's volumes: directories and files of the host, mounted in the share at `live/<name>`.
//!
//! Each mount of the share is a file system of its own in the guest. Containers of the pod that want the same of the host
//! in the same way get the same mount, so that sockets, pipes, locks and shared memory work between them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::directory::PodDirectory;
use crate::mount::{self, Binding};
use crate::spec::mounts::Volume;

/// The volumes that are mounted.
#[derive(Debug)]
pub(crate) struct Volumes {
    directory: PodDirectory,
    mounted: Mutex<Mounted>,
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
    /// Mounts below it, which a recursive bind takes along.
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
        let submounts = if takes_submounts { mount::mounts_below(&source)? } else { Vec::new() };
        Ok(Self {
            mount,
            device: metadata.dev(),
            inode: metadata.ino(),
            submounts,
            binding: volume.binding.clone(),
        })
    }
}

impl Volumes {
    /// None yet, in the pod's directory.
    pub(crate) fn new(directory: PodDirectory) -> Self {
        Self { directory, mounted: Mutex::default() }
    }

    /// Mounts a volume for a container, unless it is mounted already, and gives its name.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn acquire(&self, container: &str, volume: &Volume) -> io::Result<String> {
        // Held over the mount: who finds a volume here finds it mounted.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = Origin::of(volume)?;
        if let Some(entry) = mounted.volumes.iter_mut().find(|entry| entry.origin == origin) {
            entry.users.push(container.to_owned());
            return Ok(entry.name.clone());
        }
        let name = mounted.next.to_string();
        mounted.next += 1;
        if let Err(error) = self.mount(&name, volume) {
            // The error that led here is the one to tell of; the pod's end tries again.
            let _ = self.directory.remove_volume(&name);
            return Err(error);
        }
        mounted.volumes.push(Entry { name: name.clone(), origin, users: vec![container.to_owned()] });
        Ok(name)
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
    use std::path::Path;

    use super::*;
    use crate::mount::ReadOnly;

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
        let first = volumes.acquire("c1", &volume(&source, false)).unwrap();
        let same = volumes.acquire("c2", &volume(&source, false)).unwrap();
        let read_only = volumes.acquire("c2", &volume(&source, true)).unwrap();
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
            volumes.acquire(container, &volume(&source, false)).unwrap_err();
        }
        assert_eq!(fs::read_dir(root.path().join("default/p1/share/live")).unwrap().count(), 0);
        assert_eq!(volumes.release("c1"), Vec::<String>::new());
        pod.remove().unwrap();
    }
}
