//! Block devices of the host in containers, as a kubelet passes volumes of mode `Block` (`volumeDevices`).

use anyhow::ensure;

use super::fixture::{Node, Pod};
use crate::cri::messages::{ContainerConfig, Device, LinuxContainerResources};
use crate::e2e::context::{Context, eventually};
use crate::e2e::loop_device::LoopDevice;

/// The devices' length.
const LENGTH: u64 = 8 << 20;
/// Where the host has written before.
const MIDDLE: u64 = 1 << 20;

pub(super) fn volumes(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let first = LoopDevice::new(&context.scratch.join("first"), LENGTH)?;
    let second = LoopDevice::new(&context.scratch.join("second"), LENGTH)?;
    for device in [&first, &second] {
        device.write(MIDDLE, b"of the host")?;
    }
    let pod = node.run("devices")?;
    let writer = pod.start_with(&with_device(&pod, "writer", &first, "rwm"))?;
    let read = format!("dd if=/dev/xda bs=1 skip={MIDDLE} count=11 2>/dev/null");
    let written = pod.sh(
        &writer,
        &format!(
            "{read}; printf ' of the pod' | dd of=/dev/xda conv=notrunc,fsync; blockdev --getsize64 /dev/xda"
        ),
    )?;
    ensure!(written == format!("of the host{LENGTH}\n"), "the device that can be written: {written:?}");
    let stored = first.stored(0, 11)?;
    ensure!(stored == b" of the pod", "on the host there is {:?}", String::from_utf8_lossy(&stored));

    let reader = pod.start_with(&with_device(&pod, "reader", &second, "r"))?;
    let refused =
        pod.sh(&reader, &format!("{read}; printf x | dd of=/dev/xda conv=notrunc 2>&1 || echo refused"))?;
    ensure!(
        refused.starts_with("of the host") && refused.ends_with("refused\n"),
        "the device that can be read: {refused:?}"
    );
    ensure!(second.stored(0, 1)? == [0], "what was refused is on the host");
    updated(&node, &pod, &writer, &reader)?;

    // One that is given up is free while the pod runs, and another may take its place.
    node.cri.remove(&writer)?;
    first.remove()?;
    let third = LoopDevice::new(&context.scratch.join("third"), LENGTH)?;
    let next = pod.start_with(&with_device(&pod, "next", &third, "rwm"))?;
    pod.sh(&next, "printf third | dd of=/dev/xda conv=notrunc,fsync")?;
    ensure!(third.stored(0, 5)? == b"third", "the third device");
    pod.remove()?;
    second.remove()?;
    third.remove()?;
    alone(context)
}

/// Changes a limit of `writer`, with which containerd sends all its rules for devices: it still has its own, and still not that
/// of `reader`.
fn updated(node: &Node<'_>, pod: &Pod<'_>, writer: &str, reader: &str) -> anyhow::Result<()> {
    let limit = 64 << 20;
    let resources =
        LinuxContainerResources { memory_limit_in_bytes: limit, ..LinuxContainerResources::default() };
    node.cri.update(writer, resources)?;
    let number = |container: &str| pod.sh(container, "printf %d:%d $(stat -c '0x%t 0x%T' /dev/xda)");
    let (own, foreign) = (number(writer)?, number(reader)?);
    ensure!(own != foreign, "both containers have {own}");
    let foreign = foreign.replace(':', " ");
    let script = format!(
        "cat /sys/fs/cgroup/memory.max; dd if=/dev/xda bs=1 count=11 2>/dev/null; echo; \
         mknod /foreign b {foreign} && dd if=/foreign of=/dev/null bs=1 count=1 2>&1 || echo shut"
    );
    let seen = pod.sh(writer, &script)?;
    ensure!(
        seen.starts_with(&format!("{limit}\n of the pod\n"))
            && seen.contains("Operation not permitted")
            && seen.ends_with("shut\n"),
        "after an update: {seen:?}"
    );
    Ok(())
}

/// One without a pod.
fn alone(context: &Context) -> anyhow::Result<()> {
    let device = LoopDevice::new(&context.scratch.join("alone"), LENGTH)?;
    let script = format!("stat -c %F {0}; printf alone | dd of={0} conv=notrunc,fsync", device.path());
    let ended = context.run(&["--device", &device.path()], "device", &["sh", "-c", &script])?;
    let ended = ended.expect_status(0)?;
    ensure!(ended.text() == "block special file\n", "{ended:?}");
    ensure!(device.stored(0, 5)? == b"alone", "the device of a container without a pod");
    eventually("the device is free", || device.is_free())
}

/// A container that waits, with a device at `/dev/xda`.
fn with_device(pod: &Pod<'_>, name: &str, device: &LoopDevice, permissions: &str) -> ContainerConfig {
    let mut config = pod.container(name, &["sleep", "3600"]);
    config.devices = vec![Device {
        container_path: "/dev/xda".to_owned(),
        host_path: device.path(),
        permissions: permissions.to_owned(),
    }];
    config
}
