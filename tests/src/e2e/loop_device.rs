//! Block devices of the host that a test makes of files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::ctr::finish;

/// A loop device; it goes with this.
pub(super) struct LoopDevice {
    path: PathBuf,
    image: PathBuf,
}

impl LoopDevice {
    /// Makes one of a new file of this length.
    pub(super) fn new(image: &Path, length: u64) -> anyhow::Result<Self> {
        File::create(image)?.set_len(length)?;
        let path = finish(Command::new("losetup").args(["--find", "--show"]).arg(image))?;
        Ok(Self { path: path.trim().into(), image: image.to_owned() })
    }

    /// Its node.
    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Writes to the device.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let device = File::options().write(true).open(&self.path)?;
        device.write_all_at(bytes, offset)?;
        Ok(device.sync_all()?)
    }

    /// Reads what has reached the file behind the device.
    pub(super) fn stored(&self, offset: u64, length: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(&self.image)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Takes it away and says whether it is gone: one that somebody has open stays.
    pub(super) fn is_free(&self) -> anyhow::Result<bool> {
        if self.is_there() {
            finish(Command::new("losetup").arg("--detach").arg(&self.path))?;
        }
        Ok(!self.is_there())
    }

    /// Takes it away, which nobody hinders.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        ensure!(self.is_free()?, "somebody still has {} open", self.path.display());
        Ok(())
    }

    fn is_there(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default();
        let behind = Path::new("/sys/block").join(name).join("loop/backing_file");
        let image = self.image.display().to_string();
        fs::read_to_string(behind).is_ok_and(|behind| behind.trim_end() == image)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A failed test has its own error.
        let _ = self.is_free();
    }
}
