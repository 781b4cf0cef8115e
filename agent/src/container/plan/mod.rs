//! What an OCI spec asks for, checked and turned into what the set-up does, before any process exists.
//!
//! Every failure here names the field of the spec, its value and what would be right.

mod capabilities;
mod devices;
mod hooks;
mod limits;
mod mount_options;
mod mounts;
mod namespaces;
mod process;
mod scheduling;
mod sysctl;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};
use serde::de::DeserializeOwned;

pub(crate) use capabilities::{COUNT as CAPABILITY_COUNT, Capabilities};
pub(crate) use devices::{DeviceKind, DeviceNode};
pub(crate) use hooks::Hook;
pub(crate) use limits::ResourceLimit;
pub(crate) use mounts::{MountPlan, MountSource};
pub(crate) use namespaces::{Join, Namespaces};
pub(crate) use process::{ProcessPlan, User, WindowSize};
pub(crate) use scheduling::SchedulerPlan;
pub(crate) use sysctl::Sysctl;

use crate::error::SpecError;
use crate::sys::mount::MountAttributes;

/// A container to be.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    /// The version of the OCI runtime spec that it follows.
    pub(crate) oci_version: String,
    /// Its name.
    pub(crate) id: String,
    /// What the spec's author noted on it; hooks get to see it.
    pub(crate) annotations: HashMap<String, String>,
    /// Where its root file system is in the guest.
    pub(crate) rootfs: PathBuf,
    /// Whether its root is read-only.
    pub(crate) rootfs_readonly: bool,
    /// How mounts pass between its root and the guest; `None` leaves what the set-up chooses.
    pub(crate) rootfs_propagation: Option<MountAttributes>,
    /// The host name of its uts namespace.
    pub(crate) hostname: Option<String>,
    /// The domain name of its uts namespace.
    pub(crate) domainname: Option<String>,
    /// The namespaces it gets.
    pub(crate) namespaces: Namespaces,
    /// Its mounts in the order in which they are made.
    pub(crate) mounts: Vec<MountPlan>,
    /// Device nodes besides the default ones.
    pub(crate) devices: Vec<DeviceNode>,
    /// Kernel parameters of its namespaces.
    pub(crate) sysctls: Vec<Sysctl>,
    /// Paths in the container that read as empty.
    pub(crate) masked_paths: Vec<PathBuf>,
    /// Paths in the container that cannot be written.
    pub(crate) readonly_paths: Vec<PathBuf>,
    /// Programs that run in its namespaces before its root is entered.
    pub(crate) create_hooks: Vec<Hook>,
    /// Programs that run in it just before its own.
    pub(crate) start_hooks: Vec<Hook>,
    /// Its place in the cgroup tree, relative to the root, as the spec has it.
    pub(crate) cgroups_path: Option<PathBuf>,
    /// Its limits.
    pub(crate) resources: LinuxResources,
    /// Its first process.
    pub(crate) process: ProcessPlan,
}

/// The most unknown fields that are told of.
const UNKNOWN_FIELDS_MAX: usize = 64;

/// What was read, and the fields that it had beside.
#[derive(Debug)]
pub(crate) struct Parsed<T> {
    /// What was read.
    pub(crate) value: T,
    /// Paths of the fields that are not known. The OCI runtime spec wants them left alone, not refused.
    pub(crate) unknown_fields: Vec<String>,
}

/// Reads JSON; a failure names the field.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<Parsed<T>, SpecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let mut unknown_fields = Vec::new();
    let note = |path: serde_ignored::Path<'_>| {
        if unknown_fields.len() < UNKNOWN_FIELDS_MAX {
            unknown_fields.push(field_name(&path.to_string()));
        }
    };
    match serde_ignored::deserialize(deserializer, note) {
        Ok(value) => Ok(Parsed { value, unknown_fields }),
        Err(error) => {
            let field = track.path().to_string();
            let field = if field == "." { "the spec".to_owned() } else { field };
            Err(SpecError::invalid(field, error.to_string()))
        }
    }
}

/// A path without the marks of optional values.
fn field_name(path: &str) -> String {
    path.split('.').filter(|part| *part != "?").collect::<Vec<_>>().join(".")
}

impl ContainerPlan {
    /// Checks a `config.json`. `terminal` is what the request says, and must be what the spec says.
    pub(crate) fn from_spec(id: &str, spec: &Spec, terminal: Option<WindowSize>) -> Result<Self, SpecError> {
        check_version(spec.version())?;
        refuse_other_systems(spec)?;
        refuse_misplaced_mappings(spec)?;
        let root = spec.root().as_ref().ok_or_else(|| SpecError::invalid("root", "is missing"))?;
        let process = spec.process().as_ref().ok_or_else(|| SpecError::invalid("process", "is missing"))?;
        let linux = spec.linux().as_ref().ok_or_else(|| SpecError::invalid("linux", "is missing"))?;
        refuse_missing_features(linux)?;
        let namespaces = Namespaces::from_spec(linux)?;
        let mut process = ProcessPlan::from_spec(process, "process", terminal)?;
        process.personality = scheduling::personality(linux.personality().as_ref())?;
        process.seccomp = linux.seccomp().as_ref().map(crate::container::seccomp::compile).transpose()?;
        Ok(Self {
            oci_version: spec.version().clone(),
            id: id.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            rootfs: absolute(root.path(), "root.path")?.to_owned(),
            rootfs_readonly: root.readonly().unwrap_or(false),
            rootfs_propagation: mount_options::rootfs_propagation(linux.rootfs_propagation().as_deref())?,
            hostname: namespaces.own_name("hostname", spec.hostname().as_ref())?,
            domainname: namespaces.own_name("domainname", spec.domainname().as_ref())?,
            mounts: mounts::from_spec(spec.mounts().as_deref().unwrap_or_default())?,
            devices: devices::from_spec(linux.devices().as_deref().unwrap_or_default())?,
            sysctls: sysctl::from_spec(linux.sysctl().as_ref())?,
            masked_paths: absolute_paths(linux.masked_paths().as_deref(), "linux.maskedPaths")?,
            readonly_paths: absolute_paths(linux.readonly_paths().as_deref(), "linux.readonlyPaths")?,
            create_hooks: hooks::from_spec(spec.hooks().as_ref(), hooks::Kind::CreateContainer)?,
            start_hooks: hooks::from_spec(spec.hooks().as_ref(), hooks::Kind::StartContainer)?,
            cgroups_path: linux.cgroups_path().clone(),
            resources: linux.resources().clone().unwrap_or_default(),
            namespaces,
            process,
        })
    }
}

#[cfg(test)]
impl ProcessPlan {
    /// Reads and checks the `process` object of an additional process.
    pub(crate) fn from_json(json: &[u8], terminal: Option<WindowSize>) -> Result<Self, SpecError> {
        Self::from_spec(&parse(json)?.value, "process", terminal)
    }
}

fn check_version(version: &str) -> Result<(), SpecError> {
    if version.split('.').next() == Some("1") {
        return Ok(());
    }
    Err(SpecError::invalid("ociVersion", format!("is {version:?}; versions 1.x.y are understood")))
}

#[allow(deprecated, reason = "no version of the spec has the fields, but their library would take them")]
fn refuse_misplaced_mappings(spec: &Spec) -> Result<(), SpecError> {
    let fields = [("uidMappings", spec.uid_mappings()), ("gidMappings", spec.gid_mappings())];
    match fields.iter().find(|(_, mappings)| mappings.is_some()) {
        Some((field, _)) => {
            Err(SpecError::invalid(*field, "is no field of the spec; linux and each of mounts have one"))
        }
        None => Ok(()),
    }
}

fn refuse_other_systems(spec: &Spec) -> Result<(), SpecError> {
    let sections = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    match sections.iter().find(|(_, present)| *present) {
        Some((name, _)) => Err(SpecError::not_supported(*name, "this runtime runs Linux containers only")),
        None => Ok(()),
    }
}

fn refuse_missing_features(linux: &oci_spec::runtime::Linux) -> Result<(), SpecError> {
    if linux.mount_label().as_deref().is_some_and(|label| !label.is_empty()) {
        return Err(SpecError::not_supported("linux.mountLabel", "the guest's kernel has no SELinux"));
    }
    if linux.intel_rdt().is_some() {
        return Err(SpecError::not_supported(
            "linux.intelRdt",
            "cache and bandwidth allocation belong to the host's processors; the guest has none of its own",
        ));
    }
    if linux.memory_policy().is_some() {
        return Err(SpecError::not_supported("linux.memoryPolicy", "the guest has one memory node"));
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(SpecError::not_supported(
            "linux.netDevices",
            "a container has the network of its pod; give the pod the interface",
        ));
    }
    Ok(())
}

/// Checks that a path of the spec begins at the root.
fn absolute<'a>(path: &'a Path, field: &str) -> Result<&'a Path, SpecError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(SpecError::invalid(field, format!("is {path:?}; it must be an absolute path")))
}

fn absolute_paths(paths: Option<&[String]>, field: &str) -> Result<Vec<PathBuf>, SpecError> {
    let paths = paths.unwrap_or_default().iter().enumerate();
    paths
        .map(|(index, path)| absolute(Path::new(path), &format!("{field}[{index}]")).map(Path::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_not_known_are_named_and_left_alone() {
        let json =
            br#"{"ociVersion":"1.0.2","linux":{"new":1,"resources":{"cpu":{"fancy":{"a":2}}}},"more":[]}"#;
        let parsed = parse::<Spec>(json).unwrap();
        assert_eq!(parsed.unknown_fields, ["linux.new", "linux.resources.cpu.fancy", "more"]);
    }
}
