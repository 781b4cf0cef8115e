//! Files that the guest reads and writes without opening them.
//!
//! Where it was agreed that opens go unannounced, requests name the inode alone. The server opens files when they are
//! first used, read-only until they are written, and keeps a bounded number open. A file that is closed to make room
//! is opened again with the next request for it: nothing depends on it, since every request names its offset and the
//! flags of the guest's open file.

use std::collections::{HashMap, VecDeque};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handle_store::OpenFile;

/// What a request does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It reads, or only needs the file.
    Read,
    /// It writes.
    Write,
}

/// Open files by inode.
#[derive(Debug)]
pub(super) struct ImplicitFiles {
    files: HashMap<u64, ImplicitFile>,
    /// The inodes of `files`, those that were looked at longest ago first. Some may be gone.
    order: VecDeque<u64>,
    limit: usize,
}

#[derive(Debug)]
struct ImplicitFile {
    file: OpenFile,
    recently_used: bool,
}

impl ImplicitFiles {
    /// Up to `limit` open files, which is not zero.
    pub(super) fn new(limit: usize) -> Self {
        Self { files: HashMap::new(), order: VecDeque::new(), limit: limit.max(1) }
    }

    /// The open file of `node` if it can do what is asked of it.
    pub(super) fn get(&mut self, node: u64, access: Access) -> Option<&mut OpenFile> {
        let implicit = self.files.get_mut(&node)?;
        if access == Access::Write && !implicit.file.is_writable() {
            return None;
        }
        implicit.recently_used = true;
        Some(&mut implicit.file)
    }

    /// Keeps `file` as that of `node`, in place of what was there.
    ///
    /// # Errors
    /// None in truth; `ENFILE` stands for a table that has lost what was just put into it.
    pub(super) fn insert(&mut self, node: u64, file: OpenFile) -> Result<&mut OpenFile, Errno> {
        if !self.files.contains_key(&node) {
            self.make_room();
            self.order.push_back(node);
        }
        self.files.insert(node, ImplicitFile { file, recently_used: true });
        self.files.get_mut(&node).map(|implicit| &mut implicit.file).ok_or(Errno::NFILE)
    }

    /// Closes the file of `node`.
    pub(super) fn remove(&mut self, node: u64) {
        if self.files.remove(&node).is_some() && self.order.len() > 2 * self.files.len() + 64 {
            let files = &self.files;
            self.order.retain(|node| files.contains_key(node));
        }
    }

    /// Closes everything.
    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.order.clear();
    }

    /// How many files are open.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    fn make_room(&mut self) {
        while self.files.len() >= self.limit {
            let Some(node) = self.order.pop_front() else { return };
            let recently_used =
                self.files.get_mut(&node).is_some_and(|implicit| std::mem::take(&mut implicit.recently_used));
            if recently_used {
                self.order.push_back(node);
            } else {
                self.files.remove(&node);
            }
        }
    }
}

/// The flags to open a file with for `access`.
pub(super) fn flags_for(access: Access) -> OFlags {
    match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(access: Access) -> OpenFile {
        let descriptor = rustix::fs::open("/dev/null", flags_for(access), rustix::fs::Mode::empty()).unwrap();
        OpenFile::new(descriptor, flags_for(access))
    }

    #[test]
    fn a_file_opened_for_reading_is_not_one_for_writing() {
        let mut files = ImplicitFiles::new(2);
        files.insert(1, file(Access::Read)).unwrap();
        assert!(files.get(1, Access::Read).is_some());
        assert!(files.get(1, Access::Write).is_none());
        files.insert(1, file(Access::Write)).unwrap();
        assert!(files.get(1, Access::Read).is_some());
        assert!(files.get(1, Access::Write).is_some());
        assert_eq!(files.len(), 1);
        files.clear();
        assert_eq!((files.len(), files.order.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn files_are_bounded_and_the_last_one_is_there(
            limit in 1..5_usize,
            steps in prop::collection::vec((0..8_u64, any::<bool>()), 0..100),
        ) {
            let mut files = ImplicitFiles::new(limit);
            for (node, insert) in steps {
                if insert {
                    files.insert(node, file(Access::Read)).unwrap();
                    prop_assert!(files.get(node, Access::Read).is_some());
                } else {
                    files.remove(node);
                    prop_assert!(files.get(node, Access::Read).is_none());
                }
                prop_assert!(files.len() <= limit);
                prop_assert!(files.order.len() <= 2 * limit + 65);
            }
        }
    }
}
