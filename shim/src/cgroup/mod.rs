//! The host's cgroup of a pod: the one that the spec names holds the shim and the VMM, and nothing else.
//!
//! The containers' own limits are enforced in the guest. This one's bound what a guest that has taken the VMM over could take of the host.

mod cpuset;
mod limits;
mod path;
mod removal;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use cpuset::{Confined, confine};
pub(crate) use limits::Limits;
use limits::SetLimit;
pub(crate) use path::{CgroupPath, PathError};
pub(crate) use removal::remove;

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// The magic number of cgroup v2's file system (linux/magic.h, CGROUP2_SUPER_MAGIC).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// A pod's cgroup: one directory with v2, one for each hierarchy with v1.
#[derive(Debug, Default)]
pub(crate) struct PodCgroup {
    /// The directories, and where the shim was before.
    hierarchies: Vec<Membership>,
    limits: Vec<SetLimit>,
}

#[derive(Debug)]
struct Membership {
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// The pod's directory.
    directory: PathBuf,
    /// The directory in which the shim was before.
    before: PathBuf,
}

/// Why the shim is not in the cgroup that the spec names.
#[derive(Debug, thiserror::Error)]
#[error("linux.cgroupsPath: {path}: {source}")]
pub(crate) struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

fn at(path: &Path) -> impl Fn(io::Error) -> CgroupError + '_ {
    move |source| CgroupError { path: path.to_owned(), source }
}

/// Whether the host has cgroup v2 alone.
pub(crate) fn is_unified() -> bool {
    rustix::fs::statfs(ROOT).is_ok_and(|filesystem| filesystem.f_type == CGROUP2_MAGIC)
}

impl PodCgroup {
    /// Finds out where the cgroup is going to be.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn plan(cgroup: &CgroupPath) -> Result<Self, CgroupError> {
        let hierarchies = hierarchies()?
            .into_iter()
            .map(|(mount, before)| Membership {
                directory: mount.join(cgroup.relative()),
                before: mount.join(before),
                mount,
            })
            .collect();
        Ok(Self { hierarchies, limits: Vec::new() })
    }

    /// Makes the cgroup, sets its limits and moves this process there. The VMM that it makes then is born there.
    ///
    /// # Errors
    /// What the system returned, with the path.
    pub(crate) fn join(&mut self, limits: Limits) -> Result<(), CgroupError> {
        self.hierarchies.iter().try_for_each(|membership| make(&membership.mount, &membership.directory))?;
        let directories: Vec<&Path> =
            self.hierarchies.iter().map(|membership| membership.directory.as_path()).collect();
        self.limits = limits.set(&directories)?;
        self.hierarchies
            .iter()
            .try_for_each(|Membership { directory, .. }| move_self(directory).map_err(at(directory)))
    }

    /// Sets limits again that the cgroup has lost: systemd, which does not know of it, takes controllers away from what is below a slice
    /// when it sets the slice up anew (`systemctl daemon-reload`).
    pub(crate) fn renew_limits(&self) {
        let lost: Vec<&SetLimit> = self.limits.iter().filter(|limit| limit.is_lost()).collect();
        if lost.is_empty() {
            return;
        }
        for Membership { mount, directory, .. } in &self.hierarchies {
            parents(mount, directory).iter().for_each(|parent| limits::pass_controllers_on(parent));
        }
        for limit in lost {
            match limit.write() {
                Ok(()) => tracing::info!(file = %limit.file.display(), "the pod's cgroup had lost a limit"),
                Err(error) => tracing::warn!(%error, "the pod's cgroup has lost a limit"),
            }
        }
    }

    /// The directories, for whoever has to clean up after a killed shim.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|membership| membership.directory.clone()).collect()
    }

    /// Moves this process back to where it was and removes the cgroup once nobody else is in it. It blocks until then.
    pub(crate) fn leave(self) {
        for membership in self.hierarchies {
            if let Err(error) = move_self(&membership.before) {
                tracing::warn!(path = %membership.before.display(), %error, "the shim stays in the pod's cgroup");
                continue;
            }
            if let Err(error) = remove(&membership.directory) {
                tracing::warn!(path = %membership.directory.display(), %error, "a cgroup stays behind");
            }
        }
    }
}

/// The cgroups above a pod's, from the hierarchy's root on.
fn parents<'a>(mount: &Path, directory: &'a Path) -> Vec<&'a Path> {
    let above = directory.ancestors().skip(1).take_while(|parent| parent.starts_with(mount));
    let mut parents: Vec<&Path> = above.collect();
    parents.reverse();
    parents
}

fn make(mount: &Path, directory: &Path) -> Result<(), CgroupError> {
    let mut made = mount.to_owned();
    for part in directory.strip_prefix(mount).unwrap_or(directory) {
        let parent = made.clone();
        limits::pass_controllers_on(&parent);
        made.push(part);
        match fs::create_dir(&made) {
            Ok(()) => inherit_cpuset(&parent, &made).map_err(at(&made))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&made)(error)),
        }
    }
    Ok(())
}

/// A new cgroup of v1's cpuset has no CPU and takes no process until it is given some
/// (Documentation/admin-guide/cgroup-v1/cpusets.rst).
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    // v2 has no such file. There, a cgroup without CPUs of its own has its parent's, and need not have the files below.
    if !child.join("tasks").exists() {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(value) = fs::read(parent.join(file)) else { return Ok(()) };
        if fs::read(child.join(file))?.trim_ascii().is_empty() {
            fs::write(child.join(file), value)?;
        }
    }
    Ok(())
}

fn move_self(directory: &Path) -> io::Result<()> {
    // "0" is the writing process (cgroups(7)).
    fs::write(directory.join("cgroup.procs"), "0")
}

/// Every hierarchy's mount point, and where this process is in it.
fn hierarchies() -> Result<Vec<(PathBuf, PathBuf)>, CgroupError> {
    let membership = Path::new("/proc/self/cgroup");
    let membership = fs::read_to_string(membership).map_err(at(membership))?;
    if is_unified() {
        return Ok(unified(&membership).map(|before| (PathBuf::from(ROOT), before)).into_iter().collect());
    }
    let mounts = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(mounts).map_err(at(mounts))?;
    Ok(separate(&mounts, &membership))
}

/// Whether the kernel has killed a process of the cgroup that this process is in for want of memory.
pub(crate) fn has_run_out_of_memory() -> bool {
    let directories = hierarchies().unwrap_or_default().into_iter().map(|(mount, own)| mount.join(own));
    let files =
        directories.flat_map(|own| ["memory.events", "memory.oom_control"].map(|file| own.join(file)));
    files.filter_map(|file| fs::read_to_string(file).ok()).any(|events| counts_kills(&events))
}

/// Whether there were any, by v2's `memory.events` or v1's `memory.oom_control` (Documentation/admin-guide/cgroup-v2.rst,
/// cgroup-v1/memory.rst).
fn counts_kills(events: &str) -> bool {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).is_some_and(|count: u64| count > 0)
}

fn unified(membership: &str) -> Option<PathBuf> {
    membership.lines().find_map(|line| Some(relative(line.strip_prefix("0::")?)))
}

/// v1's hierarchies, from mountinfo and the lines `id:controllers:path` of `/proc/self/cgroup`.
fn separate(mounts: &str, membership: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // Hierarchies without controllers are systemd's own, and v2 beside v1 has none to give.
        if controllers.is_empty() || controllers.starts_with("name=") {
            continue;
        }
        let mount = mounts.lines().find_map(|line| mount_of(line, controllers));
        found.extend(mount.map(|mount| (mount, relative(path))));
    }
    found
}

/// The mount point in a line of mountinfo, where it is the hierarchy with these controllers.
fn mount_of(line: &str, controllers: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
    let options: Vec<&str> = options.split(',').collect();
    let matches = kind == "cgroup" && controllers.split(',').all(|controller| options.contains(&controller));
    matches.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
}

fn relative(path: &str) -> PathBuf {
    PathBuf::from(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cpuset_of_v1_is_given_its_parents_processors() {
        let directory = tempfile::tempdir().unwrap();
        let (parent, child) = (directory.path(), directory.path().join("child"));
        fs::create_dir(&child).unwrap();
        fs::write(parent.join("cpuset.cpus"), "0-3").unwrap();
        inherit_cpuset(parent, &child).expect("v2, where the parent gives the controller to none below");
        for file in ["tasks", "cpuset.cpus"] {
            fs::write(child.join(file), "").unwrap();
        }
        inherit_cpuset(parent, &child).unwrap();
        assert_eq!(fs::read(child.join("cpuset.cpus")).unwrap(), b"0-3");
    }

    #[test]
    fn a_limit_that_was_lost_with_its_controller_is_set_again_and_another_one_is_left_alone() {
        let mount = tempfile::tempdir().unwrap();
        let slice = mount.path().join("kubepods.slice");
        let pod = slice.join("pod");
        fs::create_dir_all(&pod).unwrap();
        let [memory, pids] = ["memory.max", "pids.max"].map(|file| pod.join(file));
        for file in [&memory, &pids] {
            fs::write(file, "").unwrap();
        }
        for parent in [mount.path(), &slice] {
            fs::write(parent.join("cgroup.subtree_control"), "").unwrap();
        }
        let membership =
            Membership { mount: mount.path().into(), directory: pod.clone(), before: mount.path().into() };
        let limits = Limits::of_vm(128, 1).set(&[&pod]).unwrap();
        let cgroup = PodCgroup { hierarchies: vec![membership], limits };
        let limit = fs::read_to_string(&memory).unwrap();
        fs::write(&pids, "77").unwrap();
        cgroup.renew_limits();
        assert_eq!(fs::read(slice.join("cgroup.subtree_control")).unwrap(), b"", "nothing was lost");

        fs::write(&memory, "max").unwrap();
        cgroup.renew_limits();
        assert_eq!(fs::read_to_string(&memory).unwrap(), limit);
        assert_eq!(fs::read(&pids).unwrap(), b"77", "somebody has changed it");
        for parent in [mount.path(), &slice] {
            // Each is written by itself; here the last one stays.
            assert_eq!(fs::read(parent.join("cgroup.subtree_control")).unwrap(), b"+cpuset");
        }
        // As long as the controller is not given back there is no file to write to.
        fs::remove_file(&memory).unwrap();
        cgroup.renew_limits();
        assert!(!memory.exists());
    }

    #[test]
    fn processes_that_were_killed_for_want_of_memory_are_counted_in_both_versions() {
        assert!(counts_kills("low 0\nhigh 0\nmax 77\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(counts_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"));
        assert!(!counts_kills("max 5\noom 0\noom_kill 0\noom_group_kill 4\n"));
        assert!(!counts_kills(""));
    }

    #[test]
    fn the_unified_hierarchy_is_found() {
        assert_eq!(
            unified("0::/system.slice/containerd.service\n"),
            Some("system.slice/containerd.service".into())
        );
        assert_eq!(unified("1:cpu:/x\n"), None);
    }

    #[test]
    fn separate_hierarchies_are_found_and_those_without_controllers_left_out() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n\
                      32 25 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,name=systemd\n";
        let membership = "3:cpu,cpuacct:/a\n2:memory:/b/c\n1:name=systemd:/d\n0::/e\n";
        assert_eq!(
            separate(mounts, membership),
            [
                (PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"), PathBuf::from("a")),
                (PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("b/c")),
            ]
        );
    }
}
