//! The leak checker: what a machine holds before and after, and what is there after that was not there before.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What could be left behind, each thing as a line that a person understands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    things: BTreeSet<String>,
}

/// Programs whose processes come and go with pods.
const PROGRAMS: [&str; 6] =
    ["containerd-shim-kata-v2", "containerd-shim-runc-v2", "saya", "runc", "runsc", "runsc-sandbox"];

/// Where runtimes keep files and sockets while a pod lives. `/run/containerd/fifo` is not among them: what lies there is
/// the client's, and `ctr` forgets it when a shim was killed, whatever the runtime.
const DIRECTORIES: [&str; 6] = [
    "/run/saya",
    "/run/containerd/s",
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/containerd/io.containerd.sandbox.controller.v1.shim",
    "/run/netns",
    "/run/kata-containers",
];

/// Where the plugin host-local notes the addresses that pods have, each as a file below its network's name.
const ADDRESSES: &str = "/var/lib/cni/networks";

/// containerd's namespaces: that of `ctr`, and that of the CRI plugin. The cgroups and the directories that have their
/// names hold those of all their containers, and outlive them.
const NAMESPACES: [&str; 2] = ["default", "k8s.io"];

/// ip-netns(8) mounts this directory over itself for the first namespace, and leaves it so.
const NAMED_NAMESPACES: &str = "/run/netns";

impl Holdings {
    /// What the machine holds now.
    pub fn now() -> Self {
        let mut things = BTreeSet::new();
        things.extend(processes());
        things.extend(mounts());
        things.extend(network_interfaces());
        things.extend(sockets());
        things.extend(DIRECTORIES.iter().flat_map(|directory| files_below(Path::new(directory))));
        things.extend(cgroups_below(Path::new("/sys/fs/cgroup")));
        things.extend(addresses_below(Path::new(ADDRESSES)));
        Self { things }
    }

    /// What is in `after` and not in `self`.
    pub fn leaked_by(&self, after: &Self) -> Vec<String> {
        after.things.difference(&self.things).cloned().collect()
    }

    /// How many things these are.
    pub fn count(&self) -> usize {
        self.things.len()
    }
}

fn processes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| process(&entry.path())).collect()
}

fn process(directory: &Path) -> Option<String> {
    let id: u32 = directory.file_name()?.to_str()?.parse().ok()?;
    let executable = fs::read_link(directory.join("exe")).ok()?;
    let name = executable.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
    let namespace = fs::metadata(directory.join("ns/net")).ok().map(|metadata| metadata.ino());
    let ours = fs::metadata("/proc/self/ns/net").ok().map(|metadata| metadata.ino());
    (PROGRAMS.contains(&name.as_str()) || namespace != ours).then(|| format!("process {id} {name}"))
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount).collect()
}

/// The mount point and the root of a line of mountinfo (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<String> {
    let mut fields = line.split(' ').skip(3);
    let root = fields.next()?;
    let point = fields.next()?;
    (point != NAMED_NAMESPACES).then(|| format!("mount {point} of {root}"))
}

fn network_interfaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| format!("network interface {}", entry.file_name().to_string_lossy()))
        .collect()
}

/// Sockets with a name below /run, as long as anybody has them open: what is unlinked is not in a directory any more.
fn sockets() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    text.lines().filter_map(socket).collect()
}

/// The name in a line of /proc/net/unix (unix(7)): the eighth field, where there is one.
fn socket(line: &str) -> Option<String> {
    line.split_whitespace()
        .nth(7)
        .filter(|name| name.starts_with("/run/"))
        .map(|name| format!("socket {name}"))
}

fn files_below(directory: &Path) -> Vec<String> {
    walk(directory, &|path| !is_of_a_namespace(path))
        .into_iter()
        .map(|path| format!("file {}", path.display()))
        .collect()
}

fn cgroups_below(directory: &Path) -> Vec<String> {
    let of_a_pod = |path: &Path| path.is_dir() && !is_of_a_namespace(path);
    walk(directory, &of_a_pod).into_iter().map(|path| format!("cgroup {}", path.display())).collect()
}

/// Beside the addresses there is which was the last one, and a lock, both of which stay.
fn addresses_below(directory: &Path) -> Vec<String> {
    let is_address =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().parse::<IpAddr>().is_ok());
    walk(directory, &is_address).into_iter().map(|path| format!("address {}", path.display())).collect()
}

fn is_of_a_namespace(path: &Path) -> bool {
    NAMESPACES.iter().any(|namespace| path.ends_with(namespace))
}

/// Everything below `directory` that `wanted` accepts, links not followed; nothing where it does not exist.
#[must_use]
pub fn walk(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&path, wanted));
        }
        if wanted(&path) {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdings(things: &[&str]) -> Holdings {
        Holdings { things: things.iter().map(|thing| (*thing).to_owned()).collect() }
    }

    #[test]
    fn only_what_came_since_is_a_leak() {
        let (before, after) = (holdings(&["mount /a", "mount /b"]), holdings(&["mount /b", "process 7 x"]));
        assert_eq!(before.leaked_by(&after), ["process 7 x"]);
    }

    #[test]
    fn a_socket_is_told_by_its_name_below_run() {
        let line = "00000000: 00000002 00000000 00010000 0001 01 2107";
        assert_eq!(socket(&format!("{line} /run/x.sock")).as_deref(), Some("socket /run/x.sock"));
        assert_eq!((socket(line), socket(&format!("{line} @abstract"))), (None, None));
    }

    #[test]
    fn an_address_that_is_given_out_is_told_from_what_is_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["10.88.0.5", "fd00:88::7", "last_reserved_ip.0", "lock"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut found = addresses_below(directory.path());
        found.sort();
        let expected = ["10.88.0.5", "fd00:88::7"]
            .map(|name| format!("address {}", directory.path().join(name).display()));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_mount_is_told_by_its_point_and_root() {
        let line = "36 35 98:0 /root1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount(line).as_deref(), Some("mount /mnt2 of /root1"));
    }
}
