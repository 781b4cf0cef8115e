//! Whole pods at work.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::fixture::Node;
use super::lifecycle::wait_for_exit;
use super::volumes::{mount, own_volume, read_only};
use crate::cri::messages::{ImageSpec, PortMapping};
use crate::e2e::context::{Context, NGINX, REDIS, eventually};
use crate::e2e::network::peers::{ECHO, ECHO_PORT, connect, exchange};
use crate::e2e::network::rules::Rules;
use crate::leaks::Holdings;

/// The host in the network of the pods.
const GATEWAY: &str = "10.88.0.1";
/// How many pods there are at once, and how many in the long form.
const PODS: usize = 3;
const MANY_PODS: usize = 10;
/// How many pods there are one after another, and how many in the long form.
const SEQUENCE: usize = 2;
const LONG_SEQUENCE: usize = 100;
/// Where redis listens in its pod's volume.
const SOCKET: &str = "/socket/redis.sock";
const HOST_PORT: u16 = 18_090;
const WEB_PORT: u16 = 18_091;
/// More than a server that has nothing to do needs to end.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn redis(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("redis")?;
    let image = Some(ImageSpec { image: REDIS.to_owned() });
    let volume = own_volume(&context.scratch, "redis", "socket");
    fs::create_dir_all(&volume)?;
    let serve = ["redis-server", "--save", "", "--bind", "127.0.0.1", "--unixsocket", SOCKET];
    let mut server = pod.container("server", &serve);
    server.image.clone_from(&image);
    server.mounts.push(mount(&volume, "/socket"));
    pod.start_with(&server)?;
    let mut client = pod.container("client", &["sleep", "3600"]);
    client.image = image;
    client.mounts.push(read_only(&volume, "/socket"));
    let client = pod.start_with(&client)?;
    eventually("redis answers", || Ok(pod.exec(&client, &["redis-cli", "ping"])?.stdout == b"PONG\n"))?;
    ensure!(pod.exec(&client, &["redis-cli", "set", "key", "value"])?.stdout == b"OK\n");
    // A socket is one, also for who may only read the volume that it is in.
    ensure!(pod.exec(&client, &["redis-cli", "-s", SOCKET, "get", "key"])?.stdout == b"value\n");
    ensure!(
        pod.exec(&client, &["sh", "-c", "echo > /socket/new"])?.exit_code != 0,
        "a read-only volume takes writes"
    );
    pod.remove()
}

pub(super) fn neighbours(context: &Context) -> anyhow::Result<()> {
    let count = if context.long { MANY_PODS } else { PODS };
    let node = Node::new(context)?;
    let pods = thread::scope(|scope| {
        let start = |number: usize| {
            let node = &node;
            move || {
                let mut config = node.pod_config(&format!("neighbour-{number}"));
                if number == 0 {
                    config.port_mappings.push(mapping(HOST_PORT, ECHO_PORT));
                }
                node.run_with(config)
            }
        };
        let started: Vec<_> = (0..count).map(|number| scope.spawn(start(number))).collect();
        let joined = started
            .into_iter()
            .map(|pod| pod.join().map_err(|_| anyhow::anyhow!("a pod's thread panicked"))?);
        joined.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut addresses = Vec::new();
    for pod in &pods {
        pod.start("echo", &ECHO)?;
        addresses.push(pod.address()?);
    }
    for pod in &pods {
        let visitor = pod.start_idle("visitor")?;
        for address in &addresses {
            let script =
                format!("ping -c 1 -W 20 {address} > /dev/null && echo hello | nc {address} {ECHO_PORT}");
            eventually("the neighbour answers", || {
                Ok(pod.exec(&visitor, &["sh", "-c", &script])?.stdout == b"hello\n")
            })?;
        }
    }
    for address in &addresses {
        exchange(SocketAddr::new(address.parse()?, ECHO_PORT))?;
    }
    exchange(SocketAddr::new(GATEWAY.parse()?, HOST_PORT))?;
    pods.into_iter().try_for_each(super::fixture::Pod::remove)
}

/// A port of the host's that is a pod's.
fn mapping(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        container_port: container_port.into(),
        host_port: host_port.into(),
        ..PortMapping::default()
    }
}

pub(super) fn web(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let rules = Rules::now()?;
    let mut config = node.pod_config("web");
    config.port_mappings.push(mapping(WEB_PORT, 80));
    let pod = node.run_with(config)?;
    let mut server = pod.container("server", &["nginx", "-g", "daemon off;"]);
    server.image = Some(ImageSpec { image: NGINX.to_owned() });
    let server = pod.start_with(&server)?;
    for address in [SocketAddr::new(pod.address()?.parse()?, 80), SocketAddr::new(GATEWAY.parse()?, WEB_PORT)]
    {
        let answer = get(address)?;
        ensure!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\nserved by nginx\n"),
            "{answer}"
        );
    }
    eventually("both are in the log", || Ok(pod.log("server")?.matches("GET / HTTP/1.0").count() == 2))?;
    // It says by which signal it was ended: that of its image.
    pod.cri.stop(&server, PATIENCE)?;
    wait_for_exit(&pod, &server, 0)?;
    eventually("its end is in the log", || Ok(pod.log("server")?.contains("signal 3 (SIGQUIT) received")))?;
    let (id, address) = (pod.id.clone(), pod.address()?);
    rules.expect_more_for(&address)?;
    pod.remove()?;
    rules.expect_no_more(&[&id, &address])
}

/// What the server at `address` answers, once it listens.
fn get(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = connect(address)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    Ok(std::io::read_to_string(stream)?)
}

pub(super) fn one_after_another(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let count = if context.long { LONG_SEQUENCE } else { SEQUENCE };
    let mut before = None;
    for number in 0..count {
        let pod = node.run("sequence")?;
        let container = pod.start("main", &["sh", "-c", "exit 4"])?;
        wait_for_exit(&pod, &container, 4)?;
        pod.remove().with_context(|| format!("pod {number}"))?;
        // The first leaves the bridge, and the cgroups above all pods.
        let before = before.get_or_insert_with(Holdings::now);
        eventually("nothing is left of the pod", || Ok(before.leaked_by(&Holdings::now()).is_empty()))
            .with_context(|| format!("pod {number}: {:?}", before.leaked_by(&Holdings::now())))?;
    }
    Ok(())
}
