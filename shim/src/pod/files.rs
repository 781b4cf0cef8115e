//! What a pod's containers find in `/etc` and in `/dev/shm`.
//!
//! Where containerd makes a pod's sandbox, it makes these files, too, and its containers' specs bind them. Where the
//! Sandbox API has the shim make it, the specs leave them out.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Value, json};

use crate::spec::{Document, DocumentError};

/// Where the guest's own shared memory is, which is the pod's.
const SHARED_MEMORY: &str = "/dev/shm";

/// The files that every container of a pod has, by their names below `/etc`.
const NAMES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// How a pod's names are resolved.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// The pod's host name; empty for the host's.
    pub(crate) hostname: String,
    /// What is to be in `/etc/resolv.conf`; empty for the host's.
    pub(crate) resolver: String,
}

/// A pod's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodFiles {
    directory: PathBuf,
}

impl PodFiles {
    /// Writes the files of a pod into `directory`, its bundle's, with which they go.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn write(directory: &Path, names: &Names) -> io::Result<Self> {
        let hostname = match names.hostname.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            name => name.to_owned(),
        };
        let resolver = match names.resolver.as_str() {
            "" => of_host("/etc/resolv.conf")?,
            resolver => resolver.to_owned(),
        };
        let texts = [format!("{hostname}\n"), of_host("/etc/hosts")?, resolver];
        for (name, text) in NAMES.iter().zip(texts) {
            let path = directory.join(name);
            fs::write(&path, text).map_err(at(&path))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Binds the files into a container, where its spec has nothing else in their places. A root file system that is
    /// read-only has them read-only.
    ///
    /// # Errors
    /// `mounts` of the spec is no list.
    pub(crate) fn bind(&self, spec: &mut Document) -> Result<(), DocumentError> {
        let readonly = spec.value().pointer("/root/readonly").and_then(Value::as_bool).unwrap_or(false);
        let access = if readonly { "ro" } else { "rw" };
        NAMES.iter().try_for_each(|name| {
            let destination = format!("/etc/{name}");
            let mount = json!({
                "destination": destination,
                "type": "bind",
                "source": self.directory.join(name),
                "options": ["rbind", "rprivate", access],
            });
            spec.add_mount(&destination, mount)
        })
    }
}

/// Gives a container that is in its pod's ipc namespace the pod's shared memory instead of its own. `guest` is its spec
/// for the guest.
pub(crate) fn share_memory(guest: &mut Value) {
    let namespaces = guest.pointer("/linux/namespaces").and_then(Value::as_array);
    let shares =
        namespaces.into_iter().flatten().any(|entry| entry["type"] == "ipc" && entry.get("path").is_some());
    let mounts = guest.get_mut("mounts").and_then(Value::as_array_mut).filter(|_| shares);
    for mount in mounts.into_iter().flatten() {
        if mount["destination"] == SHARED_MEMORY && mount["type"] == "tmpfs" {
            *mount = json!({
                "destination": SHARED_MEMORY,
                "type": "bind",
                "source": SHARED_MEMORY,
                "options": ["bind", "nosuid", "nodev", "noexec"],
            });
        }
    }
}

/// A file of the host's; a host without it has an empty one.
fn of_host(path: &str) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(at(Path::new(path))),
    }
}

/// Adds a path to an error of the system's.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_pods_files_where_its_spec_has_nothing_else() {
        let bundle = tempfile::tempdir().unwrap();
        let names = Names { hostname: "pod".into(), resolver: "nameserver 192.0.2.1\n".into() };
        let files = PodFiles::write(bundle.path(), &names).unwrap();
        assert_eq!(fs::read_to_string(bundle.path().join("hostname")).unwrap(), "pod\n");
        let own = json!({"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"});
        let spec = json!({"root": {"readonly": true}, "mounts": [own]});
        let mut spec = Document::from_value(spec).unwrap();
        files.bind(&mut spec).unwrap();
        let mounts = spec.value()["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0]["source"], "/kubelet/hosts");
        assert_eq!(mounts[2]["destination"], "/etc/resolv.conf");
        assert_eq!(mounts[2]["options"][2], "ro");
    }

    #[test]
    fn shared_memory_is_the_pods_for_who_is_in_its_ipc_namespace() {
        let spec = |ipc: Value| {
            json!({"linux": {"namespaces": [ipc]}, "mounts": [
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]})
        };
        let mut member = spec(json!({"type": "ipc", "path": "/proc/5/ns/ipc"}));
        share_memory(&mut member);
        assert_eq!(member["mounts"][0]["source"], "/dev/shm");
        assert_eq!(member["mounts"][0]["type"], "bind");
        let mut alone = spec(json!({"type": "ipc"}));
        share_memory(&mut alone);
        assert_eq!(alone["mounts"][0]["type"], "tmpfs");
    }
}
