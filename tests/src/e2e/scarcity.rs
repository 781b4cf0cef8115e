//! A host that lacks something: room, memory, descriptors, /dev/kvm, a steady clock. Whoever asked is told, and nothing is left.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, prlimit};
use rustix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::json;

use super::Test;
use super::context::{BUSYBOX, Context, ImageRoot, NotApplicable, Running, bind, ctr, eventually};
use super::image_root::merge;
use super::task_api::shim_of;
use crate::leaks::Holdings;

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_full_disk_is_the_error_of_who_writes", check: full_disk },
    Test { name: "a_full_root_file_system_is_the_error_of_who_writes", check: full_root },
    Test { name: "a_pod_for_which_there_is_no_memory_ends_and_leaves_nothing", check: no_memory },
    Test { name: "a_shim_without_descriptors_refuses_and_recovers", check: no_descriptors },
    Test { name: "a_host_without_kvm_says_so_and_leaves_nothing", check: no_kvm },
    Test { name: "a_clock_that_is_stepped_disturbs_no_container", check: stepped_clock },
];

/// Where pods' directories are.
const STATE: &str = "/run/saya";

/// A file system of so many KiB, mounted as long as this lives.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path, kib: u32) -> anyhow::Result<Self> {
        let options = std::ffi::CString::new(format!("size={kib}k"))?;
        mount("small", at, "tmpfs", MountFlags::empty(), options.as_c_str())?;
        Ok(Self(at))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.0, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// What the whole machine feels is for a machine that nobody else needs; and CI has no time for it.
fn alone(context: &Context) -> Result<(), NotApplicable> {
    if context.long && Path::new("/run/saya-lab").exists() {
        Ok(())
    } else {
        Err(NotApplicable("the whole machine would feel it: only in the lab, in the long form"))
    }
}

fn full_disk(context: &Context) -> anyhow::Result<()> {
    alone(context)?;
    let volume = context.scratch.join("small");
    fs::create_dir(&volume)?;
    let small = Small::mount(&volume, 256)?;
    let writes = "dd if=/dev/zero of=/small/file bs=4k count=1000; rm /small/file; echo room > /small/again; cat /small/again";
    let flag = bind(&volume, "/small", "rbind:rw");
    let ended = context.run(&["--mount", &flag], "full", &["sh", "-c", writes])?.expect_status(0)?;
    ensure!(ended.stderr.contains("No space left on device") && ended.text() == "room\n", "{ended:?}");
    drop(small);

    if context.is_control() {
        return Ok(());
    }
    // The shim's own files.
    fs::create_dir_all(STATE)?;
    let state = Path::new(STATE);
    let _small = Small::mount(state, 4)?;
    fs::write(state.join("full"), [0; 4096])?;
    let ended = context.run(&[], "roomless", &["true"])?;
    ensure!(ended.status != Some(0) && ended.stderr.contains("No space left on device"), "{ended:?}");
    eventually("the pod's directory is gone", || Ok(!state.join("default/roomless").exists()))
}

fn full_root(context: &Context) -> anyhow::Result<()> {
    alone(context)?;
    let root = context.scratch.join("root");
    fs::create_dir(&root)?;
    let _small = Small::mount(&root, 6 << 10)?;
    for directory in ["bin", "proc", "dev", "sys", "run"] {
        fs::create_dir(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let writes = "cd /; b=/bin/busybox; $b dd if=/dev/zero of=/file bs=64k count=1000; $b mkdir /directory; echo x > /directory/file; \
        $b rm -r /file /directory; echo room > /again; $b cat /again";
    let image = ImageRoot::mount(BUSYBOX, context.scratch.join("image"))?;
    let ended = image.run(context, "full-root", |spec| {
        let args = ["/bin/busybox", "sh", "-c", writes];
        merge(spec, &json!({"root": {"path": root}, "process": {"args": args, "terminal": false}}));
    })?;
    let ended = ended.expect_status(0)?;
    ensure!(ended.stderr.contains("No space left on device") && ended.text() == "room\n", "{ended:?}");
    Ok(())
}

/// A cgroup with a bound on memory, as long as this lives.
struct Poor<'a>(&'a Path);

impl<'a> Poor<'a> {
    fn make(at: &'a Path, bytes: u64) -> anyhow::Result<Self> {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").context("cgroup v2 with memory")?;
        fs::create_dir(at)?;
        fs::write(at.join("memory.max"), bytes.to_string())?;
        // The pod's own cgroup counts what is killed in it.
        fs::write(at.join("cgroup.subtree_control"), "+memory")?;
        Ok(Self(at))
    }
}

impl Drop for Poor<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn no_memory(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("what runs in it needs so little")?;
    alone(context)?;
    let poor = Poor::make(Path::new("/sys/fs/cgroup/poor"), 24 << 20)?;
    let before = Holdings::now();
    let flags = ["--cgroup", "/poor/pod"];
    let ended = context.run(&flags, "poor", &["true"])?;
    ensure!(ended.status != Some(0) && ended.stderr.contains("ran out of memory"), "{ended:?}");
    eventually("nothing is left", || Ok(before.leaked_by(&Holdings::now()).is_empty()))
        .with_context(|| before.leaked_by(&Holdings::now()).join(", "))?;
    fs::write(poor.0.join("memory.max"), "max")?;
    context.run(&flags, "poor", &["true"])?.expect_status(0)?;
    eventually("the cgroup is empty", || Ok(!poor.0.join("pod").exists()))
}

fn no_descriptors(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it is our shim that is to recover")?;
    alone(context)?;
    let container = context.start(BUSYBOX, "poor", &[], &["sleep", "3600"])?;
    let shim = shim_of("poor")?;
    let open = fs::read_dir(format!("/proc/{}/fd", shim.as_raw_nonzero()))?.count() as u64;
    let limits = fs::read_to_string(format!("/proc/{}/limits", shim.as_raw_nonzero()))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let maximum = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let none_left = Rlimit { current: Some(open), maximum };
    let before = prlimit(Some(shim), Resource::Nofile, none_left)?;
    let refused = container.exec("late", &["true"])?;
    ensure!(refused.status != Some(0), "{refused:?}");
    prlimit(Some(shim), Resource::Nofile, before)?;
    container.exec("later", &["true"])?.expect_status(0)?;
    container.remove()
}

/// /dev/kvm under another name, as long as this lives.
struct Hidden;

const KVM: &str = "/dev/kvm";
const HIDDEN: &str = "/dev/kvm-hidden";

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Err(error) = fs::rename(HIDDEN, KVM) {
            eprintln!("cannot give {KVM} back: {error}");
        }
    }
}

fn no_kvm(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it needs none")?;
    alone(context)?;
    fs::rename(KVM, HIDDEN)?;
    let hidden = Hidden;
    let ended = context.run(&[], "powerless", &["true"])?;
    ensure!(ended.status != Some(0) && ended.stderr.contains("/dev/kvm does not exist"), "{ended:?}");
    drop(hidden);
    context.run(&[], "powerless", &["true"])?.expect_status(0)?;
    Ok(())
}

/// Moves the wall clock.
fn step(seconds: i64) -> anyhow::Result<()> {
    let mut now = clock_gettime(ClockId::Realtime);
    now.tv_sec += seconds;
    clock_settime(ClockId::Realtime, now).context("setting the clock")
}

/// Waits until the container's clock has followed the host's.
fn follows(container: &Running) -> anyhow::Result<()> {
    eventually("the container's clock has followed the host's", || {
        let printed = container.exec("clock", &["date", "+%s"])?.expect_status(0)?.text();
        Ok((printed.trim().parse::<i64>()? - clock_gettime(ClockId::Realtime).tv_sec).abs() < 300)
    })
}

fn stepped_clock(context: &Context) -> anyhow::Result<()> {
    const HOUR: i64 = 3600;
    alone(context)?;
    let container = context.start(BUSYBOX, "stepped", &[], &["sleep", "3600"])?;
    step(HOUR)?;
    let ahead = follows(&container);
    step(-2 * HOUR)?;
    let behind = follows(&container);
    let killed = ctr(["task", "kill", "--signal", "KILL", "stepped"]);
    step(HOUR)?;
    ahead?;
    behind?;
    killed?;
    eventually("it has ended", || {
        Ok(ctr(["task", "list"])?.lines().any(|line| line.starts_with("stepped") && line.contains("STOPPED")))
    })?;
    container.remove()
}
