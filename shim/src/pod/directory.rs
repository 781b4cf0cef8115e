//! A pod's directory on the host: `/run/saya/<namespace>/<pod>/`.
//!
//! ```text
//! tree/                     the share's skeleton, which only the shim writes
//! share/                    tree/, mounted read-only: what virtio-fs serves, each of its two directories by a device of its own
//! share/private/<id>/rootfs   a container's root file system, mounted there
//! share/live/<n>              a volume, mounted there
//! vsock.sock                connections to the guest's vsock ports (`CONNECT <port>`)
//! pod.json                  who runs the pod, for `delete`
//! timeline.json             when what happened
//! ```
//!
//! The skeleton is read-only to the guest, since the shim follows its paths as root on the host: a guest that could
//! put a symlink into it would choose where the next root file system is mounted.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use saya_agent_api::{LIVE_SHARE, PRIVATE_SHARE};

use crate::mount::{self, Binding};

/// Where all pods' directories are.
pub(crate) const STATE_ROOT: &str = "/run/saya";

/// A pod's directory, which need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodDirectory {
    base: PathBuf,
}

impl PodDirectory {
    /// The directory of the pod `id` in containerd's namespace `namespace`, both valid identifiers.
    pub(crate) fn new(namespace: &str, id: &str) -> Self {
        Self::below(Path::new(STATE_ROOT), namespace, id)
    }

    /// The same below another directory than [`STATE_ROOT`].
    pub(crate) fn below(root: &Path, namespace: &str, id: &str) -> Self {
        Self { base: root.join(namespace).join(id) }
    }

    fn tree(&self) -> PathBuf {
        self.base.join("tree")
    }

    fn share(&self) -> PathBuf {
        self.base.join("share")
    }

    /// The record of who runs the pod.
    pub(crate) fn record(&self) -> PathBuf {
        self.base.join("pod.json")
    }

    /// The pod's timeline.
    pub(crate) fn timeline(&self) -> PathBuf {
        self.base.join("timeline.json")
    }

    /// Makes the directory, for the record of a pod that is not booted yet.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn reserve(&self) -> io::Result<()> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(&self.base).map_err(at(&self.base))
    }

    /// Makes the directory and mounts the share. What an earlier pod of the same name left is taken away first.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.remove()?;
        self.reserve()?;
        let regions = [PRIVATE_SHARE, LIVE_SHARE].map(|name| self.tree().join(name));
        for directory in [self.tree(), self.share()].iter().chain(&regions) {
            fs::DirBuilder::new().mode(0o755).create(directory).map_err(at(directory))?;
        }
        let share = self.share();
        mount::bind(&self.tree(), &share, &Binding::default()).map_err(at(&share))?;
        mount::change_propagation(&share, MountPropagationFlags::SHARED, false).map_err(at(&share))?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount::remount_bind(&share, flags).map_err(at(&share))
    }

    /// Opens the share for the VMM.
    ///
    /// # Errors
    /// What open(2) returned, with the path.
    pub(crate) fn open_share(&self) -> io::Result<OwnedFd> {
        open_directory(&self.share())
    }

    /// Makes the listening socket for connections to the guest.
    ///
    /// # Errors
    /// What socket(2) or bind(2) returned.
    pub(crate) fn listen_vsock(&self) -> io::Result<UnixListener> {
        let directory = open_directory(&self.base)?;
        UnixListener::bind(through(&directory, VSOCK_SOCKET)).map_err(at(&self.base.join("vsock.sock")))
    }

    /// A descriptor by which [`through`] reaches the socket.
    ///
    /// # Errors
    /// What open(2) returned, with the path.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        open_directory(&self.base)
    }

    /// The directory, mounts included, goes. It is fine if it is not there.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn remove(&self) -> io::Result<()> {
        mount::unmount_all(&self.share()).map_err(at(&self.share()))?;
        // Whatever is still mounted below is not the shim's: removing what is inside would be the host's loss.
        if let Some(left) = mount::mounts_below(&self.base)?.pop() {
            return Err(io::Error::other(format!("{} is still mounted", left.display())));
        }
        match fs::remove_dir_all(&self.base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&self.base)(error)),
            _ => {}
        }
        remove_if_empty(self.base.parent());
        Ok(())
    }

    /// The places of one container.
    pub(crate) fn container(&self, id: &str) -> ContainerPlaces {
        let private = |base: PathBuf| base.join(PRIVATE_SHARE).join(id);
        ContainerPlaces { tree: private(self.tree()), share: private(self.share()) }
    }

    /// Makes a place for a volume, a directory or a file, and returns where it is to be mounted.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn create_volume(&self, name: &str, directory: bool) -> io::Result<PathBuf> {
        let place = self.tree().join(LIVE_SHARE).join(name);
        if directory {
            fs::DirBuilder::new().mode(0o755).create(&place).map_err(at(&place))?;
        } else {
            fs::File::create_new(&place).map_err(at(&place))?;
        }
        Ok(self.share().join(LIVE_SHARE).join(name))
    }

    /// Unmounts a volume and takes its place away. It is fine if they are not there.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn remove_volume(&self, name: &str) -> io::Result<()> {
        let mounted = self.share().join(LIVE_SHARE).join(name);
        mount::unmount_all(&mounted).map_err(at(&mounted))?;
        let place = self.tree().join(LIVE_SHARE).join(name);
        let removed = if place.is_dir() { fs::remove_dir(&place) } else { fs::remove_file(&place) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&place)(error)),
            _ => Ok(()),
        }
    }
}

/// The directory of a namespace goes with its last pod.
fn remove_if_empty(namespace: Option<&Path>) {
    if let Some(namespace) = namespace {
        // Not empty is the usual case, and a pod may appear at any moment.
        let _ = fs::remove_dir(namespace);
    }
}

/// Where a container's own files are: in the skeleton, where the shim makes directories, and in the share, where it mounts.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPlaces {
    tree: PathBuf,
    share: PathBuf,
}

impl ContainerPlaces {
    /// Makes the container's directories and returns where its root file system is to be mounted.
    ///
    /// # Errors
    /// What mkdir(2) returned, with the path; a container that is there already among it.
    pub(crate) fn create(&self) -> io::Result<PathBuf> {
        for directory in [&self.tree, &self.tree.join("rootfs")] {
            fs::DirBuilder::new().mode(0o755).create(directory).map_err(at(directory))?;
        }
        Ok(self.share.join("rootfs"))
    }

    /// Takes the container's mounts and directories away. It is fine if they are not there.
    ///
    /// What is mounted inside the root file system goes with it: by then the guest can have put a link in the place of any
    /// directory in there, and no path that leads through it is to be trusted.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let rootfs = self.share.join("rootfs");
        mount::unmount_all(&rootfs).map_err(at(&rootfs))?;
        match fs::remove_dir_all(&self.tree) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&self.tree)(error)),
            _ => Ok(()),
        }
    }
}

/// A path that reaches `name` in an open directory, however long the directory's own path is: socket addresses hold
/// 108 bytes (unix(7)).
pub(crate) fn through(directory: &impl AsRawFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// The name of the socket for connections to the guest, for [`through`].
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())
        .map_err(|error| at(path)(error.into()))
}

/// Adds a path to an error of the system's.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(target: &Path) {
        rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::empty(), None).unwrap();
    }

    #[test]
    fn a_root_file_system_takes_what_is_mounted_in_it_along_and_nothing_that_its_links_lead_to() {
        let root = tempfile::tempdir().unwrap();
        let host = root.path().join("host");
        fs::create_dir_all(host.join("mounted")).unwrap();
        tmpfs(&host.join("mounted"));
        let pod = PodDirectory::below(root.path(), "default", "p");
        pod.create().unwrap();
        let places = pod.container("c1");
        let rootfs = places.create().unwrap();
        // Twice: what is below the upper one is to go, too.
        for _ in 0..2 {
            tmpfs(&rootfs);
            fs::create_dir_all(rootfs.join("a/mounted")).unwrap();
            tmpfs(&rootfs.join("a/mounted"));
            fs::rename(rootfs.join("a"), rootfs.join("b")).unwrap();
            std::os::unix::fs::symlink(&host, rootfs.join("a")).unwrap();
        }
        let removed = places.remove();
        let left = mount::mounts_below(root.path()).unwrap();
        pod.remove().unwrap();
        mount::unmount_all(&host.join("mounted")).unwrap();
        removed.unwrap();
        assert_eq!(left, [host.join("mounted"), pod.share()]);
    }
}
