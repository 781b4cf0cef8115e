//! LOOKUP, FORGET and the entries that every request that finds or makes a file returns.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::fs::file_system::FileSystem;
use crate::fs::host::{Identity, Status, reach};
use crate::fs::wire::{ATTR_SUBMOUNT, EntryOut};

impl FileSystem {
    /// Finds `name` in the directory `parent`.
    ///
    /// # Errors
    /// `ENOENT` when there is no such name and that may not be cached; `ENFILE` when the guest holds as many inodes as
    /// it may; else what the host returned.
    pub(in crate::fs) fn lookup(&mut self, parent: u64, name: &CStr) -> Result<EntryOut, Errno> {
        let directory = self.inodes.directory(parent)?;
        match reach(directory, name) {
            Ok(descriptor) => self.entry(parent, name, descriptor),
            Err(Errno::NOENT) => {
                let valid = self.cache_policy.names_in(directory.place()).negative_entries;
                match valid.is_zero() {
                    true => Err(Errno::NOENT),
                    false => Ok(EntryOut {
                        entry_valid: valid.as_secs(),
                        entry_valid_nanoseconds: valid.subsec_nanos(),
                        ..EntryOut::default()
                    }),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The guest gives up `lookups` lookups of `node`.
    pub(in crate::fs) fn forget(&mut self, node: u64, lookups: u64) {
        self.inodes.forget(node, lookups);
        if self.inodes.peek(node).is_err() {
            self.implicit_files.remove(node);
        }
    }

    /// Counts a lookup of the file behind `descriptor`, which is `name` in the directory `parent`, and describes it.
    ///
    /// # Errors
    /// `ENFILE` when the guest holds as many inodes as it may; else what the host returned.
    pub(super) fn entry(&mut self, parent: u64, name: &CStr, descriptor: OwnedFd) -> Result<EntryOut, Errno> {
        let status = Status::of(&descriptor)?;
        let place = self.cache_policy.child(self.inodes.peek(parent)?.place());
        let node = self.inodes.look_up(&status, place, parent, name, descriptor)?;
        self.describe(parent, node, &status)
    }

    /// Counts a lookup of `name` in the directory `parent` and describes it, with fewer system calls when the guest
    /// knows the inode already. `number` is the inode number that the directory lists for the name.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub(super) fn entry_of_listing(
        &mut self,
        parent: u64,
        name: &CStr,
        number: u64,
    ) -> Result<EntryOut, Errno> {
        let directory = self.inodes.directory(parent)?;
        let expected = Identity { inode: number, ..directory.identity() };
        if self.inodes.number_of(&expected).is_some() {
            // The listing is only a hint: a mount may lie over the name.
            let status = Status::of_entry(self.inodes.directory(parent)?, name)?;
            if let Some(node) = self.inodes.look_up_known(&status, parent, name) {
                return self.describe(parent, node, &status);
            }
        }
        let descriptor = reach(self.inodes.directory(parent)?, name)?;
        self.entry(parent, name, descriptor)
    }

    fn describe(&self, parent: u64, node: u64, status: &Status) -> Result<EntryOut, Errno> {
        let directory = self.inodes.peek(parent)?;
        let names = self.cache_policy.names_in(directory.place()).entries;
        // An inode that was found elsewhere before keeps the rules of that place.
        let attributes = self.cache_policy.inode(self.inodes.peek(node)?.place()).attributes;
        let mut entry = EntryOut {
            node,
            generation: 0,
            entry_valid: names.as_secs(),
            attributes_valid: attributes.as_secs(),
            entry_valid_nanoseconds: names.subsec_nanos(),
            attributes_valid_nanoseconds: attributes.subsec_nanos(),
            attributes: status.attributes,
        };
        if self.session.submounts && is_submount(directory.identity(), status) {
            entry.attributes.flags |= ATTR_SUBMOUNT;
        }
        Ok(entry)
    }
}

/// Whether a directory lies on another mount than its parent.
fn is_submount(parent: Identity, status: &Status) -> bool {
    let child = status.identity;
    status.file_type == FileType::Directory && (child.mount, child.device) != (parent.mount, parent.device)
}
