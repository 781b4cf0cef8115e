//! Parts of a pod are killed in the middle of something. Its containers end as killed, containerd learns it, nothing is left,
//! and the name can be used again at once.

mod insider;
mod moment;
mod part;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use self::moment::{Case, Moment, Stage};
use self::part::Part;
use super::Test;
use super::context::{BUSYBOX, Context, Running, ctr, eventually};
use super::events::{Event, Events};
use super::restart::wait_for_another;
use super::task_api::Task;
use crate::cni::Netns;
use crate::containerd;
use crate::lab::containerd::usual_places;
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
const SHORT: [(Part, Moment); 4] = [
    (Part::Vmm, Moment::Creating),
    (Part::Shim, Moment::Created),
    (Part::Vmm, Moment::Executing),
    (Part::Shim, Moment::Deleting),
];

/// How long after a moment's beginning something is killed, where the moment is not one that lasts.
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(60), Duration::from_millis(400)];
/// The same for the many cases of several parts, and where the moment does last.
const ONE_DELAY: [Duration; 1] = [Duration::ZERO];

/// Where shims' sockets are, as the leak checker names them.
const SOCKETS: &str = "file /run/containerd/s/";

/// By how many descriptors, threads and MiB containerd may have grown after all of a part's cases: connections that it keeps open,
/// threads that wait, what Go's collector has not got to.
const CONTAINERD_NOISE: [usize; 3] = [6, 6, 32];

/// How soon after a kill containerd's clients are to know of the container's exit.
const TELL_LIMIT: Duration = Duration::from_secs(2);

fn short(context: &Context) -> anyhow::Result<()> {
    let case = |(part, moment)| Case { parts: vec![part], moment, delay: Duration::ZERO };
    all_of(context, SHORT.into_iter().map(case))
}

fn shims(context: &Context) -> anyhow::Result<()> {
    row(context, Part::Shim)
}

fn vmms(context: &Context) -> anyhow::Result<()> {
    row(context, Part::Vmm)
}

fn processes(context: &Context) -> anyhow::Result<()> {
    row(context, Part::Process)
}

fn guests(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("its guest is the host")?;
    row(context, Part::Guest)
}

fn containerds(context: &Context) -> anyhow::Result<()> {
    row(context, Part::Containerd)
}

fn row(context: &Context, part: Part) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    all_of(context, all_moments(&[part], &DELAYS))
}

fn pairs(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let pairs = Part::ALL
        .iter()
        .enumerate()
        .flat_map(|(index, one)| Part::ALL.iter().skip(index + 1).map(|other| [*one, *other]));
    all_of(context, pairs.flat_map(|pair| all_moments(&pair, &ONE_DELAY).collect::<Vec<_>>()))
}

/// Parts at all moments, at each that passes after all of `delays`.
fn all_moments(parts: &[Part], delays: &'static [Duration]) -> impl Iterator<Item = Case> {
    Moment::ALL.into_iter().flat_map(move |moment| {
        let delays = if moment.passes() { delays } else { &ONE_DELAY };
        delays.iter().map(move |&delay| Case { parts: parts.to_vec(), moment, delay })
    })
}

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
    let there = |case: &Case| case.parts.iter().all(|part| part.is_there(context, case.moment));
    for case in cases.filter(there) {
        let told = check(context, &namespace, &case)
            .and_then(|told| neighbour.is_undisturbed().map(|()| told))
            .with_context(|| format!("{case:?}"))?;
        let told_ms = told.map(|told| told.as_secs_f64() * 1000.0);
        eprintln!(
            "{case:?}{}",
            told_ms.map_or_else(String::new, |told| format!(": told after {told:.0} ms"))
        );
        told_after.extend(told_ms);
        same_containerd &= !case.kills(Part::Containerd);
    }
    if let Some(Summary { count, min, median, max }) = Summary::of(&told_after) {
        eprintln!(
            "from a kill to containerd's event of the exit: {min:.0} to {max:.0} ms, median {median:.0} ms of {count}"
        );
    }
    let ended = context.run(&[&namespace.flag()], NAME, &["echo", "again"])?.expect_status(0)?;
    ensure!(ended.text() == "again\n", "{ended:?}");
    let after = part::size(containerd::process()?)?;
    let mut sizes = before.iter().zip(&after).zip(&CONTAINERD_NOISE);
    let words = format!("containerd's descriptors, threads and MiB: {before:?} before, {after:?} after");
    let grown = sizes.any(|((before, after), noise)| *after > before + noise);
    ensure!(!(context.long && same_containerd && grown), "{words}");
    eprintln!("{words}");
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
fn check(context: &Context, namespace: &Netns, case: &Case) -> anyhow::Result<Option<Duration>> {
    let (before, network) = (Holdings::now(), namespace.contents()?);
    let containerd = case.kills(Part::Containerd).then(containerd::process).transpose()?;
    let events = if containerd.is_none() { Some(Events::follow()?) } else { None };
    let reasons = Reasons::so_far()?;

    let mut stage = Stage::set(context, NAME, &namespace.flag(), case)?;
    std::thread::sleep(case.delay);
    let killed = Instant::now();
    for part in &case.parts {
        part.kill(NAME, &stage)?;
    }
    containerd.map_or(Ok(()), wait_for_another)?;
    stage.end()?;

    let mut told = None;
    if case.parts == [Part::Containerd] {
        goes_on(case, &stage)?;
    } else {
        has_ended(context, case, &stage)?;
        if let Some(events) = events.filter(|_| case.moment != Moment::Creating) {
            let seen = exit_of(&events)?.seen;
            told = (!case.moment.passes()).then(|| seen.duration_since(killed));
            // An emulated processor, of which others have their share, says nothing about the time that it takes.
            ensure!(is_emulated() || told.is_none_or(|told| told <= TELL_LIMIT), "told after {told:?}");
        }
        reasons.are_followed_by_those_of(context, case)?;
    }
    remove(&stage)?;
    nothing_is_left(context, case, &before, namespace, &network)?;
    Ok(told)
}

/// Nothing but containerd has ended, and it may not have come to end anything itself: the container goes on until it is killed,
/// which containerd's clients are told.
fn goes_on(case: &Case, stage: &Stage) -> anyhow::Result<()> {
    if case.moment.passes() {
        return Ok(());
    }
    let expected = if case.moment == Moment::Created { "CREATED" } else { "RUNNING" };
    let status = moment::status(NAME)?;
    ensure!(status.as_deref() == Some(expected), "it is {status:?}, and was {expected}");
    if case.moment != Moment::Created {
        part::exec(NAME, "alive", "true")?;
    }
    let events = Events::follow()?;
    Part::Process.kill(NAME, stage)?;
    exit_of(&events).map(drop)
}

/// containerd knows that the container has ended, as killed.
fn has_ended(context: &Context, case: &Case, stage: &Stage) -> anyhow::Result<()> {
    eventually("no task runs any more", || {
        Ok(moment::status(NAME)?.is_none_or(|status| status == "STOPPED"))
    })?;
    if case.moment.passes() {
        return Ok(());
    }
    // It is containerd that ends a task whose shim is gone.
    let shim_lives = !case.kills(Part::Shim);
    eventually("its state is right", || Ok(moment::status(NAME)?.is_some() == shim_lives))?;
    if shim_lives && case.kills(Part::Containerd) && !context.is_control() {
        // Nobody may have been there to hear of it.
        let exit = Task::of(stage.pod)?.beside(NAME).wait("")?;
        ensure!(exit.exit_status == 137, "{exit:?}");
    }
    Ok(())
}

/// The event of the container's exit, as killed.
fn exit_of(events: &Events) -> anyhow::Result<Event> {
    let exit = events.first("/tasks/exit", |fields| fields["id"] == NAME)?;
    let fields = &exit.fields;
    ensure!(fields["container_id"] == NAME && fields["exit_status"] == 137, "{fields}");
    Ok(exit)
}

/// The containers can be removed.
fn remove(stage: &Stage) -> anyhow::Result<()> {
    for container in [NAME, stage.pod] {
        eventually("it can be removed", || {
            // What never came to be, or is gone already, is as good.
            ctr(["task", "rm", "--force", container]).ok();
            ctr(["container", "rm", container]).ok();
            Ok(moment::status(container)?.is_none()
                && !ctr(["container", "ls", "-q"])?.lines().any(|line| line == container))
        })
        .context(container)?;
    }
    Ok(())
}

/// The host and the pod's network namespace are as they were.
fn nothing_is_left(
    context: &Context,
    case: &Case,
    before: &Holdings,
    namespace: &Netns,
    network: &str,
) -> anyhow::Result<()> {
    let mut left = Vec::new();
    eventually("nothing is left", || {
        left = before.leaked_by(&Holdings::now());
        if case.moment == Moment::Creating || context.is_control() {
            // Nobody asks for the socket of a shim that died before containerd had connected to it, whatever the
            // runtime; the next shim of the name takes it over. runc's shim never removes the socket of one that was killed
            // (containerd's issue 11292).
            left.retain(|thing| !thing.starts_with(SOCKETS));
        }
        let contents = namespace.contents()?;
        if contents != network {
            left.push(format!("what is in the pod's network namespace: {contents}"));
        }
        Ok(left.is_empty())
    })
    .with_context(|| left.join(", "))
}

/// Whether this is the lab, which runs where there is no hardware virtualisation.
fn is_emulated() -> bool {
    usual_places().log.exists()
}

/// What containerd's log says of machines that have stopped.
struct Reasons(String);

impl Reasons {
    fn so_far() -> anyhow::Result<Self> {
        let log = containerd::log();
        let text = fs::read_to_string(&log);
        Ok(Self(text.with_context(|| format!("reasons are in containerd's log: {}", log.display()))?))
    }

    /// Waits for the reason that the end of a case's part is for the end of a machine, where it is one.
    fn are_followed_by_those_of(&self, context: &Context, case: &Case) -> anyhow::Result<()> {
        let [part] = case.parts[..] else { return Ok(()) };
        // A machine that is being made or deleted may end for another reason, but for one that has another container, too.
        let sure = !case.moment.passes() || part == Part::Guest;
        let Some(expected) = part.reason().filter(|_| sure && !context.is_control()) else { return Ok(()) };
        eventually("the reason is in containerd's log", || {
            let log = Self::so_far()?.0;
            let new = log.get(self.0.len()..).unwrap_or_default();
            Ok(new.lines().any(|line| line.contains("machine has stopped") && line.contains(expected)))
        })
        .context(expected)
    }
}
