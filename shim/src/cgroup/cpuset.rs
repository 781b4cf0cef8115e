//! On which of the host's CPUs and memory nodes the processes of a pod run.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::spec::host_cpus::HostCpus;

/// The kernel's refusal of a list.
#[derive(Debug, thiserror::Error)]
#[error("linux.resources.cpu.{field}: the host refuses {list:?} for {path}: {source}")]
pub(crate) struct CpusetError {
    field: &'static str,
    list: String,
    path: PathBuf,
    source: io::Error,
}

/// What became of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confined {
    /// The processes run there.
    Done,
    /// No directory has such files, because nobody above has passed the controller on, or there is no directory.
    NoController,
}

/// Has the processes in a pod's directories, one with v2, one for each hierarchy with v1, run on these CPUs and nodes.
///
/// # Errors
/// The kernel's refusal, of what the machine does not have for one.
pub(crate) fn confine(directories: &[PathBuf], to: &HostCpus) -> Result<Confined, CpusetError> {
    let Some(directory) = directories.iter().find(|directory| directory.join("cpuset.cpus").exists()) else {
        return Ok(Confined::NoController);
    };
    for (field, list) in [("cpus", &to.cpus), ("mems", &to.mems)] {
        let file = directory.join(format!("cpuset.{field}"));
        let list = match list {
            Some(list) => Ok(list.to_string()),
            None => all(directory, field),
        };
        let refused =
            |list: &str, source| CpusetError { field, list: list.to_owned(), path: file.clone(), source };
        let list = list.map_err(|error| refused("", error))?;
        fs::write(&file, &list).map_err(|error| refused(&list, error))?;
    }
    Ok(Confined::Done)
}

/// All that a cgroup's parent has now. With v2, too, a cgroup with processes that has had a list of its own cannot be left without
/// one (`validate_change` in Linux, kernel/cgroup/cpuset.c).
fn all(directory: &Path, field: &str) -> io::Result<String> {
    let parent = directory.parent().unwrap_or(directory);
    // v1 has no such file.
    let effective = parent.join(format!("cpuset.{field}.effective"));
    let file = if effective.exists() { effective } else { parent.join(format!("cpuset.{field}")) };
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(directory: &Path) -> [String; 2] {
        ["cpuset.cpus", "cpuset.mems"].map(|file| fs::read_to_string(directory.join(file)).unwrap())
    }

    #[test]
    fn lists_are_set_and_taken_back_with_either_version() {
        for suffix in [".effective", ""] {
            let parent = tempfile::tempdir().unwrap();
            let directory = parent.path().join("pod");
            fs::create_dir(&directory).unwrap();
            fs::write(parent.path().join(format!("cpuset.cpus{suffix}")), "0-7\n").unwrap();
            fs::write(parent.path().join(format!("cpuset.mems{suffix}")), "0-1\n").unwrap();
            let others = parent.path().join("memory");
            let directories = [others, directory.clone()];
            let lists = HostCpus { cpus: Some("2-3".parse().unwrap()), mems: Some("1".parse().unwrap()) };
            assert_eq!(confine(&directories, &lists).unwrap(), Confined::NoController);
            fs::write(directory.join("cpuset.cpus"), "").unwrap();
            assert_eq!(confine(&directories, &lists).unwrap(), Confined::Done);
            assert_eq!(read(&directory), ["2-3", "1"]);
            assert_eq!(confine(&directories, &HostCpus::default()).unwrap(), Confined::Done);
            assert_eq!(read(&directory), ["0-7", "0-1"]);
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_told_with_list_and_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("cpuset.cpus")).unwrap();
        let lists = HostCpus { cpus: Some("99".parse().unwrap()), mems: None };
        let error = confine(&[directory.path().to_owned()], &lists).unwrap_err().to_string();
        for words in ["linux.resources.cpu.cpus", "\"99\"", "cpuset.cpus: "] {
            assert!(error.contains(words), "{error}");
        }
    }
}
