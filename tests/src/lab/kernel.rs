//! The kernel of the lab itself: Debian's own, with its modules, taken from the package without installing it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cache::{self, Key};
use super::debian;

/// The generic kernel, not the one for clouds: that one has no 9p, by which the lab reads the host's root.
const PACKAGE: &str = "linux-image-amd64";

/// Modules that a machine in a lab can have no use for, by directory; they are most of the package's size.
const UNUSED: [&str; 9] = [
    "drivers/gpu",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/infiniband",
    "drivers/scsi",
    "drivers/usb",
    "drivers/iio",
    "sound",
];

/// A kernel and its modules.
pub(super) struct Kernel {
    /// The compressed kernel, as QEMU boots it.
    pub(super) image: PathBuf,
    /// What `uname -r` says in the lab.
    pub(super) version: String,
    /// The directory that holds `<version>/modules.dep`, to be seen at /lib/modules in the lab.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The lab's kernel, downloaded if it is not in the cache yet.
    ///
    /// # Errors
    ///
    /// The package cannot be downloaded or unpacked, or `depmod` fails.
    pub(super) fn fetch() -> Result<Self> {
        let key = Key::default().with("2").with(debian::release()).with(PACKAGE).finish();
        let directory = cache::entry("kernel", &key, download)?;
        let modules = directory.join("modules");
        let version = only_name_in(&modules)?;
        Ok(Self { image: directory.join("vmlinuz"), version, modules })
    }

    /// The files of `modules` and of those they need, in the order in which they have to be loaded.
    ///
    /// # Errors
    ///
    /// `modules.dep` does not know a module.
    pub(super) fn load_order(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let directory = self.modules.join(&self.version);
        let index = directory.join("modules.dep");
        let text = fs::read_to_string(&index).with_context(|| format!("reading {}", index.display()))?;
        let mut order: Vec<PathBuf> = Vec::new();
        for module in modules {
            let (file, needed) = find_module(&text, module)
                .with_context(|| format!("{} has no module {module}", index.display()))?;
            // modules.dep names the nearest need first: the deepest one has to be loaded first.
            for path in needed.rev().chain([file]).map(|path| directory.join(path)) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

/// The line of `modules.dep` about `module`: its file, and the files it needs.
fn find_module<'a>(
    text: &'a str,
    module: &str,
) -> Option<(&'a str, impl DoubleEndedIterator<Item = &'a str>)> {
    text.lines().find_map(|line| {
        let (file, needed) = line.split_once(':')?;
        let name = file.rsplit('/').next()?.split('.').next()?;
        (name.replace('-', "_") == module).then(|| (file, needed.split_whitespace()))
    })
}

fn download(directory: &Path) -> Result<()> {
    debian::update_lists()?;
    let packages = debian::dependencies(&[PACKAGE.to_owned()])?;
    let image = packages.into_iter().filter(|name| name.starts_with("linux-image-")).collect::<Vec<_>>();
    let root = directory.join("root");
    fs::create_dir(&root)?;
    for archive in debian::download(&image, directory)? {
        debian::unpack(&archive, &root)?;
        fs::remove_file(&archive)?;
    }
    // Depending on the release, modules are packaged below lib or below usr/lib.
    let packaged = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let modules = packaged.iter().find(|path| path.exists()).context("the kernel package has no modules")?;
    let version = only_name_in(modules)?;
    for unused in UNUSED {
        let path = modules.join(&version).join("kernel").join(unused);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    fs::rename(root.join("boot").join(format!("vmlinuz-{version}")), directory.join("vmlinuz"))?;
    // depmod wants a root directory with lib/modules below it.
    fs::create_dir_all(root.join("lib"))?;
    if !root.join("lib/modules").exists() {
        fs::rename(modules, root.join("lib/modules"))?;
    }
    debian::output_of(Command::new("depmod").arg("-b").arg(&root).arg(&version))?;
    fs::rename(root.join("lib/modules"), directory.join("modules"))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn only_name_in(directory: &Path) -> Result<String> {
    let entry = fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .next()
        .with_context(|| format!("{} is empty", directory.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_the_name_the_kernel_gives_it() {
        let text = "kernel/arch/x86/kvm/kvm-amd.ko: kernel/a/ccp.ko kernel/b/kvm.ko\nkernel/c/tun.ko:\n";
        let (file, needed) = find_module(text, "kvm_amd").unwrap();
        assert_eq!(file, "kernel/arch/x86/kvm/kvm-amd.ko");
        assert_eq!(needed.collect::<Vec<_>>(), ["kernel/a/ccp.ko", "kernel/b/kvm.ko"]);
        assert!(find_module(text, "kvm").is_none());
    }
}
