//! The inodes that the guest knows.
//!
//! Each is reached by an `O_PATH` descriptor. The store holds a bounded number of them: a guest may know far more
//! inodes than a process may have descriptors, and each descriptor makes the host's kernel keep an inode in memory.
//! An inode whose descriptor was given up is reached again by the name under which it was last found, from its
//! directory. Whether that is still the same inode shows in its identity and time of birth; if not, it is stale, and
//! the guest looks its path up anew. An inode that has lost its name keeps its descriptor.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::cache_policy::Place;
use super::host::{Birth, Identity, Status, reach};
use super::table::{Full, Table};
use super::wire::ROOT_ID;

/// The most directories that are walked to reach an inode again.
const MOST_LEVELS: usize = 4096;

/// One inode that the guest knows by number.
#[derive(Debug)]
pub(super) struct Inode {
    /// An `O_PATH` descriptor: it follows the inode through renames and keeps its number from being used again.
    descriptor: Option<OwnedFd>,
    identity: Identity,
    birth: Option<Birth>,
    file_type: FileType,
    place: Place,
    /// How often the guest was told of the inode and has not forgotten it.
    lookups: u64,
    /// Under which name it was found last; `None` for the root and for what has lost that name.
    name: Option<Name>,
    /// It was used since the search for a descriptor to give up came by.
    recently_used: bool,
    /// The last request that needed the descriptor.
    used_by: u64,
    /// It waits in [`InodeStore::candidates`].
    is_candidate: bool,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    directory: u64,
    name: Box<CStr>,
}

impl Name {
    fn is(&self, directory: u64, name: &CStr) -> bool {
        self.directory == directory && *self.name == *name
    }
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

    fn is_still(&self, status: &Status) -> bool {
        (status.identity, status.file_type, status.birth) == (self.identity, self.file_type, self.birth)
    }
}

/// An inode with its descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    inode: &'a Inode,
    descriptor: BorrowedFd<'a>,
}

impl Deref for Held<'_> {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        self.inode
    }
}

impl AsFd for Held<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor
    }
}

/// All inodes that the guest knows. Names of one file, and renamed files, are one inode.
#[derive(Debug)]
pub(super) struct InodeStore {
    inodes: Table<Inode>,
    numbers: HashMap<Identity, u64>,
    /// How many descriptors are held, and how many may be.
    descriptors: usize,
    most_descriptors: usize,
    /// Inodes whose descriptor could be given up, those that were looked at longest ago first. Some may be gone.
    candidates: VecDeque<u64>,
    /// Counts requests. What the present one holds is not given up.
    request: u64,
}

impl InodeStore {
    /// A store of up to `most_inodes` inodes and `most_descriptors` descriptors, with the root in it.
    ///
    /// # Errors
    /// `ENFILE` when that leaves no room for the root.
    pub(super) fn new(
        most_inodes: usize,
        most_descriptors: usize,
        root: OwnedFd,
        status: &Status,
        place: Place,
    ) -> Result<Self, Errno> {
        let mut store = Self {
            inodes: Table::new(most_inodes),
            numbers: HashMap::new(),
            descriptors: 0,
            most_descriptors,
            candidates: VecDeque::new(),
            request: 0,
        };
        let number = store.insert(status, place, None, root)?;
        debug_assert_eq!(number, ROOT_ID);
        Ok(store)
    }

    /// Another request begins: descriptors that the last one needed may be given up.
    pub(super) fn begin_request(&mut self) {
        self.request = self.request.wrapping_add(1);
    }

    /// The inode with this number, reached. It stays so for the rest of the request.
    ///
    /// # Errors
    /// `ESTALE` when the guest knows no such inode, or when it is no longer where it was found; `ENFILE` when no
    /// descriptor can be given up for it; else what the host returned.
    pub(super) fn get(&mut self, number: u64) -> Result<Held<'_>, Errno> {
        self.hold(number)?;
        self.held(number)
    }

    /// Two inodes at once.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn get_pair(&mut self, first: u64, second: u64) -> Result<(Held<'_>, Held<'_>), Errno> {
        self.hold(first)?;
        self.hold(second)?;
        Ok((self.held(first)?, self.held(second)?))
    }

    /// The directory with this number, reached.
    ///
    /// # Errors
    /// `ENOTDIR` when it is something else; else as [`get`](Self::get).
    pub(super) fn directory(&mut self, number: u64) -> Result<Held<'_>, Errno> {
        self.require_directory(number)?;
        self.get(number)
    }

    /// Two directories at once.
    ///
    /// # Errors
    /// As [`directory`](Self::directory).
    pub(super) fn directories(&mut self, first: u64, second: u64) -> Result<(Held<'_>, Held<'_>), Errno> {
        self.require_directory(first)?;
        self.require_directory(second)?;
        self.get_pair(first, second)
    }

    /// The directory with this number, reached, and room for one more inode: what a request that makes a file needs
    /// to be sure of before it does, since the guest must not be told of an error when the file is there.
    ///
    /// # Errors
    /// `ENFILE` when there is no room; else as [`directory`](Self::directory).
    pub(super) fn directory_to_add_to(&mut self, number: u64) -> Result<Held<'_>, Errno> {
        self.require_directory(number)?;
        self.hold(number)?;
        self.make_room()?;
        if self.inodes.is_full() {
            return Err(Errno::NFILE);
        }
        self.held(number)
    }

    /// What is known of the inode with this number without reaching it.
    ///
    /// # Errors
    /// `ESTALE` when the guest knows no such inode.
    pub(super) fn peek(&self, number: u64) -> Result<&Inode, Errno> {
        self.inodes.get(number).ok_or(Errno::STALE)
    }

    /// The number of this inode, if the guest knows it.
    pub(super) fn number_of(&self, identity: &Identity) -> Option<u64> {
        self.numbers.get(identity).copied()
    }

    /// Counts a lookup of an inode that is known already, found as `name` in `directory`, and returns its number.
    pub(super) fn look_up_known(&mut self, status: &Status, directory: u64, name: &CStr) -> Option<u64> {
        let number = self.number_of(&status.identity)?;
        let inode = self.inodes.get_mut(number)?;
        if inode.descriptor.is_none() && !inode.is_still(status) {
            // It was removed by the host while nothing held it, and its inode number is another file's now.
            inode.name = None;
            self.numbers.remove(&status.identity);
            return None;
        }
        inode.lookups = inode.lookups.saturating_add(1);
        self.set_name(number, directory, name);
        Some(number)
    }

    /// Counts a lookup of the inode behind `descriptor`, found as `name` in `directory`, keeps the descriptor if the
    /// inode is new, and returns its number. A file without a name has an empty one.
    ///
    /// # Errors
    /// `ENFILE` when the guest knows as many inodes as it may, or when no descriptor can be given up.
    pub(super) fn look_up(
        &mut self,
        status: &Status,
        place: Place,
        directory: u64,
        name: &CStr,
        descriptor: OwnedFd,
    ) -> Result<u64, Errno> {
        if let Some(number) = self.look_up_known(status, directory, name) {
            return Ok(number);
        }
        let name = (!name.is_empty()).then(|| Name { directory, name: name.into() });
        self.insert(status, place, name, descriptor)
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
            if self.numbers.get(&inode.identity) == Some(&number) {
                self.numbers.remove(&inode.identity);
            }
            self.descriptors -= usize::from(inode.descriptor.is_some());
            self.tidy_candidates();
        }
    }

    /// Lets go of everything but the root.
    pub(super) fn forget_all(&mut self) {
        let numbers: Vec<u64> = self.inodes.iter().map(|(number, _)| number).collect();
        for number in numbers {
            self.forget(number, u64::MAX);
        }
    }

    /// `name` in `directory` is about to go: the inode is reached while it still can be.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn prepare_loss(&mut self, number: u64, directory: u64, name: &CStr) -> Result<(), Errno> {
        match &self.peek(number)?.name {
            Some(known) if known.is(directory, name) => self.hold(number),
            _ => Ok(()),
        }
    }

    /// `name` in `directory` is gone, or another inode's.
    pub(super) fn lose_name(&mut self, number: u64, directory: u64, name: &CStr) {
        if let Some(inode) = self.inodes.get_mut(number)
            && inode.name.as_ref().is_some_and(|known| known.is(directory, name))
        {
            inode.name = None;
        }
    }

    /// The inode is now found as `name` in `directory`. An empty name says nothing.
    pub(super) fn set_name(&mut self, number: u64, directory: u64, name: &CStr) {
        let Some(inode) = self.inodes.get_mut(number) else { return };
        if number == ROOT_ID || name.is_empty() {
            return;
        }
        if !inode.name.as_ref().is_some_and(|known| known.is(directory, name)) {
            inode.name = Some(Name { directory, name: name.into() });
        }
        if inode.descriptor.is_some() && !inode.is_candidate {
            inode.is_candidate = true;
            self.candidates.push_back(number);
        }
    }

    /// How many inodes there are, the root included.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// How many descriptors are held.
    pub(super) fn descriptors(&self) -> usize {
        self.descriptors
    }

    fn insert(
        &mut self,
        status: &Status,
        place: Place,
        name: Option<Name>,
        descriptor: OwnedFd,
    ) -> Result<u64, Errno> {
        self.make_room()?;
        let is_candidate = name.is_some();
        let number = self
            .inodes
            .insert(Inode {
                descriptor: Some(descriptor),
                identity: status.identity,
                birth: status.birth,
                file_type: status.file_type,
                place,
                lookups: 1,
                name,
                recently_used: true,
                used_by: self.request,
                is_candidate,
            })
            .map_err(|Full| Errno::NFILE)?;
        self.numbers.insert(status.identity, number);
        self.descriptors += 1;
        if is_candidate {
            self.candidates.push_back(number);
        }
        Ok(number)
    }

    fn require_directory(&self, number: u64) -> Result<(), Errno> {
        match self.peek(number)?.file_type {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn held(&self, number: u64) -> Result<Held<'_>, Errno> {
        let inode = self.peek(number)?;
        let descriptor = inode.descriptor.as_ref().ok_or(Errno::STALE)?.as_fd();
        Ok(Held { inode, descriptor })
    }

    /// Makes sure that there is a descriptor.
    fn hold(&mut self, number: u64) -> Result<(), Errno> {
        let inode = self.inodes.get_mut(number).ok_or(Errno::STALE)?;
        inode.recently_used = true;
        inode.used_by = self.request;
        match inode.descriptor {
            Some(_) => Ok(()),
            None => self.reach_again(number),
        }
    }

    /// Reaches the inode and those of its directories that are not held, from the top down. The inode that is wanted comes last,
    /// so that none of its directories displaces it.
    fn reach_again(&mut self, number: u64) -> Result<(), Errno> {
        let (start, missing) = self.way_to(number)?;
        // Besides those that are kept, one descriptor at a time.
        let mut above: Option<(u64, OwnedFd)> = None;
        for number in missing {
            let inode = self.peek(number)?;
            let name = inode.name.as_ref().ok_or(Errno::STALE)?;
            let found = match &above {
                Some((_, directory)) => reach(directory, &name.name),
                None => reach(self.held(start)?, &name.name),
            };
            let descriptor = found.map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => Errno::STALE,
                error => error,
            })?;
            if !inode.is_still(&Status::of(&descriptor)?) {
                return Err(Errno::STALE);
            }
            if let Some((directory, descriptor)) = above.replace((number, descriptor)) {
                self.keep(directory, descriptor)?;
            }
        }
        match above {
            Some((number, descriptor)) => self.keep(number, descriptor),
            None => Ok(()),
        }
    }

    /// The nearest directory above the inode that is held, and what comes below it, down to the inode.
    fn way_to(&self, number: u64) -> Result<(u64, Vec<u64>), Errno> {
        let mut missing = Vec::new();
        let mut at = number;
        loop {
            let inode = self.peek(at)?;
            if inode.descriptor.is_some() {
                missing.reverse();
                return Ok((at, missing));
            }
            if missing.len() == MOST_LEVELS {
                return Err(Errno::STALE);
            }
            missing.push(at);
            at = inode.name.as_ref().ok_or(Errno::STALE)?.directory;
        }
    }

    /// Keeps the descriptor of an inode that had none.
    fn keep(&mut self, number: u64, descriptor: OwnedFd) -> Result<(), Errno> {
        self.make_room()?;
        let inode = self.inodes.get_mut(number).ok_or(Errno::STALE)?;
        inode.descriptor = Some(descriptor);
        inode.recently_used = true;
        self.descriptors += 1;
        if !inode.is_candidate {
            inode.is_candidate = true;
            self.candidates.push_back(number);
        }
        Ok(())
    }

    /// Gives up descriptors until one more may be held: of those inodes that were not used since the last search.
    fn make_room(&mut self) -> Result<(), Errno> {
        // The first time around forgets who was used recently, the second one finds one that was not.
        let mut looks = 2 * self.candidates.len();
        while self.descriptors >= self.most_descriptors {
            looks = looks.checked_sub(1).ok_or(Errno::NFILE)?;
            let number = self.candidates.pop_front().ok_or(Errno::NFILE)?;
            let Some(inode) = self.inodes.get_mut(number) else { continue };
            if inode.name.is_none() {
                inode.is_candidate = false;
            } else if std::mem::take(&mut inode.recently_used) || inode.used_by == self.request {
                self.candidates.push_back(number);
            } else {
                inode.is_candidate = false;
                inode.descriptor = None;
                self.descriptors -= 1;
            }
        }
        Ok(())
    }

    /// Drops candidates that are gone once they are the greater part.
    fn tidy_candidates(&mut self) {
        if self.candidates.len() > 2 * self.descriptors + 64 {
            let inodes = &self.inodes;
            self.candidates.retain(|number| inodes.get(*number).is_some_and(|inode| inode.is_candidate));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::CString;

    use proptest::prelude::*;

    use super::super::cache_policy::{CachePolicy, Caching};
    use super::*;

    const FILES: usize = 6;
    const LIMIT: usize = 5;
    const DESCRIPTORS: usize = 3;

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

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap()
    }

    /// A store whose root is `directory`.
    fn store_of(directory: &std::path::Path, inodes: usize, descriptors: usize) -> InodeStore {
        let root = open(directory);
        let status = Status::of(&root).unwrap();
        let place = CachePolicy::uniform(Caching::NONE).root();
        InodeStore::new(inodes, descriptors, root, &status, place).unwrap()
    }

    /// The number of a file in the root, asked for by a request of its own.
    fn look_up(store: &mut InodeStore, directory: &std::path::Path, name: &str) -> u64 {
        store.begin_request();
        let descriptor = open(&directory.join(name));
        let status = Status::of(&descriptor).unwrap();
        let place = CachePolicy::uniform(Caching::NONE).root();
        store.look_up(&status, place, ROOT_ID, &CString::new(name).unwrap(), descriptor).unwrap()
    }

    #[test]
    fn what_a_request_holds_is_not_given_up_for_what_it_needs_besides() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store_of(directory.path(), 10, 2);
        let [first, second] = ["a", "b"].map(|name| {
            std::fs::create_dir(directory.path().join(name)).unwrap();
            look_up(&mut store, directory.path(), name)
        });
        store.begin_request();
        assert_eq!(store.directories(first, second).unwrap_err(), Errno::NFILE);
        for number in [first, second] {
            store.begin_request();
            assert!(store.directory(number).is_ok(), "one at a time");
        }
    }

    #[test]
    fn inodes_that_come_and_go_leave_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), b"").unwrap();
        let mut store = store_of(directory.path(), 10, 5);
        for _ in 0..300 {
            let number = look_up(&mut store, directory.path(), "file");
            store.forget(number, 1);
            assert!(store.candidates.len() <= 2 * store.descriptors() + 64);
        }
        assert_eq!((store.len(), store.descriptors()), (1, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_inode_lives_exactly_as_long_as_its_lookups(steps in proptest::collection::vec(step(), 0..100)) {
            let directory = tempfile::tempdir().unwrap();
            let policy = CachePolicy::uniform(Caching::NONE);
            for file in 0..FILES {
                std::fs::write(directory.path().join(file.to_string()), b"").unwrap();
            }
            let mut store = store_of(directory.path(), LIMIT, DESCRIPTORS);
            // File -> (number, lookups).
            let mut model: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
            let mut ever: Vec<(usize, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::LookUp(file) => {
                        store.begin_request();
                        let descriptor = open(&directory.path().join(file.to_string()));
                        let status = Status::of(&descriptor).unwrap();
                        let name = CString::new(file.to_string()).unwrap();
                        let result = store.look_up(&status, policy.root(), ROOT_ID, &name, descriptor);
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
                prop_assert!(store.descriptors() <= DESCRIPTORS);
                for (file, number) in &ever {
                    store.begin_request();
                    let alive = model.get(file).is_some_and(|(current, _)| current == number);
                    prop_assert_eq!(store.get(*number).is_ok(), alive);
                }
            }
        }
    }
}
