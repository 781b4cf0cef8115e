//! How long the guest may trust what it was told.
//!
//! Where the guest alone writes, it may keep what it knows; where the host writes too, the guest must ask again soon. In
//! either case that begins some levels below the shared directory: above that the host adds and removes directories
//! whenever a container comes or goes, and the guest asks every time.

use std::time::Duration;

/// How long names, attributes and contents may be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caching {
    /// How long a name stands for the same inode.
    pub entries: Duration,
    /// How long a name that was not found stays absent.
    pub negative_entries: Duration,
    /// How long attributes hold.
    pub attributes: Duration,
    /// Whether cached contents outlive the last close.
    pub keep_contents: bool,
    /// Whether the names in a directory may be cached.
    pub keep_directories: bool,
}

impl Caching {
    /// Nothing is trusted.
    pub const NONE: Self = Self {
        entries: Duration::ZERO,
        negative_entries: Duration::ZERO,
        attributes: Duration::ZERO,
        keep_contents: false,
        keep_directories: false,
    };

    /// The host changes files, too, and its changes are to be seen within a second.
    pub const SHARED: Self = Self {
        entries: Duration::from_secs(1),
        negative_entries: Duration::ZERO,
        attributes: Duration::from_secs(1),
        keep_contents: false,
        keep_directories: false,
    };

    /// Only the guest changes files.
    pub const EXCLUSIVE: Self = Self {
        entries: Duration::from_secs(24 * 60 * 60),
        negative_entries: Duration::from_secs(24 * 60 * 60),
        attributes: Duration::from_secs(24 * 60 * 60),
        keep_contents: true,
        keep_directories: true,
    };
}

/// What holds where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePolicy {
    /// How many components a directory's path has at least for the names in it to be cached; `None` where that, and the
    /// shared directory itself, is cached from the start.
    depth: Option<u8>,
    caching: Caching,
}

/// Where in the shared directory an inode was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    depth: u8,
}

impl CachePolicy {
    /// The same everywhere.
    pub fn uniform(caching: Caching) -> Self {
        Self { depth: None, caching }
    }

    /// Names are cached in directories whose path has at least `depth` components, and with them what they name. Nothing
    /// is cached above.
    pub fn below(depth: u8, caching: Caching) -> Self {
        Self { depth: Some(depth), caching }
    }

    pub(super) fn root(&self) -> Place {
        Place { depth: 0 }
    }

    /// The place of a name in the directory at `parent`.
    pub(super) fn child(&self, parent: Place) -> Place {
        Place { depth: parent.depth.saturating_add(1) }
    }

    /// What holds for the names in the directory at `place`, and for its own list of names.
    pub(super) fn names_in(&self, place: Place) -> Caching {
        match self.depth {
            Some(depth) if place.depth < depth => Caching::NONE,
            _ => self.caching,
        }
    }

    /// What holds for the attributes and the contents of the inode at `place`.
    pub(super) fn inode(&self, place: Place) -> Caching {
        match self.depth {
            Some(depth) if place.depth <= depth => Caching::NONE,
            _ => self.caching,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(policy: &CachePolicy, path: &str) -> Place {
        path.split('/').filter(|name| !name.is_empty()).fold(policy.root(), |at, _| policy.child(at))
    }

    #[test]
    fn names_that_the_host_adds_and_removes_are_never_cached() {
        let policy = CachePolicy::below(2, Caching::EXCLUSIVE);
        for path in ["", "a"] {
            assert_eq!(policy.names_in(place(&policy, path)), Caching::NONE, "{path}");
            assert_eq!(policy.inode(place(&policy, path)), Caching::NONE, "{path}");
        }
    }

    #[test]
    fn caching_begins_with_the_names_in_a_directory_and_not_with_its_attributes() {
        let policy = CachePolicy::below(2, Caching::EXCLUSIVE);
        let at = place(&policy, "a/b");
        assert_eq!(policy.names_in(at), Caching::EXCLUSIVE);
        assert_eq!(policy.inode(at), Caching::NONE);
        for path in ["a/b/c", &format!("a/{}", "d/".repeat(1000))] {
            let at = place(&policy, path);
            assert_eq!(policy.names_in(at), Caching::EXCLUSIVE, "{path}");
            assert_eq!(policy.inode(at), Caching::EXCLUSIVE, "{path}");
        }
    }

    #[test]
    fn a_uniform_policy_is_the_same_everywhere() {
        let policy = CachePolicy::uniform(Caching::SHARED);
        for path in ["", "a", "private/b/c/d"] {
            assert_eq!(policy.names_in(place(&policy, path)), Caching::SHARED);
            assert_eq!(policy.inode(place(&policy, path)), Caching::SHARED);
        }
    }
}
