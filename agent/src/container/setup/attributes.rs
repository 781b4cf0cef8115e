//! What a process inherits besides rights: limits, scheduling, personality.

use std::fs;
use std::io;

use rustix::process::setrlimit;

use super::error::{Context, Result};
use crate::container::plan::{ProcessPlan, SchedulerPlan};
use crate::sys;

/// Writes how readily the kernel kills this process. It needs a /proc, so it comes before the container's root.
pub(super) fn set_oom_score(plan: &ProcessPlan) -> Result<()> {
    let Some(adjustment) = plan.oom_score_adjustment else {
        return Ok(());
    };
    fs::write("/proc/self/oom_score_adj", adjustment.to_string())
        .context(|| format!("process.oomScoreAdj {adjustment}"))
}

/// Sets what needs the rights that the process is about to give up.
pub(super) fn set(plan: &ProcessPlan) -> Result<()> {
    for limit in &plan.limits {
        setrlimit(limit.resource, limit.limit)
            .context(|| format!("process.rlimits: {} {:?}", limit.name, limit.limit))?;
    }
    if let Some(scheduler) = &plan.scheduler {
        set_scheduler(scheduler).context(|| "process.scheduler")?;
    }
    if let Some(priority) = plan.io_priority {
        set_io_priority(priority.0).context(|| "process.ioPriority")?;
    }
    if let Some(personality) = plan.personality {
        // SAFETY: takes no pointer.
        let result = unsafe { libc::personality(personality) };
        sys::checked(result.into()).context(|| "linux.personality")?;
    }
    Ok(())
}

fn set_scheduler(scheduler: &SchedulerPlan) -> io::Result<()> {
    // SAFETY: `scheduler` is a `struct sched_attr` that names its own size, and lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(scheduler), 0) };
    sys::checked(result).map(drop)
}

fn set_io_priority(priority: i32) -> io::Result<()> {
    /// `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
    const PROCESS: libc::c_int = 1;
    // SAFETY: takes no pointer.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, priority) };
    sys::checked(result).map(drop)
}
