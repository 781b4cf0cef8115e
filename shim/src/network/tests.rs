//! Tests in network namespaces that they make: one is the pod's, the other what is around it. Where namespaces
//! cannot be made, or without ip(8) and tc(8), they say so and end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::error::{InterfaceProblem, NetworkError, RouteProblem};
use super::firewall::PacketFilters;
use super::namespace::NetworkNamespace;
use super::{Note, PodNetwork, Settings, clean_up, connect, connect_later, interfaces_of};

/// A tap with one queue.
const SINGLE: Settings = Settings { queues: 1, packet_filters: PacketFilters::Refused };

/// For whom nobody cleans up.
const UNNOTED: Note<'static> = &|_| Ok(());

/// A pod's namespace with a veth `eth0`, and the namespace with the other end, `host0`, in which the test's own thread
/// is until the test ends.
struct Pod {
    file: File,
    home: File,
}

const MAC: &str = "02:00:00:00:00:05";

impl Pod {
    /// `None`: it cannot be made here.
    fn new() -> Option<Self> {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok::<_, nix::Error>(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let file = match made.join().unwrap() {
            Ok(file) => file,
            Err(error) => {
                eprintln!("skipped: a network namespace cannot be made: {error}");
                return None;
            }
        };
        if Command::new("ip").arg("-V").output().is_err() || Command::new("tc").arg("-V").output().is_err() {
            eprintln!("skipped: iproute2 is not installed");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let pod = Self { file, home };
        run("ip link add host0 type veth peer name peer0");
        run(&format!("ip link set peer0 address {MAC} netns {}", pod.path().display()));
        run("ip link set host0 up");
        pod.run("ip link set peer0 name eth0");
        pod.run("ip link set lo up");
        pod.run("ip link set eth0 up");
        Some(pod)
    }

    /// A path to the namespace's file that other processes can use.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs a command in the pod's namespace.
    fn run(&self, command: &str) -> String {
        let namespace = NetworkNamespace::open(&self.path()).unwrap();
        namespace.run(|| Ok(run(command))).unwrap()
    }

    /// Another test's child process may hold a tap's descriptors until it calls exec.
    fn wait_until_taps_are_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.run("ip -br link show").contains("sayatap") {
            assert!(Instant::now() < deadline, "a tap outlives its descriptors");
            thread::yield_now();
        }
    }

    fn connect(&self) -> Result<PodNetwork, NetworkError> {
        connect(&self.path(), SINGLE, UNNOTED)
    }

    /// What `connect` refuses, after which nothing of it is left.
    fn refusal(&self) -> NetworkError {
        let error = self.connect().unwrap_err();
        self.assert_clean();
        error
    }

    /// No tap and no redirection are there.
    fn assert_clean(&self) {
        let links = self.run("ip -br link show");
        assert!(!links.contains("sayatap"), "{links}");
        let disciplines = self.run("tc qdisc show");
        assert!(!disciplines.contains("ingress"), "{disciplines}");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    }
}

/// Runs a command in the thread's namespace.
fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The problem with the interface of this name.
fn problem_of(error: &NetworkError, name: &str) -> InterfaceProblem {
    match error {
        NetworkError::Interface { interface, problem } if interface == name => problem.clone(),
        other => panic!("{other}"),
    }
}

/// A socket for the frames of an interface in the thread's namespace.
struct PacketSocket(OwnedFd);

impl PacketSocket {
    fn new(interface: &str) -> Self {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: socket(2) touches no memory.
        let socket =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: sockaddr_ll is a plain C structure for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface).unwrap() as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to an address of that length.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(30)),
        )
        .unwrap();
        Self(socket)
    }

    /// The next frame of the test's own type.
    fn receive(&self) -> Vec<u8> {
        loop {
            let mut frame = vec![0; 2000];
            let (length, _) = rustix::net::recv(&self.0, &mut frame[..], rustix::net::RecvFlags::empty())
                .expect("no frame came");
            frame.truncate(length);
            if frame[12..14] == [0x88, 0xb5] {
                return frame;
            }
        }
    }
}

/// A frame of a type that no protocol of the kernel's takes.
fn frame(to: [u8; 6], tag: u8) -> Vec<u8> {
    let mut frame = vec![tag; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame
}

/// The next frame of the test's own type that the guest would get, without its header.
fn read_tap(tap: &OwnedFd) -> Vec<u8> {
    let mut file = File::from(tap.try_clone().unwrap());
    loop {
        let patience = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        let mut poll = [rustix::event::PollFd::new(tap, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut poll, Some(&patience)).unwrap(), 1, "no frame came");
        let mut frame = vec![0; 2000];
        let length = file.read(&mut frame).unwrap();
        // The header has 10 bytes before the VMM asks for 12.
        let frame = frame[10..length].to_vec();
        if frame[12..14] == [0x88, 0xb5] {
            return frame;
        }
    }
}

fn write_tap(tap: &OwnedFd, frame: &[u8]) {
    let mut file = File::from(tap.try_clone().unwrap());
    file.write_all(&[&[0; 10][..], frame].concat()).unwrap();
}

#[test]
fn addresses_routes_and_neighbours_are_the_pods() {
    let Some(pod) = Pod::new() else { return };
    for command in [
        "ip link set eth0 mtu 9000",
        "ip address add 10.1.2.3/24 broadcast 10.1.2.255 dev eth0",
        "ip address add 10.1.3.3/16 dev eth0",
        "ip address add fd00::3/64 dev eth0 nodad",
        "ip route add default via 10.1.2.1",
        "ip route add 192.0.2.0/24 via 198.51.100.1 dev eth0 onlink metric 7 mtu 1400 src 10.1.2.3",
        "ip route add 198.51.100.0/30 dev eth0",
        "ip route add blackhole 203.0.113.0/24",
        "ip -6 route add default via fd00::1",
        "ip neighbour add 10.1.2.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "ip neighbour add fd00::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "ip neighbour add 10.1.2.2 lladdr 02:00:00:00:00:02 dev eth0 nud stale",
    ] {
        pod.run(command);
    }
    let network = pod.connect().unwrap();
    let [interface] = network.interfaces.as_slice() else { panic!("{:?}", network.interfaces) };
    assert_eq!((interface.name.as_str(), interface.mac, interface.mtu), ("eth0", [2, 0, 0, 0, 0, 5], 9000));
    assert_eq!(interface.queues.len(), 1);

    let configuration = &network.configuration;
    let [described] = configuration.interfaces.as_slice() else { panic!("{configuration:?}") };
    assert_eq!(
        (described.mac_address.as_slice(), described.name.as_str()),
        (&[2, 0, 0, 0, 0, 5][..], "eth0")
    );
    assert_eq!(described.mtu, 9000);
    let fd00 = |last| [&[0xfd_u8, 0][..], &[0; 13], &[last]].concat();
    let addresses: Vec<_> = described
        .addresses
        .iter()
        .map(|a| (a.address.clone(), a.prefix_length, a.broadcast.clone()))
        .collect();
    let expected = [
        (vec![10, 1, 2, 3], 24, vec![10, 1, 2, 255]),
        (vec![10, 1, 3, 3], 16, vec![]),
        (fd00(3), 64, vec![]),
    ];
    assert_eq!(addresses, expected, "without the link-local one, which the guest makes itself");

    let find = |destination: &[u8], ipv6: bool| {
        let mut found = configuration
            .routes
            .iter()
            .filter(|route| route.destination == destination && route.ipv6 == ipv6);
        let route = found.next().unwrap_or_else(|| panic!("no route to {destination:?}: {configuration:?}"));
        assert!(found.next().is_none());
        route
    };
    let default = find(&[], false);
    assert_eq!((default.gateway.as_slice(), default.interface.as_str()), (&[10, 1, 2, 1][..], "eth0"));
    assert_eq!(find(&[], true).gateway, fd00(1));
    let onlink = find(&[192, 0, 2, 0], false);
    assert_eq!((onlink.prefix_length, onlink.metric, onlink.mtu, onlink.flags), (24, 7, 1400, 4));
    assert_eq!(onlink.preferred_source, [10, 1, 2, 3]);
    assert_eq!(u32::from(libc::RT_SCOPE_LINK), find(&[198, 51, 100, 0], false).scope);
    let blackhole = find(&[203, 0, 113, 0], false);
    assert_eq!((blackhole.kind, blackhole.interface.as_str()), (u32::from(libc::RTN_BLACKHOLE), ""));
    let connected = find(&[10, 1, 2, 0], false);
    assert_eq!((connected.prefix_length, connected.preferred_source.as_slice()), (24, &[10, 1, 2, 3][..]));
    assert_eq!((find(&[10, 1, 0, 0], false).prefix_length, find(&fd00(0), true).prefix_length), (16, 64));
    assert_eq!(configuration.routes.len(), 8, "the others are made by the guest: {:?}", configuration.routes);
    let first_gateway = configuration.routes.iter().position(|route| !route.gateway.is_empty()).unwrap();
    assert!(configuration.routes[first_gateway..].iter().all(|route| !route.gateway.is_empty()));

    let mut neighbours: Vec<_> =
        configuration.neighbours.iter().map(|n| (n.address.clone(), n.mac_address[5], n.state)).collect();
    neighbours.sort();
    assert_eq!(neighbours, [(vec![10, 1, 2, 1], 1, 0x80), (fd00(1), 1, 0x80)]);
    network.disconnect().unwrap();
    pod.assert_clean();
}

#[test]
fn frames_pass_between_the_network_and_the_guest_and_pass_the_pod_by() {
    let Some(pod) = Pod::new() else { return };
    let network = pod.connect().unwrap();
    let tap = &network.interfaces[0].queues[0];
    let outside = PacketSocket::new("host0");
    for tag in 0..3 {
        write_tap(tap, &frame([0xff; 6], tag));
        assert_eq!(outside.receive(), frame([0xff; 6], tag));
        for to in [[0xff; 6], [2, 0, 0, 0, 0, 5], [2, 0, 0, 0, 0, 77]] {
            rustix::net::send(&outside.0, &frame(to, tag), rustix::net::SendFlags::empty()).unwrap();
            assert_eq!(read_tap(tap), frame(to, tag));
        }
    }
    network.disconnect().unwrap();
}

#[test]
fn several_queues_are_those_of_one_tap() {
    let Some(pod) = Pod::new() else { return };
    let network = connect(&pod.path(), Settings { queues: 3, ..SINGLE }, UNNOTED).unwrap();
    assert_eq!(network.interfaces[0].queues.len(), 3);
    let taps = pod.run("ip -br link show type tun");
    assert_eq!(taps.lines().count(), 1, "{taps}");
    network.disconnect().unwrap();
    pod.assert_clean();
}

#[test]
fn the_tap_has_no_address_of_its_own_and_says_nothing_to_the_guest() {
    let Some(pod) = Pod::new() else { return };
    let network = pod.connect().unwrap();
    let taps = pod.run("ip -d address show type tun");
    assert!(taps.contains("sayatap") && taps.contains("UP"), "{taps}");
    assert!(!taps.contains("inet"), "{taps}");
    network.disconnect().unwrap();
}

#[test]
fn a_namespace_without_interfaces_is_a_network_without_interfaces() {
    let Some(pod) = Pod::new() else { return };
    pod.run("ip link delete eth0");
    let network = pod.connect().unwrap();
    assert!(network.interfaces.is_empty());
    assert_eq!(network.configuration, saya_agent_api::agent::ConfigureNetworkRequest::default());
    network.disconnect().unwrap();
}

#[test]
fn several_interfaces_are_all_carried_over() {
    let Some(pod) = Pod::new() else { return };
    pod.run("ip link add link eth0 name unused type macvlan");
    let error = pod.refusal();
    assert_eq!(problem_of(&error, "unused"), InterfaceProblem::Rests);
    pod.run("ip link delete unused");
    run("ip link add link host0 name below type macvlan");
    run(&format!("ip link set below netns {}", pod.path().display()));
    pod.run("ip link set below name net1");
    pod.run("ip link set net1 address 02:00:00:00:00:06 up");
    pod.run("ip address add 10.9.0.1/24 dev net1");
    let network = pod.connect().unwrap();
    let names: Vec<&str> = network.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"eth0") && names.contains(&"net1"));
    network.disconnect().unwrap();
    pod.assert_clean();
}

#[test]
fn what_cannot_be_carried_over_is_named_and_leaves_nothing_behind() {
    let Some(pod) = Pod::new() else { return };
    let refused = |before: &str, name: &str, after: &str| {
        pod.run(before);
        let problem = problem_of(&pod.refusal(), name);
        pod.run(after);
        problem
    };
    let kind = refused("ip link add br0 type bridge", "br0", "ip link delete br0");
    assert_eq!(kind, InterfaceProblem::Kind("bridge".into()));
    let kind = refused("ip tuntap add tun7 mode tun", "tun7", "ip link delete tun7");
    assert_eq!(kind, InterfaceProblem::Kind("tun".into()));
    let down = refused("ip link set eth0 down", "eth0", "ip link set eth0 up");
    assert_eq!(down, InterfaceProblem::Down);
    let peer = refused(
        "ip address add 10.0.0.1 peer 10.0.0.2/32 dev eth0",
        "eth0",
        "ip address del 10.0.0.1 peer 10.0.0.2/32 dev eth0",
    );
    assert_eq!(peer, InterfaceProblem::Peer("10.0.0.1".into(), "10.0.0.2".into()));
    let loopback = refused("ip address add 10.0.0.1/32 dev lo", "lo", "ip address del 10.0.0.1/32 dev lo");
    assert_eq!(loopback, InterfaceProblem::Loopback("10.0.0.1/32".into()));

    pod.run("ip link add br0 type bridge");
    pod.run("ip link set eth0 master br0");
    assert!(matches!(pod.refusal(), NetworkError::Interface { .. }));
    pod.run("ip link delete br0");
    pod.connect().unwrap().disconnect().unwrap();
}

#[test]
fn two_interfaces_with_one_address_are_named() {
    let Some(pod) = Pod::new() else { return };
    run("ip link add other0 type veth peer name peer1");
    run(&format!("ip link set peer1 address {MAC} up netns {}", pod.path().display()));
    pod.run("ip link set peer1 up");
    let error = pod.refusal();
    assert!(error.to_string().contains("eth0") && error.to_string().contains("peer1"), "{error}");
    assert!(error.to_string().contains(MAC), "{error}");
}

#[test]
fn routes_and_rules_that_cannot_be_carried_over_are_named() {
    let Some(pod) = Pod::new() else { return };
    pod.run("ip address add 10.1.2.3/24 dev eth0");
    let several = "192.0.2.0/24 nexthop via 10.1.2.1 nexthop via 10.1.2.2";
    let routes = [
        (several, RouteProblem::SeveralHops, "192.0.2.0/24"),
        ("192.0.2.0/25 via 10.1.2.1 tos 8", RouteProblem::Selector, "192.0.2.0/25"),
        ("192.0.2.0/26 via 10.1.2.1 table 7", RouteProblem::Table(7), "192.0.2.0/26"),
        ("192.0.2.0/27 via inet6 fe80::1 dev eth0", RouteProblem::OtherFamily, "192.0.2.0/27"),
    ];
    for (route, expected, destination) in routes {
        pod.run(&format!("ip route add {route}"));
        match pod.refusal() {
            NetworkError::Route { destination: named, problem } => {
                assert_eq!((named.as_str(), problem), (destination, expected));
            }
            other => panic!("{other}"),
        }
        pod.run(&format!("ip route del {route}"));
    }
    pod.run("ip route add 192.0.2.0/24 via 10.1.2.1 advmss 1000");
    let error = pod.refusal().to_string();
    assert!(error.contains("192.0.2.0/24") && error.contains("Advmss(1000)"), "{error}");
    pod.run("ip route del 192.0.2.0/24");

    pod.run("ip -6 rule add from fd00::7 table 7 priority 99");
    assert!(matches!(pod.refusal(), NetworkError::Rule { family: "IPv6", priority: 99 }));
    pod.run("ip -6 rule del priority 99");
    pod.run("ip rule add from 10.1.2.3 table 7 priority 32766");
    assert!(matches!(pod.refusal(), NetworkError::Rule { family: "IPv4", priority: 32_766 }));
}

#[test]
fn an_interface_belongs_to_one_sandbox_at_a_time() {
    let Some(pod) = Pod::new() else { return };
    let network = pod.connect().unwrap();
    let error = pod.connect().unwrap_err();
    assert!(matches!(&error, NetworkError::Interface { problem: InterfaceProblem::InUse(_), .. }), "{error}");
    let tap = &network.interfaces[0].queues[0];
    let outside = PacketSocket::new("host0");
    write_tap(tap, &frame([0xff; 6], 1));
    assert_eq!(outside.receive(), frame([0xff; 6], 1), "the first is not disturbed");
    network.disconnect().unwrap();
    pod.connect().unwrap().disconnect().unwrap();
}

#[test]
fn what_a_killed_sandbox_leaves_is_cleaned_up_or_replaced() {
    let Some(pod) = Pod::new() else { return };
    let crash = || {
        // The descriptors close, as they do when shim and VMM are killed.
        drop(pod.connect().unwrap());
        pod.wait_until_taps_are_gone();
        let disciplines = pod.run("tc qdisc show");
        assert!(disciplines.contains("ingress"), "{disciplines}");
    };
    crash();
    clean_up(&pod.path(), &[]).unwrap();
    pod.assert_clean();
    clean_up(&pod.path(), &[]).unwrap();
    crash();
    let network = pod.connect().unwrap();
    let outside = PacketSocket::new("host0");
    write_tap(&network.interfaces[0].queues[0], &frame([0xff; 6], 1));
    assert_eq!(outside.receive(), frame([0xff; 6], 1));
    network.disconnect().unwrap();
    pod.assert_clean();
}

#[test]
fn what_a_sandbox_killed_while_it_ties_an_interface_leaves_is_cleaned_up() {
    let Some(pod) = Pod::new() else { return };
    let noted = Mutex::new(Vec::new());
    let note: Note<'_> = &|indices| {
        noted.lock().unwrap().push(indices.to_vec());
        Ok(())
    };
    let network = connect(&pod.path(), SINGLE, note).unwrap();
    let index = network.interfaces[0].index;
    assert_eq!(noted.lock().unwrap().as_slice(), [[index]], "before there is anything");
    network.disconnect().unwrap();

    pod.run("tc qdisc add dev eth0 ingress");
    clean_up(&pod.path(), &[]).unwrap();
    assert!(pod.run("tc qdisc show dev eth0").contains("ingress"), "nobody has said that it is a sandbox's");
    connect(&pod.path(), SINGLE, note).unwrap_err();
    assert_eq!(noted.lock().unwrap().last(), Some(&Vec::new()), "it is somebody else's");
    pod.run("tc filter add dev eth0 ingress protocol all prio 1 u32 match u8 0 0 flowid :1");
    clean_up(&pod.path(), &[index]).unwrap();
    assert!(pod.run("tc qdisc show dev eth0").contains("ingress"), "it has a filter of somebody else's");
    pod.run("tc filter del dev eth0 ingress");
    clean_up(&pod.path(), &[index, index + 1]).unwrap();
    pod.assert_clean();
    clean_up(&pod.path(), &[index]).unwrap();
}

#[test]
fn somebody_elses_ingress_discipline_is_named_and_left_alone() {
    let Some(pod) = Pod::new() else { return };
    pod.run("tc qdisc add dev eth0 ingress");
    let error = pod.connect().unwrap_err();
    assert_eq!(problem_of(&error, "eth0"), InterfaceProblem::Ingress("eth0".into()));
    clean_up(&pod.path(), &[]).unwrap();
    let disciplines = pod.run("tc qdisc show dev eth0");
    assert!(disciplines.contains("ingress"), "{disciplines}");
    assert!(!pod.run("ip -br link show").contains("sayatap"));
}

#[test]
fn the_hosts_own_namespace_is_refused_by_its_path() {
    let path = format!("/proc/{}/ns/net", std::process::id());
    let error = connect(path.as_ref(), SINGLE, UNNOTED).unwrap_err();
    assert!(matches!(error, NetworkError::HostsOwn { .. }) && error.to_string().contains(&path), "{error}");
}

#[test]
fn a_path_that_is_no_namespace_is_named() {
    let error = connect("/nonexistent/netns".as_ref(), SINGLE, UNNOTED).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/netns"), "{error}");
    assert!(matches!(connect("/dev/null".as_ref(), SINGLE, UNNOTED), Err(NetworkError::Namespace { .. })));
    assert!(matches!(connect("/proc/self/ns/uts".as_ref(), SINGLE, UNNOTED), Err(NetworkError::Host { .. })));
    for gone in ["/nonexistent/netns", "/dev/null"] {
        clean_up(gone.as_ref(), &[1]).unwrap();
    }
}

#[test]
fn a_connection_to_any_port_of_loopback_arrives_and_names_its_port() {
    use std::net::{TcpListener, TcpStream};

    let Some(pod) = Pod::new() else { return };
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let namespace = pod.connect().unwrap().namespace().unwrap();
    let loopback = namespace.listen_on_loopback().unwrap();
    loopback.listener.set_nonblocking(false).unwrap();
    let taken = own.local_addr().unwrap().to_string();
    let (clients, _) = namespace
        .run(|| {
            let addresses = ["127.0.0.1:80", "[::1]:65535", &taken];
            Ok((addresses.map(|address| TcpStream::connect(address).unwrap()), ()))
        })
        .unwrap();
    for client in &clients {
        let (accepted, _) = loopback.listener.accept().unwrap();
        assert_eq!(accepted.local_addr().unwrap().port(), client.peer_addr().unwrap().port());
    }
    drop((loopback, clients));
    // Another test's child process may hold the descriptors until it calls exec.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !namespace.run(|| Ok(TcpStream::connect("127.0.0.1:80").is_err())).unwrap() {
        assert!(Instant::now() < deadline, "something is left in the namespace");
        thread::yield_now();
    }
}

#[test]
fn interfaces_of_another_namespace_are_named_and_our_own_are_nobodys_business() {
    let Some(pod) = Pod::new() else { return };
    let namespace = NetworkNamespace::open(&pod.path()).unwrap();
    let mut child = namespace.run(|| Ok(Command::new("sleep").arg("1000").spawn().unwrap())).unwrap();
    let of_child = interfaces_of(child.id()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(of_child, ["eth0"]);
    assert_eq!(interfaces_of(std::process::id()).unwrap(), Vec::<String>::new());
}

#[test]
fn an_interface_that_comes_later_is_tied_beside_those_that_are() {
    let Some(pod) = Pod::new() else { return };
    let mut network = pod.connect().unwrap();
    assert!(
        connect_later(&pod.path(), &network.known(), SINGLE, UNNOTED).unwrap().is_none(),
        "nothing has come"
    );

    run("ip link add late0 type veth peer name late");
    run("ip link set late0 up");
    run(&format!("ip link set late netns {}", pod.path().display()));
    let error = connect_later(&pod.path(), &network.known(), SINGLE, UNNOTED).unwrap_err();
    assert!(matches!(problem_of(&error, "late"), InterfaceProblem::Down), "{error}");
    pod.run("ip link set late up");
    pod.run("ip addr add 10.9.0.2/24 dev late");
    let later = connect_later(&pod.path(), &network.known(), SINGLE, UNNOTED).unwrap().unwrap();
    assert_eq!(later.interfaces.iter().map(|late| late.name.as_str()).collect::<Vec<_>>(), ["late"]);
    let configured: Vec<_> = later.configuration.interfaces.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(configured, ["eth0", "late"], "what is asked of the guest is the whole network");

    network.take_in(later);
    assert!(
        connect_later(&pod.path(), &network.known(), SINGLE, UNNOTED).unwrap().is_none(),
        "both are known"
    );
    network.disconnect().unwrap();
    pod.assert_clean();
}

/// What the guest is told of the sysctls of a network, as `path=value`.
async fn sysctls(network: &PodNetwork) -> Vec<String> {
    let configuration = network.configuration().complete().await.unwrap();
    configuration
        .sysctls
        .iter()
        .map(|one| format!("{}={}", one.path.join("/"), one.value.trim_end()))
        .collect()
}

#[tokio::test]
async fn sysctls_that_have_been_set_in_the_pods_namespace_are_told() {
    let Some(pod) = Pod::new() else { return };
    run("ip link add far type veth peer name near");
    run(&format!("ip link set near address 02:00:00:00:00:06 netns {}", pod.path().display()));
    pod.run("ip link set near name eth0.5 up");
    let network = pod.connect().unwrap();
    assert_eq!(sysctls(&network).await, [""; 0]);

    let ports = (1000..4000).step_by(2).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let set = [
        ("core/somaxconn", "77"),
        ("ipv4/conf/eth0.5/arp_ignore", "2"),
        ("ipv4/ip_local_port_range", "1024\t2048"),
        // Longer than what is read at first.
        ("ipv4/ip_local_reserved_ports", &ports),
        ("ipv4/neigh/eth0/gc_stale_time", "61"),
        ("ipv6/conf/eth0/accept_ra", "0"),
        ("ipv6/conf/eth0/stable_secret", "fd00:0000:0000:0000:0000:0000:0000:0007"),
    ];
    // The tap is nobody's interface but the sandbox's.
    let of_tap = format!("ipv4/conf/sayatap{}/arp_ignore", network.interfaces[0].index);
    let write = |name: &str, value: &str| fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
    let write_all = || {
        set.iter().for_each(|(name, value)| write(name, value));
        write(&of_tap, "2");
        Ok(())
    };
    network.namespace().unwrap().run(write_all).unwrap();
    // The kernel makes addresses with a secret that it has.
    let mut expected = vec!["ipv6/conf/eth0/addr_gen_mode=2".to_owned()];
    expected.extend(set.iter().map(|(name, value)| format!("{name}={value}")));
    expected.sort();
    let mut told = sysctls(&network).await;
    told.sort();
    assert_eq!(told, expected);
    network.disconnect().unwrap();
}
