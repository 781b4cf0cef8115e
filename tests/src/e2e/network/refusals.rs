//! Networks that a guest cannot have, and networks that a pod leaves without a word.

use std::fs;

use anyhow::ensure;

use crate::cni::Netns;
use crate::ctr::finish;
use crate::e2e::context::{BUSYBOX, Context, eventually};
use crate::e2e::leftovers::kill_shim_of;
use crate::e2e::silent_guest::configuration;

/// Bad input gets an error that names it, and leaves nothing.
pub(super) fn refused(context: &Context) -> anyhow::Result<()> {
    let missing = context.run(&["--with-ns=network:/run/netns/no-such"], "missing", &["true"])?;
    ensure!(missing.status != Some(0) && missing.stderr.contains("/run/netns/no-such"), "{missing:?}");
    if context.is_control() {
        // To which a namespace is a namespace.
        return Ok(());
    }
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &[
                "link add one type dummy",
                "link add two type dummy",
                "link set one address 02:00:00:00:00:05 up",
                "link set two address 02:00:00:00:00:05 up",
            ],
            &["interface two", "02:00:00:00:00:05", "one"],
        ),
        (&["link add inner type bridge", "link set inner up"], &["interface inner", "bridge"]),
        (&["link add quiet type dummy"], &["interface quiet", "down"]),
        (&["rule add from 10.0.0.1 table 5 priority 99"], &["IPv4", "99"]),
    ];
    for (setup, words) in cases {
        let namespace = Netns::new("saya-refused")?;
        for command in setup {
            namespace.ip(command)?;
        }
        expect_refusal(context, &namespace, words)?;
    }
    // Of a part of the kernel that the guest's does not have.
    let namespace = Netns::new("saya-refused")?;
    namespace.ip("link add fine type dummy")?;
    namespace.ip("link set fine up")?;
    namespace.inside(|| Ok(fs::write("/proc/sys/net/mptcp/enabled", "0")?))?;
    expect_refusal(context, &namespace, &["net/mptcp/enabled", "\"0\"", "does not have", "tuning"])
}

fn expect_refusal(context: &Context, namespace: &Netns, words: &[&str]) -> anyhow::Result<()> {
    let before = namespace.contents()?;
    let ended = context.run(&[&namespace.flag()], "refused", &["true"])?;
    ensure!(ended.status != Some(0), "a network was taken whose refusal should have named {words:?}");
    for word in words {
        ensure!(ended.stderr.contains(word), "the error does not name {word}: {}", ended.stderr);
    }
    ensure!(namespace.contents()? == before, "left in the namespace: {}", namespace.contents()?);
    Ok(())
}

/// Rules that would see none of the guest's packets keep a container from being made, unless they are to be ignored. Tables
/// without a rule do not.
pub(super) fn packet_filters(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("with it there is no other kernel that packets go to")?;
    let namespace = Netns::new("saya-filtered")?;
    namespace.ip("link add eth0 type dummy")?;
    namespace.ip("link set eth0 up")?;
    let programs = [("iptables-legacy", "nat of iptables"), ("iptables-nft", "ip nat of nftables")];
    for (program, _) in programs {
        finish(namespace.command(program).args(["-t", "nat", "-S"]))?;
    }
    context.run(&[&namespace.flag()], "unfiltered", &["true"])?.expect_status(0)?;

    let rule = ["OUTPUT", "-p", "tcp", "-j", "RETURN"];
    for (program, table) in programs {
        finish(namespace.command(program).args(["-t", "nat", "-A"]).args(rule))?;
        expect_refusal(context, &namespace, &[table, "init container", "ignore_packet_filters"])?;
        finish(namespace.command(program).args(["-t", "nat", "-D"]).args(rule))?;
    }
    finish(namespace.command("iptables-nft").args(["-P", "INPUT", "DROP"]))?;
    expect_refusal(context, &namespace, &["ip filter of nftables"])?;
    let file = configuration(context, &[("ignore_packet_filters", true.into())], &[])?;
    let flags = [&namespace.flag(), "--runtime-config-path", &file];
    context.run(&flags, "ignoring", &["true"])?.expect_status(0).map(drop)
}

/// What was tied to the interfaces goes with the pod, however it ends.
pub(super) fn killed_shim(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's shim leaves its socket when it is killed (containerd's issue 11292)")?;
    let namespace = Netns::new("saya-killed")?;
    namespace.ip("link add eth0 type dummy")?;
    namespace.ip("link set eth0 up")?;
    namespace.ip("addr add 10.80.0.2/24 dev eth0")?;
    let before = namespace.contents()?;
    let orphan = context.start(BUSYBOX, "tied", &[&namespace.flag()], &["sleep", "3600"])?;
    ensure!(namespace.contents()? != before, "nothing is tied to the interface");
    kill_shim_of("tied")?;
    orphan.remove()?;
    eventually("the interface is free again", || Ok(namespace.contents()? == before))?;
    let script = "ip -o -f inet addr show dev eth0 | grep -q 10.80.0.2/24";
    context.run(&[&namespace.flag()], "next", &["sh", "-c", script])?.expect_status(0).map(drop)
}
