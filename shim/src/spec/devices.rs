//! Devices: a container gets the guest's, and block devices of the host's that the guest is given.

use rustix::fs::makedev;
use serde_json::{Map, Value, json};

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
        "linux.devices: {path:?} ({kind} {major}:{minor}) is a device of the host, which a virtual machine cannot reach unless it is a block device; for a privileged container set privileged_without_host_devices of its runtime in \
         containerd's configuration"
    )]
    HostOnly {
        /// Where it should appear.
        path: String,
        /// "c" or "u".
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

/// A block device of the host that a container is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostBlockDevice {
    /// Its place in `linux.devices`.
    index: usize,
    /// The host's number of it.
    pub(crate) major: u32,
    /// The same.
    pub(crate) minor: u32,
    /// What the rules for devices allow.
    access: Access,
}

/// Finds the block devices of the host in `linux.devices`. Every other device has to be one that the guest has.
///
/// # Errors
/// A device that the guest cannot be given, by its path and number.
pub(crate) fn host_block_devices(spec: &Map<String, Value>) -> Result<Vec<HostBlockDevice>, DeviceError> {
    let devices = match spec.get("linux").and_then(|linux| linux.get("devices")) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(devices) => devices.as_array().ok_or(DeviceError::Malformed)?,
    };
    let mut found = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        if device.get("type").and_then(Value::as_str) == Some("b") {
            let number =
                |key: &str| device.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
            let (major, minor) = number("major").zip(number("minor")).ok_or(DeviceError::Malformed)?;
            let access = rules(spec).fold(Access::default(), |access, rule| access.after(rule, major, minor));
            found.push(HostBlockDevice { index, major, minor, access });
        } else {
            check(device)?;
        }
    }
    Ok(found)
}

impl HostBlockDevice {
    /// Whether the container may only read it.
    pub(crate) fn is_read_only(&self) -> bool {
        !self.access.write
    }

    /// Gives it the guest's number, in the list of devices and in the rules for them.
    pub(crate) fn place(&self, spec: &mut Map<String, Value>, (major, minor): (u32, u32)) {
        let Some(linux) = spec.get_mut("linux") else { return };
        if let Some(device) = linux.pointer_mut(&format!("/devices/{}", self.index)) {
            device["major"] = json!(major);
            device["minor"] = json!(minor);
        }
        let Some(rules) = linux.pointer_mut("/resources/devices").and_then(Value::as_array_mut) else {
            return;
        };
        rules.push(json!({"allow": false, "type": "b", "major": major, "minor": minor, "access": "rwm"}));
        let access = self.access.letters();
        if !access.is_empty() {
            rules.push(json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access}));
        }
    }
}

/// Takes the rules for these devices out: their numbers are the host's, and may be others' in the guest.
pub(crate) fn remove_host_rules(spec: &mut Map<String, Value>, devices: &[HostBlockDevice]) {
    let rules = spec.get_mut("linux").and_then(|linux| linux.pointer_mut("/resources/devices"));
    if let Some(rules) = rules.and_then(Value::as_array_mut) {
        let names = |rule: &Value, device: &HostBlockDevice| {
            rule["type"] == "b"
                && rule["major"] == json!(device.major)
                && rule["minor"] == json!(device.minor)
        };
        rules.retain(|rule| !devices.iter().any(|device| names(rule, device)));
    }
}

fn rules(spec: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let rules = spec.get("linux").and_then(|linux| linux.pointer("/resources/devices"));
    rules.and_then(Value::as_array).into_iter().flatten()
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Access {
    read: bool,
    write: bool,
    make: bool,
}

impl Access {
    /// What is allowed when `rule` has had its say on the block device of this number.
    fn after(self, rule: &Value, major: u32, minor: u32) -> Self {
        let number = |key: &str| rule.get(key).and_then(Value::as_i64).filter(|number| *number >= 0);
        let is_for =
            |wanted: u32, number: Option<i64>| number.is_none_or(|number| number == i64::from(wanted));
        let kind = rule.get("type").and_then(Value::as_str).unwrap_or_default();
        if !matches!(kind, "" | "a" | "b")
            || !is_for(major, number("major"))
            || !is_for(minor, number("minor"))
        {
            return self;
        }
        let allow = rule.get("allow").and_then(Value::as_bool).unwrap_or(false);
        let letters = rule.get("access").and_then(Value::as_str).filter(|letters| !letters.is_empty());
        let letters = letters.unwrap_or("rwm");
        let changed = |before, letter| if letters.contains(letter) { allow } else { before };
        Self { read: changed(self.read, 'r'), write: changed(self.write, 'w'), make: changed(self.make, 'm') }
    }

    fn letters(self) -> String {
        let letters = [(self.read, 'r'), (self.write, 'w'), (self.make, 'm')];
        letters.into_iter().filter(|(allowed, _)| *allowed).map(|(_, letter)| letter).collect()
    }
}

fn check(device: &Value) -> Result<(), DeviceError> {
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

    fn check_devices(devices: Value) -> Result<Vec<HostBlockDevice>, DeviceError> {
        host_block_devices(json!({"linux": {"devices": devices}}).as_object().unwrap())
    }

    #[test]
    fn devices_that_every_linux_has_pass() {
        let devices = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
        assert_eq!(check_devices(devices), Ok(Vec::new()));
    }

    #[test]
    fn a_device_of_the_host_is_refused_by_path_and_number() {
        let devices = json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
        let message = check_devices(devices).unwrap_err().to_string();
        assert!(message.contains("/dev/kvm") && message.contains("10:232"), "{message}");
    }

    fn spec(rules: Value) -> Map<String, Value> {
        let devices = json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/xda", "type": "b", "major": 7, "minor": 2, "fileMode": 0o640}]);
        json!({"linux": {"devices": devices, "resources": {"devices": rules}}}).as_object().unwrap().clone()
    }

    #[test]
    fn a_block_device_gets_the_guests_number_in_the_list_and_in_the_rules() {
        let mut spec = spec(json!([{"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 2, "access": "r"},
            {"allow": true, "type": "c", "major": 7, "minor": 2, "access": "rw"}]));
        let devices = host_block_devices(&spec).unwrap();
        assert_eq!((devices.len(), devices[0].major, devices[0].minor), (1, 7, 2));
        assert!(devices[0].is_read_only());
        remove_host_rules(&mut spec, &devices);
        devices[0].place(&mut spec, (254, 16));
        assert_eq!(
            spec["linux"]["devices"][1],
            json!({"path": "/dev/xda", "type": "b", "major": 254, "minor": 16, "fileMode": 0o640})
        );
        assert_eq!(
            spec["linux"]["resources"]["devices"],
            json!([{"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 7, "minor": 2, "access": "rw"},
                {"allow": false, "type": "b", "major": 254, "minor": 16, "access": "rwm"},
                {"allow": true, "type": "b", "major": 254, "minor": 16, "access": "r"}])
        );
    }

    #[test]
    fn rules_for_many_devices_say_what_may_be_done_with_one_of_them() {
        let allowed = |rules| host_block_devices(&spec(rules)).unwrap()[0].access.letters();
        assert_eq!(allowed(json!([])), "");
        assert_eq!(allowed(json!([{"allow": true}])), "rwm");
        assert_eq!(
            allowed(json!([{"allow": true, "type": "b", "major": 7, "minor": -1, "access": "rw"}])),
            "rw"
        );
        assert_eq!(
            allowed(json!([{"allow": true, "type": "a"}, {"allow": false, "type": "b", "access": "w"}])),
            "rm"
        );
        assert_eq!(
            allowed(json!([{"allow": true, "type": "c"}, {"allow": true, "type": "b", "major": 8}])),
            ""
        );
    }
}
