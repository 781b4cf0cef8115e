//! The whole configuration, in a network namespace of the test's own.

use std::process::Command;

use saya_agent_api::agent::{ConfigureNetworkRequest, Interface, IpAddress, Neighbour, NetworkSysctl, Route};

use super::configure;

/// Runs `test` on a thread in a new network namespace with two devices, d0 and d1. Machines without root, the `ip`
/// tool or dummy devices skip it.
fn in_namespace(test: fn()) {
    std::thread::spawn(move || {
        // SAFETY: takes no pointer; it changes the namespace of this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        for (name, mac) in [("d0", "02:00:00:00:00:01"), ("d1", "02:00:00:00:00:02")] {
            if ip(&format!("link add {name} address {mac} type veth peer name p{name}")).is_none() {
                eprintln!("skipped: needs ip and veth devices");
                return;
            }
        }
        test();
    })
    .join()
    .unwrap();
}

fn ip(arguments: &str) -> Option<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn interface(name: &str, last: u8, addresses: &[(&[u8], u32)]) -> Interface {
    let address = |(bytes, length): &(&[u8], u32)| IpAddress {
        address: bytes.to_vec(),
        prefix_length: *length,
        broadcast: if bytes.len() == 4 { vec![10, 0, 0, 255] } else { Vec::new() },
        ..IpAddress::default()
    };
    Interface {
        name: name.to_owned(),
        mac_address: vec![2, 0, 0, 0, 0, last],
        mtu: 1400,
        addresses: addresses.iter().map(address).collect(),
        ..Interface::default()
    }
}

fn route(destination: &[u8], prefix_length: u32, gateway: &[u8], interface: &str) -> Route {
    Route {
        destination: destination.to_vec(),
        prefix_length,
        gateway: gateway.to_vec(),
        interface: interface.to_owned(),
        ipv6: destination.len() == 16 || gateway.len() == 16,
        kind: 1,
        protocol: 3,
        ..Route::default()
    }
}

fn v6(last: u8) -> Vec<u8> {
    let mut address = vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    address[15] = last;
    address
}

fn request() -> ConfigureNetworkRequest {
    let mut onlink = route(&[192, 168, 7, 0], 24, &[169, 254, 1, 1], "d0");
    onlink.flags = 4 | 1;
    onlink.metric = 77;
    onlink.mtu = 1300;
    let mut blackhole = route(&[172, 16, 0, 0], 12, &[], "");
    blackhole.kind = 6;
    let mut connected = route(&[10, 0, 0, 0], 24, &[], "d0");
    connected.scope = 253;
    let elsewhere = Route { interface: "eth7".to_owned(), ..connected.clone() };
    ConfigureNetworkRequest {
        // The names are the other way round: d1 becomes d0, and d0 becomes eth7.
        interfaces: vec![
            interface("d0", 2, &[(&[10, 0, 0, 2], 24), (&v6(2), 64)]),
            interface("eth7", 1, &[(&[10, 1, 0, 2], 32)]),
        ],
        routes: vec![
            connected,
            elsewhere,
            route(&v6(0), 64, &[], "d0"),
            route(&[], 0, &[10, 0, 0, 1], "d0"),
            route(&[], 0, &v6(1), "d0"),
            route(&[10, 9, 0, 0], 16, &[], "eth7"),
            onlink,
            blackhole,
        ],
        neighbours: vec![Neighbour {
            address: vec![10, 0, 0, 1],
            mac_address: vec![2, 9, 9, 9, 9, 9],
            interface: "d0".to_owned(),
            state: 0x80,
            ..Neighbour::default()
        }],
        ..ConfigureNetworkRequest::default()
    }
}

#[test]
fn the_guest_gets_what_the_hosts_namespace_has() {
    in_namespace(|| {
        // Asked twice, it is the same.
        for _ in 0..2 {
            configure(&request()).unwrap();
            let link = ip("-o link show d0").unwrap();
            assert!(
                link.contains("02:00:00:00:00:02") && link.contains("mtu 1400") && link.contains("UP"),
                "{link}"
            );
            assert!(ip("-o link show eth7").unwrap().contains("02:00:00:00:00:01"));
            let addresses = ip("-o address show dev d0").unwrap();
            assert!(addresses.contains("inet 10.0.0.2/24 brd 10.0.0.255"), "{addresses}");
            assert!(
                addresses.contains("inet6 fd00::2/64") && !addresses.contains("tentative"),
                "{addresses}"
            );
            let routes = ip("route show").unwrap();
            assert_eq!(routes.lines().count(), 6, "no more than was asked for: {routes}");
            for expected in [
                "default via 10.0.0.1 dev d0",
                "10.0.0.0/24 dev d0",
                "10.0.0.0/24 dev eth7",
                "10.9.0.0/16 dev eth7",
                "192.168.7.0/24 via 169.254.1.1 dev d0 metric 77 onlink mtu 1300",
                "blackhole 172.16.0.0/12",
            ] {
                let words = |line: &str| {
                    line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
                };
                let has = |line: &str| words(expected).iter().all(|word| words(line).contains(word));
                assert!(routes.lines().any(has), "{expected}: {routes}");
            }
            assert!(ip("-6 route show default").unwrap().contains("via fd00::1 dev d0"));
            assert!(ip("neigh show dev d0").unwrap().contains("10.0.0.1 lladdr 02:09:09:09:09:09 PERMANENT"));
        }
    });
}

fn sysctl(name: &str, value: &str) -> NetworkSysctl {
    NetworkSysctl {
        path: name.split('/').map(str::to_owned).collect(),
        value: value.to_owned(),
        ..NetworkSysctl::default()
    }
}

/// In the calling thread's namespace.
fn read(name: &str) -> String {
    let output = Command::new("cat").arg(format!("/proc/sys/net/{name}")).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn sysctls_are_set_by_the_names_that_interfaces_get_and_before_these_have_addresses() {
    in_namespace(|| {
        let mut request = request();
        request.sysctls = vec![
            // Only after the next one may it be as low.
            sysctl("ipv4/ip_local_port_range", "600\t700\n"),
            sysctl("ipv4/ip_unprivileged_port_start", "500\n"),
            // The name that the interface gets.
            sysctl("ipv4/conf/eth7/arp_ignore", "2\n"),
            sysctl("ipv4/neigh/eth7/gc_stale_time", "77\n"),
            sysctl("ipv6/conf/eth7/addr_gen_mode", "1\n"),
            sysctl("ipv6/conf/eth7/accept_dad", "2\n"),
            // All interfaces follow, and one is set apart.
            sysctl("ipv4/conf/d0/forwarding", "0\n"),
            sysctl("ipv4/ip_forward", "1\n"),
            sysctl("ipv4/ip_local_reserved_ports", "10,12,14,16,18,20,22,24,26,28,30,32,34,36,38,40\n"),
        ];
        // Asked twice, it is the same.
        for _ in 0..2 {
            configure(&request).unwrap();
            for sysctl in &request.sysctls {
                assert_eq!(read(&sysctl.path.join("/")), sysctl.value, "{:?}", sysctl.path);
            }
            assert_eq!(read("ipv4/conf/eth7/forwarding"), "1\n");
        }
        // They are there before addresses are.
        request.sysctls.push(sysctl("ipv6/conf/all/disable_ipv6", "1\n"));
        let text = configure(&request).unwrap_err().to_string();
        assert!(text.starts_with("cannot give d0 the address fd00::2/64"), "{text}");
    });
}

#[test]
fn a_sysctl_that_this_kernel_does_not_have_is_named_with_its_remedy() {
    in_namespace(|| {
        let refusal = |name, value| {
            let request = ConfigureNetworkRequest {
                sysctls: vec![sysctl("core/somaxconn", "7\n"), sysctl(name, value)],
                ..ConfigureNetworkRequest::default()
            };
            configure(&request).unwrap_err().to_string()
        };
        let text = refusal("mptcp/no_such_setting", "7\n");
        assert_eq!(
            text,
            "the pod's network namespace has the sysctl net/mptcp/no_such_setting set to \"7\", which the guest's kernel does not \
             have: take it out of the CNI configuration (plugin tuning), or of what else sets it"
        );
        let text = refusal("ipv4/tcp_congestion_control", "no-such\n");
        assert!(text.contains(
            "tcp_congestion_control set to \"no-such\", which the guest's kernel refuses (No such file"
        ));
        assert_eq!(
            refusal("../kernel/hostname", "x"),
            "[\"..\", \"kernel\", \"hostname\"] is no path of a network sysctl"
        );
    });
}

#[test]
fn what_cannot_be_configured_is_named() {
    in_namespace(|| {
        let only = |interface: Interface| ConfigureNetworkRequest {
            interfaces: vec![interface],
            ..ConfigureNetworkRequest::default()
        };
        let message = |request: ConfigureNetworkRequest| configure(&request).unwrap_err().to_string();
        assert_eq!(
            message(only(interface("eth0", 9, &[]))),
            "interface \"eth0\": no device of the guest has the MAC address 02:00:00:00:00:09"
        );
        assert_eq!(
            message(only(interface("a-name-that-is-too-long", 1, &[]))),
            "\"a-name-that-is-too-long\" is not a name for an interface"
        );
        assert_eq!(
            message(only(interface("d0", 1, &[(&[10, 0, 0, 1], 33)]))),
            "an address of d0 has the prefix length 33; 32 is the largest"
        );
        let mut lost = request();
        lost.interfaces[0].addresses[0].broadcast = vec![1; 65_532];
        assert_eq!(message(lost), "an address of d0 has 65532 bytes; an address has 4 or 16");
        let mut lost = request();
        lost.interfaces[0].addresses[0].broadcast = v6(9);
        assert_eq!(message(lost), "an address of d0: fd00::9 is not an address of IPv4");
        let mut lost = request();
        lost.neighbours[0].mac_address = vec![2; 65_532];
        assert_eq!(message(lost), "a neighbour on d0 has a MAC address of 65532 bytes; it has 6");
        let mut lost = request();
        lost.routes = vec![route(&[10, 9, 0, 0], 16, &v6(1), "d0")];
        lost.routes[0].ipv6 = false;
        assert_eq!(message(lost), "10.9.0.0/16 via fd00::1 dev d0: fd00::1 is not an address of IPv4");
        let mut lost = request();
        lost.routes = vec![route(&[], 0, &[192, 0, 2, 1], "d0")];
        let text = message(lost);
        assert!(
            text.starts_with("cannot add the route default via 192.0.2.1 dev d0: Network is unreachable"),
            "{text}"
        );
        let mut lost = request();
        lost.routes = vec![route(&[10, 0, 0, 0], 8, &[], "eth9")];
        assert_eq!(message(lost), "there is no interface \"eth9\" in the guest");
    });
}
