//! `mounts`.

use std::path::{Path, PathBuf};

use libc::MOUNT_ATTR_RDONLY;
use oci_spec::runtime::Mount;

use super::mount_options::MountOptions;
use crate::error::SpecError;
use crate::sys::mount::MountAttributes;

/// A mount in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Where, in the container.
    pub(crate) destination: PathBuf,
    /// Of what.
    pub(crate) source: MountSource,
    /// What to change on the mount itself.
    pub(crate) own: MountAttributes,
    /// What to change on it and on all mounts below it.
    pub(crate) recursive: MountAttributes,
    /// Set when the mount becomes read-only only after the set-up has put device nodes into it.
    pub(crate) readonly_at_last: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountSource {
    /// A file or directory of the guest.
    Bind {
        /// Which.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A new file system.
    FileSystem {
        /// Its type, as the kernel names it.
        kind: String,
        /// Its source, as shown in /proc/mounts.
        source: String,
        /// Its options: names, and values where there are any.
        options: Vec<(String, Option<String>)>,
    },
}

pub(super) fn from_spec(mounts: &[Mount]) -> Result<Vec<MountPlan>, SpecError> {
    mounts.iter().enumerate().map(|(index, mount)| one(&format!("mounts[{index}]"), mount)).collect()
}

fn one(field: &str, mount: &Mount) -> Result<MountPlan, SpecError> {
    refuse_mappings(field, mount)?;
    let options_field = format!("{field}.options");
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default(), &options_field)?;
    let mut own = options.own;
    let recursive = options.recursive;
    let destination = destination(field, mount)?;
    let source = source(field, mount, options)?;
    // Device nodes are made in /dev after it is mounted, so it cannot be read-only before.
    let readonly_at_last = destination == Path::new("/dev") && own.set & MOUNT_ATTR_RDONLY != 0;
    if readonly_at_last {
        own.set &= !MOUNT_ATTR_RDONLY;
    }
    Ok(MountPlan { destination, source, own, recursive, readonly_at_last })
}

fn refuse_mappings(field: &str, mount: &Mount) -> Result<(), SpecError> {
    let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|mappings| !mappings.is_empty());
    if !mapped(mount.uid_mappings()) && !mapped(mount.gid_mappings()) {
        return Ok(());
    }
    Err(SpecError::not_supported(format!("{field}.uidMappings"), "mounts have the ids of their file system"))
}

/// A destination without a leading slash counts from the root, as elsewhere.
fn destination(field: &str, mount: &Mount) -> Result<PathBuf, SpecError> {
    let destination = mount.destination();
    if destination.as_os_str().is_empty() {
        return Err(SpecError::invalid(
            format!("{field}.destination"),
            "is empty; it must be an absolute path",
        ));
    }
    Ok(Path::new("/").join(destination))
}

fn source(field: &str, mount: &Mount, options: MountOptions) -> Result<MountSource, SpecError> {
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind.or((kind == "bind").then_some(false));
    match bind {
        Some(recursive) => bind_source(field, mount, recursive, &options),
        None => file_system_source(field, kind, mount, options),
    }
}

fn bind_source(
    field: &str,
    mount: &Mount,
    recursive: bool,
    options: &MountOptions,
) -> Result<MountSource, SpecError> {
    if let Some((name, _)) = options.file_system.first() {
        let problem = format!("{name:?} is not an option of a bind mount");
        return Err(SpecError::invalid(format!("{field}.options"), problem));
    }
    match mount.source() {
        Some(source) if source.is_absolute() => Ok(MountSource::Bind { source: source.clone(), recursive }),
        Some(source) => {
            let problem = format!("is {source:?}; a bind mount needs an absolute path in the guest");
            Err(SpecError::invalid(format!("{field}.source"), problem))
        }
        None => Err(SpecError::invalid(format!("{field}.source"), "is missing; a bind mount needs it")),
    }
}

fn file_system_source(
    field: &str,
    kind: &str,
    mount: &Mount,
    options: MountOptions,
) -> Result<MountSource, SpecError> {
    if kind.is_empty() || kind == "none" {
        let problem = format!("is {kind:?}; name a file system, or \"bind\"");
        return Err(SpecError::invalid(format!("{field}.type"), problem));
    }
    // The guest has the unified hierarchy alone; specs made for either name it "cgroup".
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let source = mount.source().as_ref().map_or_else(|| kind.to_owned(), |path| path.display().to_string());
    let options = file_system_options(kind, options.file_system);
    Ok(MountSource::FileSystem { kind: kind.to_owned(), source, options })
}

/// Leaves out what every mount of that type is anyway: each devpts is an instance of its own since Linux 4.7.
fn file_system_options(kind: &str, options: Vec<(String, Option<String>)>) -> Vec<(String, Option<String>)> {
    let needless = |name: &str| kind == "devpts" && name == "newinstance";
    options.into_iter().filter(|(name, _)| !needless(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<MountPlan, SpecError> {
        one("mounts[3]", &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_type_of_bind_is_a_bind_even_without_the_option() {
        let plan = read(r#"{"destination":"/d","type":"bind","source":"/s","options":["ro"]}"#).unwrap();
        assert_eq!(plan.source, MountSource::Bind { source: PathBuf::from("/s"), recursive: false });
        assert_eq!(plan.own.set, MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn a_read_only_dev_stays_writable_until_its_nodes_are_made() {
        let plan =
            read(r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","ro"]}"#);
        let plan = plan.unwrap();
        assert!(plan.readonly_at_last);
        assert_eq!(plan.own.set & MOUNT_ATTR_RDONLY, 0);
    }

    #[test]
    fn a_cgroup_mount_is_the_unified_hierarchy() {
        let plan = read(r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup"}"#).unwrap();
        let MountSource::FileSystem { kind, .. } = plan.source else { panic!("not a file system") };
        assert_eq!(kind, "cgroup2");
    }

    #[test]
    fn what_is_wrong_with_a_mount_is_named() {
        let table = [
            (r#"{"destination":"/d","type":"bind"}"#, "mounts[3].source: is missing"),
            (r#"{"destination":"/d","type":"bind","source":"s"}"#, "mounts[3].source: is \"s\""),
            (r#"{"destination":"/d"}"#, "mounts[3].type: is \"\""),
            (r#"{"destination":"","type":"tmpfs"}"#, "mounts[3].destination: is empty"),
            (
                r#"{"destination":"/d","type":"bind","source":"/s","options":["size=1"]}"#,
                "mounts[3].options: \"size\" is not",
            ),
            (
                r#"{"destination":"/d","type":"bind","source":"/s","options":["idmap"]}"#,
                "mounts[3].options: not supported",
            ),
        ];
        for (json, start) in table {
            let message = read(json).unwrap_err().to_string();
            assert!(message.starts_with(start), "{json}: {message}");
        }
    }
}
