//! What a container sees and what it does not: mounts, namespaces, system calls, hooks.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::{message, process_spec};
use saya_agent_api::agent::Streams;
use serde_json::{Value, json};
use ttrpc::Code;

fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

#[tokio::test]
async fn binds_are_where_the_spec_says_and_as_it_says() {
    let machine = machine!();
    let host = machine.directory().join("host");
    fs::create_dir_all(host.join("sub")).unwrap();
    fs::write(host.join("file"), "of the host\n").unwrap();
    let rootfs = machine.rootfs();
    fs::create_dir(rootfs.join("real")).unwrap();
    symlink("/real", rootfs.join("link")).unwrap();
    let script = "cat /one/file /made/up/file; touch /one/new && echo written; touch /two/new; \
                  touch /real/sub/inner && echo linked; cp /bin/busybox /one/sub/tool; /three/tool true; \
                  grep ' /three ' /proc/mounts";
    let mut spec = common::spec(&rootfs, &["sh", "-c", script]);
    let bind = |source: &std::path::Path, destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    add_mount(&mut spec, bind(&host, "/one", &["rbind", "rw"]));
    add_mount(&mut spec, bind(&host.join("file"), "/made/up/file", &["bind", "ro"]));
    add_mount(&mut spec, bind(&host, "/two", &["rbind", "ro"]));
    add_mount(&mut spec, bind(&host, "/link", &["bind"]));
    add_mount(
        &mut spec,
        bind(&host.join("sub"), "/three", &["bind", "nosuid", "nodev", "noexec", "noatime"]),
    );
    let outcome = machine.run("c", &spec).await;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..4], ["of the host", "of the host", "written", "linked"], "{outcome:?}");
    assert!(lines[4].contains("nosuid,nodev,noexec,noatime"), "{outcome:?}");
    assert!(outcome.stderr.contains("/two/new: Read-only file system"), "{outcome:?}");
    assert!(outcome.stderr.contains("/three/tool: Permission denied"), "{outcome:?}");
    assert!(host.join("sub/inner").exists() && host.join("new").exists());
    assert!(!std::path::Path::new("/made/up").exists());
}

#[tokio::test]
async fn a_mount_that_cannot_be_made_is_named() {
    let machine = machine!();
    let table = [
        (
            json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}),
            "mount /no/such on /x: source: no such file or directory",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=many"]}),
            "mount tmpfs on /x: option \"size\": invalid argument (tmpfs: Bad value for 'size')",
        ),
        (json!({"destination": "/x", "type": "nofs", "source": "n"}), "mount nofs on /x: no such device"),
        (
            json!({"destination": "/etc/passwd", "type": "tmpfs", "source": "t"}),
            "mount tmpfs on /etc/passwd: not a directory",
        ),
    ];
    for (mount, expected) in table {
        let mut spec = machine.spec(&["true"]);
        add_mount(&mut spec, mount);
        let error = machine.create("c", &spec, Default::default()).await.unwrap_err();
        assert_eq!(message(&error), (Code::UNKNOWN, expected.to_owned()));
    }
}

#[tokio::test]
async fn a_read_only_root_and_masked_paths_hold() {
    let machine = machine!();
    let script = "touch /x; touch /run/y && echo run; echo 1 > /proc/sys/kernel/panic; cat /etc/secret; \
                  ls /var/hidden | wc -l; touch /var/hidden/z; mount | grep -c .; touch /dev/q";
    let rootfs = machine.rootfs();
    fs::create_dir_all(rootfs.join("var/hidden")).unwrap();
    fs::write(rootfs.join("var/hidden/a"), "").unwrap();
    fs::write(rootfs.join("etc/secret"), "secret\n").unwrap();
    let mut spec = common::spec(&rootfs, &["sh", "-c", script]);
    spec["root"]["readonly"] = json!(true);
    spec["mounts"][1]["options"].as_array_mut().unwrap().push(json!("ro"));
    let masked = spec["linux"]["maskedPaths"].as_array_mut().unwrap();
    masked.extend([json!("/etc/secret"), json!("/var/hidden"), json!("/no/such/path")]);
    let outcome = machine.run("c", &spec).await;
    assert!(outcome.stdout.starts_with("run\n0\n"), "{outcome:?}");
    for refused in [
        "/x: Read-only",
        "/proc/sys/kernel/panic: Read-only",
        "/var/hidden/z: Read-only",
        "/dev/q: Read-only",
    ] {
        assert!(outcome.stderr.contains(refused), "{refused}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_filter_of_system_calls_holds_for_all_processes() {
    let machine = machine!();
    for no_new_privileges in [true, false] {
        let mut spec = machine.spec(&["sh", "-c", "mkdir /x; mkdir /y; echo on; cat"]);
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
        let (streams, stdio) = machine.streams();
        machine.create("c", &spec, streams).await.unwrap();
        machine.start_process("c", "").await.unwrap();
        let (streams, inner) = machine.streams();
        let mut process = process_spec(&["mkdir", "/z"]);
        process["noNewPrivileges"] = json!(no_new_privileges);
        machine.exec("c", "e", &process, streams).await.unwrap();
        machine.start_process("c", "e").await.unwrap();
        let outcome = machine.finish("c", "e", inner).await;
        assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
        let outcome = machine.finish("c", "", stdio).await;
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.matches("No space left").count()), ("on\n", 2));
        machine.delete("c", "").await.unwrap();
    }
}

#[tokio::test]
async fn a_container_joins_the_namespaces_of_another() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    let pid = machine.create("pause", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("pause", "").await.unwrap();
    let mut spec = machine.spec(&["sh", "-c", "hostname; cat /proc/1/comm; readlink /proc/self/ns/ipc"]);
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    spec["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"}, {"type": "network"},
        {"type": "pid", "path": path("pid")}, {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")}
    ]);
    let ipc = fs::read_link(path("ipc")).unwrap();
    let outcome = machine.run("member", &spec).await;
    assert_eq!(outcome.stdout, format!("inside\ncat\n{}\n", ipc.display()), "{outcome:?}");
    machine.finish("pause", "", stdio).await;
    let error = machine.create("late", &spec, Default::default()).await.unwrap_err();
    assert!(message(&error).1.contains(&path("pid")), "{error:?}");
}

#[tokio::test]
async fn a_user_namespace_maps_ids_and_is_joined_by_execs() {
    let machine = machine!();
    let rootfs = machine.rootfs();
    for path in ["bin", "etc", "tmp", "root", ""] {
        std::os::unix::fs::chown(rootfs.join(path), Some(100_000), Some(100_000)).unwrap();
    }
    // The way to the root must be open to the one who is root inside.
    fs::set_permissions(machine.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = "cat /proc/self/uid_map; id -u; touch /tmp/mine; ls -ln /tmp/mine; cat; ls -l /dev/null /dev/zero; ls /sys; touch /sys/x";
    let mut spec = common::spec(&rootfs, &["sh", "-c", script]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["uidMappings"] = mapping.clone();
    spec["linux"]["gidMappings"] = mapping;
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    let (streams, stdio) = machine.streams();
    machine.create("c", &spec, streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let (streams, inner) = machine.streams();
    let process = process_spec(&[
        "sh",
        "-c",
        "id -u; for p in self 1; do readlink /proc/$p/ns/user; done | uniq | wc -l",
    ]);
    machine.exec("c", "e", &process, streams).await.unwrap();
    machine.start_process("c", "e").await.unwrap();
    let outcome = machine.finish("c", "e", inner).await;
    assert_eq!(outcome.stdout, "0\n1\n", "{outcome:?}");
    let outcome = machine.finish("c", "", stdio).await;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"], "{outcome:?}");
    assert_eq!(lines[1], "0");
    assert!(lines[2].contains(" 0 ") && lines[4].starts_with("crw-rw-rw-"), "{outcome:?}");
    assert!(
        outcome.stdout.contains("kernel\n") && outcome.stderr.contains("/sys/x: Read-only"),
        "{outcome:?}"
    );
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(rootfs.join("tmp/mine")).unwrap()), 100_000);
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn clocks_have_the_offsets_of_the_time_namespace() {
    let machine = machine!();
    let mut spec = machine.spec(&["sh", "-c", "cut -d. -f1 /proc/uptime"]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 1_000_000}});
    let outcome = machine.run("c", &spec).await;
    assert!(outcome.stdout.trim().parse::<u64>().unwrap() > 1_000_000, "{outcome:?}");
}

#[tokio::test]
async fn hooks_run_in_the_container_in_their_order() {
    let machine = machine!();
    let rootfs = machine.rootfs();
    let note = machine.directory().join("note");
    let mut spec = common::spec(&rootfs, &["cat", "/tmp/started"]);
    let create = format!("cat > {0}; hostname >> {0}; echo $A >> {0}", note.display());
    spec["hooks"] = json!({
        "createContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", create], "env": ["A=b", "PATH=/bin:/usr/bin"]}],
        "startContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", "cat > /tmp/started"], "env": ["PATH=/bin"]}]
    });
    let outcome = machine.run("hooked", &spec).await;
    let state: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&state["id"], &state["status"]), (&json!("hooked"), &json!("created")));
    let noted = fs::read_to_string(&note).unwrap();
    assert!(
        noted.starts_with("{\"") && noted.contains("\"creating\"") && noted.ends_with("inside\nb\n"),
        "{noted}"
    );
    for (timeout, script, expected) in [
        (None, "exit 3", "hook /bin/busybox: exit status: 3"),
        (Some(1), "sleep 1000", "hook /bin/busybox: did not end within 1 s"),
    ] {
        spec["hooks"] = json!({"createContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", script], "timeout": timeout}]});
        let error = machine.create("failed", &spec, Default::default()).await.unwrap_err();
        assert_eq!(message(&error).1, expected);
    }
}

#[tokio::test]
async fn kernel_parameters_of_namespaces_are_set() {
    let machine = machine!();
    let mut spec = machine.spec(&["sh", "-c", "cat /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max"]);
    spec["linux"]["sysctl"] = json!({"kernel.msgmax": "4321", "fs.mqueue.msg_max": "77"});
    assert_eq!(machine.run("c", &spec).await.stdout, "4321\n77\n");
    spec["linux"]["sysctl"] = json!({"kernel.no_such": "1"});
    let (_, text) = message(&machine.create("c", &spec, Default::default()).await.unwrap_err());
    assert_eq!(text, "write \"1\" to /proc/sys/kernel/no_such: no such file or directory");
}

#[tokio::test]
async fn a_pods_own_process_holds_its_namespaces_and_reaps_what_is_orphaned_in_them() {
    let machine = machine!();
    let root = machine.directory().join("pod");
    fs::create_dir(&root).unwrap();
    let bind = |source: &str, destination: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]});
    let mut mounts = vec![bind(env!("CARGO_BIN_EXE_saya-agent"), "/pod")];
    // In a guest the program needs no library.
    mounts.extend(["/lib", "/lib64", "/usr"].map(|directory| bind(directory, directory)));
    let pod = json!({
        "ociVersion": "1.1.0",
        "hostname": "web",
        "root": {"path": root, "readonly": true},
        "process": {"args": ["/pod", saya_agent_api::HOLD_POD], "cwd": "/", "user": {"uid": 65535, "gid": 65535},
            "noNewPrivileges": true},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"}]},
    });
    let pid = machine.create("pod", &pod, Streams::default()).await.unwrap();
    machine.start_process("pod", "").await.unwrap();

    let script = "hostname; (sleep 0.2 &); until ! ps -o comm | grep -qx sleep; do :; done; ps -o pid,comm";
    let mut spec = machine.spec(&["sh", "-c", script]);
    let of_pod = |kind: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{kind}")});
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, of_pod("pid"), of_pod("uts"), of_pod("ipc")]);
    let outcome = machine.run("c", &spec).await;
    assert!(outcome.stdout.starts_with("web\n") && outcome.stdout.contains("1 pod"), "{outcome:?}");

    machine.signal("pod", "", libc::SIGTERM, false).await.unwrap();
    assert_eq!(machine.wait("pod", "").await.exit_status, 0);
    machine.delete("pod", "").await.unwrap();
}
