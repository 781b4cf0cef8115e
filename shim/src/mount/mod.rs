//! Mounting on the host: root file systems as containerd names them, volumes, and taking them away again.

mod bind;
mod options;
mod overlay;
mod table;
mod user_namespace;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

pub(crate) use bind::{Binding, ReadOnly, bind};
use options::Options;
pub(crate) use table::{MountPoint, mount_points, mounts_below};
pub(crate) use user_namespace::IdMapping;

/// The most bytes that mount(2) takes as data, its end included: one page.
const DATA_MAX: usize = 4096;

/// A mount as containerd asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The file system's type.
    pub(crate) kind: String,
    /// The source.
    pub(crate) source: String,
    /// A path below the common target; empty for the target itself.
    pub(crate) target: String,
    /// Options.
    pub(crate) options: Vec<String>,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// The system said no.
    #[error("mounting {kind} {origin:?} at {target}: {error}")]
    Refused {
        /// The file system's type.
        kind: String,
        /// The source.
        origin: String,
        /// Where it should go.
        target: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A source that needs a loop device.
    #[error(
        "mounting {kind} {origin:?}: option \"loop\" is not supported: attach a loop device on the host first"
    )]
    Loop {
        /// The file system's type.
        kind: String,
        /// The source.
        origin: String,
    },
    /// More options than the kernel takes.
    #[error(
        "mounting {kind} at {target}: {length} bytes of options exceed the {DATA_MAX} that the kernel takes"
    )]
    TooLong {
        /// The file system's type.
        kind: String,
        /// Where it should go.
        target: PathBuf,
        /// How many there are.
        length: usize,
    },
    /// A target that could leave the directory that it should be in.
    #[error("mount target {0:?} is not a path below the root file system")]
    Target(String),
}

/// Mounts `requests` on `target`, one after the other. What is mounted already stays when one fails:
/// [`unmount_all`] takes it away.
///
/// # Errors
/// The first mount that failed.
pub(crate) fn mount_all(requests: &[Request], target: &Path) -> Result<(), MountError> {
    requests.iter().try_for_each(|request| request.mount(target))
}

impl Request {
    fn mount(&self, root: &Path) -> Result<(), MountError> {
        let relative = Path::new(&self.target);
        if relative.components().any(|part| matches!(part, Component::ParentDir)) {
            return Err(MountError::Target(self.target.clone()));
        }
        let relative = relative.strip_prefix("/").unwrap_or(relative);
        let target = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(relative) };
        let mut options = Options::parse(self.options.iter().map(String::as_str));
        // What the guest makes there is for the guest: the host runs nothing with its rights and opens no device of it.
        options.flags |= MountFlags::NOSUID | MountFlags::NODEV;
        if options.loop_device {
            return Err(MountError::Loop { kind: self.kind.clone(), origin: self.source.clone() });
        }
        let refused = |error| MountError::Refused {
            kind: self.kind.clone(),
            origin: self.source.clone(),
            target: target.clone(),
            error,
        };
        let place = open_inside(root, relative).map_err(refused)?;
        if options.flags.contains(MountFlags::BIND) || self.kind == "bind" {
            let recursive = options.flags.contains(MountFlags::REC);
            let read_only =
                if options.flags.contains(MountFlags::RDONLY) { ReadOnly::Top } else { ReadOnly::Nothing };
            let binding = Binding { recursive, read_only, ..Binding::default() };
            return bind::bind_onto(Path::new(&self.source), &place, &binding).map_err(refused);
        }
        let through = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
        if options.data.len() < DATA_MAX {
            return mount(&self.source, &through, &self.kind, options.flags, &options.data).map_err(refused);
        }
        if self.kind == "overlay"
            && let Some(short) = overlay::shorten(&options.data)
            && short.data.len() < DATA_MAX
        {
            return overlay::mount_from(&short, &through, options.flags).map_err(refused);
        }
        Err(MountError::TooLong { kind: self.kind.clone(), target, length: options.data.len() })
    }
}

/// Opens what is at `relative` for whoever has `root` as its root directory: the image's links lead nowhere else.
fn open_inside(root: &Path, relative: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::NOFOLLOW, Mode::empty())?;
    if relative.as_os_str().is_empty() {
        return Ok(root);
    }
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(&root, relative, flags, Mode::empty(), inside)?)
}

fn mount(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(source, target, kind, flags, data.as_c_str())?)
}

/// Sets the per-mount flags of the mount at `target`, and keeps those that it has.
///
/// # Errors
/// What statfs(2) or mount(2) returned.
pub(crate) fn remount_bind(target: &Path, flags: MountFlags) -> io::Result<()> {
    let had = rustix::fs::statvfs(target)?.f_flag;
    let kept = [
        (rustix::fs::StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (rustix::fs::StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ]
    .into_iter()
    .filter(|(had_flag, _)| had.contains(*had_flag))
    .fold(MountFlags::empty(), |all, (_, flag)| all | flag);
    Ok(rustix::mount::mount_remount(target, MountFlags::BIND | kept | flags, c"")?)
}

/// Changes how mounts below `target` propagate.
///
/// # Errors
/// What mount(2) returned.
pub(crate) fn change_propagation(
    target: &Path,
    kind: MountPropagationFlags,
    recursive: bool,
) -> io::Result<()> {
    let recursive = if recursive { MountPropagationFlags::REC } else { MountPropagationFlags::empty() };
    Ok(rustix::mount::mount_change(target, kind | recursive)?)
}

/// Takes away every mount at `target` and below it, at once for whoever looks a path up, for good when the last
/// user of an open file is gone. Nothing mounted, or no such path, is fine.
///
/// # Errors
/// What umount2(2) returned.
pub(crate) fn unmount_all(target: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn request(kind: &str, target: &str, options: &[&str]) -> Request {
        Request {
            kind: kind.into(),
            source: "source".into(),
            target: target.into(),
            options: options.iter().map(|option| (*option).into()).collect(),
        }
    }

    #[test]
    fn a_target_that_leaves_the_root_file_system_is_refused() {
        let error = mount_all(&[request("tmpfs", "../../etc", &[])], Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, MountError::Target(_)));
    }

    #[test]
    fn a_failed_mount_names_type_source_and_target() {
        let message = mount_all(&[request("nosuchfs", "", &[])], Path::new("/nonexistent/target"))
            .unwrap_err()
            .to_string();
        for word in ["nosuchfs", "source", "/nonexistent/target"] {
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn links_of_an_image_lead_to_no_directory_of_the_host() {
        let directory = tempfile::tempdir().unwrap();
        let (root, host) = (directory.path().join("root"), directory.path().join("host"));
        // The link's directory as whoever has the image as its root finds it.
        let inside = root.join(host.strip_prefix("/").unwrap());
        let source = directory.path().join("source");
        for made in [&root, &host, &inside, &source] {
            fs::create_dir_all(made).unwrap();
        }
        std::os::unix::fs::symlink(&host, root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../../../..", root.join("upwards")).unwrap();
        for bind in [false, true] {
            for link in ["absolute", "/upwards/absolute"] {
                let mut wanted = request("tmpfs", link, &[]);
                if bind {
                    wanted =
                        Request { kind: "bind".into(), source: source.to_str().unwrap().into(), ..wanted };
                }
                let mounted = mount_all(&[wanted], &root);
                let below = mounts_below(directory.path()).unwrap();
                for place in &below {
                    unmount_all(place).unwrap();
                }
                mounted.unwrap();
                assert_eq!(below, std::slice::from_ref(&inside), "{link}");
            }
        }
        let error = mount_all(&[request("tmpfs", "absolute/nothing", &[])], &root).unwrap_err().to_string();
        assert!(error.contains("root/absolute/nothing"), "{error}");
    }

    #[test]
    fn unmounting_what_is_not_mounted_is_fine() {
        unmount_all(Path::new("/nonexistent/target")).unwrap();
        unmount_all(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
