//! Saya's own files.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use saya_vmm::boot::KernelImage;

use crate::config::{Config, ConfigError};

use super::finding::Finding;

/// The program that containerd looks for when it is asked for `io.containerd.kata.v2`.
const SHIM: &str = "containerd-shim-kata-v2";
/// What a cpio archive begins with that Linux unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
const CPIO_MAGICS: [&[u8; 6]; 2] = [b"070701", b"070702"];

pub(super) fn configuration(loaded: Result<Config, ConfigError>) -> Finding {
    const SUBJECT: &str = "configuration";
    match loaded {
        Err(error) => {
            Finding::missing(SUBJECT, error.to_string(), "mend the file: docs/configuration.md has the keys")
        }
        Ok(Config { file: None, .. }) => Finding::good(SUBJECT, "the defaults"),
        Ok(Config { file: Some(path), .. }) => {
            Finding::good(SUBJECT, format!("{}, and every key is known", path.display()))
        }
    }
}

pub(super) fn kernel(config: &Config) -> Finding {
    const SUBJECT: &str = "guest kernel";
    let path = config.kernel.display();
    let opened = File::open(&config.kernel).map_err(Into::into).and_then(KernelImage::open);
    match opened {
        Ok(_) => Finding::good(SUBJECT, format!("{path}, with a PVH entry")),
        Err(error) => Finding::missing(
            SUBJECT,
            format!("{path}: {error}"),
            "put vmlinux there (cargo xtask build makes it), or name it by the key `kernel`",
        ),
    }
}

pub(super) fn initramfs(config: &Config) -> Finding {
    const SUBJECT: &str = "initramfs";
    let path = config.initramfs.display();
    let remedy = "put initramfs.cpio there (cargo xtask build makes it), or name it by the key `initramfs`";
    let mut magic = [0; 6];
    match File::open(&config.initramfs).and_then(|mut file| file.read_exact(&mut magic)) {
        Err(error) => Finding::missing(SUBJECT, format!("{path}: {error}"), remedy),
        Ok(()) if CPIO_MAGICS.contains(&&magic) => Finding::good(SUBJECT, format!("{path}, a cpio archive")),
        Ok(()) => Finding::missing(SUBJECT, format!("{path} is not an uncompressed cpio archive"), remedy),
    }
}

pub(super) fn shim() -> Finding {
    const SUBJECT: &str = "shim";
    let directories = env::var_os("PATH").unwrap_or_default();
    match find_program(SHIM, env::split_paths(&directories)) {
        Some(path) => Finding::good(SUBJECT, format!("{}", path.display())),
        None => Finding::missing(
            SUBJECT,
            format!("{SHIM} is in no directory of PATH"),
            "install it to /usr/local/bin, which containerd's PATH has as well",
        ),
    }
}

/// The first of these directories' files that has this name.
pub(super) fn find_program(name: &str, directories: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    directories.into_iter().map(|directory| directory.join(name)).find(|path: &PathBuf| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::finding::Verdict;
    use super::*;

    fn config_of(file: &Path) -> Config {
        Config { kernel: file.to_owned(), initramfs: file.to_owned(), ..Config::default() }
    }

    #[test]
    fn files_of_another_kind_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "no kernel, and no archive").unwrap();
        let config = config_of(&file);
        for finding in [kernel(&config), initramfs(&config)] {
            assert_eq!(finding.verdict, Verdict::Missing);
            assert!(finding.found.contains(&file.display().to_string()), "{finding}");
        }
    }

    #[test]
    fn an_archive_is_known_by_its_magic() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("initramfs.cpio");
        fs::write(&file, "07070100000000").unwrap();
        assert_eq!(initramfs(&config_of(&file)).verdict, Verdict::Good);
        fs::write(&file, "0707").unwrap();
        assert_eq!(initramfs(&config_of(&file)).verdict, Verdict::Missing);
    }

    #[test]
    fn a_program_is_found_in_the_first_directory_that_has_it() {
        let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        fs::write(second.path().join(SHIM), "").unwrap();
        let directories = || [first.path().to_owned(), second.path().to_owned()];
        assert_eq!(find_program(SHIM, directories()), Some(second.path().join(SHIM)));
        fs::create_dir(first.path().join(SHIM)).unwrap();
        assert_eq!(find_program(SHIM, directories()), Some(second.path().join(SHIM)), "a directory is none");
    }
}
