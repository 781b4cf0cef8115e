//! The root file system, bind mounts and tmpfs.

use std::fs;

use anyhow::ensure;

use super::Test;
use super::context::{Context, bind};

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_writable_bind_mount_is_seen_on_both_sides", check: bind_read_write },
    Test { name: "a_read_only_bind_mount_refuses_writes", check: bind_read_only },
    Test { name: "a_bind_mount_of_one_file_works", check: bind_file },
    Test { name: "a_missing_bind_source_is_refused_by_name", check: bind_missing },
    Test { name: "a_tmpfs_mount_has_its_size_and_is_empty", check: tmpfs },
    Test { name: "a_read_only_root_refuses_writes", check: read_only_root },
    Test { name: "the_root_file_system_is_writable_and_its_own", check: writable_root },
    Test { name: "links_renames_and_modes_hold_on_the_root_file_system", check: links_and_renames },
];

fn bind_read_write(context: &Context) -> anyhow::Result<()> {
    fs::write(context.scratch.join("from-host"), "host\n")?;
    let mount = bind(&context.scratch, "/share", "rbind:rw");
    let script = "cat /share/from-host; echo guest > /share/from-guest";
    let ended = context.run(&["--mount", &mount], "bind-rw", &["sh", "-c", script])?.expect_status(0)?;
    ensure!(ended.text() == "host\n", "{ended:?}");
    ensure!(fs::read_to_string(context.scratch.join("from-guest"))? == "guest\n", "the guest's file differs");
    Ok(())
}

fn bind_read_only(context: &Context) -> anyhow::Result<()> {
    let mount = bind(&context.scratch, "/share", "rbind:ro");
    let ended = context.run(&["--mount", &mount], "bind-ro", &["touch", "/share/file"])?;
    ensure!(ended.status == Some(1) && ended.stderr.contains("Read-only file system"), "{ended:?}");
    ensure!(!context.scratch.join("file").exists(), "the file is there all the same");
    Ok(())
}

fn bind_file(context: &Context) -> anyhow::Result<()> {
    let file = context.scratch.join("one-file");
    fs::write(&file, "one\n")?;
    let mount = bind(&file, "/etc/one-file", "bind:rw");
    let ended =
        context.run(&["--mount", &mount], "bind-file", &["cat", "/etc/one-file"])?.expect_status(0)?;
    ensure!(ended.text() == "one\n", "{ended:?}");
    Ok(())
}

fn bind_missing(context: &Context) -> anyhow::Result<()> {
    let missing = context.scratch.join("missing");
    let mount = bind(&missing, "/share", "rbind:rw");
    let ended = context.run(&["--mount", &mount], "bind-missing", &["true"])?;
    ensure!(ended.status != Some(0), "it ran");
    ensure!(
        ended.stderr.contains(&missing.display().to_string()),
        "the error does not name the source: {ended:?}"
    );
    Ok(())
}

fn tmpfs(context: &Context) -> anyhow::Result<()> {
    let mount = "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:mode=1777";
    let script = "ls -A /scratch; dd if=/dev/zero of=/scratch/file bs=64k count=32 2>/dev/null && exit 9; wc -c < /scratch/file";
    let ended = context.run(&["--mount", mount], "tmpfs", &["sh", "-c", script])?.expect_status(0)?;
    ensure!(ended.text() == "1048576\n", "{ended:?}");
    Ok(())
}

fn read_only_root(context: &Context) -> anyhow::Result<()> {
    let ended = context.run(&["--read-only"], "ro-root", &["touch", "/file"])?;
    ensure!(ended.status == Some(1) && ended.stderr.contains("Read-only file system"), "{ended:?}");
    Ok(())
}

fn writable_root(context: &Context) -> anyhow::Result<()> {
    let first = ["sh", "-c", "echo x > /mark && cat /mark"];
    context.run(&[], "root-one", &first)?.expect_status(0)?;
    let ended = context.run(&[], "root-two", &["ls", "/mark"])?;
    ensure!(ended.status == Some(1), "a second container sees the first one's file: {ended:?}");
    Ok(())
}

fn links_and_renames(context: &Context) -> anyhow::Result<()> {
    let script = "set -e; mkdir /w; cd /w; echo one > a; ln a b; ln -s a c; chmod 640 a; mv a d; echo two >> b; \
                  cat d; stat -c %a:%h b; readlink c; test ! -e c; mkdir -p e/f; mv e g; test -d g/f; rm -r /w; test ! -e /w";
    let ended = context.run(&[], "links", &["sh", "-c", script])?.expect_status(0)?;
    ensure!(ended.text() == "one\ntwo\n640:2\na\n", "{ended:?}");
    Ok(())
}
