//! Containers from their creation to their removal.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod common;

use std::io::Write;

use common::{message, process_spec};
use serde_json::json;
use ttrpc::Code;

#[tokio::test]
async fn a_container_says_hello_and_leaves_nothing() {
    let machine = machine!();
    let outcome = machine.run("hello", &machine.spec(&["echo", "hello"])).await;
    assert_eq!((outcome.status, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "hello\n", ""));
    assert_eq!(outcome.exit.stdout_bytes, 6);
    assert!(!machine.cgroup().join("default").exists(), "the cgroup stays behind");
}

#[tokio::test]
async fn exit_statuses_and_signals_come_back() {
    let machine = machine!();
    for (command, status) in
        [("exit 7", 7), ("kill -9 $$", 0), ("sh -c 'kill -15 $$'; exit $?", 143), ("exit 255", 255)]
    {
        let outcome = machine.run("c", &machine.spec(&["sh", "-c", command])).await;
        // The first process of a pid namespace cannot kill itself.
        assert_eq!(outcome.status, status, "{command}: {outcome:?}");
    }
    let spec = machine.spec(&["sleep", "1000"]);
    machine.create("killed", &spec, Default::default()).await.unwrap();
    machine.start_process("killed", "").await.unwrap();
    machine.signal("killed", "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(machine.wait("killed", "").await.exit_status, 137);
}

#[tokio::test]
async fn the_process_finds_what_the_spec_says() {
    let machine = machine!();
    let script = "hostname; pwd; id; echo $HOME $X; ls /dev; cat /proc/self/status | grep -E 'Cap|NoNewPrivs'; \
                  ulimit -n; umask; cat /proc/1/comm; cat /proc/self/cgroup";
    let mut spec = machine.spec(&["sh", "-c", script]);
    spec["process"]["cwd"] = json!("/made/for/it");
    spec["process"]["env"].as_array_mut().unwrap().push(json!("X=y z"));
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 7], "umask": 0o27});
    let outcome = machine.run("c", &spec).await;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(
        &lines[..4],
        ["inside", "/made/for/it", "uid=1000(user) gid=1000 groups=5,7", "/home/user y z"]
    );
    let devices = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    assert_eq!(lines[4..18], devices, "{outcome:?}");
    let rest = [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "1024",
        "0027",
        "sh",
        "0::/",
    ];
    for (line, expected) in lines[18..].iter().filter(|line| !line.contains(":/")).zip(rest) {
        assert_eq!(*line, expected, "{outcome:?}");
    }
    assert!(lines.contains(&"0::/"), "{outcome:?}");
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_the_creation_and_names_it() {
    let machine = machine!();
    let table = [
        ("nothing", "exec: \"nothing\": executable file not found in $PATH"),
        ("/no/thing", "exec: \"/no/thing\": stat /no/thing: no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ];
    for (program, expected) in table {
        let error = machine.create("c", &machine.spec(&[program]), Default::default()).await.unwrap_err();
        assert_eq!(message(&error), (Code::UNKNOWN, expected.to_owned()));
    }
    assert!(!machine.cgroup().join("default").exists(), "the cgroup stays behind");
}

#[tokio::test]
async fn a_file_that_is_no_program_fails_the_start() {
    let machine = machine!();
    let rootfs = machine.rootfs();
    std::fs::write(rootfs.join("bin/odd"), "no program").unwrap();
    std::fs::set_permissions(rootfs.join("bin/odd"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    machine.create("c", &common::spec(&rootfs, &["odd"]), Default::default()).await.unwrap();
    let error = machine.start_process("c", "").await.unwrap_err();
    assert_eq!(message(&error), (Code::UNKNOWN, "exec /bin/odd: exec format error".to_owned()));
    assert_eq!(machine.wait("c", "").await.exit_status, 255);
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn wrong_requests_have_their_codes() {
    let machine = machine!();
    let code = |error: ttrpc::Error| message(&error).0;
    assert_eq!(code(machine.start_process("none", "").await.unwrap_err()), Code::NOT_FOUND);
    let spec = machine.spec(&["cat"]);
    let (streams, stdio) = machine.streams();
    machine.create("c", &spec, streams).await.unwrap();
    assert_eq!(code(machine.create("c", &spec, Default::default()).await.unwrap_err()), Code::ALREADY_EXISTS);
    machine.start_process("c", "").await.unwrap();
    assert_eq!(code(machine.start_process("c", "").await.unwrap_err()), Code::FAILED_PRECONDITION);
    assert_eq!(code(machine.delete("c", "").await.unwrap_err()), Code::FAILED_PRECONDITION);
    assert_eq!(code(machine.start_process("c", "none").await.unwrap_err()), Code::NOT_FOUND);
    let process = process_spec(&["true"]);
    machine.exec("c", "e", &process, Default::default()).await.unwrap();
    assert_eq!(
        code(machine.exec("c", "e", &process, Default::default()).await.unwrap_err()),
        Code::ALREADY_EXISTS
    );
    assert_eq!(code(machine.signal("c", "", 65, false).await.unwrap_err()), Code::INVALID_ARGUMENT);
    machine.finish("c", "", stdio).await;
    assert_eq!(code(machine.signal("c", "", 15, false).await.unwrap_err()), Code::NOT_FOUND);
    let error = machine.exec("c", "f", &process, Default::default()).await.unwrap_err();
    assert_eq!(code(error), Code::FAILED_PRECONDITION);
    machine.delete("c", "").await.unwrap();
    let mut bad = spec.clone();
    bad["process"]["capabilities"]["bounding"][1] = json!("CAP_FLY");
    let (code, text) = message(&machine.create("c", &bad, Default::default()).await.unwrap_err());
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.starts_with("process.capabilities.bounding[1]: "), "{text}");
    bad = spec.clone();
    bad["root"]["path"] = json!("/no/such/rootfs");
    let (_, text) = message(&machine.create("c", &bad, Default::default()).await.unwrap_err());
    assert_eq!(text, "rootfs \"/no/such/rootfs\": no such file or directory");
}

#[tokio::test]
async fn input_reaches_the_process_and_its_end_too() {
    let machine = machine!();
    let (streams, mut stdio) = machine.streams();
    machine.create("c", &machine.spec(&["md5sum"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let mut input = stdio.stdin.try_clone().unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        let block = [b'x'; 1 << 16];
        (0..256).for_each(|_| input.write_all(&block).unwrap());
    });
    writer.await.unwrap();
    stdio.stdin.flush().unwrap();
    let outcome = machine.finish("c", "", stdio).await;
    assert_eq!(outcome.stdout, checksum_of_what_was_sent());
}

fn checksum_of_what_was_sent() -> String {
    let output = std::process::Command::new("sh")
        .args(["-c", "head -c 16777216 /dev/zero | tr '\\0' x | md5sum"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn closing_the_input_by_request_delivers_what_came_before() {
    let machine = machine!();
    let (streams, mut stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    stdio.stdin.write_all(b"before").unwrap();
    machine.close_stdin("c", "").await;
    assert_eq!(machine.wait("c", "").await.exit_status, 0);
    assert_eq!(common::read_to_end(stdio.stdout).await.unwrap(), b"before");
}

#[tokio::test]
async fn more_processes_run_in_a_container() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let (streams, inner) = machine.streams();
    let process = process_spec(&["sh", "-c", "hostname; ps | grep -c cat; cat; echo oops >&2; exit 3"]);
    let pid = machine.exec("c", "e1", &process, streams).await.unwrap();
    machine.start_process("c", "e1").await.unwrap();
    assert!(machine.pids("c").await.contains(&(pid, "e1".to_owned())));
    let mut input = inner.stdin.try_clone().unwrap();
    input.write_all(b"typed\n").unwrap();
    let outcome = machine.finish("c", "e1", inner).await;
    assert_eq!(outcome.status, 3);
    assert!(outcome.stdout.starts_with("inside\n") && outcome.stdout.ends_with("typed\n"), "{outcome:?}");
    assert_eq!(outcome.stderr, "oops\n");
    machine.delete("c", "e1").await.unwrap();
    machine.exec("c", "e1", &process_spec(&["sleep", "1000"]), Default::default()).await.unwrap();
    machine.start_process("c", "e1").await.unwrap();
    machine.signal("c", "e1", libc::SIGTERM, false).await.unwrap();
    assert_eq!(machine.wait("c", "e1").await.exit_status, 143);
    machine.exec("c", "e2", &process_spec(&["sleep", "1000"]), Default::default()).await.unwrap();
    machine.start_process("c", "e2").await.unwrap();
    machine.finish("c", "", stdio).await;
    assert_eq!(machine.wait("c", "e2").await.exit_status, 137);
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn an_exec_of_a_missing_program_fails_with_its_name() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let error = machine.exec("c", "e", &process_spec(&["nothing"]), Default::default()).await.unwrap_err();
    assert_eq!(message(&error).1, "exec: \"nothing\": executable file not found in $PATH");
    machine.exec("c", "e", &process_spec(&["true"]), Default::default()).await.unwrap();
    machine.finish("c", "", stdio).await;
}
