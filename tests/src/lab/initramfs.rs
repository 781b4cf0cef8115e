//! The lab's first root file system: busybox, a script, and the modules that are needed to reach the host's root.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cache::{self, Key};
use super::cpio::Archive;
use super::kernel::Kernel;

const INIT: &str = include_str!("init.sh");
const BUSYBOX: &str = "/usr/bin/busybox";

/// Modules for the way to the host's root, for the ports to the host, and for the disk.
const MODULES: [&str; 7] =
    ["virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console", "virtio_blk", "ext4"];

/// The archive's path in the cache.
///
/// # Errors
///
/// busybox is not installed (Debian's package `busybox-static`), or the cache cannot be written.
pub(super) fn build(kernel: &Kernel) -> Result<PathBuf> {
    let key = Key::default()
        .with(INIT)
        .with(MODULES.join(" "))
        .with_file(BUSYBOX.as_ref())
        .context("the lab's initramfs needs the package busybox-static")?
        .with(kernel.modules.as_os_str().as_encoded_bytes())
        .with(&kernel.version)
        .finish();
    let entry = cache::entry("initramfs", &key, |directory| {
        fs::write(directory.join("initramfs.cpio"), archive(kernel)?)?;
        Ok(())
    })?;
    Ok(entry.join("initramfs.cpio"))
}

fn archive(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.file("bin/busybox", 0o755, &fs::read(BUSYBOX)?);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.directory("modules");
    let mut order = String::new();
    for path in kernel.load_order(&MODULES)? {
        let name = path.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        archive.file(&format!("modules/{name}"), 0o644, &content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}
