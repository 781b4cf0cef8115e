//! The guest kernel: an uncompressed ELF image with a PVH entry, built from `allnoconfig` plus our fragments.

mod cache;
mod compile;
mod fragments;
mod kconfig;
mod key;
mod patches;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use compile::CompileError;
pub use fragments::ConfigError;

/// Debian packages that [`build`] needs on the host. The caller installs them.
pub const REQUIRED_PACKAGES: &[&str] = &[
    "linux-source-6.12",
    "bc",
    "binutils",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "patch",
    "xz-utils",
];

/// The package whose sources are built, and where it puts them.
const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE_TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// A built guest kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelArtifact {
    /// The uncompressed ELF image, without symbols. `System.map` and `config` lie beside it.
    pub vmlinux: PathBuf,
    /// The image's size in bytes.
    pub size_bytes: u64,
    /// How many options are switched on (`=y`) in its configuration.
    pub options: usize,
    /// The hash of everything that went into it; also the name of its directory in the cache.
    pub key: String,
}

/// Why there is no guest kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Debian's kernel source is not installed.
    #[error("the kernel source {} is missing: install the Debian package {SOURCE_PACKAGE}", SOURCE_TARBALL)]
    NoSource,
    /// A program that the build runs is not installed.
    #[error("cannot run {program}: {error}; install the Debian packages {}", REQUIRED_PACKAGES.join(" "))]
    NoProgram {
        /// The program.
        program: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A program that only answers a question failed.
    #[error("`{command}` failed ({status}): {output}")]
    Query {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to standard error.
        output: String,
    },
    /// The cache or the scratch directory cannot be used.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The fragments and the kernel's own rules do not agree.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Unpacking or compiling failed.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

impl Error {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::File { action, path: path.to_owned(), error }
    }
}

/// Returns the kernel for today's inputs, from `<cache>/kernel/<key>` or, when it is not there, by building it.
///
/// `progress` is given short lines for a human reader: what is being done, and how far it is. A build takes minutes and
/// about 2 GiB of scratch space under `cache`, which is given back. Builds that share a cache wait for each other.
///
/// # Errors
///
/// When packages are missing, the cache cannot be written, an option that a fragment asks for cannot be had, or the
/// compiler fails; the compiler's log stays in `<cache>/kernel/<key>.log`.
pub fn build(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<KernelArtifact, Error> {
    if !Path::new(SOURCE_TARBALL).exists() {
        return Err(Error::NoSource);
    }
    let key = key::of_this_host()?;
    let directory = cache.join("kernel");
    let log = directory.join(format!("{key}.log"));
    let entry = cache::obtain(&directory, &key, progress, |scratch, result, progress| {
        progress(&format!("guest kernel {key}: building; the log is {}", log.display()));
        compile::kernel(scratch, result, &log, progress)
    })?;
    describe(&entry, key)
}

fn describe(entry: &Path, key: String) -> Result<KernelArtifact, Error> {
    let vmlinux = entry.join("vmlinux");
    let size_bytes = fs::metadata(&vmlinux).map_err(Error::file("read the size of", &vmlinux))?.len();
    let config = entry.join("config");
    let text = fs::read_to_string(&config).map_err(Error::file("read", &config))?;
    Ok(KernelArtifact { vmlinux, size_bytes, options: fragments::count_enabled(&text), key })
}
