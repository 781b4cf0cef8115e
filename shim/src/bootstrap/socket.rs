//! The Unix socket on which containerd reaches a shim.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where shims' sockets are, unless containerd names another directory.
pub(super) const DIRECTORY: &str = "/run/containerd/s";

/// A socket for a pod.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A new one: the pod has no shim yet.
    New(UnixListener),
    /// A shim listens on it already.
    Served,
}

/// The path of the socket for a pod in `directory`, as containerd's own shim library forms it: a hash of containerd's
/// address, the namespace and the pod's id.
pub(crate) fn path(directory: &Path, address: &str, namespace: &str, id: &str) -> PathBuf {
    let name = format!("{}/{namespace}/{id}", address.trim_end_matches('/'));
    let mut hash = String::with_capacity(64);
    for byte in Sha256::digest(name) {
        // Writing to a String cannot fail.
        let _ = write!(hash, "{byte:02x}");
    }
    directory.join(hash)
}

/// The address that containerd is told.
pub(crate) fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// The file of a bundle that has the address.
const ADDRESS: &str = "address";

/// Notes the address in a container's bundle.
///
/// # Errors
/// What the system returned.
pub(crate) fn note(bundle: &Path, address: &str) -> io::Result<()> {
    fs::write(bundle.join(ADDRESS), address)
}

/// The socket whose address is noted in a bundle, if one is.
pub(crate) fn noted(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    address.trim().strip_prefix("unix://").map(PathBuf::from)
}

/// Listens at `path`, unless somebody does already. What a killed shim left is replaced.
///
/// # Errors
/// What the system returned, with the path.
pub(crate) fn listen(path: &Path) -> io::Result<Socket> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !remove_abandoned(path) {
                return Ok(Socket::Served);
            }
            UnixListener::bind(path).map_err(at)?
        }
        bound => bound.map_err(at)?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
    Ok(Socket::New(listener))
}

/// Removes a socket that nobody listens on; `false` when somebody does.
pub(crate) fn remove_abandoned(path: &Path) -> bool {
    let abandoned = UnixStream::connect(path).is_err();
    if abandoned {
        remove(path);
    }
    abandoned
}

/// Removes the socket at `path`, if it is there.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a socket stays behind");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    #[test]
    fn the_path_is_the_one_that_containerds_shims_use() {
        // printf %s /run/containerd/containerd.sock/default/t1 | sha256sum
        assert_eq!(
            path(Path::new(DIRECTORY), "/run/containerd/containerd.sock", "default", "t1"),
            Path::new("/run/containerd/s/df6a0c5cd2e9a1a16d9a3f2447365d9fc6021bc1d3d9a4caa2f5b2c4f773758f")
        );
    }

    #[test]
    fn a_bundle_tells_the_socket_of_its_shim() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(noted(bundle.path()), None);
        let socket = path(Path::new("/elsewhere"), "a", "default", "t1");
        note(bundle.path(), &address(&socket)).unwrap();
        assert_eq!(noted(bundle.path()), Some(socket));
    }

    #[test]
    fn a_served_socket_is_told_from_one_that_a_killed_shim_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/socket");
        let Socket::New(listener) = listen(&path).unwrap() else { panic!("nobody was there") };
        assert!(matches!(listen(&path).unwrap(), Socket::Served));
        // A program that another test is starting holds a copy of the listener until it executes; shut down, a
        // listener is deaf in every copy, and who connects gets the very error that he gets when all copies are closed.
        shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
        drop(listener);
        assert!(path.exists());
        assert!(matches!(listen(&path).unwrap(), Socket::New(_)));
    }
}
