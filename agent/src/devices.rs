//! Devices that come to the running guest, and go again.
//!
//! The kernel has read on its command line which devices there are. Of one that the VMM has added since, the agent tells
//! the driver by the file `new_device`, a patch of ours to `drivers/virtio/virtio_mmio.c` (guest-kernel/patches); the
//! driver finds out what it is. The platform device that this makes stays for good: it is unbound from the driver when
//! the device goes, and bound again when another comes to its place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use saya_agent_api::agent::{AttachDeviceRequest, AttachDeviceResponse};

use crate::error::{Action, Error, Result};

/// The driver, as sysfs shows it.
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
/// Where sysfs shows platform devices by their names.
const DEVICES: &str = "/sys/bus/platform/devices";
/// Numbers of platform devices from here on belong to slots. Those below are the command line's, which are counted.
const FIRST_NUMBER: u32 = 100;

/// Takes the device at the place that `request` names into use.
pub(crate) fn attach(request: &AttachDeviceRequest) -> Result<AttachDeviceResponse> {
    let name = name(request.slot);
    let device = Path::new(DEVICES).join(&name);
    if device.exists() {
        write("bind", &name)?;
    } else {
        let AttachDeviceRequest { size, address, interrupt, slot, .. } = request;
        let number = FIRST_NUMBER.saturating_add(*slot);
        write("new_device", &format!("{size:#x}@{address:#x}:{interrupt}:{number}"))?;
    }
    let virtio = virtio_device(&device)
        .action(|| format!("find the device at {:#x}, which no driver has taken", request.address))?;
    let (block_major, block_minor) = block_number(&virtio)?;
    Ok(AttachDeviceResponse { block_major, block_minor, ..AttachDeviceResponse::default() })
}

/// Gives the device in a slot up, whoever uses it.
pub(crate) fn detach(slot: u32) -> Result<()> {
    let name = name(slot);
    if Path::new(DRIVER).join(&name).exists() { write("unbind", &name) } else { Ok(()) }
}

/// The platform device's name.
fn name(slot: u32) -> String {
    format!("virtio-mmio.{}", FIRST_NUMBER.saturating_add(slot))
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(Path::new(DRIVER).join(file), text)
        .action(|| format!("write {text:?} to {file} of the driver virtio-mmio"))
}

/// The virtio device that the driver has found behind the registers.
fn virtio_device(device: &Path) -> io::Result<PathBuf> {
    let is_virtio = |path: &PathBuf| {
        path.file_name().is_some_and(|name| {
            let digits = name.to_string_lossy().strip_prefix("virtio").map(str::to_owned);
            digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    let entries = fs::read_dir(device)?.map(|entry| entry.map(|entry| entry.path()));
    let paths = entries.collect::<io::Result<Vec<_>>>()?;
    paths.into_iter().find(is_virtio).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Major and minor number, if it is a block device.
fn block_number(virtio: &Path) -> Result<(u32, u32)> {
    let directory = virtio.join("block");
    let action = || format!("read the device's number in {}", directory.display());
    let mut disks = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        disks => disks.action(action)?,
    };
    let Some(disk) = disks.next() else { return Ok((0, 0)) };
    let text = disk.and_then(|disk| fs::read_to_string(disk.path().join("dev"))).action(action)?;
    parse_number(&text).ok_or_else(|| {
        Error::InvalidRequest(format!("{text:?} in {} is no device's number", directory.display()))
    })
}

fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtio_device_is_told_from_sysfs_other_files() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["driver", "virtio", "virtio-ish", "uevent"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        assert_eq!(virtio_device(directory.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(directory.path().join("virtio12")).unwrap();
        assert_eq!(virtio_device(directory.path()).unwrap(), directory.path().join("virtio12"));
    }

    #[test]
    fn a_block_device_has_a_number_and_others_have_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(block_number(directory.path()).unwrap(), (0, 0));
        let disk = directory.path().join("block/vda");
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("dev"), "254:16\n").unwrap();
        assert_eq!(block_number(directory.path()).unwrap(), (254, 16));
        fs::write(disk.join("dev"), "254\n").unwrap();
        assert!(block_number(directory.path()).is_err());
    }
}
