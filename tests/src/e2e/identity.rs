//! Who and where the process is.

use std::os::unix::fs::MetadataExt;

use anyhow::ensure;

use super::Test;
use super::context::{Context, bind};

pub(super) const TESTS: &[Test] = &[
    Test { name: "environment_and_working_directory_are_as_asked", check: environment },
    Test { name: "user_and_group_are_as_asked", check: user },
    Test { name: "a_file_made_by_uid_999_belongs_to_999_on_the_host", check: owner_on_host },
    Test { name: "the_container_has_its_own_pid_one_and_host_name", check: namespaces },
];

fn environment(context: &Context) -> anyhow::Result<()> {
    let flags = ["--env", "FRUIT=pear", "--cwd", "/tmp"];
    let ended = context.run(&flags, "environment", &["sh", "-c", "echo $FRUIT; pwd"])?.expect_status(0)?;
    ensure!(ended.text() == "pear\n/tmp\n", "{ended:?}");
    Ok(())
}

fn user(context: &Context) -> anyhow::Result<()> {
    let ended =
        context.run(&["--user", "999:888"], "user", &["sh", "-c", "id -u; id -g"])?.expect_status(0)?;
    ensure!(ended.text() == "999\n888\n", "{ended:?}");
    Ok(())
}

fn owner_on_host(context: &Context) -> anyhow::Result<()> {
    std::os::unix::fs::chown(&context.scratch, Some(999), Some(888))?;
    let mount = bind(&context.scratch, "/share", "rbind:rw");
    let flags = ["--user", "999:888", "--mount", &mount];
    context.run(&flags, "owner", &["touch", "/share/mine"])?.expect_status(0)?;
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
    let ended = context
        .run(&[], "namespaces", &["sh", "-c", "echo $$; hostname; ls /proc/1/exe -l"])?
        .expect_status(0)?;
    ensure!(ended.text().starts_with("1\n"), "{ended:?}");
    Ok(())
}
