//! Whole pods at work.

use std::net::SocketAddr;
use std::thread;

use anyhow::ensure;

use super::fixture::Node;
use crate::cri::messages::{ImageSpec, PortMapping};
use crate::e2e::context::{Context, REDIS, eventually};
use crate::e2e::network::peers::{ECHO, ECHO_PORT, exchange};

/// How many pods there are at once.
const PODS: usize = 3;
const HOST_PORT: u16 = 18_090;

pub(super) fn redis(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("redis")?;
    let image = Some(ImageSpec { image: REDIS.to_owned() });
    let mut server = pod.container("server", &["redis-server", "--save", "", "--bind", "127.0.0.1"]);
    server.image.clone_from(&image);
    pod.start_with(&server)?;
    let mut client = pod.container("client", &["sleep", "3600"]);
    client.image = image;
    let client = pod.start_with(&client)?;
    eventually("redis answers", || Ok(pod.exec(&client, &["redis-cli", "ping"])?.stdout == b"PONG\n"))?;
    ensure!(pod.exec(&client, &["redis-cli", "set", "key", "value"])?.stdout == b"OK\n");
    ensure!(pod.exec(&client, &["redis-cli", "get", "key"])?.stdout == b"value\n");
    pod.remove()
}

pub(super) fn neighbours(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pods = thread::scope(|scope| {
        let start = |number: usize| {
            let node = &node;
            move || {
                let mut config = node.pod_config(&format!("neighbour-{number}"));
                if number == 0 {
                    let mapping = PortMapping {
                        container_port: i32::from(ECHO_PORT),
                        host_port: i32::from(HOST_PORT),
                        ..PortMapping::default()
                    };
                    config.port_mappings.push(mapping);
                }
                node.run_with(config)
            }
        };
        let started: Vec<_> = (0..PODS).map(|number| scope.spawn(start(number))).collect();
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
    exchange(SocketAddr::new("10.88.0.1".parse()?, HOST_PORT))?;
    pods.into_iter().try_for_each(super::fixture::Pod::remove)
}
