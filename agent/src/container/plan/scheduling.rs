//! `process.scheduler`, `process.ioPriority` and `linux.personality`.

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler,
};

use crate::error::SpecError;

/// The arguments of sched_setattr(2), as `struct sched_attr` of linux/sched/types.h begins (`SCHED_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedulerPlan {
    /// The size of this structure.
    pub(crate) size: u32,
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// For the fair policies.
    pub(crate) nice: i32,
    /// For the real-time policies.
    pub(crate) priority: u32,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub(crate) runtime: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub(crate) deadline: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub(crate) period: u64,
}

/// The argument of ioprio_set(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoPriority(pub i32);

/// `ADDR_NO_RANDOMIZE` and its kin are not among what the spec allows: it knows the domains alone.
const PER_LINUX: libc::c_ulong = 0;
const PER_LINUX32: libc::c_ulong = 8;

pub(super) fn scheduler(
    scheduler: Option<&Scheduler>,
    field: &str,
) -> Result<Option<SchedulerPlan>, SpecError> {
    let Some(scheduler) = scheduler else {
        return Ok(None);
    };
    let priority = scheduler.priority().unwrap_or(0);
    let priority = u32::try_from(priority).map_err(|_| {
        SpecError::invalid(format!("{field}.priority"), format!("is {priority}; it is 0 to 99"))
    })?;
    let flags = scheduler.flags().as_deref().unwrap_or_default();
    Ok(Some(SchedulerPlan {
        size: size_of::<SchedulerPlan>() as u32,
        policy: policy(*scheduler.policy()),
        flags: flags.iter().map(|flag| scheduler_flag(*flag)).fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }))
}

/// `SCHED_*` of linux/sched.h.
fn policy(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

/// `SCHED_FLAG_*` of linux/sched.h.
fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

pub(super) fn io_priority(
    priority: Option<&LinuxIOPriority>,
    field: &str,
) -> Result<Option<IoPriority>, SpecError> {
    let Some(priority) = priority else {
        return Ok(None);
    };
    // IOPRIO_CLASS_* and IOPRIO_CLASS_SHIFT of linux/ioprio.h.
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match i32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(Some(IoPriority((class << 13) | level))),
        _ => {
            let problem = format!("is {}; it is 0 to 7", priority.priority());
            Err(SpecError::invalid(format!("{field}.priority"), problem))
        }
    }
}

pub(super) fn personality(
    personality: Option<&LinuxPersonality>,
) -> Result<Option<libc::c_ulong>, SpecError> {
    let Some(personality) = personality else {
        return Ok(None);
    };
    if let Some(flag) = personality.flags().iter().flatten().next() {
        let problem = format!("{flag:?}: the spec defines no flag");
        return Err(SpecError::not_supported("linux.personality.flags", problem));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }))
}
