//! The child's work: from the clone to the exec. It runs in a process of its own, one step after the other, and every
//! failure goes back over the [channel](super::channel) in words.

mod attributes;
mod descriptors;
mod devices;
mod error;
mod hooks;
mod identity;
mod masks;
mod mounts;
pub(super) mod namespaces;
mod program;
mod rootfs;
mod terminal;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{DumpableBehavior, chdir, set_dumpable_behavior, setsid, umask};

use self::error::{Context, Result, SetupError};
use self::program::Program;
use super::channel::{ChildEnd, Go, Report};
use super::plan::{ContainerPlan, Hook, ProcessPlan};
use super::seccomp;
use crate::paths::Root;

/// The exit status of a process that could not be set up, as other runtimes give it.
const FAILED: i32 = 255;

/// What the child takes along from the agent.
#[derive(Debug)]
pub(crate) struct Inheritance<'a> {
    /// The child's end of the channel.
    pub(crate) channel: &'a ChildEnd,
    /// Standard input, output and error; with a terminal they are replaced.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
}

/// Sets up a container whose first process this is, and becomes its program. `namespaces_made` are the `CLONE_NEW*`
/// that the clone has made.
pub(crate) fn become_container(
    plan: &ContainerPlan,
    namespaces_made: u32,
    inheritance: &Inheritance<'_>,
) -> ! {
    let result = descriptors_and_signals(inheritance, &[])
        .and_then(|()| set_up_container(plan, namespaces_made, inheritance.channel));
    end(inheritance.channel, result)
}

/// Joins the running container whose first process `container` (a pidfd) refers to, and becomes the program.
pub(crate) fn become_process(
    plan: &ProcessPlan,
    container: BorrowedFd<'_>,
    user_namespace: bool,
    inheritance: &Inheritance<'_>,
) -> ! {
    let result = descriptors_and_signals(inheritance, &[container])
        .and_then(|()| set_up_process(plan, container, user_namespace, inheritance.channel));
    end(inheritance.channel, result)
}

fn end(channel: &ChildEnd, result: Result<std::convert::Infallible>) -> ! {
    let Err(error) = result;
    // If the agent is gone, there is nobody to tell.
    let _ = channel.report(&Report::Failed(error.to_string()));
    // SAFETY: ends this process without running destructors or exit handlers, which belong to the agent.
    unsafe { libc::_exit(FAILED) }
}

fn descriptors_and_signals(inheritance: &Inheritance<'_>, keep: &[BorrowedFd<'_>]) -> Result<()> {
    descriptors::reset_signals()?;
    let keep = [&[inheritance.channel.as_fd()], keep].concat();
    descriptors::take_over(inheritance.stdio, &keep)?;
    // What runs in the container must not look into this copy of the agent.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(|| "hide the set-up process")
}

fn set_up_container(
    plan: &ContainerPlan,
    namespaces_made: u32,
    channel: &ChildEnd,
) -> Result<std::convert::Infallible> {
    attributes::set_oom_score(&plan.process)?;
    namespaces::enter(&plan.namespaces, namespaces_made, channel)?;
    if plan.namespaces.creates(libc::CLONE_NEWPID)
        && namespaces_made & libc::CLONE_NEWPID.cast_unsigned() == 0
    {
        namespaces::go_on_as_first_process(channel)?;
    }
    setsid().context(|| "start a session")?;
    namespaces::configure(plan)?;
    umask(Mode::empty());
    let root = rootfs::prepare(plan)?;
    mounts::make(&root, plan)?;
    devices::make(&root, plan)?;
    let terminal = container_terminal(&root, &plan.process, channel)?;
    rootfs::make_working_directory(&root, &plan.process.working_directory)?;
    hooks::run(&plan.create_hooks, &state(plan, "creating"))?;
    masks::make_readonly(&root, &plan.readonly_paths)?;
    masks::mask(&root, &plan.masked_paths)?;
    mounts::finish(&root, &plan.mounts)?;
    if plan.rootfs_readonly {
        rootfs::make_readonly(&root)?;
    }
    rootfs::enter(&root, plan)?;
    drop(root);
    run_program(&plan.process, terminal, channel, &plan.start_hooks, || state(plan, "created"))
}

fn set_up_process(
    plan: &ProcessPlan,
    container: BorrowedFd<'_>,
    user_namespace: bool,
    channel: &ChildEnd,
) -> Result<std::convert::Infallible> {
    attributes::set_oom_score(plan)?;
    namespaces::enter_all_of(container, user_namespace)?;
    setsid().context(|| "start a session")?;
    let terminal = plan.terminal.map(|size| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open("/", flags, Mode::empty()).context(|| "open the container's root")?;
        terminal::make(&Root::new(root), size, channel)
    });
    run_program(plan, terminal.transpose()?, channel, &[], String::new)
}

fn container_terminal(root: &Root, plan: &ProcessPlan, channel: &ChildEnd) -> Result<Option<OwnedFd>> {
    let Some(size) = plan.terminal else {
        return Ok(None);
    };
    let terminal = terminal::make(root, size, channel)?;
    terminal::bind_console(root, &terminal)?;
    Ok(Some(terminal))
}

/// The last part, the same for both kinds: become the user, wait for the start, exec.
fn run_program(
    plan: &ProcessPlan,
    terminal: Option<OwnedFd>,
    channel: &ChildEnd,
    start_hooks: &[Hook],
    state: impl Fn() -> String,
) -> Result<std::convert::Infallible> {
    if let Some(terminal) = terminal {
        terminal::control(&terminal)?;
    }
    identity::own_streams(plan.user.uid)?;
    attributes::set(plan)?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).context(|| "process.noNewPrivileges")?;
    } else {
        // Without it, only a process with rights that are about to go may install a filter.
        install_filter(plan)?;
    }
    let entered = chdir(&plan.working_directory);
    identity::assume(plan)?;
    enter_working_directory(&plan.working_directory, entered)?;
    let program = Program::find(plan)?;
    channel.report(&Report::Ready).context(|| "report that the process is ready")?;
    wait_for_start(channel)?;
    hooks::run(start_hooks, &state())?;
    if plan.no_new_privileges {
        install_filter(plan)?;
    }
    Err(program.execute())
}

fn install_filter(plan: &ProcessPlan) -> Result<()> {
    match &plan.seccomp {
        Some(filter) => seccomp::install(filter).context(|| "linux.seccomp"),
        None => Ok(()),
    }
}

/// Root may enter what the user may not, and the other way round on a share that squashes root.
fn enter_working_directory(path: &Path, entered: rustix::io::Result<()>) -> Result<()> {
    match entered {
        Ok(()) => Ok(()),
        Err(_) => chdir(path).context(|| format!("process.cwd: chdir to {}", path.display())),
    }
}

fn wait_for_start(channel: &ChildEnd) -> Result<()> {
    match channel.wait() {
        Ok(Go::Start) => Ok(()),
        Ok(Go::On) => Err(SetupError::new("the agent sent something else than the start")),
        Err(error) => Err(error).context(|| "wait for the start"),
    }
}

/// The state of the OCI runtime spec ("State"), as hooks read it.
fn state(plan: &ContainerPlan, status: &str) -> String {
    let bundle = plan.rootfs.parent().unwrap_or(Path::new("/"));
    serde_json::json!({
        "ociVersion": plan.oci_version,
        "id": plan.id,
        "status": status,
        "pid": rustix::process::getpid().as_raw_nonzero().get(),
        "bundle": bundle,
        "annotations": plan.annotations,
    })
    .to_string()
}
