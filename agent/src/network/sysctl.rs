//! Sysctls that have been set in the pod's network namespace on the host.

use std::io;

use saya_agent_api::agent::NetworkSysctl;

use crate::container::plan::Sysctl;
use crate::error::{Error, Result};

/// Sets them all. Interfaces have their names by now, and are neither up nor have they addresses.
pub(super) fn set_all(requested: &[NetworkSysctl]) -> Result<()> {
    let mut named = requested.iter().collect::<Vec<_>>();
    named.sort_by_key(|sysctl| order(&sysctl.path));
    let sysctls = named.into_iter().map(|sysctl| Sysctl::of_network(&sysctl.path, &sysctl.value));
    set(sysctls.collect::<std::result::Result<_, _>>()?, Sysctl::set)
}

/// What sets others comes before what it sets: those of the whole namespace (`ip_forward`), those that all interfaces and
/// then those to come take over; a secret that makes addresses says how they are made.
fn order(path: &[String]) -> (u8, bool) {
    let words = path.iter().map(String::as_str).collect::<Vec<_>>();
    let reach = match words.as_slice() {
        [_, "conf" | "neigh", "all", ..] => 1,
        [_, "conf" | "neigh", "default", ..] => 2,
        [_, "conf" | "neigh", ..] => 3,
        _ => 0,
    };
    (reach, words.last() != Some(&"stable_secret"))
}

/// Sets them one after the other. The kernel may refuse one because of what another still is (the two ends of a range):
/// such a one comes once more when the others are set, as long as that gets any further.
fn set(mut sysctls: Vec<Sysctl>, set_one: impl Fn(&Sysctl) -> io::Result<()>) -> Result<()> {
    loop {
        let count = sysctls.len();
        let mut refused = Vec::new();
        for sysctl in sysctls {
            if let Err(error) = set_one(&sysctl) {
                refused.push((sysctl, error));
            }
        }
        match refused.first() {
            None => return Ok(()),
            Some((sysctl, error)) if refused.len() == count => return Err(refusal(sysctl, error)),
            Some(_) => sysctls = refused.into_iter().map(|(sysctl, _)| sysctl).collect(),
        }
    }
}

fn refusal(sysctl: &Sysctl, error: &io::Error) -> Error {
    // The file being there, it is what the value names that is not (`tcp_congestion_control`).
    let problem = if error.kind() == io::ErrorKind::NotFound && !sysctl.path.exists() {
        "does not have".to_owned()
    } else {
        format!("refuses ({error})")
    };
    Error::NetworkSysctl {
        name: sysctl.name().to_string(),
        value: sysctl.value.trim_end().to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn sysctls(named: &[(&str, &str)]) -> Vec<NetworkSysctl> {
        let one = |(name, value): &(&str, &str)| NetworkSysctl {
            path: name.split('/').map(str::to_owned).collect(),
            value: (*value).to_owned(),
            ..NetworkSysctl::default()
        };
        named.iter().map(one).collect()
    }

    fn read(named: &[(&str, &str)]) -> Vec<Sysctl> {
        sysctls(named).iter().map(|one| Sysctl::of_network(&one.path, &one.value).unwrap()).collect()
    }

    #[test]
    fn what_sets_others_comes_before_what_it_sets() {
        let mut named = sysctls(&[
            ("ipv4/conf/eth0/forwarding", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/stable_secret", "::1"),
            ("ipv4/neigh/eth0/gc_stale_time", "7"),
            ("ipv6/conf/all/forwarding", "1"),
            ("core/somaxconn", "7"),
            ("ipv6/conf/lo/accept_ra", "1"),
            ("ipv4/ip_forward", "1"),
        ]);
        named.sort_by_key(|sysctl| order(&sysctl.path));
        let names: Vec<String> = named.iter().map(|sysctl| sysctl.path.join("/")).collect();
        assert_eq!(
            names,
            [
                "core/somaxconn",
                "ipv4/ip_forward",
                "ipv6/conf/all/forwarding",
                "ipv6/conf/default/stable_secret",
                "ipv6/conf/default/accept_ra",
                "ipv4/conf/eth0/forwarding",
                "ipv4/neigh/eth0/gc_stale_time",
                "ipv6/conf/lo/accept_ra",
            ]
        );
    }

    #[test]
    fn one_that_waits_for_another_is_set_after_it_and_one_that_waits_for_nothing_is_refused_by_name() {
        let done = RefCell::new(Vec::new());
        // Each wants the one before: they come in the worst order.
        let chain = read(&[("c", "3"), ("b", "2"), ("a", "1")]);
        set(chain.clone(), |sysctl| {
            let wanted = sysctl.value.parse::<usize>().unwrap() - 1;
            if done.borrow().len() != wanted {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            done.borrow_mut().push(sysctl.name().to_string());
            Ok(())
        })
        .unwrap();
        assert_eq!(*done.borrow(), ["net/a", "net/b", "net/c"]);

        let calls = RefCell::new(0);
        let error = set(chain, |sysctl| {
            *calls.borrow_mut() += 1;
            if sysctl.value == "2" { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "the pod's network namespace has the sysctl net/c set to \"3\", which the guest's kernel refuses (Invalid \
             argument (os error 22)): take it out of the CNI configuration (plugin tuning), or of what else sets it"
        );
        assert_eq!(*calls.borrow(), 5, "three, and the two that are left once more");
    }
}
