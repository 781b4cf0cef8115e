//! containerd in the lab's virtual machine, with its state on the disk.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::super::containerd::{Containerd, usual_places};
use super::super::protocol::Job;

const DISK: &str = "/dev/vda";

/// containerd, and the disk below it.
pub(super) struct OnDisk {
    containerd: Containerd,
    mounted: PathBuf,
}

/// Mounts the disk and starts containerd on it.
///
/// # Errors
///
/// The machine has no disk, or containerd does not start.
pub(super) fn start(job: &Job) -> Result<OnDisk> {
    let places = usual_places();
    fs::create_dir_all(&places.root)?;
    mount(DISK, &places.root, c"ext4", MountFlags::NOATIME, c"")
        .context("mounting the disk of containerd's state")?;
    let path = job.environment.iter().filter(|(name, _)| name == "PATH");
    let path: Vec<(&str, String)> = path.map(|(name, value)| (name.as_str(), value.clone())).collect();
    Ok(OnDisk { containerd: Containerd::start(&places, &path)?, mounted: places.root })
}

impl OnDisk {
    /// Imports image archives.
    ///
    /// # Errors
    ///
    /// containerd refuses one.
    pub(super) fn import(&self, images: &[PathBuf]) -> Result<()> {
        self.containerd.import(images)
    }

    /// Ends containerd and writes all it knows to the disk.
    ///
    /// # Errors
    ///
    /// The disk cannot be unmounted.
    pub(super) fn stop(self) -> Result<()> {
        self.containerd.stop()?;
        unmount(&self.mounted, UnmountFlags::empty()).context("unmounting the disk of containerd's state")
    }
}
