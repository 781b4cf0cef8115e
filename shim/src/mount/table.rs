//! The table of mounts: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A mount in this process's mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    /// Its number, which statx(2) tells as well.
    pub(crate) id: u64,
    /// The file system's device, as `major:minor`.
    pub(crate) device: String,
    /// What of the file system is mounted.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) place: PathBuf,
}

impl MountPoint {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let _parent = fields.next()?;
        let device = std::str::from_utf8(fields.next()?).ok()?.to_owned();
        let (root, place) = (unescape(fields.next()?), unescape(fields.next()?));
        Some(Self { id, device, root, place })
    }
}

/// All mounts, in the order of the table.
///
/// # Errors
/// What reading the table returned.
pub(crate) fn mount_points() -> io::Result<Vec<MountPoint>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(MountPoint::parse).collect())
}

/// Every mount point at or below `directory`, the innermost last.
///
/// # Errors
/// What reading the table returned.
pub(crate) fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let places = mount_points()?.into_iter().map(|mount| mount.place);
    Ok(places.filter(|place| place.starts_with(directory)).collect())
}

/// Undoes the octal escapes of the table.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(br"/a\9"), Path::new(r"/a\9"));
    }

    #[test]
    fn a_line_of_the_mount_table_says_what_of_which_file_system_is_where() {
        let line = br"36 35 0:52 /a\040part /mnt/it rw,noatime master:1 - tmpfs tmpfs rw,size=1024k";
        let expected =
            MountPoint { id: 36, device: "0:52".into(), root: "/a part".into(), place: "/mnt/it".into() };
        assert_eq!(MountPoint::parse(line), Some(expected));
        assert_eq!(MountPoint::parse(b""), None);
    }
}
