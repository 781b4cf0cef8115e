//! What a pod's containers may do, as their security contexts say.

use std::fs;

use anyhow::ensure;
use serde_json::json;

use super::fixture::{Node, Pod};
use super::recovery::process_of;
use crate::cri::messages::{
    Capability, ContainerConfig, HugepageLimit, Int64Value, LOCALHOST, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, RUNTIME_DEFAULT,
    SecurityProfile,
};
use crate::e2e::context::Context;

const LARGE_PAGES: u64 = 4 << 20;

pub(super) fn rights(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let mut config = node.pod_config("rights");
    config.linux = Some(LinuxPodSandboxConfig {
        security_context: Some(LinuxSandboxSecurityContext {
            privileged: true,
            ..LinuxSandboxSecurityContext::default()
        }),
        ..LinuxPodSandboxConfig::default()
    });
    let pod = node.run_with(config)?;
    restricted(&pod)?;
    own_profile(context, &pod)?;
    privileged(context, &pod)?;
    pod.remove()?;
    let ended = context.run(&["--privileged"], "host-devices", &["true"])?;
    if context.is_control() {
        return ended.expect_status(0).map(drop);
    }
    // Without `privileged_without_host_devices` every device of the host is asked for.
    let named = ended.stderr.contains("device of the host")
        && ended.stderr.contains("privileged_without_host_devices");
    ensure!(ended.status != Some(0) && named, "{ended:?}");
    Ok(())
}

/// An idle container with a changed security context.
fn secured(
    pod: &Pod<'_>,
    name: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    let mut config = pod.container(name, &["sleep", "3600"]);
    if let Some(security) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        change(security);
    }
    config
}

fn restricted(pod: &Pod<'_>) -> anyhow::Result<()> {
    let mut config = secured(pod, "restricted", |security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 2000 });
        security.supplemental_groups = vec![3000, 4000];
        security.readonly_rootfs = true;
        security.no_new_privs = true;
        security.capabilities = Some(Capability {
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            drop_capabilities: vec!["ALL".into()],
        });
        security.seccomp =
            Some(SecurityProfile { profile_type: RUNTIME_DEFAULT, localhost_ref: String::new() });
        security.masked_paths = vec!["/proc/keys".into(), "/proc/timer_list".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    });
    if let Some(linux) = config.linux.as_mut() {
        linux.resources = Some(LinuxContainerResources {
            oom_score_adj: 500,
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: LARGE_PAGES }],
            ..LinuxContainerResources::default()
        });
    }
    let container = pod.start_with(&config)?;
    let identity = pod.sh(&container, "id -u; id -g; id -G")?;
    ensure!(identity == "1000\n2000\n2000 3000 4000\n", "{identity:?}");
    // CAP_NET_BIND_SERVICE is number 10; who is not root has it in the bounding set alone.
    let status = pod.sh(&container, "grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/1/status")?;
    let expected = "CapEff:\t0000000000000000\nCapBnd:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    ensure!(status == expected, "{status:?}");
    let refused = pod.exec(&container, &["touch", "/file"])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");
    // The runtime's default profile has no unshare(2) for who lacks CAP_SYS_ADMIN, with which a user namespace would go.
    let refused = pod.exec(&container, &["unshare", "-U", "true"])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("not permitted"), "{refused:?}");
    let masked = pod.sh(&container, "cat /proc/keys /proc/timer_list 2>/dev/null | wc -c")?;
    ensure!(masked == "0\n", "{masked} bytes of masked files");
    let system = pod.sh(&container, "grep -c ' /proc/sys ro[, ]' /proc/self/mountinfo")?;
    ensure!(system == "1\n", "/proc/sys is not read-only");
    let score = pod.sh(&container, "cat /proc/1/oom_score_adj")?;
    ensure!(score == "500\n", "{score}");
    ensure!(score_on_host(&container)? == "500", "{}", score_on_host(&container)?);
    let pages = pod.sh(&container, "cat /sys/fs/cgroup/hugetlb.2MB.max")?;
    ensure!(pages.trim() == LARGE_PAGES.to_string(), "{pages}");
    Ok(())
}

/// The OOM score of a container's process on the host. With our runtime this is the VMM, for all containers of the pod.
fn score_on_host(container: &str) -> anyhow::Result<String> {
    let process = process_of(container, container)?.as_raw_nonzero();
    Ok(fs::read_to_string(format!("/proc/{process}/oom_score_adj"))?.trim().to_owned())
}

/// `config`, whose processes are to have this OOM score.
fn scored(mut config: ContainerConfig, oom_score_adj: i64) -> ContainerConfig {
    if let Some(linux) = config.linux.as_mut() {
        linux.resources =
            Some(LinuxContainerResources { oom_score_adj, ..LinuxContainerResources::default() });
    }
    config
}

fn own_profile(context: &Context, pod: &Pod<'_>) -> anyhow::Result<()> {
    let profile = context.scratch.join("profile.json");
    let denied = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"});
    let document = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [denied],
    });
    fs::write(&profile, document.to_string())?;
    let config = secured(pod, "profiled", |security| {
        security.seccomp =
            Some(SecurityProfile { profile_type: LOCALHOST, localhost_ref: profile.display().to_string() });
    });
    let container = pod.start_with(&scored(config, -5))?;
    // Less than the VMM has ever had.
    ensure!(score_on_host(&container)? == "-5", "{}", score_on_host(&container)?);
    let refused = pod.exec(&container, &["mkdir", "/directory"])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("not permitted"), "{refused:?}");
    pod.sh(&container, "touch /file").map(drop)
}

fn privileged(context: &Context, pod: &Pod<'_>) -> anyhow::Result<()> {
    let config = secured(pod, "privileged", |security| security.privileged = true);
    let container = pod.start_with(&scored(config, 800))?;
    let least = if context.is_control() { "800" } else { "-5" };
    ensure!(score_on_host(&container)? == least, "{} on the host", score_on_host(&container)?);
    let script = "mkdir -p /mnt && mount -t tmpfs none /mnt && touch /mnt/file && echo mounted; \
        grep -c ' /sys rw[, ]' /proc/self/mountinfo; grep Seccomp: /proc/1/status";
    let done = pod.sh(&container, script)?;
    ensure!(done == "mounted\n1\nSeccomp:\t0\n", "{done:?}");
    if !context.is_control() {
        let devices = pod.sh(&container, "ls /dev")?;
        ensure!(!devices.contains("vda") && !devices.contains("kvm"), "devices of the host: {devices}");
    }
    Ok(())
}
