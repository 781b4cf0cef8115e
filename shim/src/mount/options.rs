//! Mount options as containerd and fstab(5) write them, split into mount(2)'s flags and the file system's own data.

use rustix::mount::MountFlags;

/// What a list of options means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Flags of mount(2), `MS_BIND` and `MS_REC` among them.
    pub(crate) flags: MountFlags,
    /// Everything else, joined by commas, for the file system.
    pub(crate) data: String,
    /// Whether the source is a file that needs a loop device.
    pub(crate) loop_device: bool,
}

/// Options that set a flag (`true`) or clear it.
const FLAGS: [(&str, bool, MountFlags); 22] = [
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("nosuid", true, MountFlags::NOSUID),
    ("suid", false, MountFlags::NOSUID),
    ("nodev", true, MountFlags::NODEV),
    ("dev", false, MountFlags::NODEV),
    ("noexec", true, MountFlags::NOEXEC),
    ("exec", false, MountFlags::NOEXEC),
    ("sync", true, MountFlags::SYNCHRONOUS),
    ("async", false, MountFlags::SYNCHRONOUS),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("noatime", true, MountFlags::NOATIME),
    ("atime", false, MountFlags::NOATIME),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("diratime", false, MountFlags::NODIRATIME),
    ("relatime", true, MountFlags::RELATIME),
    ("norelatime", false, MountFlags::RELATIME),
    ("strictatime", true, MountFlags::STRICTATIME),
    ("nostrictatime", false, MountFlags::STRICTATIME),
    ("bind", true, MountFlags::BIND),
    ("rbind", true, MountFlags::BIND.union(MountFlags::REC)),
    ("silent", true, MountFlags::SILENT),
];

impl Options {
    /// Splits a list of options.
    pub(crate) fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut flags = MountFlags::empty();
        let mut data = Vec::new();
        let mut loop_device = false;
        for option in options {
            match FLAGS.iter().find(|(name, _, _)| *name == option) {
                Some((_, set, flag)) => flags.set(*flag, *set),
                None if option == "loop" => loop_device = true,
                None if option == "defaults" || option.is_empty() => {}
                None => data.push(option),
            }
        }
        Self { flags, data: data.join(","), loop_device }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = Options::parse(["ro", "nosuid", "lowerdir=/a:/b", "workdir=/w", "defaults"]);
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(options.data, "lowerdir=/a:/b,workdir=/w");
        assert!(!options.loop_device);
    }

    #[test]
    fn a_later_option_takes_an_earlier_one_back() {
        assert_eq!(Options::parse(["ro", "rw"]).flags, MountFlags::empty());
        assert_eq!(
            Options::parse(["rbind", "ro"]).flags,
            MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY
        );
    }
}
