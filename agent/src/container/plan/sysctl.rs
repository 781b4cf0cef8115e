//! Kernel parameters: those of `linux.sysctl`, and those of the pod's network.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, SpecError};

/// Where the kernel has them.
const ROOT: &str = "/proc/sys";

/// A kernel parameter to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sysctl {
    /// Its file below /proc/sys.
    pub(crate) path: PathBuf,
    /// Its value.
    pub(crate) value: String,
}

impl Sysctl {
    /// Reads a name such as `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.100/forwarding`: the first separator
    /// decides, as for sysctl(8).
    pub(crate) fn new(name: &str, value: &str) -> Result<Self, SpecError> {
        let bad =
            || SpecError::invalid(format!("linux.sysctl[{name:?}]"), "is not the name of a kernel parameter");
        let path = match name.find(['.', '/']) {
            Some(at) if name.get(at..=at) == Some("/") => name.to_owned(),
            Some(_) => name.chars().map(swap_separator).collect(),
            None => return Err(bad()),
        };
        if !path.split('/').all(is_name) {
            return Err(bad());
        }
        Ok(Self { path: Path::new(ROOT).join(path), value: value.to_owned() })
    }

    /// One of the network namespace's, to whose file these names lead from /proc/sys/net. No others lead out of there.
    pub(crate) fn of_network(names: &[String], value: &str) -> Result<Self, Error> {
        if names.is_empty() || !names.iter().all(|name| is_name(name)) {
            return Err(Error::InvalidRequest(format!("{names:?} is no path of a network sysctl")));
        }
        let path = [ROOT, "net"].into_iter().chain(names.iter().map(String::as_str)).collect();
        Ok(Self { path, value: value.to_owned() })
    }

    /// Whether it is of a network namespace.
    pub(crate) fn is_of_network(&self) -> bool {
        self.path.strip_prefix(ROOT).is_ok_and(|path| path.starts_with("net"))
    }

    /// Its path below /proc/sys, which sysctl(8) takes as its name.
    pub(crate) fn name(&self) -> std::path::Display<'_> {
        self.path.strip_prefix(ROOT).unwrap_or(&self.path).display()
    }

    /// Gives it its value, in the namespaces of the calling thread.
    pub(crate) fn set(&self) -> io::Result<()> {
        // What is not there is not to be made: that would be forbidden, rather than not found.
        fs::OpenOptions::new().write(true).open(&self.path)?.write_all(self.value.as_bytes())
    }
}

/// Whether it names something within a directory.
fn is_name(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0'])
}

fn swap_separator(character: char) -> char {
    match character {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

/// Reads all of them, in the order of their names.
pub(super) fn from_spec(sysctls: Option<&HashMap<String, String>>) -> Result<Vec<Sysctl>, SpecError> {
    let mut read = sysctls
        .into_iter()
        .flatten()
        .map(|(name, value)| Sysctl::new(name, value))
        .collect::<Result<Vec<_>, _>>()?;
    read.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(read)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(name: &str) -> Option<String> {
        Sysctl::new(name, "1").ok().map(|sysctl| sysctl.path.display().to_string())
    }

    #[test]
    fn the_first_separator_decides_how_a_name_is_read() {
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.100/rp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/100.rp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter")
        );
    }

    #[test]
    fn a_name_cannot_leave_the_directory_of_parameters() {
        for name in ["net/../../etc/passwd", "hostname", "", "net//x", "net..ipv4", "/etc/passwd"] {
            assert_eq!(path(name), None, "{name}");
        }
    }

    fn of_network(names: &[&str]) -> Option<Sysctl> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Sysctl::of_network(&names, "1").ok()
    }

    #[test]
    fn the_names_of_a_network_sysctl_lead_nowhere_else() {
        let sysctl = of_network(&["ipv4", "conf", "eth0.100", "rp_filter"]).unwrap();
        assert_eq!(sysctl.path, Path::new("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
        assert_eq!(sysctl.name().to_string(), "net/ipv4/conf/eth0.100/rp_filter");
        for names in
            [&[][..], &[""], &[".."], &["ipv4", "..", "..", "x"], &["ipv4/ip_forward"], &["a\0"], &["."]]
        {
            assert_eq!(of_network(names), None, "{names:?}");
        }
    }

    #[test]
    fn those_of_a_network_are_told_from_others() {
        let is_of_network = |name| Sysctl::new(name, "1").unwrap().is_of_network();
        assert!(is_of_network("net.core.somaxconn") && is_of_network("net/ipv4/ip_forward"));
        assert!(!is_of_network("kernel.msgmax") && !is_of_network("network.core.somaxconn"));
    }

    proptest! {
        #[test]
        fn whatever_names_are_sent_they_lead_to_something_below_the_network_sysctls(
            names in proptest::collection::vec("[a./\0]{0,3}", 0..5)
        ) {
            if let Ok(sysctl) = Sysctl::of_network(&names, "1") {
                let below = sysctl.path.strip_prefix("/proc/sys/net").unwrap();
                let normal = |part| matches!(part, std::path::Component::Normal(_));
                prop_assert!(below.components().all(normal));
                prop_assert_eq!(below.components().count(), names.len());
            }
        }
    }
}
