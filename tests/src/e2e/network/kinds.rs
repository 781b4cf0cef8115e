//! The kinds of network that CNI's plugins make.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::peers::{ECHO, ECHO_PORT, VOLUME, exchange, name_server, resolve_from, serve_to};
use super::rules::{Closed, Rules};
use crate::cni::{Attachment, Netns};
use crate::ctr::finish;
use crate::e2e::context::{BUSYBOX, Context, Running, bind, eventually};
use crate::e2e::datagrams;
use crate::e2e::filesystem::with_programs_of_this_machine;

/// What a ping carries that fills a packet of 9000 bytes, IPv6's and ICMP's headers off.
const LARGE: usize = 8952;
/// A port of the host that the plugin portmap passes on, for TCP to [`ECHO_PORT`] and for UDP to [`DATAGRAM_PORT`].
const HOST_PORT: u16 = 18_080;
const DATAGRAM_PORT: u16 = 7001;
/// What the plugin bandwidth lets through each way, in bits a second, and how many bits at once.
const RATE: u64 = 40_000_000;
const BURST: u64 = 8 * 32_768;

/// The subnet of the bridged container.
const BRIDGED: &str = "10.77.0.0/24";

/// bridge, with all the plugins that are chained after it.
pub(super) fn bridge(context: &Context) -> anyhow::Result<()> {
    let rules = Rules::now()?;
    let namespace = Netns::new("saya-bridge")?;
    let ranges = json!([[{"subnet": BRIDGED}], [{"subnet": "fd77::/64"}]]);
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "198.51.100.0/24", "gw": "10.77.0.1"}]);
    let chain = [
        json!({"type": "bridge", "bridge": "sayabr", "isGateway": true, "mtu": 9000,
               "ipam": host_local(context, &ranges, &routes)}),
        json!({"type": "tuning", "mac": "02:77:00:00:00:07", "sysctl": {
            "net.core.somaxconn": "777", "net.ipv4.ip_local_port_range": "20000 30000",
            "net.ipv4.conf.IFNAME.arp_ignore": "1", "net.ipv6.conf.IFNAME.accept_ra": "0"}}),
        json!({"type": "bandwidth", "ingressRate": RATE, "ingressBurst": BURST,
               "egressRate": RATE, "egressBurst": BURST}),
        json!({"type": "firewall", "backend": "iptables"}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true,
               "runtimeConfig": {"portMappings":
                   [{"hostPort": HOST_PORT, "containerPort": ECHO_PORT, "protocol": "tcp"},
                    {"hostPort": HOST_PORT, "containerPort": DATAGRAM_PORT, "protocol": "udp"}]}}),
    ];
    let attachment = Attachment::add(&namespace, "eth0", chain)?;
    let untouched = namespace.contents()?;

    let mut flags = with_programs_of_this_machine();
    let program = std::env::current_exe()?;
    flags.extend([namespace.flag(), "--mount".to_owned(), bind(&program, "/bin/saya-e2e", "rbind:ro")]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let container = context.start(BUSYBOX, "bridged", &flags, &ECHO)?;
    expect_same_network(&container, &namespace, "eth0")?;
    let mac = container.exec("mac", &["cat", "/sys/class/net/eth0/address", "/sys/class/net/eth0/mtu"])?;
    ensure!(mac.text() == "02:77:00:00:00:07\n9000\n", "{mac:?}");
    let files = [
        "core/somaxconn",
        "ipv4/ip_local_port_range",
        "ipv4/conf/eth0/arp_ignore",
        "ipv6/conf/eth0/accept_ra",
    ];
    expect_sysctls(&container, &files, "777\n20000\t30000\n1\n0\n")?;
    let addresses = attachment.addresses()?;
    for (address, gateway) in addresses.iter().zip(["10.77.0.1", "fd77::1"]) {
        expect_ping_from_host(*address, LARGE)?;
        expect_ping(&container, gateway, LARGE)?;
        exchange(SocketAddr::new(*address, ECHO_PORT)).context("TCP into the container")?;
        serve_to(&container, "fetch", gateway.parse()?).context("TCP out of the container")?;
        resolve_from(&container, "resolve", &name_server(gateway.parse()?)?).context("UDP")?;
    }
    let echo = ["/bin/saya-e2e", "--echo-datagrams", &DATAGRAM_PORT.to_string()];
    let mut server = container.exec_command(&[], "datagrams", &echo).spawn()?;
    for gateway in ["10.77.0.1", "fd77::1"] {
        let port = SocketAddr::new(gateway.parse()?, HOST_PORT);
        exchange(port).context("TCP to the host's port")?;
        datagrams::exchange(port).context("UDP to the host's port")?;
    }
    let address = *addresses.first().context("no address")?;
    expect_shaped(address)?;
    expect_let_through(&container)?;
    container.remove()?;
    server.wait()?;

    ensure!(namespace.contents()? == untouched, "left in the namespace: {}", namespace.contents()?);
    let address = address.to_string();
    rules.expect_more_for(&address)?;
    ensure!(leases(context)?.contains(&address), "the address is not taken: {:?}", leases(context)?);
    attachment.delete()?;
    rules.expect_no_more(&["saya-bridge", &address])?;
    ensure!(leases(context)?.is_empty(), "addresses are still taken: {:?}", leases(context)?);
    remove_link("sayabr")
}

/// What the plugin firewall lets through on a host that forwards nothing else: the container reaches a machine in another network
/// behind the host.
fn expect_let_through(container: &Running) -> anyhow::Result<()> {
    let far = Netns::new("saya-far")?;
    let pair = "link add sayafar type veth peer name eth0 netns saya-far";
    for arguments in [pair, "addr add 10.76.0.1/24 dev sayafar", "link set sayafar up"] {
        finish(Command::new("ip").args(arguments.split(' ')))?;
    }
    for arguments in ["addr add 10.76.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.76.0.1"]
    {
        far.ip(arguments)?;
    }
    let _closed = Closed::to(BRIDGED)?;
    far.inside(|| serve_to(container, "far", "10.76.0.2".parse()?)).context("TCP to another network")
}

/// The addresses that the plugin host-local has given out, each of which it notes as a file.
fn leases(context: &Context) -> anyhow::Result<Vec<String>> {
    let networks = fs::read_dir(context.scratch.join("ipam"))?.collect::<Result<Vec<_>, _>>()?;
    let mut leases = Vec::new();
    for network in networks {
        for entry in fs::read_dir(network.path())? {
            leases.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    leases.retain(|name| name.parse::<IpAddr>().is_ok());
    Ok(leases)
}

/// ptp: the gateway is reached by a route to it alone. A virtual machine with two CPUs has two queue pairs.
pub(super) fn point_to_point(context: &Context) -> anyhow::Result<()> {
    let namespace = Netns::new("saya-ptp")?;
    let ranges = json!([[{"subnet": "10.78.0.0/24"}], [{"subnet": "fd78::/64"}]]);
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let ptp = json!({"type": "ptp", "mtu": 9000, "ipam": host_local(context, &ranges, &routes)});
    let attachment = Attachment::add(&namespace, "eth0", [ptp])?;
    // What a service mesh or an administrator may have added.
    namespace.ip("route add blackhole 203.0.113.0/24")?;
    namespace.ip("route add 198.51.100.0/24 via 10.78.0.1 metric 77")?;
    namespace.ip("neigh replace 10.78.0.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")?;

    let container = context.start(BUSYBOX, "pointed", &[&namespace.flag(), "--cpus", "2"], &ECHO)?;
    if !context.is_control() {
        container.exec("queues", &["ls", "/sys/class/net/eth0/queues/tx-1"])?.expect_status(0)?;
    }
    expect_same_network(&container, &namespace, "eth0")?;
    let neighbours = container.exec("neighbours", &["ip", "neigh", "show", "nud", "permanent"])?;
    ensure!(neighbours.text().contains("10.78.0.99 dev eth0 lladdr 02:00:00:00:00:99"), "{neighbours:?}");
    for address in attachment.addresses()? {
        expect_ping_from_host(address, LARGE)?;
        exchange(SocketAddr::new(address, ECHO_PORT)).context("TCP into the container")?;
    }
    for gateway in ["10.78.0.1", "fd78::1"] {
        expect_ping(&container, gateway, LARGE)?;
    }
    expect_frames_above_the_mtu(&container, "10.78.0.1".parse()?)?;
    resolve_from(&container, "resolve", &name_server("fd78::1".parse()?)?).context("UDP")?;
    container.remove()?;
    attachment.delete()?;
    ensure!(leases(context)?.is_empty(), "addresses are still taken: {:?}", leases(context)?);
    Ok(())
}

/// A veth, a macvlan, an ipvlan and a vlan in one namespace, whose parents are in the host's. All of them carry packets of
/// 9000 bytes.
pub(super) fn several(context: &Context) -> anyhow::Result<()> {
    let outside = Netns::new("saya-outside")?;
    // An ipvlan and a macvlan cannot be on one interface.
    for (parent, end) in [("sayaup", "trunk"), ("sayaup2", "branch")] {
        let pair =
            format!("link add {parent} mtu 9000 type veth peer name {end} mtu 9000 netns saya-outside");
        finish(Command::new("ip").args(pair.split(' ')))?;
        finish(Command::new("ip").args(["link", "set", parent, "up"]))?;
        outside.ip(&format!("link set {end} up"))?;
    }
    outside.ip("link add link trunk name trunk.7 type vlan id 7")?;
    outside.ip("link set trunk.7 up")?;
    for (number, end) in [(1, "trunk"), (2, "trunk.7"), (3, "branch")] {
        outside.ip(&format!("addr add 10.79.{number}.1/24 dev {end}"))?;
        outside.ip(&format!("addr add fd79:{number}::1/64 dev {end} nodad"))?;
    }

    let namespace = Netns::new("saya-several")?;
    // The plugins wait until it is known that nobody else has their IPv6 addresses.
    namespace.inside(|| Ok(fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?))?;
    let local = |number: u32| {
        let ipv4 =
            json!([{"subnet": format!("10.79.{number}.0/24"), "rangeStart": format!("10.79.{number}.9")}]);
        let ipv6 =
            json!([{"subnet": format!("fd79:{number}::/64"), "rangeStart": format!("fd79:{number}::9")}]);
        host_local(context, &json!([ipv4, ipv6]), &json!([]))
    };
    let kinds = [
        ("eth0", json!({"type": "ptp", "mtu": 9000, "ipam": local(0)})),
        (
            "net1",
            json!({"type": "macvlan", "master": "sayaup", "mode": "bridge", "mtu": 9000, "ipam": local(1)}),
        ),
        ("net2", json!({"type": "vlan", "master": "sayaup", "vlanId": 7, "mtu": 9000, "ipam": local(2)})),
        ("net3", json!({"type": "ipvlan", "master": "sayaup2", "mode": "l2", "mtu": 9000, "ipam": local(3)})),
    ];
    let added = kinds.into_iter().map(|(interface, plugin)| Attachment::add(&namespace, interface, [plugin]));
    let attachments = added.collect::<anyhow::Result<Vec<_>>>()?;

    let container = context.start(BUSYBOX, "several", &[&namespace.flag()], &ECHO)?;
    for interface in ["eth0", "net1", "net2", "net3"] {
        expect_same_network(&container, &namespace, interface)?;
    }
    for peer in ["10.79.0.1", "fd79:1::1", "fd79:2::1", "fd79:3::1"] {
        expect_ping(&container, peer, LARGE)?;
    }
    for number in 1..=3 {
        for address in [format!("10.79.{number}.9"), format!("fd79:{number}::9")] {
            let size = LARGE.to_string();
            let ping = ["ping", "-c", "1", "-W", "20", "-s", &size, &address];
            finish(outside.command("busybox").args(ping))?;
        }
        let address = SocketAddr::new(format!("fd79:{number}::9").parse()?, ECHO_PORT);
        outside.inside(|| exchange(address)).context("TCP into the container")?;
        let server = format!("10.79.{number}.1").parse()?;
        let server = outside.inside(|| name_server(server))?;
        resolve_from(&container, "resolve", &server).context("UDP")?;
    }
    container.remove()?;
    attachments.into_iter().rev().try_for_each(Attachment::delete)?;
    ensure!(leases(context)?.is_empty(), "addresses are still taken: {:?}", leases(context)?);
    remove_link("sayaup2")?;
    remove_link("sayaup")
}

/// The plugin loopback, and no interface beside it. What listens there is reached from the namespace, by which
/// `kubectl port-forward` works.
pub(super) fn loopback(context: &Context) -> anyhow::Result<()> {
    let namespace = Netns::new("saya-loopback")?;
    let attachment = Attachment::add(&namespace, "lo", [json!({"type": "loopback"})])?;
    let script =
        "ls /sys/class/net; ping -c 1 127.0.0.1 > /dev/null && ping -c 1 ::1 > /dev/null && echo both";
    let serve = ["nc", "-ll", "-p", "7000", "-e", "echo", "found"];
    let container = context.start(BUSYBOX, "alone", &[&namespace.flag()], &serve)?;
    let ended = container.exec("look", &["sh", "-c", script])?.expect_status(0)?;
    ensure!(ended.text() == "lo\nboth\n", "{ended:?}");
    eventually("the server on loopback answers", || {
        let asked = namespace.command("busybox").args(["nc", "127.0.0.1", "7000"]).output()?;
        Ok(asked.stdout == b"found\n")
    })?;
    container.remove()?;
    attachment.delete()
}

fn host_local(context: &Context, ranges: &Value, routes: &Value) -> Value {
    let directory = context.scratch.join("ipam");
    json!({"type": "host-local", "dataDir": directory, "ranges": ranges, "routes": routes})
}

fn remove_link(name: &str) -> anyhow::Result<()> {
    finish(Command::new("ip").args(["link", "delete", name])).map(drop)
}

/// Whether the container has the interface's addresses and routes as they are in the namespace, which CNI has filled.
fn expect_same_network(container: &Running, namespace: &Netns, interface: &str) -> anyhow::Result<()> {
    let queries = [
        format!("ip -o -f inet addr show dev {interface}"),
        format!("ip -o -f inet6 addr show dev {interface}"),
        "ip route".to_owned(),
        "ip -6 route".to_owned(),
    ];
    for query in &queries {
        let outside = finish(namespace.command("busybox").args(query.split(' ')))?;
        let inside = container.exec("network", &["sh", "-c", query])?.expect_status(0)?.text();
        let (outside, inside) = (facts(&outside), facts(&inside));
        ensure!(outside == inside, "{query}: {inside:?} inside, where the namespace has {outside:?}");
    }
    Ok(())
}

/// Lines of ip(8) in an order of their own, without what is the machine's own: the interface's number, the IPv6
/// address that each kernel makes of the Ethernet address, how an address came about (`flags 02`,
/// `noprefixroute`), and the sandbox's taps.
fn facts(printed: &str) -> Vec<String> {
    let fact = |line: &str| {
        line.split_once(": ")
            .map_or(line, |(_, rest)| rest)
            .replace(" flags 02", "")
            .replace(" noprefixroute", "")
    };
    let normal = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let shared = printed.lines().filter(|line| !line.contains("inet6 fe80:") && !line.contains(" sayatap"));
    let mut facts: Vec<String> = shared.map(|line| normal(fact(line))).collect();
    facts.sort();
    facts
}

/// What the plugin bandwidth has set a limit to goes through the limit, each way, and waits there if it is too much at once.
fn expect_shaped(container: IpAddr) -> anyhow::Result<()> {
    let before = Shaper::all()?;
    exchange(SocketAddr::new(container, ECHO_PORT)).context("TCP within a limit")?;
    let after = Shaper::all()?;
    // That of the host's end of the pod's interface is for what goes in, that of an interface beside it for what comes out.
    ensure!(before.len() == 2 && after.len() == 2, "limits: {before:?}");
    for (before, after) in before.iter().zip(&after) {
        let passed = after.bytes.saturating_sub(before.bytes);
        ensure!(passed >= VOLUME as u64, "{}: {passed} bytes of {VOLUME}", after.interface);
    }
    eventually("datagrams wait at both limits", || {
        datagrams::burst(SocketAddr::new(container, DATAGRAM_PORT))?;
        let now = Shaper::all()?;
        Ok(after.iter().zip(&now).all(|(after, now)| now.delayed > after.delayed))
    })
}

/// A token bucket filter of the host's (tc-tbf(8)) and its counters.
#[derive(Debug)]
struct Shaper {
    interface: String,
    bytes: u64,
    /// How often a packet was not let through at once (`overlimits`).
    delayed: u64,
}

impl Shaper {
    /// All of them, in one order.
    fn all() -> anyhow::Result<Vec<Self>> {
        let listed = finish(Command::new("tc").args(["-s", "-j", "qdisc", "show"]))?;
        let listed: Vec<Value> = serde_json::from_str(&listed).context("what tc prints")?;
        let shaper = |entry: &Value| {
            let interface = entry["dev"].as_str()?.to_owned();
            Some(Self { interface, bytes: entry["bytes"].as_u64()?, delayed: entry["overlimits"].as_u64()? })
        };
        let of_kind = listed.iter().filter(|entry| entry["kind"] == "tbf");
        of_kind
            .map(|entry| shaper(entry).with_context(|| format!("a tbf without counters: {entry}")))
            .collect()
    }
}

/// TCP comes in frames of several packets each, which nobody cuts on the way.
fn expect_frames_above_the_mtu(container: &Running, gateway: IpAddr) -> anyhow::Result<()> {
    let count = || -> anyhow::Result<usize> {
        let counter = ["cat", "/sys/class/net/eth0/statistics/rx_packets"];
        Ok(container.exec("count", &counter)?.expect_status(0)?.text().trim().parse()?)
    };
    let before = count()?;
    serve_to(container, "fetch", gateway).context("TCP out of the container")?;
    let frames = count()? - before;
    ensure!(frames < VOLUME / 9000, "{VOLUME} bytes came in {frames} frames");
    Ok(())
}

/// What the files below /proc/sys/net have, one after the other.
pub(super) fn expect_sysctls(container: &Running, files: &[&str], expected: &str) -> anyhow::Result<()> {
    let command = format!("cd /proc/sys/net && cat {}", files.join(" "));
    let text = container.exec("sysctls", &["sh", "-c", &command])?.expect_status(0)?.text();
    ensure!(text == expected, "{files:?}: {text:?} and not {expected:?}");
    Ok(())
}

pub(super) fn expect_ping(container: &Running, address: &str, size: usize) -> anyhow::Result<()> {
    let size = size.to_string();
    container.exec("ping", &["ping", "-c", "1", "-W", "20", "-s", &size, address])?.expect_status(0).map(drop)
}

pub(super) fn expect_ping_from_host(address: IpAddr, size: usize) -> anyhow::Result<()> {
    let arguments =
        ["ping", "-c", "1", "-W", "20", "-s", &size.to_string(), &address.to_string()].map(str::to_owned);
    finish(Command::new("busybox").args(arguments)).map(drop)
}
