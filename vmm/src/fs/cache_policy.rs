//! How long the guest may trust what it was told.
//!
//! The shared directory has regions with different owners. Below some the guest alone writes, so that it may keep
//! what it knows; below others the host writes too, so that the guest must ask again soon. A region is named by the
//! first component of the path, and begins some levels further down: above that the host adds and removes
//! directories whenever a container comes or goes, and the guest asks every time.

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

/// What holds in one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRule {
    /// The first component of the region's paths.
    pub first_component: String,
    /// How many components a directory's path has at least for the names in it to be cached.
    pub depth: u8,
    /// What holds from there on.
    pub caching: Caching,
}

/// What holds where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePolicy {
    rules: Vec<CacheRule>,
    otherwise: Caching,
}

/// Where in the shared directory an inode was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    depth: u8,
    rule: Option<u8>,
}

impl CachePolicy {
    /// The same everywhere.
    pub fn uniform(caching: Caching) -> Self {
        Self { rules: Vec::new(), otherwise: caching }
    }

    /// Regions with rules of their own; nothing is cached elsewhere. Rules beyond the 255th do not count.
    pub fn by_region(rules: Vec<CacheRule>) -> Self {
        Self { rules, otherwise: Caching::NONE }
    }

    pub(super) fn root(&self) -> Place {
        Place { depth: 0, rule: None }
    }

    /// The place of `name` in the directory at `parent`.
    pub(super) fn child(&self, parent: Place, name: &[u8]) -> Place {
        let rule = match parent.depth {
            0 => (0..u8::MAX)
                .zip(&self.rules)
                .find_map(|(index, rule)| (rule.first_component.as_bytes() == name).then_some(index)),
            _ => parent.rule,
        };
        Place { depth: parent.depth.saturating_add(1), rule }
    }

    /// What holds for the names in the directory at `place`, and for its own list of names.
    pub(super) fn names_in(&self, place: Place) -> Caching {
        match self.rule(place) {
            Some(rule) if place.depth < rule.depth => Caching::NONE,
            Some(rule) => rule.caching,
            None => self.otherwise,
        }
    }

    /// What holds for the attributes and the contents of the inode at `place`.
    pub(super) fn inode(&self, place: Place) -> Caching {
        match self.rule(place) {
            Some(rule) if place.depth <= rule.depth => Caching::NONE,
            Some(rule) => rule.caching,
            None => self.otherwise,
        }
    }

    fn rule(&self, place: Place) -> Option<&CacheRule> {
        self.rules.get(usize::from(place.rule?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> CachePolicy {
        let rule = |name: &str, caching| CacheRule { first_component: name.into(), depth: 2, caching };
        CachePolicy::by_region(vec![rule("private", Caching::EXCLUSIVE), rule("live", Caching::SHARED)])
    }

    fn place(policy: &CachePolicy, path: &str) -> Place {
        path.split('/')
            .filter(|name| !name.is_empty())
            .fold(policy.root(), |at, name| policy.child(at, name.as_bytes()))
    }

    #[test]
    fn names_above_a_region_are_never_cached() {
        let policy = policy();
        for path in ["", "private", "live", "elsewhere", "elsewhere/a/b/c", "elsewhere/private/a/b"] {
            assert_eq!(policy.names_in(place(&policy, path)), Caching::NONE, "{path}");
            assert_eq!(policy.inode(place(&policy, path)), Caching::NONE, "{path}");
        }
    }

    #[test]
    fn a_region_begins_with_the_names_in_its_directories() {
        let policy = policy();
        for (path, caching) in [("private/c1", Caching::EXCLUSIVE), ("live/c1", Caching::SHARED)] {
            let at = place(&policy, path);
            assert_eq!(policy.names_in(at), caching, "{path}");
            assert_eq!(policy.inode(at), Caching::NONE, "{path}");
        }
        for (path, caching) in [("private/c1/rootfs", Caching::EXCLUSIVE), ("live/c1/0/x/y", Caching::SHARED)]
        {
            let at = place(&policy, path);
            assert_eq!(policy.names_in(at), caching, "{path}");
            assert_eq!(policy.inode(at), caching, "{path}");
        }
    }

    #[test]
    fn a_path_of_any_depth_keeps_its_rule() {
        let policy = policy();
        let deep = format!("private/{}", "d/".repeat(1000));
        assert_eq!(policy.names_in(place(&policy, &deep)), Caching::EXCLUSIVE);
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
