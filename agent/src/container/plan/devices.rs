//! `linux.devices`: device nodes to make.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::absolute;
use crate::error::SpecError;

/// The kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// A device node in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    /// Where, in the container.
    pub(crate) path: PathBuf,
    /// Of which kind.
    pub(crate) kind: DeviceKind,
    /// The device's major number.
    pub(crate) major: u32,
    /// The device's minor number.
    pub(crate) minor: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// The owner, as the container sees it.
    pub(crate) uid: u32,
    /// The group, as the container sees it.
    pub(crate) gid: u32,
}

/// The mode that runtimes give a device whose `fileMode` is not set.
const DEFAULT_MODE: u32 = 0o666;

pub(super) fn from_spec(devices: &[LinuxDevice]) -> Result<Vec<DeviceNode>, SpecError> {
    devices.iter().enumerate().map(|(index, device)| node(index, device)).collect()
}

fn node(index: usize, device: &LinuxDevice) -> Result<DeviceNode, SpecError> {
    let field = |name: &str| format!("linux.devices[{index}].{name}");
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            return Err(SpecError::invalid(
                field("type"),
                "is \"a\"; a node is \"c\", \"b\", \"u\" or \"p\"",
            ));
        }
    };
    let number = |name: &str, value: i64| {
        u32::try_from(value)
            .map_err(|_| SpecError::invalid(field(name), format!("is {value}; it must fit into 32 bits")))
    };
    Ok(DeviceNode {
        path: absolute(device.path(), &field("path"))?.to_owned(),
        kind,
        major: number("major", device.major())?,
        minor: number("minor", device.minor())?,
        mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
