//! The options of a mount, as mount(8) and the OCI runtime spec name them.

use libc::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
};

use crate::error::SpecError;
use crate::sys::mount::MountAttributes;

/// `MOUNT_ATTR__ATIME` of linux/mount.h: the bits that hold how access times are kept; 0 there is relatime.
const ATIME_BITS: u64 = 0x70;
/// `MOUNT_ATTR_NOSYMFOLLOW` of linux/mount.h.
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// What the options of a mount ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// `Some(true)` is a recursive bind, `Some(false)` a plain one.
    pub(super) bind: Option<bool>,
    /// For the mount itself.
    pub(super) own: MountAttributes,
    /// For the mount and all below it.
    pub(super) recursive: MountAttributes,
    /// What is left goes to the file system: names, with values where there is an `=`.
    pub(super) file_system: Vec<(String, Option<String>)>,
}

impl MountOptions {
    pub(super) fn parse(options: &[String], field: &str) -> Result<Self, SpecError> {
        let mut parsed = Self::default();
        for option in options {
            parsed.take(option, field)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, option: &str, field: &str) -> Result<(), SpecError> {
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "defaults" | "loud" | "silent" | "" => {}
            "remount" | "idmap" | "ridmap" | "tmpcopyup" => {
                let problem = format!("the option {option:?} is not carried out by this agent");
                return Err(SpecError::not_supported(field, problem));
            }
            _ => {
                if let Some((flag, recursive)) = propagation(option) {
                    let attributes = if recursive { &mut self.recursive } else { &mut self.own };
                    attributes.propagation = flag;
                } else if let Some((set, clear)) = attribute(option) {
                    apply(&mut self.own, set, clear);
                } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
                    apply(&mut self.recursive, set, clear);
                } else {
                    self.file_system.push(name_and_value(option));
                }
            }
        }
        Ok(())
    }
}

/// Puts a later option over what earlier ones have asked for.
fn apply(attributes: &mut MountAttributes, set: u64, clear: u64) {
    attributes.set = (attributes.set & !clear) | set;
    // What is set must not be cleared as well, except for access times: those are one field of several bits, which
    // the kernel wants cleared whole before any of it is set.
    let atime = (attributes.clear | clear) & ATIME_BITS;
    attributes.clear = ((attributes.clear | clear) & !set & !ATIME_BITS) | atime;
}

/// The `MOUNT_ATTR_*` bits that an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, MOUNT_ATTR_RDONLY),
        "nosuid" => (MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, MOUNT_ATTR_NOSUID),
        "nodev" => (MOUNT_ATTR_NODEV, 0),
        "dev" => (0, MOUNT_ATTR_NODEV),
        "noexec" => (MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, MOUNT_ATTR_NOEXEC),
        "nodiratime" => (MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => (MOUNT_ATTR_NOATIME, ATIME_BITS),
        "strictatime" | "norelatime" => (MOUNT_ATTR_STRICTATIME, ATIME_BITS),
        "relatime" | "atime" | "nostrictatime" => (0, ATIME_BITS),
        _ => return None,
    })
}

/// The propagation that an option asks for, and whether for all mounts below too.
fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option {
        "rprivate" | "rslave" | "rshared" | "runbindable" => (option.strip_prefix('r')?, true),
        _ => (option, false),
    };
    let flag = match name {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}

fn name_and_value(option: &str) -> (String, Option<String>) {
    match option.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (option.to_owned(), None),
    }
}

/// Reads `linux.rootfsPropagation`.
pub(super) fn rootfs_propagation(value: Option<&str>) -> Result<Option<MountAttributes>, SpecError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match propagation(value) {
        Some((flag, _)) => Ok(Some(MountAttributes { propagation: flag, ..MountAttributes::default() })),
        None => {
            let problem =
                format!("is {value:?}; it is private, slave, shared or unbindable, or one of them with an r");
            Err(SpecError::invalid("linux.rootfsPropagation", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountOptions::parse(&options, "mounts[0].options").unwrap()
    }

    #[test]
    fn a_later_option_wins() {
        assert_eq!(
            parse(&["ro", "rw"]).own,
            MountAttributes { clear: MOUNT_ATTR_RDONLY, ..Default::default() }
        );
        assert_eq!(
            parse(&["rw", "ro"]).own,
            MountAttributes { set: MOUNT_ATTR_RDONLY, ..Default::default() }
        );
        assert_eq!(
            parse(&["noatime", "strictatime"]).own,
            MountAttributes { set: MOUNT_ATTR_STRICTATIME, clear: ATIME_BITS, ..Default::default() }
        );
        assert_eq!(
            parse(&["strictatime", "noatime"]).own,
            MountAttributes { set: MOUNT_ATTR_NOATIME, clear: ATIME_BITS, ..Default::default() }
        );
    }

    #[test]
    fn options_with_an_r_are_for_all_mounts_below() {
        let parsed = parse(&["rbind", "rro", "rslave", "nosuid"]);
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.recursive.set, MOUNT_ATTR_RDONLY);
        assert_eq!(parsed.recursive.propagation, libc::MS_SLAVE);
        assert_eq!(parsed.own, MountAttributes { set: MOUNT_ATTR_NOSUID, ..Default::default() });
    }

    #[test]
    fn what_is_not_an_attribute_goes_to_the_file_system() {
        let parsed = parse(&["mode=1777", "size=64k", "newinstance"]);
        let expected = [("mode", Some("1777")), ("size", Some("64k")), ("newinstance", None)]
            .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(parsed.file_system, expected);
    }

    #[test]
    fn an_unknown_propagation_of_the_root_is_refused_with_the_known_ones() {
        let message = rootfs_propagation(Some("public")).unwrap_err().to_string();
        assert!(message.starts_with("linux.rootfsPropagation: is \"public\"; it is private"), "{message}");
    }
}
