//! The VMM's seccomp filters allow what is needed and no more: the kernel counts which thread makes which system call while
//! a container does what containers do, and a rule that none of it needs has no reason to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use saya_vmm::jail::{Role, Rule, rules};

use super::Test;
use super::context::{BUSYBOX, Context, NotApplicable, Running, eventually};
use super::jail::vmm_of;
use crate::cni::Netns;

pub(super) const TESTS: &[Test] =
    &[Test { name: "every_rule_of_the_filters_that_is_not_rare_is_used", check: audit }];

/// Where the kernel counts system calls by thread (Documentation/trace/histogram.rst).
const EVENT: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter";
/// What it counts by, and for how many pairs of those there is room.
const HISTOGRAM: &str = "hist:keys=common_pid,id:size=32768";

/// What a container does with files, by each kind of system call that serves it.
const FILES: &str = "set -e; mkdir d; chmod 777 d; echo x > d/f; echo y >> d/f; cat d/f; ln d/f d/hard; ln -s f d/soft; \
    readlink d/soft; cat d/soft; mv d/hard d/moved; chmod 600 d/f; chown 1000:1000 d/f; truncate -s 1 d/f; touch -t 202001010000 d/f; \
    mkfifo d/fifo; stat -f d; df d; rm d/moved; i=0; while [ $i -lt 400 ]; do : > d/a-file-with-a-long-name-$i; i=$((i+1)); done; \
    ls -la d | wc -l; mkdir d/e; rmdir d/e; dd if=/dev/zero of=d/large bs=1M count=8; cat d/large | wc -c; rm d/large; \
    fallocate -l 65536 d/reserved; sync d/reserved; sync -d d/f; sync -f d/f";

fn audit(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it has no such filters")?;
    if !context.long {
        return Err(NotApplicable(
            "the machine counts every system call of everybody meanwhile: only in the long form",
        )
        .into());
    }
    let counter = Counter::start()?;
    let namespace = Netns::new("saya-filters")?;
    // Two interfaces that hear each other: what the guest sends by the one comes back by the other.
    namespace.ip("link add eth0 type veth peer name eth1")?;
    namespace.ip("addr add 10.76.0.1/24 dev eth0")?;
    namespace.ip("link set eth0 up")?;
    namespace.ip("link set eth1 up")?;
    let container = context.start(BUSYBOX, "audited", &[&namespace.flag()], &["sleep", "3600"])?;
    work(&container)?;
    let mut missing = Vec::new();
    // The guest's kernel gives pages back in its own time.
    eventually("every rule has been used", || {
        missing = counter.unused(&vmm_of("audited")?)?;
        Ok(missing.is_empty())
    })
    .with_context(|| missing.join("\n"))?;
    container.remove()
}

fn work(container: &Running) -> anyhow::Result<()> {
    container.exec("files", &["sh", "-c", FILES])?.expect_status(0)?;
    let mut as_another = container.exec_command(
        &["--user", "1000:1000"],
        "another",
        &["sh", "-c", "umask 077; echo x > /d/theirs"],
    );
    ensure!(as_another.status()?.success(), "a file of another user");
    // Whether anybody answers does not matter.
    container.exec("frames", &["ping", "-c", "1", "-W", "1", "10.76.0.9"])?;
    container
        .exec("memory", &["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=32; rm /dev/shm/x"])?
        .expect_status(0)?;
    Ok(())
}

/// Counts system calls as long as it lives.
struct Counter;

impl Counter {
    fn start() -> anyhow::Result<Self> {
        let trigger = Path::new(EVENT).join("trigger");
        if fs::write(&trigger, HISTOGRAM).is_err() {
            return Err(NotApplicable("the kernel does not count system calls by thread").into());
        }
        Ok(Self)
    }

    /// The rules that nobody has needed so far, in words; `vmm` is its directory in `/proc`.
    fn unused(&self, vmm: &Path) -> anyhow::Result<Vec<String>> {
        let calls = calls()?;
        let mut made: BTreeMap<Role, BTreeSet<i64>> = BTreeMap::new();
        for thread in fs::read_dir(vmm.join("task"))? {
            let thread = thread?;
            let id: u32 = thread.file_name().to_string_lossy().parse()?;
            let role = role(fs::read_to_string(thread.path().join("comm"))?.trim());
            made.entry(role).or_default().extend(calls.get(&id).into_iter().flatten());
        }
        let by = |role: Role, rule: &Rule| made.get(&role).is_some_and(|made| made.contains(&rule.number()));
        let mut unused = Vec::new();
        for role in Role::ALL {
            for rule in rules(role).filter(|rule| !rule.is_rare) {
                // What every role may do, some role has to need.
                let common = Role::ALL.iter().all(|role| rules(*role).any(|other| std::ptr::eq(other, rule)));
                let used = if common { Role::ALL.iter().any(|role| by(*role, rule)) } else { by(role, rule) };
                if !used {
                    unused.push(format!("{role}: {} ({})", rule.name(), rule.who));
                }
            }
        }
        Ok(unused)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Path::new(EVENT).join("trigger"), format!("!{HISTOGRAM}")) {
            eprintln!("the kernel counts on: {error}");
        }
    }
}

/// Which thread has made which system calls.
fn calls() -> anyhow::Result<BTreeMap<u32, BTreeSet<i64>>> {
    let mut calls: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
    for line in fs::read_to_string(Path::new(EVENT).join("hist"))?.lines() {
        // { common_pid:       1234, id:         56 } hitcount:          7
        let Some((keys, _)) = line.strip_prefix('{').and_then(|line| line.split_once('}')) else { continue };
        let mut values = keys.split(',').filter_map(|key| key.split_once(':')?.1.trim().parse::<i64>().ok());
        if let (Some(thread), Some(call)) = (values.next(), values.next()) {
            calls.entry(u32::try_from(thread)?).or_default().insert(call);
        }
    }
    ensure!(!calls.is_empty(), "the kernel has counted nothing");
    Ok(calls)
}

/// A thread's role, by its name.
fn role(name: &str) -> Role {
    match name {
        "fs" => Role::Fs,
        "vsock" => Role::Vsock,
        "blk" => Role::Blk,
        name if name.starts_with("vcpu") => Role::Vcpu,
        name if name.starts_with("net") => Role::Net,
        _ => Role::Main,
    }
}
