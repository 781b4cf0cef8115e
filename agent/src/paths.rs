//! Paths inside a root that must not lead out of it: every symbolic link and `..` counts from that root
//! (`RESOLVE_IN_ROOT` of openat2(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, mknodat, openat2};
use rustix::io::Errno;

/// How often a lookup is repeated that a rename elsewhere has disturbed: openat2(2) says EAGAIN then and asks for it.
const DISTURBED_LOOKUPS: usize = 128;

/// A directory that serves as the root for paths.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Root {
    pub(crate) fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// A descriptor of what `path` leads to, which can be mounted upon but not read.
    pub(crate) fn find(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    /// Opens what `path` leads to.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..DISTURBED_LOOKUPS {
            result = openat2(&self.directory, relative(path), flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN)) {
                break;
            }
        }
        Ok(result?)
    }

    /// The directory `path`, made with all that lead to it if it is not there.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.make_directory(path),
            result => result,
        }
    }

    fn make_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut so_far = PathBuf::from(".");
        let mut directory = self.find(&so_far)?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                if component == Component::ParentDir {
                    so_far.push("..");
                    directory = self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY)?;
                }
                continue;
            };
            so_far.push(name);
            directory = match self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                    self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY)?
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    /// The file `path`, made empty with the directories that lead to it if there is nothing. It may be of any kind
    /// but a directory.
    pub(crate) fn file(&self, path: &Path) -> io::Result<OwnedFd> {
        let found = match self.find(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let (parent, name) = self.parent(path)?;
                mknodat(&parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
                self.find(path)?
            }
            result => result?,
        };
        if is_directory(&found)? { Err(Errno::ISDIR.into()) } else { Ok(found) }
    }

    /// The directory that holds `path`, made if it is not there, and the last name of `path`.
    pub(crate) fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.directory(parent)?, Path::new(name)))
    }
}

/// Whether a descriptor refers to a directory.
pub(crate) fn is_directory(descriptor: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(descriptor)?.st_mode) == FileType::Directory)
}

/// openat2(2) takes an empty path for an error.
fn relative(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root(directory: &Path) -> Root {
        Root::new(fs::File::open(directory).unwrap().into())
    }

    #[test]
    fn a_target_behind_an_absolute_symlink_is_made_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        symlink(outside.path(), inside.path().join("link")).unwrap();
        symlink("/real", inside.path().join("other")).unwrap();
        fs::create_dir(inside.path().join("real")).unwrap();
        let root = root(inside.path());
        assert!(root.directory(Path::new("/link/made")).is_err(), "a dangling link is not followed outside");
        root.directory(Path::new("/other/a/b")).unwrap();
        root.file(Path::new("/other/c/file")).unwrap();
        assert!(inside.path().join("real/a/b").is_dir());
        assert!(inside.path().join("real/c/file").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn dots_do_not_leave_the_root() {
        let above = tempfile::tempdir().unwrap();
        fs::create_dir(above.path().join("root")).unwrap();
        let root = root(&above.path().join("root"));
        root.directory(Path::new("/../../../x/y")).unwrap();
        assert!(above.path().join("root/x/y").is_dir());
        assert_eq!(fs::read_dir(above.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_not_put_where_a_directory_is() {
        let inside = tempfile::tempdir().unwrap();
        fs::create_dir(inside.path().join("d")).unwrap();
        let error = root(inside.path()).file(Path::new("/d")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
    }
}
