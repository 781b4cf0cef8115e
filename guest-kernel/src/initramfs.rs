//! The initramfs: the agent as `/init`, and the few nodes that it needs before it has mounted anything.
//!
//! The archive is an uncompressed cpio in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst
//! in the kernel's source): the kernel copies it instead of decompressing it.

mod cpio;
mod elf;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use elf::NotAnAgent;

/// Directories on which the agent mounts file systems, and their permissions.
const DIRECTORIES: &[(&str, u32)] =
    &[("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777)];

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent's file cannot run as PID 1.
    #[error("{} cannot be the guest's PID 1: {reason}", path.display())]
    Agent {
        /// The agent's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: NotAnAgent,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Error {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::File { action, path: path.to_owned(), error }
    }
}

/// Packs the program `agent` as `/init` into the archive `out` and returns the archive's size in bytes.
///
/// The same agent gives the same bytes. `out` appears by a rename: it is either the old archive or the whole new one.
///
/// # Errors
///
/// When `agent` is not a static x86-64 program, or a file cannot be read or written.
pub fn build(agent: &Path, out: &Path) -> Result<u64, Error> {
    let program = fs::read(agent).map_err(Error::file("read", agent))?;
    elf::check(&program).map_err(|reason| Error::Agent { path: agent.to_owned(), reason })?;
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    write(&program, &partial).map_err(Error::file("write", &partial))?;
    fs::rename(&partial, out).map_err(Error::file("rename the new archive to", out))?;
    Ok(fs::metadata(out).map_err(Error::file("read the size of", out))?.len())
}

fn write(program: &[u8], path: &Path) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    archive(program, &mut file)?;
    file.flush()
}

fn archive(program: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut archive = cpio::Archive::new(out);
    for (directory, permissions) in DIRECTORIES {
        archive.directory(directory, *permissions)?;
    }
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.character_device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, program)?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent_in(directory: &Path) -> PathBuf {
        let path = directory.join("agent");
        fs::write(&path, elf::tests::program(&[])).unwrap();
        path
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let agent = agent_in(directory.path());
        let [first, second] = ["one", "two"].map(|name| directory.path().join(name));
        let size = build(&agent, &first).unwrap();
        build(&agent, &second).unwrap();
        let bytes = fs::read(&first).unwrap();
        assert_eq!(bytes, fs::read(&second).unwrap());
        assert_eq!(bytes.len() as u64, size);
    }

    #[test]
    fn an_agent_that_cannot_run_leaves_the_old_archive_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, out) = (directory.path().join("agent"), directory.path().join("out"));
        fs::write(&agent, "#!/bin/sh\n").unwrap();
        fs::write(&out, "old").unwrap();
        let message = build(&agent, &out).unwrap_err().to_string();
        assert!(message.contains(agent.to_str().unwrap()), "{message}");
        assert_eq!(fs::read(&out).unwrap(), b"old");
    }

    #[test]
    fn the_archive_holds_the_agent_its_directories_and_its_nodes() {
        let mut bytes = Vec::new();
        archive(b"agent", &mut bytes).unwrap();
        let entries = cpio::tests::read(&bytes);
        let seen: Vec<_> = entries.iter().map(|entry| (&*entry.name, entry.mode, entry.device)).collect();
        let none = (0, 0);
        assert_eq!(
            seen,
            [
                ("dev", 0o040_755, none),
                ("proc", 0o040_755, none),
                ("run", 0o040_755, none),
                ("sys", 0o040_755, none),
                ("tmp", 0o041_777, none),
                ("dev/console", 0o020_600, (5, 1)),
                ("dev/null", 0o020_666, (1, 3)),
                ("init", 0o100_755, none),
                ("TRAILER!!!", 0, none),
            ]
        );
        assert_eq!(entries[7].content, b"agent");
    }
}
