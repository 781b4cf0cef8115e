//! pjdfstest and fsx, on a container's root file system.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::with_programs_of_this_machine;
use crate::e2e::context::{Context, bind};
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

/// The parts of pjdfstest that the short form runs.
const SHORT: [&str; 4] = ["chmod::", "link::", "open::", "truncate::"];

/// What fsx does to its file, and how often, without and with memory mappings.
const EXERCISES: [&str; 2] = [
    "[weights]\nread = 10\nwrite = 10\ntruncate = 5\nfsync = 1\npunch_hole = 2\nposix_fallocate = 2\ncopy_file_range = 3\n",
    "[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\nfsync = 1\nfdatasync = 1\ninvalidate = 1\npunch_hole = 2\n",
];

/// All of pjdfstest passes, and in its long form so it does on the file system below the container's root, too.
pub(in crate::e2e) fn posix(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let configuration = context.scratch.join("pjdfstest.toml");
    fs::write(&configuration, POSIX_CONFIGURATION)?;
    let patterns = if context.long { &[][..] } else { &SHORT[..] };
    let arguments = [&["/suites/pjdfstest", "-c", "/work/pjdfstest.toml", "-p", "/tmp"], patterns].concat();
    let ended = run(context, "posix", &arguments)?;
    let summary = summary(&ended);
    ensure!(summary.contains("Summary: 0 failed,"), "{summary}\n{}", failures(&ended));
    if context.long {
        eprintln!("in the container: {summary}");
        eprintln!("outside: {}", outside(&configuration)?);
    }
    Ok(())
}

/// The suite on this machine's own file system, below which containerd keeps its root file systems.
fn outside(configuration: &Path) -> anyhow::Result<String> {
    let directory = tempfile::tempdir_in("/var/lib")?;
    let mut command = Command::new(suites::programs()?.join("pjdfstest"));
    command.arg("-c").arg(configuration).arg("-p").arg(directory.path());
    let output = command.output().context("cannot start pjdfstest")?;
    Ok(summary(&String::from_utf8_lossy(&output.stdout)))
}

/// What fsx writes, truncates, maps and copies is there when it looks.
pub(in crate::e2e) fn exerciser(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let operations = if context.long { "20000" } else { "400" };
    let mut script = String::new();
    for (number, exercises) in EXERCISES.iter().enumerate() {
        let name = format!("fsx-{number}.toml");
        fs::write(context.scratch.join(&name), format!("flen = 262144\n[opsize]\nmax = 65536\n{exercises}"))?;
        script +=
            &format!("/suites/fsx -q -N {operations} -S 7 -f /work/{name} -P /tmp /tmp/file{number} && ");
    }
    script += "echo all well";
    let printed = run(context, "fsx", &["sh", "-c", &script])?;
    ensure!(printed.ends_with("all well\n"), "{printed}");
    Ok(())
}

/// Runs a suite's program in a container and gives what it printed.
fn run(context: &Context, id: &str, command: &[&str]) -> anyhow::Result<String> {
    let programs = bind(&suites::programs()?, "/suites", "rbind:ro");
    let scratch = bind(&context.scratch, "/work", "rbind:ro");
    let mut flags = vec!["--mount".to_owned(), programs, "--mount".into(), scratch];
    flags.extend(with_programs_of_this_machine());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let ended = context.run(&flags, id, command)?;
    Ok(ended.text() + &ended.stderr)
}

fn summary(printed: &str) -> String {
    printed.lines().find(|line| line.starts_with("Summary:")).unwrap_or("no summary").to_owned()
}

/// The lines about tests that did not pass.
fn failures(printed: &str) -> String {
    let fine = |line: &&str| {
        let verdict = line.split_whitespace().next_back();
        !line.starts_with('\t') && !matches!(verdict, Some("ok" | "skipped"))
    };
    printed.lines().filter(fine).take(40).collect::<Vec<_>>().join("\n")
}
