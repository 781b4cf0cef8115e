//! The life of one pod: it has an interface, writes files without end, and is disturbed.

use std::fmt;
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;

use super::random::Random;
use crate::bench::runtimes::{Runtime, timed};
use crate::cni::Netns;
use crate::ctr::{ctr, finish};
use crate::e2e::Task;

/// What the pod does all its life: a file of some megabytes is written, read and removed.
const WORK: &str =
    "while dd if=/dev/zero of=/file bs=64k count=48 2>/dev/null; do cat /file > /dev/null; rm /file; done";
/// What can be done to a pod that lives on: the number tells one deed's programs from another's.
type Deed = fn(&Disturbed<'_>, &mut Deeds, usize) -> anyhow::Result<()>;
/// All of it.
const KINDS: [Deed; 4] = [execute, kill, pause, update];
/// How many things are done to a pod at most.
const DEEDS_MAX: usize = 4;

/// How often what was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Deeds {
    /// Programs were run in a pod to their end.
    pub execs: usize,
    /// Programs in a pod were killed.
    pub kills: usize,
    /// Pods were paused and resumed.
    pub pauses: usize,
    /// Limits were changed.
    pub updates: usize,
    /// Pods ended by their first process's death.
    pub ends: usize,
    /// Pods ended by their VMM's death.
    pub crashes: usize,
}

impl AddAssign for Deeds {
    fn add_assign(&mut self, other: Self) {
        self.execs += other.execs;
        self.kills += other.kills;
        self.pauses += other.pauses;
        self.updates += other.updates;
        self.ends += other.ends;
        self.crashes += other.crashes;
    }
}

impl fmt::Display for Deeds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { execs, kills, pauses, updates, ends, crashes } = self;
        write!(
            formatter,
            "{execs} execs, {kills} of them killed later, {pauses} pauses, {updates} updates, {ends} pods killed by \
             their process, {crashes} by their VMM"
        )
    }
}

/// A pod that things are done to.
struct Disturbed<'a> {
    name: &'a str,
}

/// Has a pod live and die, all of it by `random`. Pods of the same number have the same name.
///
/// # Errors
/// Whatever does not go as it should.
pub(super) fn live(number: usize, mut random: Random) -> anyhow::Result<Deeds> {
    let name = format!("soak-{number}");
    let mut deeds = Deeds::default();
    lead(&name, number, &mut random, &mut deeds).with_context(|| format!("pod {name}, after {deeds}"))?;
    Ok(deeds)
}

fn lead(name: &str, number: usize, random: &mut Random, deeds: &mut Deeds) -> anyhow::Result<()> {
    let namespace = Netns::new(name)?;
    namespace.ip("link add eth0 type veth peer name eth1")?;
    namespace.ip(&format!("addr add 10.79.{number}.1/24 dev eth0"))?;
    namespace.ip("link set eth0 up")?;
    namespace.ip("link set eth1 up")?;
    let flag = namespace.flag();
    timed(&mut Runtime::kata().run(&["--detach", &flag], name, &["sh", "-c", WORK]))?;
    let pod = Disturbed { name };
    for round in 0..=random.below(DEEDS_MAX) {
        if let Some(deed) = KINDS.get(random.below(KINDS.len())) {
            deed(&pod, deeds, round)?;
        }
    }
    match random.below(4) {
        0 => {
            deeds.crashes += 1;
            finish(Command::new("kill").args(["-KILL", &pod.vmm()?]))?;
        }
        _ => {
            deeds.ends += 1;
            ctr(["task", "kill", "--signal", "KILL", name])?;
        }
    }
    // The client's status is the task's, 137.
    ctr(["task", "rm", "--force", name]).ok();
    ctr(["container", "rm", name]).map(drop)
}

impl Disturbed<'_> {
    /// The pid by which containerd knows the pod: its VMM's.
    fn vmm(&self) -> anyhow::Result<String> {
        let list = ctr(["task", "list"])?;
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(self.name));
        let pid = line.and_then(|line| line.split_whitespace().nth(1));
        pid.map(str::to_owned).with_context(|| format!("{} is not in the list of tasks", self.name))
    }

    fn exec(&self, round: usize, flags: &[&str], script: &str) -> anyhow::Result<String> {
        let exec = format!("exec-{round}");
        let mut command = Command::new("ctr");
        command.args(["task", "exec"]).args(flags).args(["--exec-id", &exec, self.name, "sh", "-c", script]);
        finish(command.stdin(Stdio::null()))
    }
}

fn execute(pod: &Disturbed<'_>, deeds: &mut Deeds, round: usize) -> anyhow::Result<()> {
    deeds.execs += 1;
    let printed = pod.exec(round, &[], "head -c 100000 /dev/zero | wc -c")?;
    ensure!(printed == "100000\n", "printed {printed:?}");
    Ok(())
}

fn kill(pod: &Disturbed<'_>, deeds: &mut Deeds, round: usize) -> anyhow::Result<()> {
    deeds.execs += 1;
    deeds.kills += 1;
    pod.exec(round, &["--detach"], "exec sleep 3600")?;
    let exec = format!("exec-{round}");
    ctr(["task", "kill", "--exec-id", &exec, "--signal", "KILL", pod.name]).map(drop)
}

fn pause(pod: &Disturbed<'_>, deeds: &mut Deeds, _: usize) -> anyhow::Result<()> {
    deeds.pauses += 1;
    ctr(["task", "pause", pod.name])?;
    ctr(["task", "resume", pod.name]).map(drop)
}

fn update(pod: &Disturbed<'_>, deeds: &mut Deeds, round: usize) -> anyhow::Result<()> {
    deeds.updates += 1;
    let limits = json!({"memory": {"limit": (64 + round) << 20}, "cpu": {"shares": 512 + round}});
    let updated = Task::of(pod.name)?.update(&limits)?;
    ensure!(updated.is_ok(), "the update was refused: {updated:?}");
    Ok(())
}
