//! What the containers of a pod share, and what they do not.

use anyhow::{Context as _, ensure};

use super::fixture::{GRACE, Node, Pod};
use super::sandbox_api;
use crate::cri::messages::{
    CONTAINER, CONTAINER_EXITED, ContainerConfig, DnsConfig, IdMapping, LinuxContainerResources,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NODE, NamespaceOption, TARGET, UserNamespace,
};
use crate::e2e::context::{Context, NotApplicable, eventually};
use crate::lab::newer_containerd;

/// What the containers of the pod may use together, other than a pod of which nothing is said.
const MEMORY_MIB: i64 = 601;
/// `memory_overhead` of the configuration, by default.
const OVERHEAD_MIB: i64 = 96;

/// Sysctls of the pod's network and IPC namespaces, other than a kernel has them by default.
const SYSCTLS: [(&str, &str); 5] = [
    ("net.core.somaxconn", "777"),
    ("net.ipv4.tcp_syncookies", "2"),
    ("kernel.msgmax", "12288"),
    ("kernel.shm_rmid_forced", "1"),
    ("fs.mqueue.msg_max", "13"),
];

pub(super) fn namespaces(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let mut config = node.pod_config("shared");
    config.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["pods.test".into()],
        options: vec!["ndots:3".into()],
    });
    config.linux = Some(LinuxPodSandboxConfig {
        sysctls: SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: MEMORY_MIB << 20,
            // A CPU and a half, without a limit.
            cpu_shares: 1536,
            ..LinuxContainerResources::default()
        }),
        ..LinuxPodSandboxConfig::default()
    });
    let pod = node.run_with(config)?;
    let server = pod.start("server", &["nc", "-ll", "-p", "7000", "-e", "hostname"])?;
    let client = pod.start_idle("client")?;

    let links = |kind: &str| -> anyhow::Result<(String, String)> {
        let script = format!("readlink /proc/self/ns/{kind}");
        Ok((pod.sh(&server, &script)?, pod.sh(&client, &script)?))
    };
    for kind in ["net", "ipc", "uts"] {
        let (one, other) = links(kind)?;
        ensure!(one == other, "{kind}: {one} and {other}");
    }
    for kind in ["pid", "mnt"] {
        let (one, other) = links(kind)?;
        ensure!(one != other, "both have the {kind} namespace {one}");
    }
    ensure!(pod.sh(&client, "hostname")? == "shared\n");
    let answer = "nc 127.0.0.1 7000 < /dev/null";
    eventually("the server listens", || Ok(pod.exec(&client, &["sh", "-c", answer])?.stdout == b"shared\n"))?;
    pod.sh(&server, "echo left > /dev/shm/message")?;
    ensure!(pod.sh(&client, "cat /dev/shm/message")? == "left\n");

    let resolver = pod.sh(&client, "cat /etc/resolv.conf")?;
    for line in ["nameserver 192.0.2.53", "search pods.test", "options ndots:3"] {
        ensure!(resolver.contains(line), "no {line} in {resolver}");
    }
    ensure!(pod.sh(&client, "cat /etc/hosts")?.contains("localhost"));
    for (name, value) in SYSCTLS {
        let set = pod.sh(&client, &format!("cat /proc/sys/{}", name.replace('.', "/")))?;
        ensure!(set.trim() == value, "{name} is {set}");
    }
    if !context.is_control() {
        // The virtual machine has what the pod may use, and its overhead, of which the kernel takes some away.
        let memory = pod.sh(&client, "awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo")?;
        let range = MEMORY_MIB..=MEMORY_MIB + OVERHEAD_MIB;
        ensure!(range.contains(&memory.trim().parse()?), "{memory} MiB, where {range:?} was expected");
        // And the CPUs that the pod requests.
        ensure!(pod.sh(&client, "nproc")? == "2\n", "{} CPUs", pod.sh(&client, "nproc")?);
    }
    let addresses = pod.sh(&client, "ip -o -f inet addr show dev eth0")?;
    ensure!(addresses.contains(&format!("{}/", pod.address()?)), "{addresses}");
    pod.remove()
}

pub(super) fn processes(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let mut config = node.pod_config("seen");
    config.linux = Some(with_namespaces(NamespaceOption::default()));
    let pod = node.run_with(config)?;
    let quiet = pod.start("quiet", &["sleep", "987654"])?;
    let observer = pod.start_idle("observer")?;
    let (one, other) =
        (pod.sh(&quiet, "readlink /proc/self/ns/pid")?, pod.sh(&observer, "readlink /proc/self/ns/pid")?);
    ensure!(one == other, "{one} and {other}");
    let listed = pod.sh(&observer, "ps")?;
    ensure!(listed.contains("sleep 987654"), "{listed}");
    // A container's end takes its own processes along, and nobody else's.
    node.cri.stop(&quiet, GRACE)?;
    let listed = pod.sh(&observer, "ps")?;
    ensure!(!listed.contains("sleep 987654"), "{listed}");
    pod.remove()
}

/// What `kubectl debug --target` asks for.
fn debugger(pod: &Pod<'_>, name: &str, target: &str) -> ContainerConfig {
    let idle = "echo ready; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let mut config = pod.container(name, &["sh", "-c", idle]);
    let options = NamespaceOption { pid: TARGET, target_id: target.to_owned(), ..NamespaceOption::default() };
    if let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.namespace_options = Some(options);
    }
    config
}

pub(super) fn targeted(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("targeted")?;
    let application = pod.start("application", &["sleep", "987654"])?;
    let observer = pod.start_with(&debugger(&pod, "observer", &application))?;
    let first = pod.sh(&observer, "tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(first == "sleep 987654 ", "the first process is {first:?}");
    let link = "readlink /proc/self/ns/pid";
    let (one, other) = (pod.sh(&application, link)?, pod.sh(&observer, link)?);
    ensure!(one == other, "{one} and {other}");

    // A second one that is targeted is a container of its own; so is one that is not.
    let second = pod.start_with(&debugger(&pod, "second", &application))?;
    let neighbour = pod.start_idle("neighbour")?;
    ensure!(pod.sh(&second, link)? == one && pod.sh(&neighbour, link)? != one);
    let late = pod.start_with(&debugger(&pod, "late", &application));
    if context.is_control() {
        late?;
    } else {
        // containerd knows all containers of a virtual machine by one pid, and names that.
        let refusal = format!("{:#}", late.err().context("one of two containers was taken")?);
        for word in [application.as_str(), &neighbour, "kubectl exec"] {
            ensure!(refusal.contains(word), "{word}: {refusal}");
        }
    }

    // The namespace ends with its first process, and whoever is in it.
    node.cri.stop(&application, GRACE)?;
    eventually("the debugger has ended with its target", || {
        Ok(node.cri.status(&observer)?.state == CONTAINER_EXITED)
    })?;
    pod.remove()
}

pub(super) fn users(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's pods have user namespaces of the host's")?;
    if !newer_containerd::is_installed() {
        return Err(NotApplicable("containerd before 1.7 has no user namespaces under CRI").into());
    }
    let node = Node::new(context)?;
    let mut config = node.pod_config("mapped");
    let mapping = IdMapping { host_id: 700_000, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: 0, uids: vec![mapping], gids: vec![mapping] };
    config.linux = Some(with_namespaces(NamespaceOption {
        pid: CONTAINER,
        userns_options: Some(users),
        ..NamespaceOption::default()
    }));
    // Where a container makes the pod, containerd has made the namespace on the host before.
    let by_shim = context.handler.as_deref() == Some(sandbox_api::HANDLER);
    let words =
        if by_shim { "a pod with a user namespace is not supported" } else { "linux.namespaces: user at" };
    let refusal = format!("{:#}", node.run_with(config).err().context("the pod was made")?);
    ensure!(refusal.contains(words), "{refusal}");
    Ok(())
}

pub(super) fn refused(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's pods are on the host and may have its namespaces")?;
    if context.handler.as_deref() == Some(sandbox_api::HANDLER) {
        // Before it has called any shim (https://github.com/containerd/containerd/issues/12983).
        let why = "containerd ends itself when it is asked for hostNetwork and the sandboxer is \"shim\" (its issue 12983)";
        return Err(NotApplicable(why).into());
    }
    let node = Node::new(context)?;
    let own = NamespaceOption { pid: CONTAINER, ..NamespaceOption::default() };
    for (kind, options) in [
        ("network", NamespaceOption { network: NODE, ..own.clone() }),
        ("pid", NamespaceOption { pid: NODE, ..own.clone() }),
        ("ipc", NamespaceOption { ipc: NODE, ..own }),
    ] {
        let mut config = node.pod_config(&format!("host-{kind}"));
        config.linux = Some(with_namespaces(options));
        let error = match node.run_with(config) {
            Ok(_) => anyhow::bail!("the host's {kind} namespace was shared"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(&format!("host's {kind} namespace")), "{error}");
    }
    Ok(())
}

pub(super) fn with_namespaces(options: NamespaceOption) -> LinuxPodSandboxConfig {
    LinuxPodSandboxConfig {
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        }),
        ..LinuxPodSandboxConfig::default()
    }
}
