//! Into the namespaces that the clone has not made already.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::error::{Context, Result, SetupError};
use crate::container::channel::{ChildEnd, Go, Report};
use crate::container::plan::{ContainerPlan, Join, Namespaces};
use crate::sys;
use crate::sys::clone::{Side, clone_process};

/// The kinds of namespaces, as they are called below /proc/<pid>/ns.
const KINDS: [(libc::c_int, &str); 8] = [
    (libc::CLONE_NEWUSER, "user"),
    (libc::CLONE_NEWNS, "mnt"),
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
    (libc::CLONE_NEWTIME, "time"),
];

/// Namespaces that the clone itself makes, when there is no user namespace in play: a process enters its pid
/// namespace at its birth only. The cgroup namespace is not among them, because its root is the cgroup of the
/// process that makes it.
pub(crate) const AT_CLONE: libc::c_int =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;

/// The name of a kind of namespace.
pub(crate) fn name(kind: u32) -> &'static str {
    let found = KINDS.iter().find(|(flag, _)| flag.cast_unsigned() == kind);
    found.map_or("unknown", |(_, name)| name)
}

/// Joins what is to be joined and makes what is still to be made.
pub(super) fn enter(namespaces: &Namespaces, already_made: u32, channel: &ChildEnd) -> Result<()> {
    let pid = libc::CLONE_NEWPID.cast_unsigned();
    let joins = || namespaces.join.iter().filter(|join| join.kind != pid);
    // Which user namespace owns a namespace decides whether it can be joined before or after the user namespace.
    let mut later = Vec::new();
    let user = libc::CLONE_NEWUSER.cast_unsigned();
    for one in joins().filter(|join| join.kind != user) {
        match join(one) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && namespaces.has_user_namespace() => {
                later.push(one);
            }
            result => result.context(|| joining(one))?,
        }
    }
    for one in joins().filter(|join| join.kind == user) {
        join(one).context(|| joining(one))?;
        become_root()?;
    }
    if namespaces.creates(libc::CLONE_NEWUSER) {
        make_user_namespace(channel)?;
    }
    for one in later {
        join(one).context(|| joining(one))?;
    }
    make_remaining(namespaces, already_made | user)
}

fn joining(join: &Join) -> String {
    format!("join the {} namespace {}", name(join.kind), join.path.display())
}

fn join(join: &Join) -> io::Result<()> {
    let namespace = File::open(&join.path)?;
    // SAFETY: takes no pointer; `namespace` is open.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), join.kind.cast_signed()) };
    sys::checked(result.into()).map(drop)
}

fn make_user_namespace(channel: &ChildEnd) -> Result<()> {
    unshare(libc::CLONE_NEWUSER).context(|| "make a user namespace")?;
    channel.report(&Report::NeedsMappings).context(|| "ask for the user namespace's mappings")?;
    match channel.wait() {
        Ok(Go::On) => become_root(),
        Ok(Go::Start) => Err(SetupError::new("the user namespace got no mappings")),
        Err(error) => Err(error).context(|| "wait for the user namespace's mappings"),
    }
}

/// In a user namespace the ids of the guest mean nothing; its root is the one who may set the container up.
fn become_root() -> Result<()> {
    rustix::thread::set_thread_res_gid(
        rustix::thread::Gid::ROOT,
        rustix::thread::Gid::ROOT,
        rustix::thread::Gid::ROOT,
    )
    .context(|| "become group 0 of the user namespace")?;
    rustix::thread::set_thread_res_uid(
        rustix::thread::Uid::ROOT,
        rustix::thread::Uid::ROOT,
        rustix::thread::Uid::ROOT,
    )
    .context(|| "become user 0 of the user namespace")
}

fn make_remaining(namespaces: &Namespaces, already_made: u32) -> Result<()> {
    let time = libc::CLONE_NEWTIME.cast_unsigned();
    let remaining = namespaces.create & !already_made & !time;
    if remaining != 0 {
        unshare(remaining.cast_signed()).context(|| "make the container's namespaces")?;
    }
    if namespaces.creates(libc::CLONE_NEWTIME) {
        make_time_namespace(&namespaces.time_offsets)?;
    }
    Ok(())
}

/// A new pid namespace is for children: one of them goes on in the place of this process, as a child of the agent.
pub(super) fn go_on_as_first_process(channel: &ChildEnd) -> Result<()> {
    // SAFETY: this process has one thread. The child goes on with the set-up, which ends in exec or `_exit`; this
    // process calls `_exit` right below.
    let side = unsafe { clone_process(libc::CLONE_PARENT as u64, None) };
    match side.context(|| "make the first process of the pid namespace")? {
        Side::Child => match channel.wait() {
            Ok(Go::On) => Ok(()),
            Ok(Go::Start) => Err(SetupError::new("the agent does not know this process yet")),
            Err(error) => Err(error).context(|| "wait for the agent"),
        },
        Side::Parent(pid) => {
            channel
                .report(&Report::Successor(pid.as_raw_nonzero().get()))
                .context(|| "name the first process of the pid namespace")?;
            // SAFETY: ends this process without running destructors or exit handlers, which belong to the agent.
            unsafe { libc::_exit(0) }
        }
    }
}

/// A new time namespace is for children until one enters it, and its offsets can be set only before that.
fn make_time_namespace(offsets: &str) -> Result<()> {
    unshare(libc::CLONE_NEWTIME).context(|| "make a time namespace")?;
    if !offsets.is_empty() {
        fs::write("/proc/self/timens_offsets", offsets).context(|| "linux.timeOffsets")?;
    }
    let own =
        Join { kind: libc::CLONE_NEWTIME.cast_unsigned(), path: "/proc/self/ns/time_for_children".into() };
    join(&own).context(|| "enter the time namespace")
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointer. None of the flags in use shares or unshares descriptors or memory.
    let result = unsafe { libc::unshare(flags) };
    sys::checked(result.into()).map(drop)
}

/// Joins all namespaces of a running container but its pid namespace, which the clone has entered.
pub(super) fn enter_all_of(container: BorrowedFd<'_>, user_namespace: bool) -> Result<()> {
    let user = if user_namespace { libc::CLONE_NEWUSER } else { 0 };
    let flags = user
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWTIME;
    // SAFETY: takes no pointer; `container` is a pidfd.
    let result = unsafe { libc::setns(container.as_raw_fd(), flags) };
    sys::checked(result.into()).context(|| "join the container's namespaces")?;
    if user_namespace { become_root() } else { Ok(()) }
}

/// Names and kernel parameters that belong to the namespaces.
pub(super) fn configure(plan: &ContainerPlan) -> Result<()> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).context(|| format!("set the host name {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).context(|| format!("set the domain name {name:?}"))?;
    }
    for sysctl in &plan.sysctls {
        sysctl.set().context(|| format!("write {:?} to {}", sysctl.value, sysctl.path.display()))?;
    }
    Ok(())
}
