//! From the spec that containerd wrote for the host to the one that the agent carries out in the guest.

use std::io;
use std::path::{Path, PathBuf};

use saya_agent_api::{PRIVATE_SHARE, SHARE_PATH};
use serde_json::{Value, json};

use super::devices::{self, DeviceError, HostBlockDevice};
use super::hooks::{self, HookError, HostHooks};
use super::mounts::{self, MountError, SourceKind, Volume};
use super::namespaces::{self, NamespaceError, PodNamespaces};
use super::own_volumes::OwnVolumes;
use super::{Document, DocumentError, host_cpus, pause, security_modules};
use crate::cgroup::{CgroupPath, PathError};
use crate::spec::settings::{SettingError, Settings};

/// What a translation needs to know beside the spec.
pub(crate) struct Context<'a> {
    /// The container's id.
    pub(crate) container: &'a str,
    /// The bundle's directory, to which relative paths refer.
    pub(crate) bundle: &'a Path,
    /// What the container may join, where it is one of several.
    pub(crate) sandbox: Option<PodNamespaces>,
    /// What the pod has set for itself.
    pub(crate) settings: &'a Settings,
    /// Says what a path of the host is.
    pub(crate) inspect: &'a dyn Fn(&Path) -> io::Result<SourceKind>,
}

/// What became of a spec.
#[derive(Debug)]
pub(crate) struct Translation {
    /// The spec for the agent.
    pub(crate) guest: Value,
    /// The paths of the host that the guest needs.
    pub(crate) volumes: Vec<Volume>,
    /// Which of them are the pod's own.
    pub(crate) own_volumes: Option<OwnVolumes>,
    /// The block devices of the host that the guest is to be given.
    pub(crate) block_devices: Vec<HostBlockDevice>,
    /// The hooks that the shim runs.
    pub(crate) hooks: HostHooks,
    /// The pod's network namespace, where the spec names one.
    pub(crate) network_namespace: Option<PathBuf>,
    /// The root file system's directory in the bundle, or wherever the spec says; absolute. None where the guest needs none
    /// of the host's.
    pub(crate) root: Option<PathBuf>,
}

/// Why a spec cannot be carried out in a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TranslationError {
    /// Not usable at all.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// An annotation that would be ignored.
    #[error(transparent)]
    Annotation(#[from] SettingError),
    /// A namespace that the guest cannot give.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A mount that the guest cannot have.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A device that the guest cannot have.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A hook that is not of the spec's form.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// No root file system.
    #[error("root.path is missing from the OCI spec")]
    NoRoot,
    /// Nothing to run.
    #[error("process.args is missing from the OCI spec or empty")]
    NoArguments,
    /// A cgroup's path that is none.
    #[error(transparent)]
    Cgroup(#[from] PathError),
    /// A cgroup's path that is no text.
    #[error("linux.cgroupsPath is not a text in the OCI spec")]
    CgroupKind,
    /// `linux` is no object.
    #[error("linux is not an object in the OCI spec")]
    Linux,
}

/// Translates `spec` for the guest.
///
/// # Errors
/// Anything that the guest cannot give; the message names the key and its value.
pub(crate) fn translate(spec: &Document, context: &Context<'_>) -> Result<Translation, TranslationError> {
    context.settings.check_container(spec.value())?;
    check_process(spec)?;
    let root = root_path(spec, context)?;
    let mut guest = spec.value().as_object().ok_or(DocumentError::NotAnObject)?.clone();
    let is_pause = pause::is_pause(spec);
    if is_pause {
        // Nothing of them is needed, so that nothing of them can be wrong.
        guest.remove("mounts");
    }

    security_modules::take_from_spec(&mut guest, spec.is_of_cri());
    let resources = guest.get_mut("linux").and_then(|linux| linux.get_mut("resources")?.as_object_mut());
    if let Some(resources) = resources.filter(|_| spec.is_of_cri()) {
        host_cpus::take_from_resources(resources);
    }
    let network_namespace = namespaces::translate(&mut guest, context.sandbox.as_ref())?;
    let own_volumes = OwnVolumes::of(spec);
    let volumes = mounts::translate(&mut guest, context.bundle, own_volumes.as_ref(), context.inspect)?;
    let block_devices = devices::host_block_devices(&guest)?;
    devices::remove_host_rules(&mut guest, &block_devices);
    let hooks = hooks::split(&mut guest)?;

    if let Some(root) = guest.get_mut("root").and_then(Value::as_object_mut) {
        root.insert("path".into(), json!(guest_rootfs(context.container)));
    }
    let linux = guest.entry("linux").or_insert_with(|| json!({}));
    let linux = linux.as_object_mut().ok_or(TranslationError::Linux)?;
    check_cgroup(linux.get("cgroupsPath"))?;
    linux.insert("cgroupsPath".into(), json!(format!("/{}", context.container)));
    let root = Some(root).filter(|_| !is_pause);
    let guest = if is_pause { pause::holding(&guest, context.container) } else { Value::Object(guest) };
    Ok(Translation { guest, volumes, own_volumes, block_devices, hooks, network_namespace, root })
}

/// Where the guest finds a container's root file system.
fn guest_rootfs(container: &str) -> String {
    format!("{SHARE_PATH}/{PRIVATE_SHARE}/{container}/rootfs")
}

/// In the guest a container's cgroup has its id as its name; on the host the path must still be one.
fn check_cgroup(path: Option<&Value>) -> Result<(), TranslationError> {
    match path {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(path)) if path.is_empty() => Ok(()),
        Some(Value::String(path)) => Ok(CgroupPath::parse(path).map(drop)?),
        Some(_) => Err(TranslationError::CgroupKind),
    }
}

fn check_process(spec: &Document) -> Result<(), TranslationError> {
    let arguments = spec.value().pointer("/process/args").and_then(Value::as_array);
    if arguments.is_none_or(Vec::is_empty) {
        return Err(TranslationError::NoArguments);
    }
    Ok(())
}

fn root_path(spec: &Document, context: &Context<'_>) -> Result<PathBuf, TranslationError> {
    let path = spec.text("/root/path").filter(|path| !path.is_empty()).ok_or(TranslationError::NoRoot)?;
    Ok(context.bundle.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(spec: Value) -> Result<Translation, TranslationError> {
        let context = Context {
            container: "c1",
            bundle: Path::new("/bundle"),
            sandbox: None,
            settings: &Settings::default(),
            inspect: &|_| Ok(SourceKind::Directory),
        };
        translate(&Document::from_value(spec).unwrap(), &context)
    }

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sh"], "cwd": "/", "somethingNew": {"kept": true}},
            "root": {"path": "rootfs", "readonly": true},
            "linux": {
                "cgroupsPath": "system.slice:cri:c1",
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}],
                "resources": {"memory": {"limit": 1}},
            },
        })
    }

    #[test]
    fn root_and_cgroup_become_paths_of_the_guest_and_the_rest_passes_through() {
        let translation = translated(spec()).unwrap();
        assert_eq!(
            translation.guest,
            json!({
                "ociVersion": "1.0.2",
                "process": {"args": ["sh"], "cwd": "/", "somethingNew": {"kept": true}},
                "root": {"path": "/run/saya/share/private/c1/rootfs", "readonly": true},
                "linux": {
                    "cgroupsPath": "/c1",
                    "namespaces": [{"type": "pid"}, {"type": "ipc"}],
                    "resources": {"memory": {"limit": 1}},
                },
            })
        );
        assert_eq!(translation.root.as_deref(), Some(Path::new("/bundle/rootfs")));
    }

    #[test]
    fn a_pods_pause_container_needs_nothing_of_the_host_and_is_as_the_holder_that_the_guest_begins_with() {
        let mut sandbox = spec();
        sandbox["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
        sandbox["process"] = json!({"args": ["/pause"], "cwd": "/x", "user": {"uid": 7}, "env": ["A=b"]});
        sandbox["mounts"] = json!([{"destination": "/dev/shm", "type": "bind", "source": "/no/such"}]);
        sandbox["hostname"] = json!("web");
        let holder = pause::holder(&Document::from_value(sandbox.clone()).unwrap(), "c1").unwrap();
        let translation = translated(sandbox).unwrap();
        assert_eq!((translation.root, translation.volumes), (None, Vec::new()));
        assert_eq!(holder, Some(translation.guest));
    }

    #[test]
    fn a_container_of_cri_has_nothing_left_of_the_node_that_a_guest_could_not_give() {
        let mut node = spec();
        node["process"]["selinuxLabel"] = json!("label");
        node["linux"]["mountLabel"] = json!("label");
        node["linux"]["resources"]["cpu"] = json!({"cpus": "40-41", "mems": "1"});
        let guest = translated(node.clone()).unwrap().guest;
        for pointer in ["/process/selinuxLabel", "/linux/mountLabel", "/linux/resources/cpu/cpus"] {
            assert_eq!(guest.pointer(pointer), node.pointer(pointer), "of a container of nobody's");
        }
        node["annotations"] = json!({"io.kubernetes.cri.container-type": "container"});
        let guest = translated(node).unwrap().guest;
        assert_eq!((guest["process"].get("selinuxLabel"), guest["linux"].get("mountLabel")), (None, None));
        assert_eq!(guest["linux"]["resources"], json!({"memory": {"limit": 1}, "cpu": {}}));
    }

    #[test]
    fn a_spec_without_root_or_arguments_is_refused_by_key() {
        let mut rootless = spec();
        rootless.as_object_mut().unwrap().remove("root");
        assert!(translated(rootless).unwrap_err().to_string().contains("root.path"));

        let mut idle = spec();
        idle["process"]["args"] = json!([]);
        assert!(translated(idle).unwrap_err().to_string().contains("process.args"));
    }
}
