//! Volumes, as a kubelet prepares them: directories and files of the host with owners, mounts and links.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::fixture::{Node, Pod};
use super::lifecycle::wait_for_exit;
use crate::cri::messages::{BIDIRECTIONAL, ContainerConfig, HOST_TO_CONTAINER, Int64Value, Mount};
use crate::e2e::context::{Context, eventually};
use crate::e2e::host_mount::HostMount;

/// The group of a pod's volumes (`fsGroup`).
const GROUP: u32 = 2000;
/// A user that is nobody else's.
const USER: u32 = 1000;

/// The volumes on the host.
struct Volumes {
    below: PathBuf,
}

impl Volumes {
    fn prepare(below: PathBuf) -> anyhow::Result<Self> {
        for directory in ["host", "empty", "group", "config", "whole/part"] {
            fs::create_dir_all(below.join(directory))?;
        }
        fs::write(below.join("host/file"), "of the host\n")?;
        fs::write(below.join("whole/part/file"), "of a part\n")?;
        fs::write(below.join("whole/single"), "single\n")?;
        fs::write(below.join("termination-log"), "")?;
        fs::set_permissions(below.join("empty"), Permissions::from_mode(0o777))?;
        chown(below.join("group"), Some(0), Some(GROUP))?;
        fs::set_permissions(below.join("group"), Permissions::from_mode(0o2775))?;
        let volumes = Self { below };
        volumes.publish("1", "old\n")?;
        Ok(volumes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.below.join(name)
    }

    /// What a kubelet does for a configMap: a new directory, to which a link is renamed; files are links through it.
    fn publish(&self, version: &str, content: &str) -> anyhow::Result<()> {
        let config = self.path("config");
        let directory = format!("..version-{version}");
        fs::create_dir(config.join(&directory))?;
        fs::write(config.join(&directory).join("key"), content)?;
        symlink(&directory, config.join("..data_tmp"))?;
        fs::rename(config.join("..data_tmp"), config.join("..data"))?;
        if !config.join("key").is_symlink() {
            symlink("..data/key", config.join("key"))?;
        }
        Ok(())
    }
}

/// Where below `root` a kubelet has an emptyDir of a pod.
pub(super) fn own_volume(root: &Path, pod: &str, name: &str) -> PathBuf {
    root.join(format!("pods/uid-{pod}/volumes/kubernetes.io~empty-dir/{name}"))
}

pub(super) fn mount(host: &Path, container: &str) -> Mount {
    Mount { host_path: host.display().to_string(), container_path: container.to_owned(), ..Mount::default() }
}

pub(super) fn read_only(host: &Path, container: &str) -> Mount {
    Mount { readonly: true, ..mount(host, container) }
}

pub(super) fn kinds(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let volumes = Volumes::prepare(context.scratch.join("volumes"))?;
    let _memory = HostMount::tmpfs(&volumes.path("memory"))?;
    let _shared = HostMount::shared(&volumes.path("shared"))?;
    fs::create_dir(volumes.path("shared/late"))?;
    let cache = own_volume(&volumes.below, "volumes", "cache");
    let _cache = HostMount::tmpfs_with(&cache, c"size=40m,mode=2770,gid=2000")?;
    let pod = node.run("volumes")?;
    init_container(&pod, &volumes, &cache)?;

    let mut main = pod.container("main", &["sh", "-c", "echo done > /dev/termination-log; exec sleep 3600"]);
    main.mounts = vec![
        mount(&volumes.path("host"), "/host"),
        mount(&volumes.path("empty"), "/empty"),
        mount(&volumes.path("memory"), "/memory"),
        mount(&cache, "/cache"),
        read_only(&volumes.path("config"), "/config"),
        mount(&volumes.path("whole/part"), "/part"),
        read_only(&volumes.path("whole/single"), "/etc/single"),
        mount(&volumes.path("termination-log"), "/dev/termination-log"),
        Mount { propagation: HOST_TO_CONTAINER, ..read_only(&volumes.path("shared"), "/shared") },
    ];
    let main = pod.start_with(&main)?;
    contents(&pod, &main, &volumes)?;
    in_memory(context, &pod, &main, &cache)?;
    live_update(&pod, &main, &volumes)?;
    let _late = HostMount::tmpfs(&volumes.path("shared/late"))?;
    fs::write(volumes.path("shared/late/file"), "late\n")?;
    eventually("the host's late mount appears in the container", || {
        Ok(pod.exec(&main, &["cat", "/shared/late/file"])?.stdout == b"late\n")
    })?;
    both_ways(context, &pod, &volumes)?;
    pod.remove()
}

/// The first container leaves something for the next, as the pod's user in the group of its volumes.
fn init_container(pod: &Pod<'_>, volumes: &Volumes, cache: &Path) -> anyhow::Result<()> {
    let script = "echo prepared > /empty/file && echo grouped > /group/file && mkdir /group/directory && \
        echo cached > /cache/file";
    let mut init = pod.container("init", &["sh", "-c", script]);
    if let Some(security) = init.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        security.run_as_user = Some(Int64Value { value: USER.into() });
        security.supplemental_groups = vec![GROUP.into()];
    }
    init.mounts = vec![
        mount(&volumes.path("empty"), "/empty"),
        mount(&volumes.path("group"), "/group"),
        mount(cache, "/cache"),
    ];
    let init = pod.start_with(&init)?;
    wait_for_exit(pod, &init, 0)?;
    for name in ["group/file", "group/directory"] {
        let made = fs::metadata(volumes.path(name))?;
        ensure!((made.uid(), made.gid()) == (USER, GROUP), "{name} is of {}:{}", made.uid(), made.gid());
    }
    let inherited = fs::metadata(volumes.path("group/directory"))?.mode();
    ensure!(inherited & 0o2000 != 0, "a directory of mode {inherited:o} below one with the bit set-group-id");
    Ok(())
}

fn contents(pod: &Pod<'_>, main: &str, volumes: &Volumes) -> anyhow::Result<()> {
    let script = "cat /host/file /empty/file /config/key /part/file /etc/single; df -k /dev/shm | awk 'NR>1{print $2}'";
    let read = pod.sh(main, script)?;
    ensure!(read == "of the host\nprepared\nold\nof a part\nsingle\n65536\n", "{read:?}");
    pod.sh(main, "echo new > /host/new; echo new > /part/new; echo kept > /memory/file")?;
    ensure!(fs::read_to_string(volumes.path("host/new"))? == "new\n");
    ensure!(fs::read_to_string(volumes.path("whole/part/new"))? == "new\n");
    ensure!(fs::read_to_string(volumes.path("memory/file"))? == "kept\n");
    ensure!(fs::read_to_string(volumes.path("termination-log"))? == "done\n");
    for (script, words) in [
        ("echo > /config/new", "Read-only"),
        ("echo > /etc/single", "Read-only"),
        ("dd if=/dev/zero of=/memory/large bs=64k count=32", "No space left"),
    ] {
        let refused = pod.exec(main, &["sh", "-c", script])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.exit_code != 0 && said.contains(words), "{script}: {refused:?}");
    }
    Ok(())
}

/// An emptyDir in memory: what is in it outlives the container that wrote it and counts where it was written, and it is one for whoever
/// has it, or has a part of it. The guest's is as large and as open as the host's, of which it takes nothing.
fn in_memory(context: &Context, pod: &Pod<'_>, main: &str, cache: &Path) -> anyhow::Result<()> {
    let look = "cat /cache/file; stat -c %a:%g /cache; stat -f -c %T /cache /dev/shm; df -k /cache | awk 'NR>1{print $2}'";
    let found = pod.sh(main, look)?;
    ensure!(found == "cached\n2770:2000\ntmpfs\ntmpfs\n40960\n", "{found:?}");
    let used = "mkdir /cache/part && echo of-whole > /cache/part/file && dd if=/dev/zero of=/cache/large bs=1M count=32 2>&1 && \
        cat /sys/fs/cgroup/memory.current";
    let used = pod.sh(main, used)?;
    let counted: u64 = used.trim_end().lines().last().unwrap_or_default().parse()?;
    ensure!(counted >= 32 << 20, "{counted} bytes of the container's are counted");

    fs::create_dir_all(cache.join("part"))?;
    let part = context.scratch.join("pods/uid-volumes/volume-subpaths/cache/reader/0");
    let _part = HostMount::bind(&cache.join("part"), &part)?;
    let mut reader = pod.container("reader", &["sleep", "3600"]);
    reader.mounts = vec![read_only(cache, "/cache"), mount(&part, "/part")];
    let reader = pod.start_with(&reader)?;
    let read = pod.sh(&reader, "cat /cache/file /part/file; echo of-part > /part/new")?;
    ensure!(read == "cached\nof-whole\n", "{read:?}");
    ensure!(pod.sh(main, "cat /cache/part/new")? == "of-part\n");
    for (container, script, words) in [
        (reader.as_str(), "echo > /cache/new", "Read-only"),
        (main, "dd if=/dev/zero of=/cache/more bs=1M count=9", "No space left"),
    ] {
        let refused = pod.exec(container, &["sh", "-c", script])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.exit_code != 0 && said.contains(words), "{script}: {refused:?}");
    }
    let on_host = fs::read_dir(cache)?.count() + fs::read_dir(cache.join("part"))?.count();
    ensure!(context.is_control() || on_host == 1, "{on_host} files of the guest's memory are on the host");
    Ok(())
}

/// Whoever looks two seconds after a configMap has changed sees it, also who has it open as a directory.
fn live_update(pod: &Pod<'_>, main: &str, volumes: &Volumes) -> anyhow::Result<()> {
    for (version, content) in [("2", "newer\n"), ("3", "newest\n")] {
        // Now it is in every cache that there is.
        pod.sh(main, "cat /config/key /config/..data/key; ls /config")?;
        volumes.publish(version, content)?;
        let read = pod.sh(main, "sleep 2; cat /config/key; cd /config/..data && cat key")?;
        ensure!(
            read == format!("{content}{content}"),
            "{read:?} two seconds after {content:?} was published"
        );
    }
    Ok(())
}

/// Mounts made in a virtual machine cannot appear on the host, which is said.
fn both_ways(context: &Context, pod: &Pod<'_>, volumes: &Volumes) -> anyhow::Result<()> {
    let mut config: ContainerConfig = pod.container("both-ways", &["true"]);
    let shared = mount(&volumes.path("shared"), "/shared");
    config.mounts = vec![Mount { propagation: BIDIRECTIONAL, ..shared }];
    let started = pod.start_with(&config);
    if context.is_control() {
        return started.map(drop);
    }
    let error = started.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains("rshared") && error.contains("cannot reach the host"), "{error:?}");
    Ok(())
}
