//! Parts of a pod are killed in the middle of something. Its containers end as killed, containerd learns it, nothing is left,
//! and the name can be used again at once.

mod moment;
mod part;

use std::time::Duration;

use anyhow::{Context as _, ensure};

use self::moment::{Moment, Stage};
use self::part::Part;
pub(super) use self::part::containerd;
use super::Test;
use super::context::{Context, ctr, eventually};
use super::events::Events;
use crate::leaks::Holdings;

pub(super) const TESTS: &[Test] =
    &[Test { name: "a_pod_of_which_a_part_is_killed_at_any_moment_ends_and_leaves_nothing", check: matrix }];

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

/// By how many descriptors and threads containerd may have grown: connections that it keeps open, threads that wait.
const CONTAINERD_NOISE: usize = 6;

fn matrix(context: &Context) -> anyhow::Result<()> {
    if !context.long {
        for &(parts, moment) in SHORT {
            case(context, parts, moment, Duration::ZERO)?;
        }
        return again(context);
    }
    let containerd = containerd()?;
    let before = part::size(containerd)?;
    for part in [Part::Shim, Part::Vmm, Part::Process, Part::Guest] {
        all_moments(context, part)?;
    }
    for parts in PAIRS.into_iter().filter(|parts| !parts.contains(&Part::Containerd)) {
        case(context, parts, Moment::Writing, Duration::ZERO)?;
    }
    let after = part::size(containerd)?;
    ensure!(
        after.0 <= before.0 + CONTAINERD_NOISE && after.1 <= before.1 + CONTAINERD_NOISE,
        "containerd had {before:?} descriptors and threads, and has {after:?}"
    );
    all_moments(context, Part::Containerd)?;
    for parts in PAIRS.into_iter().filter(|parts| parts.contains(&Part::Containerd)) {
        case(context, parts, Moment::Writing, Duration::ZERO)?;
    }
    again(context)
}

fn all_moments(context: &Context, part: Part) -> anyhow::Result<()> {
    for moment in Moment::ALL.into_iter().filter(|moment| part.is_there(*moment)) {
        let delays = if moment.passes() { &DELAYS[..] } else { &DELAYS[..1] };
        for &delay in delays {
            case(context, &[part], moment, delay)?;
        }
    }
    Ok(())
}

/// The name is free after the last case, too.
fn again(context: &Context) -> anyhow::Result<()> {
    let ended = context.run(&[], NAME, &["echo", "again"])?.expect_status(0)?;
    ensure!(ended.text() == "again\n", "{ended:?}");
    Ok(())
}

fn case(context: &Context, parts: &[Part], moment: Moment, delay: Duration) -> anyhow::Result<()> {
    if context.is_control() && parts.contains(&Part::Guest) {
        return Ok(());
    }
    eprintln!("{parts:?} killed, {moment:?} and {delay:?}");
    check(context, parts, moment, delay)
        .with_context(|| format!("{parts:?} killed, {moment:?} and {delay:?} later"))
}

fn check(context: &Context, parts: &[Part], moment: Moment, delay: Duration) -> anyhow::Result<()> {
    let before = Holdings::now();
    let with_containerd = parts.contains(&Part::Containerd);
    let events = if with_containerd { None } else { Some(Events::follow()?) };

    let stage = Stage::set(context, NAME, moment, parts)?;
    std::thread::sleep(delay);
    for part in parts {
        part.kill(NAME)?;
    }
    if with_containerd {
        eventually("containerd is back", || Ok(ctr(["task", "list"]).is_ok()))?;
    }
    stage.end()?;

    if parts == [Part::Containerd] && !moment.passes() {
        // Nothing but containerd has ended.
        part::exec(NAME, "alive", "true")
            .or_else(|error| if moment == Moment::Created { Ok(()) } else { Err(error) })?;
        ensure!(moment::status(NAME)?.is_some(), "the task went with containerd");
    } else {
        eventually("no task runs any more", || {
            Ok(moment::status(NAME)?.is_none_or(|status| status == "STOPPED"))
        })?;
        if let Some(events) = events.filter(|_| moment != Moment::Creating) {
            let exit = events.first("/tasks/exit", |fields| fields["id"] == NAME)?;
            ensure!(exit["container_id"] == NAME && exit["exit_status"] == 137, "{exit}");
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
        if moment == Moment::Creating {
            // Nobody asks for the socket of a shim that died before containerd had connected to it, whatever the
            // runtime; the next shim of the name takes it over.
            left.retain(|thing| !thing.starts_with(SOCKETS));
        }
        Ok(left.is_empty())
    })
    .with_context(|| left.join(", "))
}
