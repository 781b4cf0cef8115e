//! In the middle of what something is killed.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use super::insider::{self, Insider};
use super::part::{self, Part};
use crate::containerd;
use crate::ctr::ctr;
use crate::e2e::context::{BUSYBOX, Context, eventually};
use crate::e2e::task_api::shim_of;

/// A moment of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// It is being created: what is to be killed has just come to be, or is about to.
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

/// What is killed, and when.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// What is killed at once.
    pub(super) parts: Vec<Part>,
    /// In the middle of what.
    pub(super) moment: Moment,
    /// How long after that has begun.
    pub(super) delay: Duration,
}

impl Case {
    /// Whether this is among what is killed.
    pub(super) fn kills(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

/// Where containerd keeps the bundles of `ctr`'s containers.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// A container at a moment.
pub(super) struct Stage {
    /// The moment.
    pub(super) moment: Moment,
    /// The container with which the pod has begun: it has the shim.
    pub(super) pod: &'static str,
    /// Who acts from inside, where somebody has to.
    pub(super) insider: Option<Insider>,
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
        name: &'static str,
        network: &str,
        case: &Case,
    ) -> anyhow::Result<Self> {
        let insider = Insider::for_case(context, network, case)?;
        let pod = if insider.is_some() { insider::POD } else { name };
        let flags = insider.iter().flat_map(|insider| &insider.flags);
        let flags: Vec<&str> =
            flags.map(String::as_str).chain(insider.is_none().then_some(network)).collect();
        let flags = &flags[..];
        let moment = case.moment;
        let idle = ["sleep", "3600"];
        let client = match moment {
            Moment::Creating => {
                let flags = [&["--detach"], flags].concat();
                let child = quiet(context.run_command(&flags, BUSYBOX, name, &idle))?;
                eventually("there is something to be killed", || {
                    Ok(if insider.is_some() {
                        Path::new(BUNDLES).join(name).exists()
                    } else if case.kills(Part::Vmm) {
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
        Ok(Self { moment, pod, insider, client })
    }

    /// The client has been told something, whatever it is.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        if let Some(mut client) = self.client.take() {
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
