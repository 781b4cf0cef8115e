//! In the middle of what something is killed.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::part::{self, Part};
use crate::containerd;
use crate::ctr::ctr;
use crate::e2e::context::{BUSYBOX, Context, eventually};
use crate::e2e::task_api::shim_of;

/// A moment of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// It is being created: what is to be killed has just come to be.
    Creating,
    /// It is created and not started.
    Created,
    /// It runs and does nothing.
    Idle,
    /// It writes to its root file system without end.
    Writing,
    /// A client waits for an additional process.
    Executing,
    /// It is being killed and deleted.
    Deleting,
}

impl Moment {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Creating, Self::Created, Self::Idle, Self::Writing, Self::Executing, Self::Deleting];

    /// Whether it is over by itself after a while.
    pub(super) fn passes(self) -> bool {
        matches!(self, Self::Creating | Self::Deleting)
    }
}

/// A container at a moment.
pub(super) struct Stage {
    /// A client that waits for something.
    client: Option<Child>,
}

impl Stage {
    /// Makes the container with `network`, `ctr`'s flag for its network namespace, and brings it to the moment.
    ///
    /// # Errors
    /// It cannot be made: the case before has left something.
    pub(super) fn set(
        context: &Context,
        name: &str,
        network: &str,
        moment: Moment,
        parts: &[Part],
    ) -> anyhow::Result<Self> {
        // Who may mount has a /proc of its own to write to.
        let may_mount = [network, "--cap-add", "CAP_SYS_ADMIN"];
        let flags = if parts.contains(&Part::Guest) { &may_mount[..] } else { &may_mount[..1] };
        let idle = ["sleep", "3600"];
        let client = match moment {
            Moment::Creating => {
                let flags = [&["--detach"], flags].concat();
                let child = quiet(context.run_command(&flags, BUSYBOX, name, &idle))?;
                let awaited = parts.first().copied();
                eventually("the shim or the VMM is there", || {
                    Ok(if awaited == Some(Part::Vmm) {
                        part::vmm(name).is_ok()
                    } else {
                        shim_of(name).is_ok()
                    })
                })?;
                Some(child)
            }
            Moment::Created => {
                let arguments = ["container", "create", "--runtime", &context.runtime];
                ctr([&arguments, flags, &[BUSYBOX, name], &idle].concat())?;
                containerd::create_task(name)?;
                None
            }
            Moment::Idle => {
                context.start(BUSYBOX, name, flags, &idle)?;
                None
            }
            Moment::Writing => {
                let endless = "while dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null; do :; done";
                context.start(BUSYBOX, name, flags, &["sh", "-c", endless])?;
                None
            }
            Moment::Executing => {
                let container = context.start(BUSYBOX, name, flags, &idle)?;
                let mut command =
                    container.exec_command(&[], "second", &["sh", "-c", "echo there; sleep 3600"]);
                let mut client = command.stderr(Stdio::null()).spawn()?;
                let output = client.stdout.as_mut().context("no standard output")?;
                output.read_exact(&mut [0; 6])?;
                Some(client)
            }
            Moment::Deleting => {
                context.start(BUSYBOX, name, flags, &idle)?;
                let mut command = Command::new("ctr");
                command.args(["task", "rm", "--force", name]);
                Some(quiet(command)?)
            }
        };
        Ok(Self { client })
    }

    /// The client has been told something, whatever it is.
    pub(super) fn end(self) -> anyhow::Result<()> {
        if let Some(mut client) = self.client {
            client.wait()?;
        }
        Ok(())
    }
}

fn quiet(mut command: Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start ctr")
}

/// The state of a task in containerd's list; none where there is no task.
pub(super) fn status(container: &str) -> anyhow::Result<Option<String>> {
    let list = ctr(["task", "list"])?;
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(container));
    Ok(line.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned))
}
