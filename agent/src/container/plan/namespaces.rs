//! `linux.namespaces` with the mappings and clock offsets that belong to them.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::absolute;
use crate::error::SpecError;

/// A namespace to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// Its `CLONE_NEW*` flag.
    pub(crate) kind: u32,
    /// Its file, as `/proc/<pid>/ns/ipc`.
    pub(crate) path: PathBuf,
}

/// The namespaces of a container. Those that are neither created nor joined are the guest's own, which is how the
/// containers of a pod share their network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` flags of the new ones.
    pub(crate) create: u32,
    /// Those that exist.
    pub(crate) join: Vec<Join>,
    /// Lines for `uid_map` of a new user namespace.
    pub(crate) uid_map: String,
    /// Lines for `gid_map` of a new user namespace.
    pub(crate) gid_map: String,
    /// Lines for `timens_offsets` of a new time namespace.
    pub(crate) time_offsets: String,
}

impl Namespaces {
    pub(super) fn from_spec(linux: &Linux) -> Result<Self, SpecError> {
        let mut read = Self::default();
        for (index, namespace) in linux.namespaces().as_deref().unwrap_or_default().iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            let kind = namespace.typ() as u32;
            if read.names(kind) {
                return Err(SpecError::invalid(
                    field,
                    format!("names the {} namespace twice", namespace.typ()),
                ));
            }
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                Some(path) => {
                    let path = absolute(path, &format!("{field}.path"))?.to_owned();
                    read.join.push(Join { kind, path });
                }
                // The guest's network is the pod's: one without a path means that.
                None if namespace.typ() == LinuxNamespaceType::Network => {}
                None => read.create |= kind,
            }
        }
        read.check_mount()?;
        read.take_mappings(linux)?;
        read.take_time_offsets(linux)?;
        Ok(read)
    }

    /// Whether a namespace of this kind is created.
    pub(crate) fn creates(&self, kind: libc::c_int) -> bool {
        self.create & kind.cast_unsigned() != 0
    }

    /// The path of the namespace of this kind that is joined.
    pub(crate) fn joins(&self, kind: libc::c_int) -> Option<&Join> {
        self.join.iter().find(|join| join.kind == kind.cast_unsigned())
    }

    /// Whether it runs in a user namespace other than the guest's.
    pub(crate) fn has_user_namespace(&self) -> bool {
        self.creates(libc::CLONE_NEWUSER) || self.joins(libc::CLONE_NEWUSER).is_some()
    }

    fn names(&self, kind: u32) -> bool {
        self.create & kind != 0 || self.join.iter().any(|join| join.kind == kind)
    }

    fn check_mount(&self) -> Result<(), SpecError> {
        if self.creates(libc::CLONE_NEWNS) {
            return Ok(());
        }
        let problem =
            "a container needs a mount namespace of its own; add {\"type\":\"mount\"} without a path";
        Err(SpecError::not_supported("linux.namespaces", problem))
    }

    fn take_mappings(&mut self, linux: &Linux) -> Result<(), SpecError> {
        let uids = linux.uid_mappings().as_deref().unwrap_or_default();
        let gids = linux.gid_mappings().as_deref().unwrap_or_default();
        let new_user_namespace = self.creates(libc::CLONE_NEWUSER);
        for (field, mappings) in [("linux.uidMappings", uids), ("linux.gidMappings", gids)] {
            if new_user_namespace && mappings.is_empty() {
                return Err(SpecError::invalid(field, "is empty, but a new user namespace is asked for"));
            }
            let joined = self.joins(libc::CLONE_NEWUSER).is_some();
            if !new_user_namespace && !joined && !mappings.is_empty() {
                return Err(SpecError::invalid(
                    field,
                    "is there, but linux.namespaces has no user namespace",
                ));
            }
        }
        self.uid_map = map_lines(uids);
        self.gid_map = map_lines(gids);
        Ok(())
    }

    fn take_time_offsets(&mut self, linux: &Linux) -> Result<(), SpecError> {
        let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
            return Ok(());
        };
        if !self.creates(libc::CLONE_NEWTIME) {
            let problem = "is there, but linux.namespaces has no new time namespace";
            return Err(SpecError::invalid("linux.timeOffsets", problem));
        }
        for (clock, offset) in offsets {
            if clock != "monotonic" && clock != "boottime" {
                let problem = format!("has {clock:?}; the clocks are \"monotonic\" and \"boottime\"");
                return Err(SpecError::invalid("linux.timeOffsets", problem));
            }
            let seconds = offset.secs().unwrap_or(0);
            let nanoseconds = offset.nanosecs().unwrap_or(0);
            self.time_offsets.push_str(&format!("{clock} {seconds} {nanoseconds}\n"));
        }
        Ok(())
    }

    /// A name that only a uts namespace of the container's own can hold: `None` when it is not set.
    pub(super) fn own_name(&self, field: &str, name: Option<&String>) -> Result<Option<String>, SpecError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        if !self.creates(libc::CLONE_NEWUTS) {
            // Containers that join their pod's uts namespace carry its name too; it is that already.
            if self.joins(libc::CLONE_NEWUTS).is_some() {
                return Ok(None);
            }
            let problem = format!("is {name:?}, but linux.namespaces has no new uts namespace to hold it");
            return Err(SpecError::invalid(field, problem));
        }
        // __NEW_UTS_LEN of linux/utsname.h.
        if name.len() > 64 {
            return Err(SpecError::invalid(field, format!("has {} bytes; 64 is the most", name.len())));
        }
        Ok(Some(name.clone()))
    }
}

/// The format of user_namespaces(7): id inside, id outside, count.
fn map_lines(mappings: &[LinuxIdMapping]) -> String {
    mappings
        .iter()
        .map(|mapping| format!("{} {} {}\n", mapping.container_id(), mapping.host_id(), mapping.size()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Namespaces, SpecError> {
        Namespaces::from_spec(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_network_without_a_path_is_the_guests_own() {
        let read = read(r#"{"namespaces":[{"type":"mount"},{"type":"network"},{"type":"pid"}]}"#).unwrap();
        assert!(!read.creates(libc::CLONE_NEWNET));
        assert!(read.creates(libc::CLONE_NEWPID));
        assert!(read.join.is_empty());
    }

    #[test]
    fn a_namespace_with_a_path_is_joined() {
        let read =
            read(r#"{"namespaces":[{"type":"mount"},{"type":"ipc","path":"/proc/7/ns/ipc"}]}"#).unwrap();
        assert!(!read.creates(libc::CLONE_NEWIPC));
        assert_eq!(read.joins(libc::CLONE_NEWIPC).unwrap().path, PathBuf::from("/proc/7/ns/ipc"));
    }

    #[test]
    fn what_is_wrong_with_namespaces_is_named() {
        let table = [
            (r#"{"namespaces":[{"type":"pid"}]}"#, "linux.namespaces: not supported: "),
            (r#"{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#, "linux.namespaces[1]: names the pid"),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"ipc","path":"x"}]}"#,
                "linux.namespaces[1].path: is",
            ),
            (r#"{"namespaces":[{"type":"mount"},{"type":"user"}]}"#, "linux.uidMappings: is empty"),
            (
                r#"{"namespaces":[{"type":"mount"}],"timeOffsets":{"monotonic":{"secs":5}}}"#,
                "linux.timeOffsets: is there, but",
            ),
        ];
        for (json, start) in table {
            let message = read(json).unwrap_err().to_string();
            assert!(message.starts_with(start), "{json}: {message}");
        }
    }
}
