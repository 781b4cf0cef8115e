//! The disk with containerd's state: an ext4 file system in which the images are imported already.
//!
//! It is made once, in a lab, since only a lab has the overlayfs and the containerd it is for; then every lab uses it
//! copy-on-write.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::cache::{self, Key};
use super::debian::output_of;

/// Room for images and for what tests write; sparse, so that the host's disk has only what is used of it.
const SIZE_BYTES: u64 = 12 << 30;
const IMAGE: &str = "containerd.ext4";

/// The image with `images` imported. `import` boots a lab that writes to the disk it is given.
///
/// # Errors
///
/// The file system cannot be made, or the import fails.
pub(super) fn prepared(
    images: &[PathBuf],
    kernel: &str,
    import: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let version = output_of(Command::new("containerd").arg("--version"))?;
    let mut key = Key::default().with("1").with(version).with(kernel);
    for image in images {
        key = key.with_file(image)?;
    }
    let entry = cache::entry("containerd", &key.finish(), |directory| {
        let image = directory.join(IMAGE);
        format(&image)?;
        import(&image)
    })?;
    Ok(entry.join(IMAGE))
}

fn format(image: &Path) -> Result<()> {
    File::create(image)?.set_len(SIZE_BYTES)?;
    let options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", options]).arg(image).status()?;
    if !made.success() {
        fs::remove_file(image)?;
        anyhow::bail!("mkfs.ext4 failed on {}: {made}", image.display());
    }
    Ok(())
}
