//! Slow things are made once and kept: the lab's kernel, the images, containerd's prepared state.
//!
//! An entry is a directory named by what it holds and by the hash of all that went into it. It is made in a directory
//! beside its final place and renamed when it is whole, so an entry that exists is complete. A lock file keeps two
//! labs from making the same entry twice.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The directory for slow builds: `$SAYA_CACHE`, or `~/.cache/saya`.
///
/// # Errors
///
/// Neither `SAYA_CACHE` nor `HOME` is set.
pub fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("SAYA_CACHE") {
        return Ok(PathBuf::from(directory));
    }
    let home = std::env::var_os("HOME").context("neither SAYA_CACHE nor HOME is set: set one of them")?;
    Ok(Path::new(&home).join(".cache/saya"))
}

/// Hashes the inputs of a cache entry: pieces of text or data, in the order in which they are added.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds one input.
    #[must_use]
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update((input.len() as u64).to_le_bytes());
        self.0.update(input);
        self
    }

    /// Adds the content of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(self.with(content))
    }

    /// The first 16 hexadecimal digits of the hash, which name the entry.
    #[must_use]
    pub fn finish(self) -> String {
        let mut name = hexadecimal(&self.0.finalize());
        name.truncate(16);
        name
    }
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The entry `lab/<name>-<key>` of the cache, made by `make` if it is not there yet. `make` gets an empty directory.
///
/// # Errors
///
/// `make` failed, or the cache cannot be written.
pub fn entry(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let parent = directory()?.join("lab");
    let place = parent.join(format!("{name}-{key}"));
    if place.exists() {
        return Ok(place);
    }
    fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
    let lock = File::create(parent.join(format!("{name}.lock")))?;
    lock.lock().with_context(|| format!("locking the cache entry {name}"))?;
    if place.exists() {
        return Ok(place);
    }
    let draft = parent.join(format!("{name}-{key}.partial"));
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir(&draft)?;
    make(&draft).with_context(|| format!("making {name} for the lab"))?;
    fs::rename(&draft, &place)?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_cannot_run_into_each_other() {
        assert_ne!(
            Key::default().with("ab").with("c").finish(),
            Key::default().with("a").with("bc").finish()
        );
    }
}
