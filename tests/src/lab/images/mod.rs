//! Container images made on this machine, without a registry.

mod busybox;
mod layout;
mod pause;
mod program;

use std::path::PathBuf;

use anyhow::Result;

/// The archives (OCI image layouts in tar) of all images that the tests use, made if they are not in the cache.
///
/// # Errors
///
/// An image cannot be made; the message says which and why.
pub(super) fn all() -> Result<Vec<PathBuf>> {
    let mut archives = program::archives()?;
    archives.extend([busybox::archive()?, pause::archive()?]);
    Ok(archives)
}
