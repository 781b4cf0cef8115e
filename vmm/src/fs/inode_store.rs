//! The inodes that the guest knows.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::cache_policy::Place;
use super::host::{Identity, Status};
use super::table::{Full, Table};
use super::wire::ROOT_ID;

/// One inode that the guest knows by number.
#[derive(Debug)]
pub(super) struct Inode {
    /// An `O_PATH` descriptor: it follows the inode through renames and keeps its number from being used again.
    descriptor: OwnedFd,
    identity: Identity,
    file_type: FileType,
    place: Place,
    /// How often the guest was told of the inode and has not forgotten it.
    lookups: u64,
}

impl Inode {
    /// Which file it is.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// What kind of file it is. That never changes.
    pub(super) fn file_type(&self) -> FileType {
        self.file_type
    }

    /// Where it was found first.
    pub(super) fn place(&self) -> Place {
        self.place
    }
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// All inodes that the guest knows. Names of one file, and renamed files, are one inode.
#[derive(Debug)]
pub(super) struct InodeStore {
    inodes: Table<Inode>,
    numbers: HashMap<Identity, u64>,
}

impl InodeStore {
    /// A store of up to `limit` inodes, with the root in it.
    ///
    /// # Errors
    /// `ENFILE` when `limit` leaves no room for the root.
    pub(super) fn new(limit: usize, root: OwnedFd, status: &Status, place: Place) -> Result<Self, Errno> {
        let mut store = Self { inodes: Table::new(limit), numbers: HashMap::new() };
        let number = store.look_up(status, place, root)?;
        debug_assert_eq!(number, ROOT_ID);
        Ok(store)
    }

    /// The inode with this number.
    ///
    /// # Errors
    /// `ESTALE` when the guest does not know such an inode.
    pub(super) fn get(&self, number: u64) -> Result<&Inode, Errno> {
        self.inodes.get(number).ok_or(Errno::STALE)
    }

    /// The directory with this number.
    ///
    /// # Errors
    /// `ESTALE` when the guest does not know such an inode, `ENOTDIR` when it is something else.
    pub(super) fn directory(&self, number: u64) -> Result<&Inode, Errno> {
        self.get(number).and_then(|inode| match inode.file_type {
            FileType::Directory => Ok(inode),
            _ => Err(Errno::NOTDIR),
        })
    }

    /// Whether the guest knows this inode.
    pub(super) fn knows(&self, identity: &Identity) -> bool {
        self.numbers.contains_key(identity)
    }

    /// Counts a lookup of an inode that is known already and returns its number.
    pub(super) fn look_up_known(&mut self, identity: &Identity) -> Option<u64> {
        let number = *self.numbers.get(identity)?;
        let inode = self.inodes.get_mut(number)?;
        inode.lookups = inode.lookups.saturating_add(1);
        Some(number)
    }

    /// Counts a lookup of the inode behind `descriptor`, keeps the descriptor if the inode is new, and returns its
    /// number.
    ///
    /// # Errors
    /// `ENFILE` when the guest holds as many inodes as it may.
    pub(super) fn look_up(
        &mut self,
        status: &Status,
        place: Place,
        descriptor: OwnedFd,
    ) -> Result<u64, Errno> {
        let identity = status.identity;
        if let Some(number) = self.look_up_known(&identity) {
            return Ok(number);
        }
        let inode = Inode { descriptor, identity, file_type: status.file_type, place, lookups: 1 };
        let number = self.inodes.insert(inode).map_err(|Full| Errno::NFILE)?;
        self.numbers.insert(identity, number);
        Ok(number)
    }

    /// Takes back `lookups` lookups and lets go of the inode when none are left. The root stays.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        if number == ROOT_ID {
            return;
        }
        let Some(inode) = self.inodes.get_mut(number) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups == 0
            && let Some(inode) = self.inodes.remove(number)
        {
            self.numbers.remove(&inode.identity);
        }
    }

    /// Lets go of everything but the root.
    pub(super) fn forget_all(&mut self) {
        let numbers: Vec<u64> = self.inodes.iter().map(|(number, _)| number).collect();
        for number in numbers {
            self.forget(number, u64::MAX);
        }
    }

    /// How many inodes there are, the root included.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::cache_policy::{CachePolicy, Caching};
    use super::*;

    const FILES: usize = 6;
    const LIMIT: usize = 5;

    #[derive(Debug, Clone)]
    enum Step {
        LookUp(usize),
        Forget(usize, u64),
        ForgetMadeUp(u64, u64),
        ForgetAll,
    }

    fn step() -> impl Strategy<Value = Step> {
        let lookups = || prop_oneof![3 => 0..4_u64, 1 => Just(u64::MAX)];
        prop_oneof![
            6 => (0..FILES).prop_map(Step::LookUp),
            4 => (any::<usize>(), lookups()).prop_map(|(which, lookups)| Step::Forget(which, lookups)),
            1 => (any::<u64>(), lookups()).prop_map(|(number, lookups)| Step::ForgetMadeUp(number, lookups)),
            1 => Just(Step::ForgetAll),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_inode_lives_exactly_as_long_as_its_lookups(steps in proptest::collection::vec(step(), 0..100)) {
            let directory = tempfile::tempdir().unwrap();
            let policy = CachePolicy::uniform(Caching::NONE);
            let open = |name: &str| {
                let path = directory.path().join(name);
                rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap()
            };
            for file in 0..FILES {
                std::fs::write(directory.path().join(file.to_string()), b"").unwrap();
            }
            let root = open(".");
            let status = Status::of(&root).unwrap();
            let mut store = InodeStore::new(LIMIT, root, &status, policy.root()).unwrap();
            // File -> (number, lookups).
            let mut model: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
            let mut ever: Vec<(usize, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::LookUp(file) => {
                        let descriptor = open(&file.to_string());
                        let status = Status::of(&descriptor).unwrap();
                        let result = store.look_up(&status, policy.root(), descriptor);
                        let full = model.len() + 1 == LIMIT;
                        match model.get_mut(&file) {
                            Some((number, lookups)) => {
                                prop_assert_eq!(result, Ok(*number));
                                *lookups += 1;
                            }
                            None if full => prop_assert_eq!(result, Err(Errno::NFILE)),
                            None => {
                                let number = result.unwrap();
                                prop_assert!(ever.iter().all(|(_, old)| *old != number));
                                ever.push((file, number));
                                model.insert(file, (number, 1));
                            }
                        }
                    }
                    Step::Forget(which, count) if !ever.is_empty() => {
                        let (file, number) = ever[which % ever.len()];
                        store.forget(number, count);
                        if let Some((current, lookups)) = model.get_mut(&file)
                            && *current == number
                        {
                            *lookups = lookups.saturating_sub(count);
                            if *lookups == 0 {
                                model.remove(&file);
                            }
                        }
                    }
                    Step::Forget(..) => {}
                    Step::ForgetMadeUp(number, count) => {
                        if ever.iter().all(|(_, real)| *real != number) {
                            store.forget(number, count);
                        }
                    }
                    Step::ForgetAll => {
                        store.forget_all();
                        model.clear();
                    }
                }
                prop_assert_eq!(store.len(), model.len() + 1);
                prop_assert_eq!(store.numbers.len(), model.len() + 1);
                prop_assert!(store.get(ROOT_ID).is_ok());
                for (file, number) in &ever {
                    let alive = model.get(file).is_some_and(|(current, _)| current == number);
                    prop_assert_eq!(store.get(*number).is_ok(), alive);
                }
            }
        }
    }
}
