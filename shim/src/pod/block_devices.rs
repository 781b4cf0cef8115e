//! Block devices of the host that the guest has been given.
//!
//! Containers of a pod that want the same device get the same one of the guest's, whose kernel keeps what it has read and
//! not yet written of it in one place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{ioctl_blksszget, makedev};
use saya_vmm::control::{BlockDevice, Device, PluggedDevice};
use tokio::sync::{Mutex, MutexGuard};

use super::hot_plug::{HotPlug, HotPlugError};
use crate::spec::devices::HostBlockDevice;

/// The unit of a device's length (virtio 1.2, 5.2.4).
const SECTOR: u64 = 512;

/// Why the guest does not get a device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockDeviceError {
    /// The host has none of this number, or it cannot be opened.
    #[error("the host's block device {major}:{minor}: {source}")]
    Host {
        /// Its number.
        major: u32,
        /// The same.
        minor: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The VMM.
    #[error("attaching the host's block device {major}:{minor}: {source}")]
    HotPlug {
        /// Its number.
        major: u32,
        /// The same.
        minor: u32,
        /// Why not.
        source: HotPlugError,
    },
}

/// The devices that the guest has.
#[derive(Debug, Default)]
pub(crate) struct BlockDevices(Mutex<Vec<Attached>>);

/// A device that the guest has.
#[derive(Debug)]
pub(crate) struct Attached {
    major: u32,
    minor: u32,
    read_only: bool,
    /// Where the guest has it.
    pub(crate) place: PluggedDevice,
    /// The guest's number of it.
    pub(crate) number: (u32, u32),
    /// The ids of the containers that have it, once for each of their nodes.
    pub(crate) users: Vec<String>,
}

impl Attached {
    /// One that the guest has just got for the container `user`.
    pub(crate) fn new(
        device: &HostBlockDevice,
        place: PluggedDevice,
        number: (u32, u32),
        user: &str,
    ) -> Self {
        let (major, minor, read_only) = (device.major, device.minor, device.is_read_only());
        Self { major, minor, read_only, place, number, users: vec![user.to_owned()] }
    }

    /// Whether it is this one, with the same rights.
    pub(crate) fn is(&self, device: &HostBlockDevice) -> bool {
        (self.major, self.minor, self.read_only) == (device.major, device.minor, device.is_read_only())
    }
}

impl BlockDevices {
    /// The devices, and nobody else changes anything about them meanwhile.
    pub(crate) async fn lock(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.0.lock().await
    }
}

/// Opens a device of the host and has the VMM attach it.
///
/// # Errors
/// There is no such device, or the VMM refuses.
pub(crate) async fn attach(
    device: &HostBlockDevice,
    hot_plug: &HotPlug,
) -> Result<PluggedDevice, BlockDeviceError> {
    let HostBlockDevice { major, minor, .. } = *device;
    let read_only = device.is_read_only();
    // An open may wait for the device.
    let opened = tokio::task::spawn_blocking(move || open(major, minor, read_only)).await;
    let opened = opened.map_err(io::Error::other).and_then(|opened| opened);
    let (file, described) = opened.map_err(|source| BlockDeviceError::Host { major, minor, source })?;
    let attached = hot_plug.attach(Device::Block(described), &[file.as_fd()]).await;
    attached.map_err(|source| BlockDeviceError::HotPlug { major, minor, source })
}

/// Opens the device of this number, with what the guest is to be told of it.
fn open(major: u32, minor: u32, read_only: bool) -> io::Result<(File, BlockDevice)> {
    let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let read_only = read_only || fs::read_to_string(sysfs.join("ro"))?.trim() != "0";
    let mut file = OpenOptions::new().read(true).write(!read_only).open(node(&sysfs)?)?;
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() || metadata.rdev() != makedev(major, minor) {
        return Err(io::Error::other("its node in /dev is another device's"));
    }
    let described = BlockDevice {
        sectors: file.seek(SeekFrom::End(0))? / SECTOR,
        block_size: ioctl_blksszget(&file)?,
        read_only,
        id: format!("host-{major}-{minor}"),
    };
    Ok((file, described))
}

/// The device's node, by the name that the kernel gives it.
fn node(sysfs: &Path) -> io::Result<PathBuf> {
    let properties = fs::read_to_string(sysfs.join("uevent"))?;
    let name = properties.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other("the kernel does not tell its name"))?;
    Ok(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_the_host_does_not_have_is_not_opened() {
        assert_eq!(open(4095, 12345, true).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_kernel_tells_the_name_of_the_node() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("uevent"), "MAJOR=7\nMINOR=0\nDEVNAME=mapper/x\nDEVTYPE=disk\n")
            .unwrap();
        assert_eq!(node(directory.path()).unwrap(), Path::new("/dev/mapper/x"));
        fs::write(directory.path().join("uevent"), "MAJOR=7\n").unwrap();
        assert!(node(directory.path()).is_err());
    }
}
