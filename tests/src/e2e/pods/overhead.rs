//! What a pod takes on the host beside its containers: no more than its RuntimeClass says.

use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::fixture::{Node, ParentCgroup};
use crate::cri::messages::{LinuxContainerResources, Mount};
use crate::ctr::finish;
use crate::e2e::context::Context;
use crate::e2e::host_mount::HostMount;

/// What the containers of the pod may use together.
const LIMIT_MIB: u64 = 128;
/// How many directories of how many files the guest gets to know: more than the 16,384 of which a file server keeps descriptors.
const DIRECTORIES: usize = 20;
const FILES: usize = 1000;
/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// A kubelet limits the cgroup above a pod's to the limits of the containers and the overhead of the RuntimeClass. A guest that fills all
/// its memory and knows as many files as that can hold stays within.
pub(super) fn of_runtimeclass(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let node = Node::new(context)?;
    let image = context.scratch.join("files.ext4");
    File::create(&image)?.set_len(512 * MIB)?;
    finish(Command::new("mkfs.ext4").args(["-q", "-N", "65536", "-E", "lazy_itable_init=1"]).arg(&image))?;
    let volume = context.scratch.join("files");
    fill(&HostMount::image(&image, &volume, "rw")?)?;
    // Mounted anew, so that the kernel knows of no file before the pod looks at it: its inode is charged to who looks first.
    let _mounted = HostMount::image(&image, &volume, "ro")?;

    let parent = ParentCgroup::make("/saya-bounded")?;
    fs::write(parent.file("memory.max"), ((LIMIT_MIB + overhead_mib()?) * MIB).to_string())?;
    let mut config = node.pod_config("bounded");
    let limit = i64::try_from(LIMIT_MIB * MIB)?;
    let mut linux = parent.of_pod();
    linux.resources = Some(LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() });
    config.linux = Some(linux);
    let pod = node.run_with(config)?;
    // Without a limit of its own, so that it can use the guest's memory to the last page.
    let mut main = pod.container("main", &["sleep", "3600"]);
    main.mounts.push(Mount {
        container_path: "/files".into(),
        host_path: volume.display().to_string(),
        readonly: true,
        ..Mount::default()
    });
    let main = pod.start_with(&main)?;
    let look = |script: &str| pod.sh(&main, script).with_context(|| figures(&parent));
    let large = format!("{}\n", 2 * LIMIT_MIB * MIB);
    ensure!(look("cat /files/large | wc -c")? == large, "the large file is another");
    look("dd if=/dev/zero of=/dev/shm/part bs=1M count=32 2>/dev/null")?;
    for directory in 0..DIRECTORIES {
        let seen = look(&format!("find /files/tree/{directory} -type f -size 0 | wc -l"))?;
        ensure!(seen == format!("{FILES}\n"), "{seen:?} files in directory {directory}");
    }
    ensure!(look("cat /files/large | wc -c")? == large, "the large file is another");
    let events = fs::read_to_string(parent.file("memory.events"))?;
    ensure!(events.contains("\noom_kill 0\n"), "{events} {}", figures(&parent));
    eprintln!("{}", figures(&parent));
    pod.remove()
}

/// Makes the files on a new file system, and unmounts it.
fn fill(mounted: &HostMount) -> anyhow::Result<()> {
    for directory in 0..DIRECTORIES {
        let directory = mounted.path().join("tree").join(directory.to_string());
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            File::create(directory.join(file.to_string()))?;
        }
    }
    Ok(File::create(mounted.path().join("large"))?.set_len(2 * LIMIT_MIB * MIB)?)
}

/// `overhead.podFixed.memory` of the manifest.
fn overhead_mib() -> anyhow::Result<u64> {
    let manifest = include_str!("../../../../deploy/kubernetes/runtimeclass.yaml");
    let memory = manifest.lines().find_map(|line| line.trim().strip_prefix("memory: ")?.strip_suffix("Mi"));
    Ok(memory.context("no overhead in the manifest")?.parse()?)
}

/// What the cgroup holds, for who reads that it was too much.
fn figures(parent: &ParentCgroup) -> String {
    let read = |name| fs::read_to_string(parent.file(name)).unwrap_or_default();
    let wanted = ["anon ", "file ", "kernel ", "slab", "shmem ", "sock ", "pagetables ", "sec_pagetables "];
    let stat = read("memory.stat");
    let stat = stat.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    let limits =
        ["memory.max", "memory.peak", "memory.current"].map(|name| format!("{name} {}", read(name).trim()));
    format!("{} {}", limits.join(", "), stat.collect::<Vec<_>>().join(", "))
}
