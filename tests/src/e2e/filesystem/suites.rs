//! pjdfstest and fsx, on a container's root file system.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::with_programs_of_this_machine;
use crate::ctr::finish;
use crate::e2e::context::{BUSYBOX, Context, Ended, ImageRoot, bind};
use crate::e2e::host_mount::HostMount;
use crate::lab::suites;

/// What pjdfstest is told: sleeps longer than a tick of any clock, and two users that every Debian has.
const POSIX_CONFIGURATION: &str = r#"
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
"#;

/// A file system other than the one that is tested, in the container and outside.
const SECOND: &str = "/dev/shm";

/// The one test that takes itself for not applicable on any file system of FUSE's: by its type libc does not know how many
/// links a file may have.
const CANNOT_TELL: &str = "link::link_count_max";

/// What fsx does to its file, and how often, without and with memory mappings.
const EXERCISES: [&str; 2] = [
    "[weights]\nread = 10\nwrite = 10\ntruncate = 5\nfsync = 1\npunch_hole = 2\nposix_fallocate = 2\ncopy_file_range = 3\n",
    "[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\nfsync = 1\nfdatasync = 1\ninvalidate = 1\npunch_hole = 2\n",
];

/// Every test of pjdfstest that passes on an ext4 of this machine passes on that ext4 in a container, be it as the root file
/// system or as a volume.
pub(in crate::e2e) fn posix(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let ext4 = Ext4::new(context)?;
    let settings = ext4.write_settings("pjdfstest.toml", POSIX_CONFIGURATION)?;
    let mut command = Command::new(suites::programs()?.join("pjdfstest"));
    command.args(["-s", SECOND, "-c"]).arg(settings).arg("-p").arg(ext4.outside());
    let output = command.output().context("cannot start pjdfstest")?;
    let on_ext4 = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = passed(&on_ext4);
    eprintln!("pjdfstest on ext4: {}", summary(&on_ext4));
    ensure!(expected.len() > 300, "{} tests passed on ext4: {on_ext4}", expected.len());

    for place in PLACES {
        let command = ["/suites/pjdfstest", "-s", SECOND, "-c", "/settings/pjdfstest.toml", "-p", place];
        let printed = ext4.run(context, "posix", &command)?;
        eprintln!("pjdfstest on {place} of a container: {}", summary(&printed));
        let holds = passed(&printed);
        let missed = expected.difference(&holds).copied();
        let missed: Vec<&str> = missed.filter(|name| *name != CANNOT_TELL).collect();
        ensure!(missed.is_empty(), "{place}: passed on ext4 alone: {}\n{printed}", missed.join(", "));
    }
    Ok(())
}

/// The names of the tests that passed.
fn passed(printed: &str) -> BTreeSet<&str> {
    printed.lines().filter_map(|line| line.strip_suffix(" ok")).map(str::trim).collect()
}

fn summary(printed: &str) -> &str {
    printed.lines().find(|line| line.starts_with("Summary:")).unwrap_or("no summary")
}

/// What fsx writes, truncates, maps and copies is there when it looks.
pub(in crate::e2e) fn exerciser(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let ext4 = Ext4::new(context)?;
    for (number, exercises) in EXERCISES.iter().enumerate() {
        let settings = format!("fsx-{number}.toml");
        ext4.write_settings(&settings, &format!("flen = 262144\n[opsize]\nmax = 65536\n{exercises}"))?;
        for place in PLACES {
            let begin = Instant::now();
            let script = format!(
                "/suites/fsx -q -N 20000 -S 7 -f /settings/{settings} -P /tmp {place}/file{number} && echo all well"
            );
            let printed = ext4.run(context, "fsx", &["/bin/sh", "-c", &script])?;
            eprintln!("fsx {settings} on {place}: {:.0} s", begin.elapsed().as_secs_f64());
            ensure!(printed.ends_with("all well\n"), "{settings}, {place}: {printed}");
        }
    }
    Ok(())
}

/// Where in a container the suites run: on its root file system and on a volume.
const PLACES: [&str; 2] = ["/tmp", "/volume"];

/// An ext4 of the test's own, with a container's root and a volume on it. A container's usual root file system is an overlay, which
/// differs: nobody can make a device 0:0 there, since that is how an overlay marks a file that is gone.
struct Ext4 {
    directory: PathBuf,
    settings: PathBuf,
    _mounted: HostMount,
}

impl Ext4 {
    fn new(context: &Context) -> anyhow::Result<Self> {
        let image = context.scratch.join("ext4.image");
        File::create(&image)?.set_len(256 << 20)?;
        finish(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        let directory = context.scratch.join("ext4");
        let mounted = HostMount::image(&image, &directory, "rw")?;
        let ext4 = Self { directory, settings: context.scratch.join("settings"), _mounted: mounted };
        for directory in [&ext4.settings, &ext4.outside(), &ext4.volume()] {
            fs::create_dir(directory)?;
        }
        let busybox = context.scratch.join("busybox");
        let _image = ImageRoot::mount(BUSYBOX, busybox.clone())?;
        finish(Command::new("cp").arg("-a").args([busybox, ext4.root()]))?;
        Ok(ext4)
    }

    /// Where no container looks.
    fn outside(&self) -> PathBuf {
        self.directory.join("outside")
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn volume(&self) -> PathBuf {
        self.directory.join("volume")
    }

    /// Writes a file that the container has in `/settings`.
    fn write_settings(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.settings.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Runs a suite's program in a container and gives what it printed.
    fn run(&self, context: &Context, id: &str, command: &[&str]) -> anyhow::Result<String> {
        let mounts = [
            bind(&suites::programs()?, "/suites", "rbind:ro"),
            bind(&self.settings, "/settings", "rbind:ro"),
            bind(&self.volume(), "/volume", "rbind:rw"),
        ];
        let mounts = mounts.iter().flat_map(|mount| ["--mount", mount]);
        let of_this_machine = with_programs_of_this_machine();
        // One test mounts something.
        let flags = ["--rm", "--cap-add", "CAP_SYS_ADMIN", "--rootfs"].into_iter().chain(mounts);
        let flags: Vec<&str> = flags.chain(of_this_machine.iter().map(String::as_str)).collect();
        let root = self.root().display().to_string();
        let output = context.run_command(&flags, &root, id, command).output().context("cannot start ctr")?;
        let ended = Ended::from(output);
        Ok(ended.text() + &ended.stderr)
    }
}
