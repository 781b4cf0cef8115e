//! What a container may use, and what it is told about that.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
mod common;

use std::fs;

use common::{Machine, context, message, process_spec};
use saya_agent_api::agent::{ContainerRequest, UpdateContainerRequest, WaitOutOfMemoryRequest};
use serde_json::{Value, json};
use ttrpc::Code;

fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..ContainerRequest::default() }
}

/// Whether this machine's cgroup2 tree has the controllers; hybrid hosts keep them in the old trees.
fn has_controllers(machine: &Machine) -> bool {
    let has = fs::read_to_string(machine.cgroup().join("cgroup.controllers")).unwrap().contains("memory");
    if !has {
        eprintln!("skipped: needs the memory controller in cgroup2");
    }
    has
}

#[tokio::test]
async fn devices_that_no_rule_allows_cannot_be_opened() {
    let machine = machine!();
    // 60 is for local use (devices.txt): nothing answers there. Nodes can be made everywhere.
    let script =
        "mknod /tmp/null c 1 3 && : </tmp/null && echo null; mknod /tmp/local c 60 7 && : </tmp/local";
    let outcome = machine.run("denied", &machine.spec(&["sh", "-c", script])).await;
    assert_eq!(outcome.stdout, "null\n", "{outcome:?}");
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    let mut spec = machine.spec(&["sh", "-c", script]);
    let rules = spec["linux"]["resources"]["devices"].as_array_mut().unwrap();
    rules.push(json!({"allow": true, "type": "c", "major": 60, "minor": 7, "access": "r"}));
    let outcome = machine.run("allowed", &spec).await;
    assert!(outcome.stderr.contains("No such device or address"), "{outcome:?}");
}

#[tokio::test]
async fn a_paused_container_stands_still_and_refuses_execs() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    machine.client.pause_container(context(), &container("c")).await.unwrap();
    let pid = machine.pids("c").await[0].0;
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let tree = machine.cgroup().parent().unwrap().join(own.trim_start_matches('/'));
    assert!(fs::read_to_string(tree.join("cgroup.events")).unwrap().contains("frozen 1"));
    let error = machine.exec("c", "e", &process_spec(&["true"]), Default::default()).await.unwrap_err();
    assert_eq!(
        message(&error),
        (Code::FAILED_PRECONDITION, "cannot exec in container \"c\": it is paused".into())
    );
    machine.client.resume_container(context(), &container("c")).await.unwrap();
    let error = machine.client.resume_container(context(), &container("c")).await.unwrap_err();
    assert_eq!(message(&error).0, Code::FAILED_PRECONDITION);
    machine.client.pause_container(context(), &container("c")).await.unwrap();
    machine.signal("c", "", libc::SIGKILL, true).await.unwrap();
    assert_eq!(machine.finish("c", "", stdio).await.status, 137);
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn all_processes_of_a_container_get_a_signal() {
    let machine = machine!();
    let mut spec = machine.spec(&["sleep", "1000"]);
    // In the machine's own pid namespace, so that the first process's end ends nobody else.
    spec["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
    machine.create("c", &spec, Default::default()).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    for exec in ["a", "b"] {
        machine.exec("c", exec, &process_spec(&["sleep", "1000"]), Default::default()).await.unwrap();
        machine.start_process("c", exec).await.unwrap();
    }
    assert_eq!(machine.pids("c").await.len(), 3);
    machine.signal("c", "", libc::SIGTERM, true).await.unwrap();
    for exec in ["", "a", "b"] {
        assert_eq!(machine.wait("c", exec).await.exit_status, 143);
    }
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_first_process_ends_the_container_in_a_shared_pid_namespace() {
    let machine = machine!();
    let mut spec = machine.spec(&["sleep", "1000"]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
    machine.create("c", &spec, Default::default()).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    machine.exec("c", "e", &process_spec(&["sleep", "1000"]), Default::default()).await.unwrap();
    machine.start_process("c", "e").await.unwrap();
    machine.signal("c", "", libc::SIGTERM, false).await.unwrap();
    assert_eq!(machine.wait("c", "e").await.exit_status, 137);
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn figures_are_the_kernels_files() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let files = machine.client.container_stats(context(), &container("c")).await.unwrap().files;
    assert!(files["cpu.stat"].contains("usage_usec"), "{files:?}");
    machine.finish("c", "", stdio).await;
}

async fn update(machine: &Machine, id: &str, resources: Value) -> Result<(), ttrpc::Error> {
    let request = UpdateContainerRequest {
        container_id: id.to_owned(),
        oci_resources: resources.to_string().into_bytes(),
        ..UpdateContainerRequest::default()
    };
    machine.client.update_container(context(), &request).await.map(drop)
}

#[tokio::test]
async fn limits_hold_and_can_be_changed() {
    let machine = machine!();
    if !has_controllers(&machine) {
        return;
    }
    let mut spec = machine.spec(&["cat"]);
    let (streams, stdio) = machine.streams();
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    spec["linux"]["resources"]["cpu"] = json!({"shares": 1024, "quota": 50000, "period": 100_000});
    spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    machine.create("c", &spec, streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let files = machine.client.container_stats(context(), &container("c")).await.unwrap().files;
    assert_eq!(files["memory.max"].trim(), (64 << 20).to_string());
    assert_eq!((files["cpu.weight"].trim(), files["cpu.max"].trim()), ("39", "50000 100000"));
    assert_eq!(files["pids.max"].trim(), "20");
    update(&machine, "c", json!({"pids": {"limit": 30}})).await.unwrap();
    let files = machine.client.container_stats(context(), &container("c")).await.unwrap().files;
    assert_eq!((files["pids.max"].trim(), files["cpu.weight"].trim()), ("30", "39"));
    let (code, text) = message(&update(&machine, "c", json!({"pids": {"limit": "x"}})).await.unwrap_err());
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.starts_with("pids.limit: "), "{text}");
    machine.finish("c", "", stdio).await;
}

#[tokio::test]
async fn an_update_leaves_devices_as_they_were() {
    let machine = machine!();
    // 60 is for local use (devices.txt): nothing answers there.
    let script = "mknod /tmp/open c 60 7; mknod /tmp/shut c 60 8; read line; (: </tmp/open); (: </tmp/shut)";
    let mut spec = machine.spec(&["sh", "-c", script]);
    let rule = |minor: u32| json!({"allow": true, "type": "c", "major": 60, "minor": minor, "access": "rwm"});
    spec["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule(7));
    let (streams, stdio) = machine.streams();
    machine.create("c", &spec, streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let all_shut = json!({"allow": false, "access": "rwm"});
    update(&machine, "c", json!({"devices": [all_shut, rule(8)]})).await.unwrap();
    let outcome = machine.finish("c", "", stdio).await;
    let (open, shut) = outcome.stderr.split_once('\n').unwrap();
    assert!(open.contains("/tmp/open") && open.contains("No such device or address"), "{outcome:?}");
    assert!(shut.contains("/tmp/shut") && shut.contains("Operation not permitted"), "{outcome:?}");
}

#[tokio::test]
async fn a_process_that_takes_too_much_memory_is_reported() {
    let machine = machine!();
    if !has_controllers(&machine) {
        return;
    }
    let mut spec = machine.spec(&[
        "sh",
        "-c",
        "sleep 1000 & dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?; cat",
    ]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
    let (streams, stdio) = machine.streams();
    machine.create("c", &spec, streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let request =
        |seen| WaitOutOfMemoryRequest { container_id: "c".into(), seen, ..WaitOutOfMemoryRequest::default() };
    let first = machine.client.wait_out_of_memory(context(), &request(0)).await.unwrap();
    assert_eq!((first.count, first.ended), (1, false));
    let outcome = machine.finish("c", "", stdio).await;
    assert_eq!(outcome.stdout, "137\n");
    let last = machine.client.wait_out_of_memory(context(), &request(1)).await.unwrap();
    assert!(last.ended);
}
