//! Parts of a pod are killed in the middle of something. Its containers end as killed, containerd learns it, nothing is left,
//! and the name can be used again at once.

mod moment;
mod part;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use self::moment::{Moment, Stage};
use self::part::Part;
use super::Test;
use super::context::{BUSYBOX, Context, Running, ctr, eventually};
use super::events::Events;
use crate::cni::Netns;
use crate::containerd;
use crate::leaks::Holdings;
use crate::report::statistics::Summary;

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_pod_of_which_a_part_is_killed_at_any_moment_ends_and_leaves_nothing", check: short },
    Test { name: "a_shim_killed_at_any_moment_leaves_nothing", check: shims },
    Test { name: "a_vmm_killed_at_any_moment_leaves_nothing", check: vmms },
    Test { name: "a_first_process_killed_at_any_moment_leaves_nothing", check: processes },
    Test { name: "a_guest_that_panics_at_any_moment_leaves_nothing", check: guests },
    Test { name: "a_containerd_killed_at_any_moment_takes_no_pod_along", check: containerds },
    Test { name: "parts_killed_at_once_leave_nothing", check: pairs },
];

/// The container of every case: that it can be made again is checked by the next one.
const NAME: &str = "matrix";

/// What CI has time for.
const SHORT: &[(&[Part], Moment)] = &[
    (&[Part::Vmm], Moment::Creating),
    (&[Part::Shim], Moment::Created),
    (&[Part::Vmm], Moment::Executing),
    (&[Part::Shim], Moment::Deleting),
];

/// At once, in the middle of writing: what is killed first may have begun to tell the other.
const PAIRS: [&[Part]; 5] = [
    &[Part::Shim, Part::Vmm],
    &[Part::Process, Part::Shim],
    &[Part::Guest, Part::Shim],
    &[Part::Containerd, Part::Vmm],
    &[Part::Containerd, Part::Shim],
];

/// How long after a moment's beginning something is killed, where the moment is not one that lasts.
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(60), Duration::from_millis(400)];

/// Where shims' sockets are, as the leak checker names them.
const SOCKETS: &str = "file /run/containerd/s/";

/// By how many descriptors and threads containerd may have grown after all of a part's cases: connections that it keeps open, threads that wait.
const CONTAINERD_NOISE: usize = 6;

fn short(context: &Context) -> anyhow::Result<()> {
    let cases = SHORT.iter().filter(|(parts, moment)| all_there(context, parts, *moment));
    all_of(context, cases.map(|&(parts, moment)| (parts, moment, Duration::ZERO)))
}

fn shims(context: &Context) -> anyhow::Result<()> {
    all_moments(context, &[Part::Shim])
}

fn vmms(context: &Context) -> anyhow::Result<()> {
    all_moments(context, &[Part::Vmm])
}

fn processes(context: &Context) -> anyhow::Result<()> {
    all_moments(context, &[Part::Process])
}

fn guests(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("its guest is the host")?;
    all_moments(context, &[Part::Guest])
}

fn containerds(context: &Context) -> anyhow::Result<()> {
    all_moments(context, &[Part::Containerd])
}

fn pairs(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let of_ours = |parts: &&[Part]| !context.is_control() || !parts.contains(&Part::Guest);
    all_of(context, PAIRS.into_iter().filter(of_ours).map(|parts| (parts, Moment::Writing, Duration::ZERO)))
}

fn all_moments(context: &Context, parts: &'static [Part]) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let moments = Moment::ALL.into_iter().filter(|moment| all_there(context, parts, *moment));
    let cases = moments.flat_map(|moment| {
        let delays = if moment.passes() { &DELAYS[..] } else { &DELAYS[..1] };
        delays.iter().map(move |&delay| (parts, moment, delay))
    });
    all_of(context, cases)
}

fn all_there(context: &Context, parts: &[Part], moment: Moment) -> bool {
    parts.iter().all(|part| part.is_there(context, moment))
}

type Case = (&'static [Part], Moment, Duration);

/// Checks cases one after the other, beside a pod that is to notice nothing, and that the name is free after the last, too.
fn all_of(context: &Context, cases: impl Iterator<Item = Case>) -> anyhow::Result<()> {
    let neighbour = Neighbour::start(context)?;
    let namespace = Netns::new("saya-matrix")?;
    namespace.ip("link add eth0 type veth peer name eth1")?;
    namespace.ip("addr add 10.78.0.1/24 dev eth0")?;
    namespace.ip("link set eth0 up")?;
    namespace.ip("link set eth1 up")?;
    let before = part::size(containerd::process()?)?;
    let mut same_containerd = true;
    let mut told_after = Vec::new();
    for (parts, moment, delay) in cases {
        let case = format!("{parts:?} killed, {moment:?} and {delay:?} later");
        let told = check(context, &namespace, parts, moment, delay)
            .and_then(|told| neighbour.is_undisturbed().map(|()| told))
            .with_context(|| case.clone())?;
        eprintln!(
            "{case}{}",
            told.map_or_else(String::new, |told| format!(": told after {} ms", told.as_millis()))
        );
        told_after.extend(told.map(|told| told.as_secs_f64() * 1000.0));
        same_containerd &= !parts.contains(&Part::Containerd);
    }
    if let Some(Summary { count, min, median, max }) = Summary::of(&told_after) {
        eprintln!(
            "from a kill to containerd's event of the exit: {min:.0} to {max:.0} ms, median {median:.0} ms of {count}"
        );
    }
    let ended = context.run(&[&namespace.flag()], NAME, &["echo", "again"])?.expect_status(0)?;
    ensure!(ended.text() == "again\n", "{ended:?}");
    let after = part::size(containerd::process()?)?;
    ensure!(
        !context.long
            || !same_containerd
            || (after.0 <= before.0 + CONTAINERD_NOISE && after.1 <= before.1 + CONTAINERD_NOISE),
        "containerd had {before:?} descriptors and threads, and has {after:?}"
    );
    eprintln!("containerd's descriptors and threads: {before:?} before, {after:?} after");
    neighbour.container.remove()
}

/// A pod beside the one that is killed.
struct Neighbour {
    container: Running,
    line: String,
}

impl Neighbour {
    const NAME: &str = "neighbour";

    fn start(context: &Context) -> anyhow::Result<Self> {
        let container = context.start(BUSYBOX, Self::NAME, &[], &["sleep", "3600"])?;
        Ok(Self { container, line: Self::line()? })
    }

    /// Name, pid and state, as containerd lists them.
    fn line() -> anyhow::Result<String> {
        let list = ctr(["task", "list"])?;
        Ok(list.lines().find(|line| line.starts_with(Self::NAME)).unwrap_or_default().to_owned())
    }

    fn is_undisturbed(&self) -> anyhow::Result<()> {
        part::exec(Self::NAME, "alive", "true").context("the pod beside it does not answer")?;
        let line = Self::line()?;
        ensure!(line == self.line, "the pod beside it was {:?} and is {line:?}", self.line);
        Ok(())
    }
}

/// Checks one case. How long after the kill containerd's clients were told of the exit, where it is the kill that ends the
/// container and containerd lives.
fn check(
    context: &Context,
    namespace: &Netns,
    parts: &[Part],
    moment: Moment,
    delay: Duration,
) -> anyhow::Result<Option<Duration>> {
    let mut told = None;
    let (before, network) = (Holdings::now(), namespace.contents()?);
    let with_containerd = parts.contains(&Part::Containerd);
    let events = if with_containerd { None } else { Some(Events::follow()?) };

    let reasons = Reasons::so_far();
    let stage = Stage::set(context, NAME, &namespace.flag(), moment, parts)?;
    std::thread::sleep(delay);
    let killed = Instant::now();
    for part in parts {
        part.kill(NAME)?;
    }
    if with_containerd {
        eventually("containerd is back", || Ok(ctr(["task", "list"]).is_ok()))?;
    }
    stage.end()?;

    if parts == [Part::Containerd] {
        // Nothing but containerd has ended, and it may not have come to end anything itself.
        if !moment.passes() {
            part::exec(NAME, "alive", "true")
                .or_else(|error| if moment == Moment::Created { Ok(()) } else { Err(error) })?;
            ensure!(moment::status(NAME)?.is_some(), "the task went with containerd");
        }
    } else {
        eventually("no task runs any more", || {
            Ok(moment::status(NAME)?.is_none_or(|status| status == "STOPPED"))
        })?;
        if let Some(events) = events.filter(|_| moment != Moment::Creating) {
            let exit = events.first("/tasks/exit", |fields| fields["id"] == NAME)?;
            let fields = exit.fields;
            ensure!(fields["container_id"] == NAME && fields["exit_status"] == 137, "{fields}");
            told = (!moment.passes()).then(|| exit.seen.duration_since(killed));
        }
        if let ([part], false, false) = (parts, moment.passes(), context.is_control()) {
            reasons.are_followed_by_that_of(*part)?;
        }
    }
    eventually("it can be removed", || {
        // What never came to be, or is gone already, is as good.
        ctr(["task", "rm", "--force", NAME]).ok();
        ctr(["container", "rm", NAME]).ok();
        Ok(moment::status(NAME)?.is_none()
            && !ctr(["container", "ls", "-q"])?.lines().any(|line| line == NAME))
    })?;
    let mut left = Vec::new();
    eventually("nothing is left", || {
        left = before.leaked_by(&Holdings::now());
        if moment == Moment::Creating || context.is_control() {
            // Nobody asks for the socket of a shim that died before containerd had connected to it, whatever the
            // runtime; the next shim of the name takes it over. runc's shim never removes the socket of one that was killed
            // (containerd's issue 11292).
            left.retain(|thing| !thing.starts_with(SOCKETS));
        }
        if namespace.contents()? != network {
            left.push(format!("what is in the pod's network namespace: {}", namespace.contents()?));
        }
        Ok(left.is_empty())
    })
    .with_context(|| left.join(", "))?;
    Ok(told)
}

/// What containerd's log says of machines that have stopped; nothing where it is not in the lab's place.
struct Reasons(String);

impl Reasons {
    const LOG: &str = "/run/saya-lab/containerd.log";

    fn so_far() -> Self {
        Self(fs::read_to_string(Self::LOG).unwrap_or_default())
    }

    /// Waits for the reason that the end of this part is for the end of a machine, where it is one.
    fn are_followed_by_that_of(&self, part: Part) -> anyhow::Result<()> {
        let Some(expected) = part.reason().filter(|_| !self.0.is_empty()) else { return Ok(()) };
        eventually("the reason is in containerd's log", || {
            let log = Self::so_far().0;
            let new = log.get(self.0.len()..).unwrap_or_default();
            Ok(new.lines().any(|line| line.contains("machine has stopped") && line.contains(expected)))
        })
        .with_context(|| expected)
    }
}
