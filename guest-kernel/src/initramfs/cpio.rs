//! Writes a cpio archive in the "newc" format, deterministically: no times, owners all root, inode numbers counted up.

use std::io::{self, Write};

/// File type bits of the mode field, as in `stat(2)`.
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Size of an entry's header in bytes: a magic of 6 characters and 13 numbers of 8.
const HEADER_SIZE: usize = 110;

/// Names and contents are padded to this many bytes.
const ALIGNMENT: usize = 4;

pub(super) struct Archive<'a> {
    out: &'a mut dyn Write,
    entries: u32,
}

/// The fields of a header that differ between entries.
#[derive(Clone, Copy, Default)]
struct Entry {
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

impl<'a> Archive<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, entries: 0 }
    }

    pub(super) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.header(name, Entry { mode: DIRECTORY | permissions, links: 2, ..Entry::default() })
    }

    pub(super) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        let mode = CHARACTER_DEVICE | permissions;
        self.header(name, Entry { mode, links: 1, device: (major, minor), ..Entry::default() })
    }

    pub(super) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a cpio entry holds less than 4 GiB"))?;
        self.header(name, Entry { mode: REGULAR | permissions, links: 1, size, ..Entry::default() })?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.header(TRAILER, Entry { links: 1, ..Entry::default() })
    }

    fn header(&mut self, name: &str, entry: Entry) -> io::Result<()> {
        self.entries += 1;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let (major, minor) = entry.device;
        // Inode, mode, uid, gid, links, time, size, device of the file system (2), device (2), name size, checksum.
        let fields =
            [self.entries, entry.mode, 0, 0, entry.links, 0, entry.size, 0, 0, major, minor, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(HEADER_SIZE + name.len() + 1)
    }

    /// Ends a part of `written` bytes that began at an aligned place.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let missing = written.next_multiple_of(ALIGNMENT) - written;
        io::copy(&mut io::Read::take(io::repeat(0), missing as u64), &mut self.out)?;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One entry as an independent reader of the format sees it.
    pub(in crate::initramfs) struct Read {
        pub(in crate::initramfs) inode: u32,
        pub(in crate::initramfs) mode: u32,
        pub(in crate::initramfs) time: u32,
        pub(in crate::initramfs) device: (u32, u32),
        pub(in crate::initramfs) name: String,
        pub(in crate::initramfs) content: Vec<u8>,
    }

    fn field(header: &[u8], index: usize) -> u32 {
        let at = 6 + 8 * index;
        u32::from_str_radix(std::str::from_utf8(&header[at..at + 8]).unwrap(), 16).unwrap()
    }

    pub(in crate::initramfs) fn read(mut bytes: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let (size, name_size) = (field(bytes, 6) as usize, field(bytes, 11) as usize);
            let name_end = HEADER_SIZE + name_size;
            let content_start = name_end.next_multiple_of(4);
            assert_eq!(bytes[name_end - 1], 0);
            entries.push(Read {
                inode: field(bytes, 0),
                mode: field(bytes, 1),
                time: field(bytes, 5),
                device: (field(bytes, 9), field(bytes, 10)),
                name: String::from_utf8(bytes[HEADER_SIZE..name_end - 1].to_vec()).unwrap(),
                content: bytes[content_start..content_start + size].to_vec(),
            });
            bytes = &bytes[(content_start + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn devices_and_directories_carry_type_mode_and_number() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.finish().unwrap();
        let entries = read(&bytes);
        let names: Vec<_> = entries.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["dev", "dev/console", TRAILER]);
        assert_eq!((entries[0].mode, entries[1].mode), (0o040_755, 0o020_600));
        assert_eq!(entries[1].device, (5, 1));
        assert!(entries.iter().all(|entry| entry.time == 0));
        assert_eq!(entries.iter().map(|entry| entry.inode).collect::<Vec<_>>(), [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn names_and_contents_of_any_length_are_read_back(
            files in prop::collection::vec(("[a-z/]{1,40}", prop::collection::vec(any::<u8>(), 0..50)), 0..6),
        ) {
            let mut bytes = Vec::new();
            let mut archive = Archive::new(&mut bytes);
            for (name, content) in &files {
                archive.file(name, 0o644, content).unwrap();
            }
            archive.finish().unwrap();
            let mut entries = read(&bytes);
            prop_assert_eq!(entries.pop().unwrap().name, TRAILER);
            let found: Vec<_> = entries.into_iter().map(|entry| (entry.name, entry.content)).collect();
            prop_assert_eq!(found, files);
        }
    }
}
