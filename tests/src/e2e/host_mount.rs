//! Mounts that a test makes on the host.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::ctr::finish;

/// A mount of the test's own on the host, as long as this lives.
pub(super) struct HostMount(PathBuf);

impl HostMount {
    /// A tmpfs of one MiB, as a kubelet makes it for a volume in memory with a limit.
    pub(super) fn tmpfs(path: &Path) -> anyhow::Result<Self> {
        Self::tmpfs_with(path, c"size=1m")
    }

    /// A tmpfs with options of its own.
    pub(super) fn tmpfs_with(path: &Path, options: &CStr) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), options)?;
        Ok(Self(path.to_owned()))
    }

    /// A directory in another place as well.
    pub(super) fn bind(source: &Path, path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        mount_bind(source, path)?;
        Ok(Self(path.to_owned()))
    }

    /// The file system in an image, with options of mount(8).
    pub(super) fn image(image: &Path, path: &Path, options: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        finish(Command::new("mount").args(["-o", &format!("loop,{options}")]).args([image, path]))?;
        Ok(Self(path.to_owned()))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A mount point whose later mounts reach those who asked for them.
    pub(super) fn shared(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        mount_bind(path, path)?;
        let mounted = Self(path.to_owned());
        mount_change(path, MountPropagationFlags::SHARED)?;
        Ok(mounted)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}
