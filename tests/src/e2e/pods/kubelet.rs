//! What a kubelet does with a pod beside running it: probes, containers in their order, and pods that cannot be.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::fixture::{GRACE, NETWORKS, Node, Pod, expect_nothing_left, in_the_lab_alone};
use super::lifecycle::wait_for_exit;
use crate::cri::Status;
use crate::cri::messages::{
    CONTAINER_RUNNING, ContainerConfig, DEADLINE_EXCEEDED, LinuxContainerResources, LinuxPodSandboxConfig,
    Mount,
};
use crate::e2e::context::{Context, eventually};
use crate::leaks::Holdings;

const WEB_PORT: u16 = 8080;
/// How long a probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(120);

/// A pod with two init containers, the second of which fails once, and a server that fails later on and is started anew.
pub(super) fn probes_and_restarts(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("probed")?;
    let volume = context.scratch.join("volume");
    fs::create_dir(&volume)?;
    let attempt = |name: &str, attempt: u32, script: &str| {
        let mut config = pod.container(name, &["sh", "-c", script]);
        config.mounts.push(Mount {
            container_path: "/work".into(),
            host_path: volume.display().to_string(),
            ..Mount::default()
        });
        if let Some(metadata) = config.metadata.as_mut() {
            metadata.attempt = attempt;
        }
        config.log_path = format!("{name}.{attempt}.log");
        config
    };

    // One after the other, each after the last one's success.
    to_the_end(&pod, &attempt("first", 0, "echo one > /work/order"), 0)?;
    let second = "test -e /work/again || { touch /work/again; exit 5; }; echo two >> /work/order";
    to_the_end(&pod, &attempt("second", 0, second), 5)?;
    to_the_end(&pod, &attempt("second", 1, second), 0)?;
    ensure!(fs::read_to_string(volume.join("order"))? == "one\ntwo\n");

    // It is not ready at once, and not for ever.
    let serve = "mkdir -p /www && echo well > /www/healthz && sleep 1 && touch /work/ready && \
        httpd -f -p 8080 -h /www & trap 'exit 3' TERM; wait $!";
    let server = pod.start_with(&attempt("server", 0, serve))?;
    let address = SocketAddr::new(pod.address()?.parse()?, WEB_PORT);
    let is_ready = |container: &str| -> anyhow::Result<bool> {
        let ended = node.cri.exec(container, &["cat", "/work/ready"], PROBE_LIMIT)?;
        ensure!(ended.exit_code == 0 || ended.exit_code == 1, "{ended:?}");
        Ok(ended.exit_code == 0)
    };
    eventually("the probe by a command succeeds", || is_ready(&server))?;
    eventually("the probe by a connection succeeds", || Ok(TcpStream::connect(address).is_ok()))?;
    ensure!(http_status(address, "/healthz")? == 200);
    ensure!(http_status(address, "/nothing")? == 404);
    ensure!(TcpStream::connect((address.ip(), WEB_PORT + 1)).is_err(), "a port that nobody has was taken");
    let slow = node.cri.exec(&server, &["sleep", "987653"], Duration::from_secs(1));
    let code = slow.as_ref().err().and_then(|error| error.downcast_ref::<Status>()).map(|status| status.code);
    ensure!(code == Some(DEADLINE_EXCEEDED), "{slow:?}");

    // Not ready any more, then not alive any more: ended, removed, made anew with the next attempt's number.
    fs::remove_file(volume.join("ready"))?;
    eventually("the probe by a command fails", || Ok(!is_ready(&server)?))?;
    pod.cri.stop(&server, GRACE)?;
    wait_for_exit(&pod, &server, 3)?;
    ensure!(TcpStream::connect(address).is_err(), "somebody answers for a container that has ended");
    let again = pod.start_with(&attempt("server", 1, serve))?;
    pod.cri.remove(&server)?;
    eventually("the next one is ready", || Ok(is_ready(&again)? && TcpStream::connect(address).is_ok()))?;
    ensure!(http_status(address, "/healthz")? == 200);
    ensure!(pod.cri.status(&again)?.state == CONTAINER_RUNNING);
    pod.remove()
}

/// Runs a container to its end and removes it.
fn to_the_end(pod: &Pod<'_>, config: &ContainerConfig, status: i32) -> anyhow::Result<()> {
    let container = pod.start_with(config)?;
    wait_for_exit(pod, &container, status)?;
    pod.cri.remove(&container)
}

/// The status that a web server gives for a path.
fn http_status(address: SocketAddr, path: &str) -> anyhow::Result<u32> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE_LIMIT)?;
    stream.set_read_timeout(Some(PROBE_LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).with_context(|| format!("no status in {answer:?}"))?;
    Ok(status.parse()?)
}

/// Where the lab's containerd looks for plugins.
const PLUGINS: &str = "/opt/cni/bin";
const FAULTY: &str = "saya-faulty";
/// Where the plugin host-local notes which addresses of a network are taken, each as a file.
const ADDRESSES: &str = "/var/lib/cni/networks/saya-faulty";
/// What the plugin says.
const WORDS: &str = "no more after the veth";

/// A network whose second plugin fails, after the first has made the pod's interface. Then the network is mended.
pub(super) fn half_made_network(context: &Context) -> anyhow::Result<()> {
    in_the_lab_alone()?;
    let node = Node::new(context)?;
    let faulty = Faulty::install()?;
    eventually("containerd knows the network", || Ok(node.cri.network()?.contains(FAULTY)))?;
    let before = Holdings::now();
    let error = match node.run("halfway") {
        Ok(pod) => {
            pod.remove()?;
            anyhow::bail!("a pod runs without its network")
        }
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains(WORDS), "{error}");
    expect_nothing_left(&before)?;
    let taken = fs::read_dir(ADDRESSES)?.collect::<Result<Vec<_>, _>>()?;
    let taken = taken.iter().filter(|entry| entry.file_name().to_string_lossy().parse::<IpAddr>().is_ok());
    ensure!(taken.count() == 0, "an address is still taken");

    drop(faulty);
    eventually("containerd has forgotten the network", || Ok(!node.cri.network()?.contains(FAULTY)))?;
    let pod = node.run("halfway")?;
    ensure!(!pod.address()?.is_empty());
    pod.remove()
}

/// The lab's network, with a plugin after its first one that fails when a pod is added.
struct Faulty;

impl Faulty {
    fn install() -> anyhow::Result<Self> {
        let plugin = Path::new(PLUGINS).join(FAULTY);
        let script = format!(
            "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
             echo '{{\"cniVersion\": \"0.4.0\", \"code\": 111, \"msg\": \"{WORDS}\"}}'\nexit 1\n"
        );
        fs::write(&plugin, script)?;
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
        let mut network: serde_json::Value =
            serde_json::from_str(crate::lab::guest::configuration::CNI_CONFIGURATION)?;
        network["name"] = FAULTY.into();
        let plugins = network["plugins"].as_array_mut().context("a network without plugins")?;
        plugins.truncate(1);
        plugins.push(serde_json::json!({"type": FAULTY}));
        fs::write(Self::configuration(), network.to_string())?;
        Ok(Self)
    }

    fn configuration() -> std::path::PathBuf {
        Path::new(NETWORKS).join(format!("00-{FAULTY}.conflist"))
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        for path in [Self::configuration(), Path::new(PLUGINS).join(FAULTY)] {
            if let Err(error) = fs::remove_file(&path) {
                eprintln!("{}: {error}", path.display());
            }
        }
        // It was never made where no pod was tried.
        let _ = fs::remove_dir_all(ADDRESSES);
    }
}

pub(super) fn too_small(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("the words are our agent's")?;
    let node = Node::new(context)?;
    let mut config = node.pod_config("small");
    let limit = 4096;
    let resources =
        LinuxContainerResources { memory_limit_in_bytes: limit, ..LinuxContainerResources::default() };
    config.linux = Some(LinuxPodSandboxConfig {
        resources: Some(resources.clone()),
        ..LinuxPodSandboxConfig::default()
    });
    // The machine boots all the same: its own need is not the pod's.
    let pod = node.run_with(config)?;
    let mut container = pod.container("main", &["true"]);
    if let Some(linux) = container.linux.as_mut() {
        linux.resources = Some(resources);
    }
    let error = match pod.start_with(&container) {
        Ok(_) => anyhow::bail!("a container was set up in {limit} bytes"),
        Err(error) => format!("{error:#}"),
    };
    let words = format!("linux.resources.memory.limit: is {limit} bytes, too little to set the container up");
    ensure!(error.contains(&words), "{error}");
    pod.start("without", &["true"])?;
    pod.remove()
}
