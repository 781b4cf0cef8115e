//! Fields of the OCI runtime spec for which `ctr` has no flag, and what they do.

use std::fs;

use anyhow::ensure;
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteResponse, Empty, StartResponse,
};
use serde_json::{Value, json};

use super::Test;
use super::context::{BUSYBOX, Context, ImageRoot, eventually};
use super::image_root::merge;
use super::task_api::Task;

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_specs_fields_hold_inside_the_container", check: inside },
    Test { name: "a_user_namespace_maps_ids", check: user_namespace },
];

fn inside(context: &Context) -> anyhow::Result<()> {
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let container = root.start(context, "fields", &["sleep", "3600"], |spec| {
        fields(spec);
        for phase in ["prestart", "createRuntime", "poststart", "poststop"] {
            merge(spec, &json!({"hooks": {phase: host_hook(context, phase)}}));
        }
        let script = "{ cat; echo; echo $PLACE; } > /hook-state";
        let hook =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PLACE=inside", "PATH=/bin"]}]);
        merge(spec, &json!({"hooks": {"startContainer": hook}}));
        if !context.is_control() {
            // What a node with AppArmor has in every spec, and in every `Exec`. runc refuses it on one without.
            merge(spec, &json!({"process": {"apparmorProfile": "docker-default"}}));
        }
    })?;
    let task = Task::of("fields")?;
    let table = [
        ("hostname; cat /proc/sys/kernel/msgmax /proc/1/oom_score_adj", "oci-host\n4096\n500\n"),
        (
            "stat -c '%F %a %u %g %t:%T' /dev/own-null; echo x > /dev/own-null",
            "character special file 600 5 6 1:3\n",
        ),
        (
            "mknod /kmsg c 1 11 && head -c 1 /kmsg || echo denied",
            "head: /kmsg: Operation not permitted\ndenied\n",
        ),
        (
            "mkdir /new; touch /file; chmod 777 /file; chmod 755 /file && echo made",
            "mkdir: can't create directory '/new': Operation not permitted\nchmod: /file: Permission denied\nmade\n",
        ),
        ("wc -c < /etc/group; touch /usr/new", "0\ntouch: /usr/new: Read-only file system\n"),
        ("grep -E 'NoNewPrivs|Seccomp:' /proc/1/status", "NoNewPrivs:\t1\nSeccomp:\t2\n"),
        ("grep 'open files' /proc/1/limits | tr -s ' '", "Max open files 77 99 files \n"),
        ("grep -c '\"fields\"' /hook-state; tail -n 1 /hook-state", "1\ninside\n"),
    ];
    for (number, (script, expected)) in table.into_iter().enumerate() {
        let (_, text) = task.exec(
            &format!("look-{number}"),
            &context.scratch,
            &json!({"args": ["sh", "-c", format!("exec 2>&1; {script}")]}),
        )?;
        ensure!(text == expected, "{script:?} printed {text:?}");
    }
    if !context.is_control() {
        newer(context, &task)?;
    }
    let seen = |phase: &str| fs::read_to_string(context.scratch.join(phase)).unwrap_or_default();
    let status = |phase: &str| {
        let state: Value = serde_json::from_str(&seen(phase)).unwrap_or_default();
        (state["id"] == "fields").then(|| state["status"].as_str().unwrap_or_default().to_owned())
    };
    eventually("the poststart hook has run", || Ok(!seen("poststart").is_empty()))?;
    // runc 1.1 calls a container that has just started "created".
    let started = if context.is_control() { "created" } else { "running" };
    for (phase, expected) in [("prestart", "creating"), ("createRuntime", "creating"), ("poststart", started)]
    {
        ensure!(status(phase).as_deref() == Some(expected), "{phase} read {:?}", seen(phase));
    }
    let rights = fs::read_to_string("/proc/self/status")?;
    ensure!(rights.contains(&seen("prestart.rights")) && !seen("prestart.rights").is_empty(), "{rights}");
    ensure!(seen("poststop").is_empty(), "the poststop hook has run already");
    container.remove()?;
    eventually("the poststop hook has run", || Ok(status("poststop").as_deref() == Some("stopped")))
}

/// A hook that keeps the state which it reads, and what rights it has.
fn host_hook(context: &Context, phase: &str) -> Value {
    let file = context.scratch.join(phase);
    json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {0}; grep CapEff /proc/self/status > {0}.rights", file.display())]}])
}

/// Fields that every runtime knows.
fn fields(spec: &mut Value) {
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
                "args": [{"index": 1, "value": 0o777, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    let process = json!({
        "oomScoreAdj": 500,
        "noNewPrivileges": true,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}],
    });
    let linux = json!({
        "sysctl": {"kernel.msgmax": "4096"},
        "devices": [{"path": "/dev/own-null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5, "gid": 6}],
        "maskedPaths": ["/etc/group", "/proc/kcore"],
        "readonlyPaths": ["/usr", "/proc/sys"],
        "seccomp": seccomp,
    });
    merge(spec, &json!({"hostname": "oci-host", "process": process, "linux": linux}));
}

/// Fields that neither the control, which is runc 1.1, nor the `ctr` beside it knows: in a container beside `task`'s.
fn newer(context: &Context, task: &Task) -> anyhow::Result<()> {
    let mut spec: Value = serde_json::from_slice(&fs::read(task.bundle().join("config.json"))?)?;
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("hooks");
    }
    merge(&mut spec, &newer_fields());
    merge(&mut spec, &of_a_node());
    if let Some(list) = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
        list.push(json!({"type": "time"}));
    }
    let bundle = context.scratch.join("newer");
    fs::create_dir(&bundle)?;
    fs::write(bundle.join("config.json"), spec.to_string())?;
    let newer = task.beside("newer");
    let bundle = bundle.display().to_string();
    let _: CreateTaskResponse =
        newer.expect("Create", &CreateTaskRequest { id: "newer".into(), bundle, ..Default::default() })?;
    let _: StartResponse = newer.expect("Start", &newer.start_request(""))?;
    let script = "cat /proc/sys/kernel/domainname; ionice -p 1; cut -d' ' -f41 /proc/1/stat; \
        [ $(cut -d. -f1 /proc/uptime) -gt 1000000 ] && echo later";
    let text = newer.shell("look", &context.scratch, script)?;
    ensure!(text == "oci.domain\nbest-effort: prio 6\n3\nlater\n", "printed {text:?}");
    let _: Empty = newer.expect("Kill", &newer.kill_request("", 9))?;
    newer.wait("")?;
    let _: DeleteResponse = newer.expect("Delete", &newer.delete_request(""))?;
    Ok(())
}

fn newer_fields() -> Value {
    json!({
        "domainname": "oci.domain",
        "process": {
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
            "scheduler": {"policy": "SCHED_BATCH"},
        },
        "linux": {"timeOffsets": {"boottime": {"secs": 1_000_000, "nanosecs": 0}}},
    })
}

/// What containerd's CRI plugin puts into a spec on a node with SELinux and a kubelet that gives CPUs away, for all of which there
/// is nothing in a guest.
fn of_a_node() -> Value {
    json!({
        "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
        "process": {"selinuxLabel": "system_u:system_r:container_kvm_t:s0:c1,c2"},
        "linux": {
            "mountLabel": "system_u:object_r:container_file_t:s0:c1,c2",
            "resources": {"cpu": {"cpus": "4096", "mems": "7"}},
        },
    })
}

fn user_namespace(context: &Context) -> anyhow::Result<()> {
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    for place in ["dev", "proc", "run", "sys"] {
        fs::create_dir_all(context.scratch.join("root").join(place))?;
    }
    // The files belong to the host's root, whom the container sees as nobody.
    let script = "cat /proc/self/uid_map | tr -s ' '; id -u; stat -c %u /bin/busybox";
    let ended = root.run(context, "mapped", |spec| {
        let mappings = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        merge(
            spec,
            &json!({"process": {"args": ["sh", "-c", script]},
            "linux": {"uidMappings": mappings, "gidMappings": mappings}}),
        );
        if let Some(list) = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
            list.push(json!({"type": "user"}));
        }
    })?;
    let ended = ended.expect_status(0)?;
    ensure!(ended.text() == " 0 100000 65536\n0\n65534\n", "{ended:?}");
    Ok(())
}
