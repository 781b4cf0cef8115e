//! What counts as set, told by sysctls that are made up.

use proptest::prelude::*;

use super::*;

fn path(name: &str) -> Path {
    name.split('/').map(str::to_owned).collect()
}

fn sysctls(named: &[(&str, &str)]) -> Sysctls {
    named.iter().map(|(name, value)| (path(name), Ok((*value).to_owned()))).collect()
}

/// What is told of `present`, where `new` is what a new namespace has.
fn told(present: &Sysctls, new: &Sysctls) -> Vec<(String, String)> {
    let set = set_since(present, new).unwrap();
    set.into_iter().map(|sysctl| (sysctl.path.join("/"), sysctl.value)).collect()
}

fn names(present: &[(&str, &str)], new: &[(&str, &str)]) -> Vec<String> {
    told(&sysctls(present), &sysctls(new)).into_iter().map(|(name, _)| name).collect()
}

const NEW: [(&str, &str); 9] = [
    ("core/somaxconn", "4096\n"),
    ("ipv4/conf/all/arp_ignore", "0\n"),
    ("ipv4/conf/default/arp_ignore", "0\n"),
    ("ipv4/conf/lo/arp_ignore", "0\n"),
    ("ipv4/neigh/lo/gc_stale_time", "60\n"),
    ("ipv6/conf/default/accept_dad", "1\n"),
    ("ipv6/conf/default/mtu", "1280\n"),
    ("ipv6/conf/lo/accept_dad", "-1\n"),
    ("ipv6/conf/lo/mtu", "65536\n"),
];

#[test]
fn a_namespace_as_new_has_nothing_set() {
    let mut present = NEW.to_vec();
    present.extend([
        ("ipv4/conf/eth0/arp_ignore", "0\n"),
        ("ipv4/neigh/eth0/gc_stale_time", "60\n"),
        ("ipv6/conf/eth0/accept_dad", "1\n"),
        // The link's, of which the guest is told by itself.
        ("ipv6/conf/eth0/mtu", "1400\n"),
    ]);
    assert_eq!(names(&present, &NEW), [""; 0]);
}

#[test]
fn what_is_not_as_in_a_new_namespace_is_told_as_it_was_read() {
    let present = [("core/somaxconn", "128\n"), ("ipv4/ip_local_port_range", "1024\t2048\n")];
    let new = [("core/somaxconn", "4096\n"), ("ipv4/ip_local_port_range", "32768\t60999\n")];
    let expected = present.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(told(&sysctls(&present), &sysctls(&new)), expected);
}

#[test]
fn an_interface_is_compared_with_what_one_begins_with_and_loopback_with_itself() {
    let present = [
        ("ipv4/conf/eth0/arp_ignore", "2\n"),
        ("ipv4/neigh/net1.7/gc_stale_time", "61\n"),
        ("ipv6/conf/eth0/accept_dad", "-1\n"),
        ("ipv6/conf/lo/accept_dad", "-1\n"),
    ];
    assert_eq!(
        names(&present, &NEW),
        ["ipv4/conf/eth0/arp_ignore", "ipv4/neigh/net1.7/gc_stale_time", "ipv6/conf/eth0/accept_dad"]
    );
}

#[test]
fn where_all_interfaces_have_been_changed_each_ones_own_is_told() {
    let interfaces = |all, default| {
        let present = [
            ("ipv4/conf/all/arp_ignore", all),
            ("ipv4/conf/default/arp_ignore", default),
            ("ipv4/conf/eth0/arp_ignore", "0\n"),
            ("ipv4/conf/lo/arp_ignore", "0\n"),
            ("ipv6/conf/eth0/accept_dad", "1\n"),
        ];
        names(&present, &NEW)
    };
    let own = ["ipv4/conf/default/arp_ignore", "ipv4/conf/eth0/arp_ignore", "ipv4/conf/lo/arp_ignore"];
    assert_eq!(interfaces("0\n", "1\n"), own);
    assert_eq!(interfaces("1\n", "0\n"), [&["ipv4/conf/all/arp_ignore"], &own[..]].concat());
}

#[test]
fn what_the_kernel_does_not_tell_in_either_is_not_set_and_what_it_tells_in_one_alone_is() {
    let secrets = |eth0: Result<&str, Errno>| -> Sysctls {
        let secret = |name: &str, value: Result<&str, Errno>| {
            (path(&format!("ipv6/conf/{name}/stable_secret")), value.map(str::to_owned))
        };
        [secret("default", Err(Errno::IO)), secret("eth0", eth0)].into()
    };
    let new = secrets(Err(Errno::IO));
    assert_eq!(told(&secrets(Err(Errno::IO)), &new), []);
    let name = "ipv6/conf/eth0/stable_secret".to_owned();
    assert_eq!(told(&secrets(Ok("::1\n")), &new), [(name, "::1\n".to_owned())]);
    let error = set_since(&secrets(Err(Errno::NOMEM)), &new).unwrap_err().to_string();
    assert!(error.contains("/proc/sys/net/ipv6/conf/eth0/stable_secret"), "{error}");
}

#[test]
fn what_only_one_of_the_namespaces_has_cannot_be_compared() {
    assert_eq!(names(&[("netfilter/nf_log_all_netns", "1\n")], &NEW), [""; 0]);
}

proptest! {
    /// Of sysctls that are no interface's.
    #[test]
    fn nothing_is_told_but_what_differs_and_nothing_that_differs_is_left_out(
        values in proptest::collection::vec((0..3_u8, 0..3_u8), 0..20)
    ) {
        let all = |of: fn(&(u8, u8)) -> u8| -> Sysctls {
            (0..).zip(&values).map(|(n, pair)| (path(&format!("core/{n:02}")), Ok(of(pair).to_string()))).collect()
        };
        let (present, new) = (all(|pair| pair.0), all(|pair| pair.1));
        let differing = values.iter().filter(|(present, new)| present != new).count();
        let told = told(&present, &new);
        prop_assert_eq!(told.len(), differing);
        for (name, value) in told {
            prop_assert_eq!(present.get(&path(&name)), Some(&Ok(value)));
        }
    }
}
