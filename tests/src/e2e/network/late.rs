//! Interfaces that come to a container's network between its creation and its start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use serde_json::json;

use super::kinds::{expect_ping, expect_ping_from_host, expect_sysctls};
use super::peers::{ECHO, exchange, serve_to};
use crate::ctr::finish;
use crate::e2e::context::{BUSYBOX, Context, ImageRoot, eventually};
use crate::e2e::image_root::merge;

/// The host's end of the interface, its address and the container's.
const HOSTS_END: &str = "sayalate";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// The sysctls that the hook sets, of which the last is set by the spec as well.
const SYSCTLS: [&str; 3] = ["core/somaxconn", "ipv4/conf/eth7/arp_ignore", "ipv4/ip_default_ttl"];

/// What a hook does that is told of the container's pid on its standard input.
const HOOK: &str = "set -e; pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$'); \
    ip link add sayalate mtu 1400 type veth peer name eth7 mtu 1400 address 02:00:00:00:77:02 netns $pid; \
    ip addr add 10.77.0.1/24 dev sayalate; ip link set sayalate up; \
    nsenter -t $pid -n sh -c 'ip addr add 10.77.0.2/24 dev eth7; ip link set eth7 up; ip link set lo up; \
    ip route add 10.99.0.0/16 via 10.77.0.1 metric 7; cd /proc/sys/net; \
    echo 777 > core/somaxconn; echo 1 > ipv4/conf/eth7/arp_ignore; echo 50 > ipv4/ip_default_ttl'";

/// By a hook, as nerdctl does it, and by the pid that the creation has answered, as Docker and `ctr run --cni` do it.
pub(super) fn interfaces(context: &Context) -> anyhow::Result<()> {
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let container = root.start(context, "late", &ECHO, |spec| {
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", HOOK],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]);
        let sysctls = json!({"net.ipv4.ip_default_ttl": "99"});
        merge(spec, &json!({"hooks": {"createRuntime": hook}, "linux": {"sysctl": sysctls}}));
    })?;
    let ended =
        container.exec("look", &["sh", "-c", "ip -o link show dev eth7; ip route show 10.99.0.0/16"])?;
    let text = ended.expect_status(0)?.text();
    for part in ["mtu 1400", "02:00:00:00:77:02", "via 10.77.0.1 dev eth7", "metric 7"] {
        ensure!(text.contains(part), "no {part:?} in {text:?}");
    }
    expect_sysctls(&container, &SYSCTLS, "777\n1\n99\n")?;
    expect_ping_from_host(IpAddr::from(CONTAINER), 1300)?;
    expect_ping(&container, &HOST.to_string(), 1300)?;
    exchange(SocketAddr::from((CONTAINER, 7000)))?;
    serve_to(&container, "fetch", IpAddr::from(HOST))?;
    container.remove()?;
    let hosts_end = Path::new("/sys/class/net").join(HOSTS_END);
    eventually("the interface is gone with its container", || Ok(!hosts_end.exists()))?;

    let script = "ip -o -f inet addr show dev eth0 | grep -q inet && ping -c 1 -W 10 10.88.0.1 > /dev/null && echo there";
    let ended = context.run(&["--cni"], "later", &["sh", "-c", script])?.expect_status(0)?;
    ensure!(ended.text() == "there\n", "{ended:?}");
    finish(Command::new("ip").args(["link", "delete", "saya0"])).map(drop)
}
