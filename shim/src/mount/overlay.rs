//! Overlays of so many layers that their options do not fit into mount(2)'s page.
//!
//! Layers lie in one directory as a rule, so paths relative to it are much shorter. The kernel resolves them from the
//! working directory of the thread that mounts, which is given one of its own for that.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::mount;

/// An overlay's options with its layers relative to a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Short {
    /// The directory.
    pub(super) directory: PathBuf,
    /// The options.
    pub(super) data: String,
}

/// Makes the layers of `lowerdir` in `data` relative to their common directory; `None` when they have none.
pub(super) fn shorten(data: &str) -> Option<Short> {
    let lower = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let directory = common_directory(&layers).filter(|directory| directory.parent().is_some())?;
    let relative: Vec<&str> = layers
        .iter()
        .map(|layer| layer.strip_prefix(&directory).ok().and_then(Path::to_str))
        .collect::<Option<_>>()?;
    let options: Vec<String> = data
        .split(',')
        .map(|option| match option.starts_with("lowerdir=") {
            true => format!("lowerdir={}", relative.join(":")),
            false => option.to_owned(),
        })
        .collect();
    Some(Short { directory, data: options.join(",") })
}

fn common_directory(layers: &[&Path]) -> Option<PathBuf> {
    let mut common = layers.first()?.parent()?.to_owned();
    for layer in layers {
        while !layer.parent().is_some_and(|parent| parent.starts_with(&common)) {
            common = common.parent()?.to_owned();
        }
    }
    Some(common)
}

/// Mounts the overlay at `target` from a thread of its own whose working directory is the layers'.
///
/// # Errors
/// What unshare(2), chdir(2) or mount(2) returned.
pub(super) fn mount_from(short: &Short, target: &Path, flags: MountFlags) -> io::Result<()> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: FS gives this thread a working directory, root and umask of its own and nothing else; the
                // thread ends with this closure and no other code runs on it.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
                rustix::process::chdir(&short.directory)?;
                mount("overlay", target, "overlay", flags, &short.data)
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_become_relative_to_their_common_directory() {
        let data =
            "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/var/s/3/fs:/var/s/2/fs:/var/s/11/fs,index=off";
        assert_eq!(
            shorten(data),
            Some(Short {
                directory: "/var/s".into(),
                data: "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=3/fs:2/fs:11/fs,index=off".into(),
            })
        );
    }

    #[test]
    fn layers_without_a_common_directory_stay_as_they_are() {
        assert_eq!(shorten("lowerdir=/a/x:/b/y"), None);
        assert_eq!(shorten("upperdir=/a"), None);
    }
}
