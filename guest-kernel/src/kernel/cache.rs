//! A directory of build results, each under the name of its key, made once.
//!
//! A result appears by a rename, so that it is either absent or complete. One lock file keeps concurrent builds apart,
//! and lets the holder remove what a killed build has left.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::Error;

const LOCK: &str = ".lock";
const SCRATCH_PREFIX: &str = "scratch-";

/// Returns `directory/key`, after calling `make` to fill it when it does not exist.
///
/// `make` gets an empty scratch directory, an empty directory for the result, and `progress`.
pub(super) fn obtain(
    directory: &Path,
    key: &str,
    progress: &mut dyn FnMut(&str),
    make: impl FnOnce(&Path, &Path, &mut dyn FnMut(&str)) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let entry = directory.join(key);
    if entry.exists() {
        return Ok(entry);
    }
    fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    let _lock = lock(directory, progress)?;
    if entry.exists() {
        return Ok(entry);
    }
    remove_abandoned(directory)?;
    let scratch = Scratch::new(directory.join(format!("{SCRATCH_PREFIX}{key}")))?;
    let (work, result) = (scratch.subdirectory("work")?, scratch.subdirectory("result")?);
    make(&work, &result, progress)?;
    fs::rename(&result, &entry).map_err(Error::file("rename the build result to", &entry))?;
    Ok(entry)
}

/// The lock lasts as long as the returned file is open.
fn lock(directory: &Path, progress: &mut dyn FnMut(&str)) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress("guest kernel: waiting for another build in the same cache");
            file.lock().map_err(Error::file("lock", &path))?;
        }
        Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
    }
    Ok(file)
}

/// Removes scratch directories of builds that were killed. Only the lock's holder may call it.
fn remove_abandoned(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let entry = entry.map_err(Error::file("list", directory))?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            fs::remove_dir_all(entry.path()).map_err(Error::file("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// A directory that goes away with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, Error> {
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        Ok(Self(path))
    }

    fn subdirectory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover is removed by the next build in this cache.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn obtain_file(directory: &Path, key: &str, content: &str) -> String {
        let entry = obtain(directory, key, &mut |_| {}, |_, result, _| {
            fs::write(result.join("file"), content).unwrap();
            Ok(())
        });
        fs::read_to_string(entry.unwrap().join("file")).unwrap()
    }

    #[test]
    fn a_result_is_made_once_per_key() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(obtain_file(cache.path(), "a", "first"), "first");
        assert_eq!(obtain_file(cache.path(), "a", "second"), "first");
        assert_eq!(obtain_file(cache.path(), "b", "third"), "third");
    }

    #[test]
    fn concurrent_builds_of_one_key_build_once() {
        let cache = tempfile::tempdir().unwrap();
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    obtain(cache.path(), "key", &mut |_| {}, |_, _, _| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(builds.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_failed_build_leaves_nothing_and_can_be_repeated() {
        let cache = tempfile::tempdir().unwrap();
        let failed = obtain(cache.path(), "key", &mut |_| {}, |work, result, _| {
            fs::write(work.join("object"), "").unwrap();
            fs::write(result.join("file"), "half").unwrap();
            Err(Error::NoSource)
        });
        assert!(matches!(failed, Err(Error::NoSource)));
        let names: Vec<_> =
            fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [LOCK]);
        assert_eq!(obtain_file(cache.path(), "key", "whole"), "whole");
    }

    #[test]
    fn what_a_killed_build_left_is_removed_by_the_next() {
        let cache = tempfile::tempdir().unwrap();
        let abandoned = cache.path().join("scratch-old");
        fs::create_dir_all(abandoned.join("work/deep")).unwrap();
        obtain_file(cache.path(), "key", "");
        assert!(!abandoned.exists());
    }
}
