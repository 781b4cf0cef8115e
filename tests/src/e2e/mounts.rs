//! Mounts in all their forms, and what cannot be mounted.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use containerd_shim_protos::api::DeleteResponse;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::Test;
use super::context::{BUSYBOX, Context, Ended, ImageRoot, REDIS, bind, eventually};
use super::host_mount::HostMount;
use super::task_api::Task;
use super::watch::{LAST, WATCHING};
use crate::ctr::finish;

pub(super) const TESTS: &[Test] = &[
    Test { name: "mounts_of_every_form_are_as_the_spec_says", check: forms },
    Test { name: "a_host_mount_below_an_rslave_bind_appears_in_the_running_container", check: propagation },
    Test { name: "sockets_and_fifos_in_a_volume_join_two_containers_of_one_pod", check: between_containers },
    Test { name: "the_files_of_an_idmapped_mount_are_whose_it_says", check: idmapped },
    Test { name: "sockets_devices_and_file_systems_of_the_host_are_refused_by_name", check: refused },
];

fn bind_of(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn forms(context: &Context) -> anyhow::Result<()> {
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let host = context.scratch.join("host");
    for directory in ["outer/inner-place", "inner", "tree/below", "plain"] {
        fs::create_dir_all(host.join(directory))?;
    }
    for file in ["outer/file", "inner/file", "plain/file", "tree/file"] {
        fs::write(host.join(file), format!("{file}\n"))?;
    }
    fs::write(host.join("plain/program"), "#!/bin/sh\necho ran\n")?;
    chown(host.join("plain/program"), Some(0), Some(0))?;
    fs::set_permissions(host.join("plain/program"), PermissionsExt::from_mode(0o755))?;
    let below = HostMount::tmpfs(&host.join("tree/below"))?;
    fs::write(host.join("tree/below/mounted"), "mounted\n")?;
    fs::create_dir_all(context.scratch.join("root/real"))?;
    symlink("real", context.scratch.join("root/alias"))?;

    let (of_this_program, program) = this_program()?;
    let mounts = [
        bind_of(&host.join("outer"), "/outer", &["rbind", "rw"]),
        bind_of(&host.join("inner"), "/outer/inner-place", &["bind", "ro"]),
        bind_of(&host.join("plain"), "/alias/data", &["bind", "rw"]),
        bind_of(&host.join("tree"), "/recursive", &["rbind", "ro"]),
        bind_of(&host.join("tree"), "/flat", &["bind"]),
        bind_of(&host.join("plain"), "/strict", &["bind", "rw", "noexec", "nosuid", "nodev"]),
        bind_of(&host.join("plain/file"), "/etc/one", &["bind", "ro"]),
        json!({"destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=0711", "nosuid"]}),
    ];
    let container = root.start(context, "forms", &["sleep", "3600"], |spec| {
        if let Some(list) = spec.pointer_mut("/mounts").and_then(Value::as_array_mut) {
            list.extend(mounts);
            list.extend(of_this_program);
        }
    })?;
    let task = Task::of("forms")?;
    let shell = |exec: &str, script: &str| task.shell(exec, &context.scratch, script);
    let refused = |exec: &str, script: &str, words: &str| -> anyhow::Result<()> {
        let script = format!("exec 2>&1; {script}");
        let (status, text) = task.exec(exec, &context.scratch, &json!({"args": ["sh", "-c", script]}))?;
        ensure!(status != 0 && text.contains(words), "{script}: status {status}, {text:?}");
        Ok(())
    };
    let read = shell(
        "read",
        "cat /outer/file /outer/inner-place/file /real/data/file /recursive/below/mounted \
        /recursive/file /etc/one; ls /flat/below | wc -l; /real/data/program",
    )?;
    ensure!(
        read == "outer/file\ninner/file\nplain/file\nmounted\ntree/file\nplain/file\n0\nran\n",
        "{read:?}"
    );
    refused("nested", "touch /outer/inner-place/new", "Read-only")?;
    refused("file", "echo > /etc/one", "Read-only")?;
    refused("tree", "touch /recursive/new", "Read-only")?;
    refused("program", "/strict/program", "Permission denied")?;
    shell("write", "touch /outer/new /real/data/new /strict/new")?;
    // What is mounted below a volume that is read-only, but not recursively, is not.
    shell("below", "touch /recursive/below/new")?;
    ensure!(host.join("tree/below/new").exists(), "a write below a read-only volume did not reach the host");
    ensure!(
        host.join("outer/new").exists() && host.join("plain/new").exists(),
        "writes did not reach the host"
    );
    // What is made on the host is seen inside, and what is removed is gone.
    fs::write(host.join("outer/late"), "late\n")?;
    ensure!(shell("late", "cat /outer/late; rm /outer/late")? == "late\n", "the late file");
    ensure!(!host.join("outer/late").exists(), "a file removed in the container stays on the host");
    inotify(context, &task, &program, &host.join("outer"))?;

    let tmpfs = shell("tmpfs", "stat -c %a /small; df -k /small /dev/shm | awk 'NR>1{print $2}'")?;
    ensure!(tmpfs == "711\n64\n65536\n", "{tmpfs:?}");
    kernel_file_systems(&shell("kernel", "cat /proc/self/mounts")?)?;
    refused("sysfs", "mkdir /sys/kernel/new", "Read-only")?;
    refused("sysctl", "echo 1 > /proc/sys/kernel/panic", "Read-only")?;
    let masked = shell(
        "masked",
        "cat /proc/kcore /proc/keys 2>/dev/null | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w",
    )?;
    ensure!(masked == "0\n0\n", "{masked:?}");
    container.remove()?;
    drop(below);
    Ok(())
}

fn idmapped(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc 1.1 knows no idmapped mounts")?;
    // Not every file system can: tmpfs not before Linux 6.3.
    let (image, source) = (context.scratch.join("ext4"), context.scratch.join("source"));
    fs::File::create(&image)?.set_len(8 << 20)?;
    finish(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
    let mounted = HostMount::image(&image, &source, "rw")?;
    for (name, owner) in [("of-root", 0), ("of-seven", 7)] {
        fs::write(source.join(name), name)?;
        chown(source.join(name), Some(owner), Some(owner))?;
    }
    fs::set_permissions(&source, PermissionsExt::from_mode(0o777))?;

    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let mut mapped = bind_of(&source, "/mapped", &["rbind", "idmap"]);
    mapped["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    mapped["gidMappings"] = json!([{"containerID": 0, "hostID": 200_000, "size": 1000}]);
    let container = root.start(context, "idmapped", &["sleep", "3600"], |spec| {
        if let Some(list) = spec.pointer_mut("/mounts").and_then(Value::as_array_mut) {
            list.extend([mapped, bind_of(&source, "/plain", &["rbind"])]);
        }
    })?;
    let task = Task::of("idmapped")?;
    let owners = |exec: &str, names: &str| {
        task.shell(exec, &context.scratch, &format!("cd /; stat -c '%u:%g' {names} | xargs"))
    };
    let seen = owners("owners", "mapped/of-root mapped/of-seven plain/of-root plain/of-seven")?;
    ensure!(seen == "100000:200000 100007:200007 0:0 7:7\n", "{seen:?}");
    // What a mapped user makes belongs to whom it is on the host.
    let made = json!({"args": ["touch", "/mapped/made"], "user": {"uid": 100_008, "gid": 200_009}});
    let (status, text) = task.exec("touch", &context.scratch, &made)?;
    ensure!(status == 0, "a mapped user cannot write: {text:?}");
    let made = fs::metadata(source.join("made"))?;
    ensure!((made.uid(), made.gid()) == (8, 9), "the host has {}:{}", made.uid(), made.gid());
    // And whom the mapping does not know cannot make anything.
    let (status, text) =
        task.exec("stranger", &context.scratch, &json!({"args": ["sh", "-c", "touch /mapped/other 2>&1"]}))?;
    ensure!(status != 0 && text.contains("too large"), "status {status}: {text:?}");
    container.remove()?;
    drop(mounted);
    Ok(())
}

/// Mounts by which this very program runs in a container, and the command: its libraries are the host's.
fn this_program() -> anyhow::Result<([Value; 2], [&'static str; 4])> {
    let mounts = [
        bind_of(Path::new("/usr/lib/x86_64-linux-gnu"), "/lib", &["rbind", "ro"]),
        bind_of(&env::current_exe()?, "/e2e", &["bind", "ro"]),
    ];
    Ok((mounts, ["/lib/ld-linux-x86-64.so.2", "--library-path", "/lib", "/e2e"]))
}

/// Who watches a volume is told what the pod does, and what the host does only where both have one kernel; it is there
/// to be read all the same. `volume` is the host's directory at `/outer`.
fn inotify(context: &Context, task: &Task, program: &[&str], volume: &Path) -> anyhow::Result<()> {
    let shell = |exec: &str, script: &str| task.shell(exec, &context.scratch, script);
    let told = context.scratch.join("told");
    fs::write(&told, "")?;
    let arguments = [program, &["--watch", "/outer"]].concat();
    task.start_exec("watch", &json!({"args": arguments}), Some(&told))?;
    eventually("somebody watches", || Ok(fs::read_to_string(&told)?.contains(WATCHING)))?;
    shell("by-pod", "touch /outer/by-pod")?;
    fs::write(volume.join("by-host"), "")?;
    let mut tries = 0;
    eventually("the host's file is there", || {
        tries += 1;
        Ok(shell(&format!("seen-{tries}"), "ls /outer")?.contains("by-host"))
    })?;
    // Events have an order: what was not told before the last one is not told.
    shell("last", &format!("touch /outer/{LAST}"))?;
    let ended = task.wait("watch")?;
    let _: DeleteResponse = task.expect("Delete", &task.delete_request("watch"))?;
    let events = fs::read_to_string(&told)?;
    ensure!(ended.exit_status == 0 && events.contains("by-pod"), "{ended:?}: {events:?}");
    ensure!(events.contains("by-host") == context.is_control(), "{events:?}");
    Ok(())
}

/// Checks the lines of `/proc/self/mounts` that every container has.
fn kernel_file_systems(mounts: &str) -> anyhow::Result<()> {
    for (place, kind, options) in [
        ("/proc", "proc", ["nosuid", "noexec", "nodev"].as_slice()),
        ("/dev", "tmpfs", &["nosuid"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec"]),
        ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", &["ro", "nosuid", "noexec", "nodev"]),
        ("/small", "tmpfs", &["rw", "nosuid"]),
        ("/strict", "", &["rw", "nosuid", "nodev", "noexec"]),
    ] {
        let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let line = lines.find(|line| line.get(1) == Some(&place));
        let line = line.with_context(|| format!("nothing is mounted at {place}: {mounts}"))?;
        let shown: Vec<&str> = line.get(3).map(|options| options.split(',').collect()).unwrap_or_default();
        ensure!(kind.is_empty() || line.get(2) == Some(&kind), "{place}: {line:?}");
        ensure!(
            options.iter().all(|option| shown.contains(option)),
            "{place} lacks one of {options:?}: {line:?}"
        );
    }
    Ok(())
}

fn propagation(context: &Context) -> anyhow::Result<()> {
    let source = context.scratch.join("shared");
    let shared = HostMount::shared(&source)?;
    fs::create_dir(source.join("late"))?;
    let mounts = [bind(&source, "/slave", "rbind:rslave"), bind(&source, "/private", "rbind:rprivate")];
    let flags = ["--mount", &mounts[0], "--mount", &mounts[1]];
    let container = context.start(BUSYBOX, "propagation", &flags, &["sleep", "3600"])?;
    let task = Task::of("propagation")?;
    let late = HostMount::tmpfs(&source.join("late"))?;
    fs::write(source.join("late/file"), "late\n")?;
    let mut tries = 0;
    eventually("the host's late mount appears in the container", || {
        tries += 1;
        let script = "cat /slave/late/file 2>/dev/null; ls -A /private/late";
        Ok(task.shell(&format!("look-{tries}"), &context.scratch, script)? == "late\n")
    })?;
    container.remove()?;
    drop(late);
    drop(shared);
    Ok(())
}

fn between_containers(context: &Context) -> anyhow::Result<()> {
    let volume = context.scratch.join("volume");
    fs::create_dir(&volume)?;
    mknodat(CWD, volume.join("fifo"), FileType::Fifo, Mode::RWXU, 0)?;
    let mount = bind(&volume, "/share", "rbind:rw");
    let sandbox_id = "io.kubernetes.cri.sandbox-id=server";
    let of_kind = |kind| ["--mount", mount.as_str(), "--annotation", sandbox_id, "--annotation", kind];
    let serve = ["redis-server", "--port", "0", "--unixsocket", "/share/redis.sock", "--save", ""];
    let server =
        context.start(REDIS, "server", &of_kind("io.kubernetes.cri.container-type=sandbox"), &serve)?;
    let member = of_kind("io.kubernetes.cri.container-type=container");
    let client = context.start(REDIS, "client", &member, &["sleep", "3600"])?;
    let wait =
        "n=0; until [ -S /share/redis.sock ]; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.1; done";
    client.exec("wait", &["sh", "-c", wait])?.expect_status(0)?;
    let ping = client.exec("ping", &["redis-cli", "-s", "/share/redis.sock", "ping"])?.expect_status(0)?;
    ensure!(ping.text() == "PONG\n", "{ping:?}");

    let reader = server
        .exec_command(&[], "read", &["sh", "-c", "read line < /share/fifo; echo $line"])
        .stdin(Stdio::null())
        .spawn()?;
    client.exec("write", &["sh", "-c", "echo through a fifo > /share/fifo"])?.expect_status(0)?;
    let read: Ended = reader.wait_with_output()?.into();
    ensure!(read.text() == "through a fifo\n", "{read:?}");
    client.remove()?;
    server.remove()
}

fn refused(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's containers are on the host and reach all of it")?;
    let socket = context.scratch.join("socket");
    let _listener = UnixListener::bind(&socket)?;
    let fifo = context.scratch.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0)?;
    let socket = socket.display().to_string();
    let fifo = fifo.display().to_string();
    let table: [(&[&str], &str); 6] = [
        (
            &["--mount", &format!("type=bind,src={socket},dst=/x,options=bind")],
            &format!("{socket:?} is a socket"),
        ),
        (
            &["--mount", &format!("type=bind,src={fifo},dst=/x,options=bind")],
            &format!("{fifo:?} is a named pipe"),
        ),
        (&["--mount", "type=bind,src=/dev/kvm,dst=/x,options=bind"], "/dev/kvm"),
        (&["--mount", "type=ext4,src=/dev/vda,dst=/x,options=ro"], "file system of type \"ext4\""),
        (
            &[
                "--mount",
                &format!("type=bind,src={},dst=/x,options=rbind:rshared", context.scratch.display()),
            ],
            "rshared",
        ),
        (&["--device", "/dev/kvm"], "/dev/kvm"),
    ];
    for (number, (flags, words)) in table.iter().enumerate() {
        let ended = context.run(flags, &format!("refused-{number}"), &["true"])?;
        ensure!(ended.status != Some(0) && ended.stderr.contains(words), "{flags:?}: {ended:?}");
    }
    Ok(())
}
