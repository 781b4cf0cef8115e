//! Who and where the process is.

use std::os::unix::fs::MetadataExt;

use anyhow::ensure;
use serde_json::json;

use super::Test;
use super::context::{BUSYBOX, Context, Ended, ImageRoot, bind};

pub(super) const TESTS: &[Test] = &[
    Test { name: "environment_and_working_directory_are_as_asked", check: environment },
    Test { name: "user_and_group_are_as_asked", check: user },
    Test { name: "a_file_made_by_uid_999_belongs_to_999_on_the_host", check: owner_on_host },
    Test { name: "the_container_has_its_own_pid_one", check: namespaces },
];

fn environment(context: &Context) -> anyhow::Result<()> {
    let flags = ["--env", "FRUIT=pear", "--cwd", "/tmp"];
    let ended = context.run(&flags, "environment", &["sh", "-c", "echo $FRUIT; pwd"])?.expect_status(0)?;
    ensure!(ended.text() == "pear\n/tmp\n", "{ended:?}");
    Ok(())
}

fn user(context: &Context) -> anyhow::Result<()> {
    let user = json!({"uid": 999, "gid": 888, "additionalGids": [777], "umask": 0o27});
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let script = "id -u; id -G; umask; touch /mine";
    let ended = root.run_as(context, "user", &user, &["sh", "-c", script])?.expect_status(1)?;
    ensure!(ended.text() == "999\n888 777\n0027\n", "{ended:?}");
    ensure!(ended.stderr.contains("Permission denied"), "uid 999 could write to root's directory: {ended:?}");
    Ok(())
}

fn owner_on_host(context: &Context) -> anyhow::Result<()> {
    std::os::unix::fs::chown(&context.scratch, Some(999), Some(888))?;
    let mount = bind(&context.scratch, "/share", "rbind:rw");
    let container = context.start(BUSYBOX, "owner", &["--mount", &mount], &["sleep", "3600"])?;
    let flags = ["--user", "999:888"];
    let touch: Ended = container.exec_command(&flags, "touch", &["touch", "/share/mine"]).output()?.into();
    touch.expect_status(0)?;
    container.remove()?;
    let metadata = context.scratch.join("mine").metadata()?;
    ensure!(
        (metadata.uid(), metadata.gid()) == (999, 888),
        "belongs to {}:{}",
        metadata.uid(),
        metadata.gid()
    );
    Ok(())
}

fn namespaces(context: &Context) -> anyhow::Result<()> {
    let ended =
        context.run(&[], "namespaces", &["sh", "-c", "echo $$ $(cat /proc/1/comm)"])?.expect_status(0)?;
    ensure!(ended.text() == "1 sh\n", "{ended:?}");
    Ok(())
}
