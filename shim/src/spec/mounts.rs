//! The spec's mounts: host paths become paths of the share, what no guest can have is refused.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::devices;
use super::mappings::{self, MappingError};
use super::own_volumes::OwnVolumes;
use crate::mount::{Binding, IdMapping, ReadOnly};

/// The most mounts that a container may have.
const MOUNTS_MAX: usize = 2048;

/// File systems that the guest mounts by itself, without anything of the host.
const GUEST_FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// What a bind mount's source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A Unix socket.
    Socket,
    /// A named pipe.
    Fifo,
    /// A character device with its number.
    CharacterDevice(u64),
    /// A block device.
    BlockDevice,
}

/// Looks at a path of the host, following symlinks as mount(2) does.
///
/// # Errors
/// What stat(2) returned.
pub(crate) fn inspect(path: &Path) -> io::Result<SourceKind> {
    let metadata = std::fs::metadata(path)?;
    let kind = metadata.file_type();
    Ok(match () {
        () if kind.is_dir() => SourceKind::Directory,
        () if kind.is_socket() => SourceKind::Socket,
        () if kind.is_fifo() => SourceKind::Fifo,
        () if kind.is_char_device() => SourceKind::CharacterDevice(metadata.rdev()),
        () if kind.is_block_device() => SourceKind::BlockDevice,
        () => SourceKind::File,
    })
}

/// A path of the host that the guest gets to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The path on the host.
    pub(crate) source: PathBuf,
    /// Its place in the spec's list of mounts.
    pub(crate) mount: usize,
    /// Whether it is a directory, and not a file.
    pub(crate) directory: bool,
    /// How it is bound.
    pub(crate) binding: Binding,
}

/// A mount that the guest cannot have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// Not a list of objects.
    #[error("mounts: each must be an object with a destination and a list of options")]
    Malformed,
    /// Too many.
    #[error("mounts: {0} exceed the {MOUNTS_MAX} that are supported")]
    TooMany(usize),
    /// A bind mount without source.
    #[error("mount at {0:?}: a bind mount needs a source")]
    NoSource(String),
    /// The source is not there, or cannot be looked at.
    #[error("mount at {destination:?}: source {origin:?}: {error}")]
    Source {
        /// Where it should go.
        destination: String,
        /// The path on the host.
        origin: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The source is of a kind that cannot cross into a VM.
    #[error(
        "mount at {destination:?}: {origin:?} is {what} of the host, which a virtual machine cannot reach"
    )]
    HostOnly {
        /// Where it should go.
        destination: String,
        /// The path on the host.
        origin: PathBuf,
        /// "a socket", …
        what: &'static str,
    },
    /// A file system of the host's.
    #[error(
        "mount at {destination:?}: a file system of type {kind:?} is not supported: mount it on the host and bind it"
    )]
    FileSystem {
        /// Where it should go.
        destination: String,
        /// The type.
        kind: String,
    },
    /// Mappings of ids that are none.
    #[error("mount at {destination:?}: {error}")]
    Mapping {
        /// Where it should go.
        destination: String,
        /// What is wrong with them.
        error: MappingError,
    },
    /// Mounts that the guest makes cannot reach the host.
    #[error(
        "mount at {destination:?}: option {option:?} is not supported: mounts made in the virtual machine cannot reach the host"
    )]
    SharedPropagation {
        /// Where it should go.
        destination: String,
        /// The option.
        option: String,
    },
}

/// Rewrites `mounts` for the guest and returns the paths of the host that it needs, whose sources are [`place`]d later.
///
/// Relative sources are relative to `bundle`; `own` are the volumes of the container's pod; `inspect` says what a source is.
///
/// # Errors
/// A mount that the guest cannot have.
pub(crate) fn translate(
    spec: &mut Map<String, Value>,
    bundle: &Path,
    own: Option<&OwnVolumes>,
    inspect: &dyn Fn(&Path) -> io::Result<SourceKind>,
) -> Result<Vec<Volume>, MountError> {
    let container = mappings::of_container(spec);
    let mounts = match spec.get_mut("mounts") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(mounts)) => mounts,
        Some(_) => return Err(MountError::Malformed),
    };
    if mounts.len() > MOUNTS_MAX {
        return Err(MountError::TooMany(mounts.len()));
    }
    let mut volumes = Vec::new();
    for (index, mount) in mounts.iter_mut().enumerate() {
        let mount = mount.as_object_mut().ok_or(MountError::Malformed)?;
        let view = View::read(mount)?;
        if !view.is_bind() {
            view.check_file_system()?;
            continue;
        }
        match view.source(bundle, inspect)? {
            Source::InGuest(path) => {
                mount.insert("source".into(), Value::String(path.to_owned()));
            }
            Source::Volume { source, directory } => {
                let mapping = mappings::take(mount, &container)
                    .map_err(|error| MountError::Mapping { destination: view.destination.clone(), error })?;
                let mut volume = view.volume(source, directory, index, mapping)?;
                // Containers of the pod that write to it and others that only read are to have one file system in the guest, where
                // each has its own flags. The VMM may write to what nobody but its pod has.
                if own.is_some_and(|own| own.is_empty_dir(&volume.source)) {
                    volume.binding.read_only = ReadOnly::Nothing;
                }
                volumes.push(volume);
            }
        }
        mount.insert("type".into(), Value::String("bind".into()));
    }
    Ok(volumes)
}

/// Sets where the guest finds a volume, and adds options to those of the spec, which count for more.
pub(crate) fn place(guest: &mut Value, volume: &Volume, source: &str, options: &[&str]) {
    let Some(mount) = guest.pointer_mut(&format!("/mounts/{}", volume.mount)) else { return };
    mount["source"] = Value::String(source.to_owned());
    let given = &mut mount["options"];
    let mut all: Vec<Value> = options.iter().map(|option| Value::from(*option)).collect();
    all.extend(given.as_array_mut().map(std::mem::take).unwrap_or_default());
    *given = Value::Array(all);
}

/// A mount as the spec writes it.
struct View {
    destination: String,
    kind: String,
    source: Option<String>,
    options: Vec<String>,
}

/// Where a bind mount's source will be.
enum Source {
    /// A path that the guest has by itself.
    InGuest(&'static str),
    /// A path of the host.
    Volume { source: PathBuf, directory: bool },
}

impl View {
    fn read(mount: &Map<String, Value>) -> Result<Self, MountError> {
        let text = |key: &str| match mount.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(MountError::Malformed),
        };
        let options = match mount.get("options") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(options)) => options
                .iter()
                .map(|option| option.as_str().map(str::to_owned).ok_or(MountError::Malformed))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(MountError::Malformed),
        };
        Ok(Self {
            destination: text("destination")?.ok_or(MountError::Malformed)?,
            kind: text("type")?.unwrap_or_default(),
            source: text("source")?.filter(|source| !source.is_empty()),
            options,
        })
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.has("bind") || self.has("rbind")
    }

    fn check_file_system(&self) -> Result<(), MountError> {
        if GUEST_FILE_SYSTEMS.contains(&self.kind.as_str()) {
            return Ok(());
        }
        let kind = self.kind.chars().take(100).collect();
        Err(MountError::FileSystem { destination: self.destination.clone(), kind })
    }

    fn source(
        &self,
        bundle: &Path,
        inspect: &dyn Fn(&Path) -> io::Result<SourceKind>,
    ) -> Result<Source, MountError> {
        let source = self.source.as_ref().ok_or_else(|| MountError::NoSource(self.destination.clone()))?;
        let source = bundle.join(source);
        let host_only = |what| {
            Err(MountError::HostOnly { destination: self.destination.clone(), origin: source.clone(), what })
        };
        let kind = inspect(&source).map_err(|error| MountError::Source {
            destination: self.destination.clone(),
            origin: source.clone(),
            error,
        })?;
        match kind {
            SourceKind::Directory => Ok(Source::Volume { source, directory: true }),
            SourceKind::File => Ok(Source::Volume { source, directory: false }),
            SourceKind::Socket => host_only("a socket"),
            SourceKind::Fifo => host_only("a named pipe"),
            SourceKind::BlockDevice => host_only("a block device"),
            SourceKind::CharacterDevice(number) => match devices::guest_node(number) {
                Some(node) => Ok(Source::InGuest(node)),
                None => host_only("a device"),
            },
        }
    }

    fn read_only(&self) -> ReadOnly {
        match () {
            () if self.has("rro") => ReadOnly::All,
            () if self.has("ro") => ReadOnly::Top,
            () => ReadOnly::Nothing,
        }
    }

    fn volume(
        &self,
        source: PathBuf,
        directory: bool,
        index: usize,
        mapping: Option<IdMapping>,
    ) -> Result<Volume, MountError> {
        if let Some(option) = ["shared", "rshared"].into_iter().find(|option| self.has(option)) {
            return Err(MountError::SharedPropagation {
                destination: self.destination.clone(),
                option: option.to_owned(),
            });
        }
        let binding = Binding {
            recursive: self.has("rbind"),
            read_only: self.read_only(),
            slave: self.has("slave") || self.has("rslave"),
            mapping,
        };
        Ok(Volume { source, mount: index, directory, binding })
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() is handed over")]
mod tests {
    use serde_json::json;

    use super::super::Document;
    use super::*;

    fn run(mounts: Value, kind: SourceKind) -> Result<(Vec<Volume>, Value), MountError> {
        let mut spec = json!({ "mounts": mounts }).as_object().unwrap().clone();
        let annotations =
            json!({"io.kubernetes.cri.sandbox-uid": "u-1", "io.kubernetes.cri.sandbox-id": "s1"});
        let own = OwnVolumes::of(&Document::from_value(json!({"annotations": annotations})).unwrap());
        let volumes = translate(&mut spec, Path::new("/bundle"), own.as_ref(), &|path| {
            if path.starts_with("/missing") { Err(io::ErrorKind::NotFound.into()) } else { Ok(kind) }
        })?;
        Ok((volumes, spec.remove("mounts").unwrap()))
    }

    #[test]
    fn kernel_file_systems_stay_as_they_are() {
        let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/tmp", "type": "tmpfs", "options": ["size=1m"]}]);
        let (volumes, after) = run(mounts.clone(), SourceKind::Directory).unwrap();
        assert!(volumes.is_empty());
        assert_eq!(after, mounts);
    }

    #[test]
    fn a_bind_mount_becomes_a_volume_of_the_share() {
        let mounts = json!([{"destination": "/data", "type": "bind", "source": "/srv/data",
            "options": ["rbind", "ro", "rslave"]}]);
        let (volumes, after) = run(mounts, SourceKind::Directory).unwrap();
        assert_eq!(
            volumes,
            [Volume {
                source: "/srv/data".into(),
                mount: 0,
                directory: true,
                binding: Binding { recursive: true, read_only: ReadOnly::Top, slave: true, mapping: None },
            }]
        );
        let mut guest = json!({"mounts": after});
        place(&mut guest, &volumes[0], "/run/saya/memory/7", &["nosuid"]);
        assert_eq!(guest["mounts"][0]["source"], "/run/saya/memory/7");
        assert_eq!(guest["mounts"][0]["options"], json!(["nosuid", "rbind", "ro", "rslave"]));
        assert_eq!(after[0]["options"], json!(["rbind", "ro", "rslave"]));
    }

    #[test]
    fn what_is_recursively_read_only_is_so_on_the_host_too() {
        let mounts = json!([{"destination": "/data", "type": "bind", "source": "/srv/data",
            "options": ["rbind", "ro", "rro"]}]);
        let (volumes, _) = run(mounts, SourceKind::Directory).unwrap();
        assert_eq!(volumes[0].binding.read_only, ReadOnly::All);
    }

    #[test]
    fn a_pods_own_volume_is_bound_in_one_way_whoever_reads_or_writes_and_stays_read_only_in_the_guest() {
        let own = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/x";
        let anothers = "/var/lib/kubelet/pods/u-2/volumes/kubernetes.io~empty-dir/x";
        for (source, expected) in [(own, ReadOnly::Nothing), (anothers, ReadOnly::Top)] {
            let mounts =
                json!([{"destination": "/x", "type": "bind", "source": source, "options": ["rbind", "ro"]}]);
            let (volumes, after) = run(mounts, SourceKind::Directory).unwrap();
            assert_eq!(volumes[0].binding.read_only, expected, "{source}");
            assert_eq!(after[0]["options"], json!(["rbind", "ro"]));
        }
    }

    #[test]
    fn a_relative_source_is_below_the_bundle() {
        let mounts = json!([{"destination": "/f", "source": "conf", "options": ["bind"]}]);
        let (volumes, _) = run(mounts, SourceKind::File).unwrap();
        assert_eq!(volumes[0].source, Path::new("/bundle/conf"));
        assert!(!volumes[0].directory);
        assert_eq!(volumes[0].binding, Binding::default());
    }

    #[test]
    fn dev_null_is_the_guests_own() {
        let mounts =
            json!([{"destination": "/x", "type": "bind", "source": "/dev/null", "options": ["bind"]}]);
        let null = SourceKind::CharacterDevice(rustix::fs::makedev(1, 3));
        let (volumes, after) = run(mounts, null).unwrap();
        assert!(volumes.is_empty());
        assert_eq!(after[0]["source"], "/dev/null");
    }

    #[test]
    fn what_cannot_cross_into_a_vm_is_refused_with_source_and_reason() {
        let disk = SourceKind::CharacterDevice(rustix::fs::makedev(250, 0));
        for (kind, word) in [
            (SourceKind::Socket, "socket"),
            (SourceKind::Fifo, "pipe"),
            (SourceKind::BlockDevice, "block device"),
            (disk, "device"),
        ] {
            let mounts = json!([{"destination": "/x", "type": "bind", "source": "/host/thing"}]);
            let message = run(mounts, kind).unwrap_err().to_string();
            assert!(message.contains("/host/thing") && message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_missing_source_is_named() {
        let mounts = json!([{"destination": "/x", "type": "bind", "source": "/missing/dir"}]);
        let message = run(mounts, SourceKind::File).unwrap_err().to_string();
        assert!(message.contains("/missing/dir") && message.contains("/x"), "{message}");
    }

    #[test]
    fn file_systems_of_the_host_and_shared_propagation_are_refused() {
        let mounts = json!([{"destination": "/x", "type": "ext4", "source": "/dev/sda1"}]);
        assert!(matches!(run(mounts, SourceKind::File), Err(MountError::FileSystem { .. })));
        let mounts =
            json!([{"destination": "/x", "type": "bind", "source": "/a", "options": ["rbind", "rshared"]}]);
        assert!(matches!(run(mounts, SourceKind::Directory), Err(MountError::SharedPropagation { .. })));
    }

    #[test]
    fn ten_thousand_mounts_are_refused_with_their_number() {
        let mounts = Value::Array(vec![json!({"destination": "/x", "type": "tmpfs"}); 10_000]);
        assert!(matches!(run(mounts, SourceKind::File), Err(MountError::TooMany(10_000))));
    }
}
