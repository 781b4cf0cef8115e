//! What containers rely on in a volume of the host: one memory for all who map a file, and the host's quotas.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::sys::quota::{Dqblk, QuotaType, QuotaValidFlags, quotactl_set};
use rustix::fs::{Gid, Uid, chown};

use super::with_programs_of_this_machine;
use crate::ctr::finish;
use crate::e2e::context::{BUSYBOX, Context, Ended, bind};
use crate::e2e::host_mount::HostMount;

/// What a process of one container writes to a file that it has mapped is there for one of another container.
pub(in crate::e2e) fn mapped_by_two(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let volume = context.scratch.join("volume");
    fs::create_dir(&volume)?;
    File::create(volume.join("word"))?.set_len(4096)?;
    let volume = bind(&volume, "/share", "rbind:rw");
    let program = std::env::current_exe()?;
    let programs = bind(program.parent().context("no directory")?, "/programs", "rbind:ro");
    let mut flags = with_programs_of_this_machine();
    flags.extend(["--mount".to_owned(), volume, "--mount".to_owned(), programs]);
    flags.extend(["--annotation".to_owned(), "io.kubernetes.cri.sandbox-id=first".to_owned()]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let of_kind = |kind| [&flags[..], &["--annotation", kind]].concat();
    let sleep = ["sleep", "3600"];
    let first =
        context.start(BUSYBOX, "first", &of_kind("io.kubernetes.cri.container-type=sandbox"), &sleep)?;
    let second =
        context.start(BUSYBOX, "second", &of_kind("io.kubernetes.cri.container-type=container"), &sleep)?;
    let meet = ["/programs/saya-e2e", "--meet-in", "/share/word"];
    let waiting = first.exec_command(&[], "meet", &meet).spawn()?;
    let came = second.exec("meet", &meet)?;
    let waited = Ended::from(waiting.wait_with_output()?);
    ensure!((came.status, waited.status) == (Some(0), Some(0)), "{came:?}, {waited:?}");
    second.remove()?;
    first.remove()
}

/// A user whom the host's file system gives one MiB is told so when that is used up, and root is not.
pub(in crate::e2e) fn quota(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    const USER: u32 = 1000;
    let image = context.scratch.join("image");
    File::create(&image)?.set_len(32 << 20)?;
    finish(Command::new("mkfs.ext4").args(["-q", "-O", "quota", "-E", "quotatype=usrquota"]).arg(&image))?;
    let mounted = HostMount::image(&image, &context.scratch.join("mounted"), "usrquota")?;
    let directory = context.scratch.join("mounted/directory");
    fs::create_dir(&directory)?;
    chown(&directory, Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER)))?;
    let mut limits = Dqblk::default();
    limits.set_blocks_hard_limit(1024);
    quotactl_set(
        QuotaType::USRQUOTA,
        &device_of(&context.scratch.join("mounted"))?,
        USER.try_into()?,
        &limits,
        QuotaValidFlags::QIF_BLIMITS,
    )
    .context("cannot set the quota")?;

    let mount = bind(&directory, "/quota", "rbind:rw");
    let container = context.start(BUSYBOX, "quota", &["--mount", &mount], &["sleep", "3600"])?;
    let [of_user, of_root] = ["of=/quota/of-user", "of=/quota/of-root"];
    let write = |file| ["dd", "if=/dev/zero", file, "bs=64k", "count=32"];
    let user = format!("{USER}:{USER}");
    let ended: Ended = container.exec_command(&["--user", &user], "user", &write(of_user)).output()?.into();
    ensure!(ended.status == Some(1) && ended.stderr.contains("uota exceeded"), "{ended:?}");
    let length = fs::metadata(directory.join("of-user"))?.len();
    ensure!(length <= 1 << 20, "{length} bytes were written");
    container.exec("root", &write(of_root))?.expect_status(0)?;
    container.remove()?;
    drop(mounted);
    Ok(())
}

/// The block device behind a mount point.
fn device_of(place: &Path) -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let device = words.next()?;
        (Path::new(words.next()?) == place).then(|| PathBuf::from(device))
    });
    device.with_context(|| format!("{} is no mount point", place.display()))
}
