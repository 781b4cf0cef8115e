//! `process.rlimits`.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::process::{Resource, Rlimit};

use crate::error::SpecError;

/// A resource limit of setrlimit(2).
#[derive(Clone, Debug)]
pub(crate) struct ResourceLimit {
    /// Which.
    pub(crate) resource: Resource,
    /// How much.
    pub(crate) limit: Rlimit,
    /// Its name, for messages.
    pub(crate) name: String,
}

pub(super) fn from_spec(limits: &[PosixRlimit], field: &str) -> Result<Vec<ResourceLimit>, SpecError> {
    let mut read: Vec<ResourceLimit> = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let name = limit.typ().to_string();
        if read.iter().any(|earlier| earlier.name == name) {
            return Err(SpecError::invalid(
                format!("{field}[{index}].type"),
                format!("{name} is there twice"),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(SpecError::invalid(
                format!("{field}[{index}]"),
                format!(
                    "{name} has a soft limit of {}, above the hard one of {}",
                    limit.soft(),
                    limit.hard()
                ),
            ));
        }
        let values = Rlimit { current: finite(limit.soft()), maximum: finite(limit.hard()) };
        read.push(ResourceLimit { resource: resource(limit.typ()), limit: values, name });
    }
    Ok(read)
}

/// `RLIM_INFINITY` is the largest number.
fn finite(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
