//! `linux.sysctl`: kernel parameters of the container's namespaces.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::error::SpecError;

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
        if path.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
            return Err(bad());
        }
        Ok(Self { path: PathBuf::from("/proc/sys").join(path), value: value.to_owned() })
    }
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
}
