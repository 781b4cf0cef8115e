//! Devices: a container gets the guest's, never the host's.

use rustix::fs::makedev;
use serde_json::{Map, Value};

/// The character devices that the guest's kernel has too, under the numbers that every Linux has
/// (Documentation/admin-guide/devices.txt), and their nodes.
const GUEST_DEVICES: [(u32, u32, &str); 10] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (5, 0, "/dev/tty"),
    (5, 1, "/dev/console"),
    (5, 2, "/dev/ptmx"),
    (10, 200, "/dev/net/tun"),
    (10, 229, "/dev/fuse"),
];

/// A device that the guest does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum DeviceError {
    /// A device of the host.
    #[error(
        "linux.devices: {path:?} ({kind} {major}:{minor}) is a device of the host, which a virtual machine cannot reach; for a privileged container set privileged_without_host_devices of its runtime in \
         containerd's configuration"
    )]
    HostOnly {
        /// Where it should appear.
        path: String,
        /// "c" or "b".
        kind: String,
        /// Its major number.
        major: i64,
        /// Its minor number.
        minor: i64,
    },
    /// Not a list of objects.
    #[error("linux.devices: each must be an object with path and type")]
    Malformed,
}

/// The node under which the guest has the character device with this number.
pub(crate) fn guest_node(number: u64) -> Option<&'static str> {
    GUEST_DEVICES
        .iter()
        .find(|(known_major, known_minor, _)| makedev(*known_major, *known_minor) == number)
        .map(|(_, _, node)| *node)
}

/// Checks that every device in `linux.devices` is one that the guest has.
///
/// # Errors
/// A device of the host, by its path and number.
pub(crate) fn check(spec: &Map<String, Value>) -> Result<(), DeviceError> {
    let devices = match spec.get("linux").and_then(|linux| linux.get("devices")) {
        None | Some(Value::Null) => return Ok(()),
        Some(devices) => devices.as_array().ok_or(DeviceError::Malformed)?,
    };
    devices.iter().try_for_each(check_one)
}

fn check_one(device: &Value) -> Result<(), DeviceError> {
    let text = |key| device.get(key).and_then(Value::as_str).ok_or(DeviceError::Malformed);
    let number = |key| device.get(key).and_then(Value::as_i64).unwrap_or(-1);
    let (path, kind) = (text("path")?, text("type")?);
    let (wanted_major, wanted_minor) = (number("major"), number("minor"));
    let known = GUEST_DEVICES.iter().any(|(known_major, known_minor, _)| {
        i64::from(*known_major) == wanted_major && i64::from(*known_minor) == wanted_minor
    });
    match kind {
        "p" => Ok(()),
        "c" | "u" if known => Ok(()),
        _ => Err(DeviceError::HostOnly {
            path: path.to_owned(),
            kind: kind.to_owned(),
            major: wanted_major,
            minor: wanted_minor,
        }),
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() is handed over")]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_devices(devices: Value) -> Result<(), DeviceError> {
        check(json!({"linux": {"devices": devices}}).as_object().unwrap())
    }

    #[test]
    fn devices_that_every_linux_has_pass() {
        let devices = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
        assert_eq!(check_devices(devices), Ok(()));
    }

    #[test]
    fn a_device_of_the_host_is_refused_by_path_and_number() {
        let devices = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
        let message = check_devices(devices).unwrap_err().to_string();
        assert!(message.contains("/dev/sda") && message.contains("8:0"), "{message}");
    }
}
