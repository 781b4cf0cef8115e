//! What cannot be right, or cannot be had in a virtual machine, is refused: by name, with the code for it, leaving nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, DeleteResponse};
use containerd_shim_protos::ttrpc::Code;
use serde_json::{Value, json};

use super::Test;
use super::context::{BUSYBOX, Context};
use super::image_root::merge;
use super::silent_guest;
use super::task_api::{Refusal, Task};
use crate::containerd;

pub(super) const TESTS: &[Test] = &[
    Test { name: "what_a_spec_asks_wrongly_or_in_vain_is_refused_by_name", check: specs },
    Test { name: "a_broken_bundle_or_name_starts_no_shim", check: starts },
    Test { name: "a_configuration_with_a_typo_is_refused_with_key_and_file", check: configuration },
];

/// A bundle that is wrong, and the answer to it.
struct Case {
    /// What `config.json` has instead of a container's usual spec, at this JSON pointer.
    pointer: &'static str,
    value: Value,
    code: Code,
    /// What the answer names.
    words: &'static str,
}

/// The field is wrong whatever the runtime.
fn wrong(pointer: &'static str, value: Value, words: &'static str) -> Case {
    Case { pointer, value, code: Code::INVALID_ARGUMENT, words }
}

/// The field asks for what a container in a virtual machine, or this runtime, cannot have.
fn in_vain(pointer: &'static str, value: Value, words: &'static str) -> Case {
    Case { pointer, value, code: Code::UNIMPLEMENTED, words }
}

/// The container that all bad ones are put beside.
const GOOD: &str = "good";

fn specs(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc refuses less, with other words, and all of it with one code")?;
    let container = context.start(BUSYBOX, GOOD, &[], &["sleep", "3600"])?;
    let task = Task::of(GOOD)?;
    let spec: Value = serde_json::from_slice(&fs::read(task.bundle().join("config.json"))?)?;
    let bad = Bad { context, task: &task };
    for (name, text, words) in [
        ("no-json", "{", "is not JSON"),
        ("no-object", "[]", "not a JSON object"),
        ("old", "{\"ociVersion\": \"0.9.0\"}", "\"0.9.0\""),
        ("new", "{\"ociVersion\": \"2.0.0\"}", "\"2.0.0\""),
    ] {
        bad.refused(name, text, Code::INVALID_ARGUMENT, words)?;
    }
    let missing = bad.create("absent", &context.scratch.join("no-bundle"))?;
    bad.check(missing, Code::INVALID_ARGUMENT, "no-bundle/config.json")?;
    for id in ["a/b", "..", "", &"x".repeat(300)] {
        let bundle = bad.bundle("names", &spec.to_string())?;
        bad.check(bad.create(id, &bundle)?, Code::INVALID_ARGUMENT, "container id")?;
    }
    let mut wrong = Vec::new();
    for (number, case) in cases().into_iter().enumerate() {
        let name = format!("bad-{number}");
        let mut spec = spec.clone();
        merge(&mut spec, &json!({"linux": {"cgroupsPath": format!("/default/{name}")}}));
        set(&mut spec, case.pointer, &case.value)?;
        let refused = bad.refused(&name, &spec.to_string(), case.code, case.words);
        if let Err(error) = refused {
            wrong.push(format!("{} = {:.200}: {error:#}", case.pointer, case.value.to_string()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    accepted(&bad, &spec)?;
    // The pod is as it was.
    container.exec("after", &["true"])?.expect_status(0)?;
    container.remove()
}

fn cases() -> Vec<Case> {
    let mounts = |extra: Value| json!([{"destination": "/proc", "type": "proc", "source": "proc"}, extra]);
    let ten_thousand = vec![json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs"}); 10_000];
    let namespaces = |extra: Value| json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, extra]);
    let without = |kind: &str| {
        let kinds = ["pid", "ipc", "uts", "mount", "network"].iter().filter(|present| **present != kind);
        Value::Array(kinds.map(|kind| json!({"type": kind})).collect())
    };
    let seccomp = |more: Value| {
        let mut seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]});
        merge(&mut seccomp, &more);
        seccomp
    };
    vec![
        wrong("/process/args", json!([]), "process.args"),
        wrong("/process/args", json!(null), "process.args"),
        wrong("/process/args", json!(["a\u{0}b"]), "process.args[0]"),
        wrong("/process/cwd", json!("relative"), "process.cwd"),
        wrong("/process/oomScoreAdj", json!(5000), "process.oomScoreAdj"),
        wrong("/process/user/uid", json!(-1), "uid"),
        wrong(
            "/process/rlimits",
            json!([{"type": "RLIMIT_FANCY", "soft": 1, "hard": 1}]),
            "process.rlimits[0]",
        ),
        wrong("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]), "RLIMIT_CORE"),
        wrong(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "process.ioPriority",
        ),
        wrong("/process/scheduler", json!({"policy": "SCHED_FANCY"}), "process.scheduler"),
        wrong("/process/capabilities/bounding", json!(["CAP_FANCY"]), "CAP_FANCY"),
        in_vain("/process/apparmorProfile", json!("profile"), "process.apparmorProfile"),
        in_vain("/process/selinuxLabel", json!("label"), "process.selinuxLabel"),
        in_vain("/process/execCPUAffinity", json!({"initial": "0"}), "process.execCPUAffinity"),
        wrong("/root", json!(null), "root.path"),
        wrong("/root/path", json!(""), "root.path"),
        Case { pointer: "/root/path", value: json!("absent"), code: Code::UNKNOWN, words: "/absent" },
        wrong("/mounts", json!(ten_thousand), "10000"),
        wrong("/mounts", mounts(json!({"type": "tmpfs"})), "mounts"),
        wrong(
            "/mounts",
            mounts(json!({"destination": "/x", "type": "bind", "source": "/no/such"})),
            "/no/such",
        ),
        wrong("/mounts", mounts(json!({"destination": "/x", "type": "bind"})), "/x"),
        wrong("/mounts", mounts(json!({"destination": "/x", "type": "ext4", "source": "/dev/vda"})), "ext4"),
        Case {
            pointer: "/mounts",
            value: mounts(
                json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["fancy=1"]}),
            ),
            code: Code::UNKNOWN,
            words: "fancy",
        },
        in_vain(
            "/mounts",
            mounts(json!({"destination": "/x", "type": "tmpfs", "options": ["tmpcopyup"]})),
            "tmpcopyup",
        ),
        in_vain(
            "/mounts",
            mounts(json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]})),
            "idmap",
        ),
        wrong(
            "/mounts",
            mounts(
                json!({"destination": "/x", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]}),
            ),
            "idmap",
        ),
        wrong(
            "/mounts",
            mounts(json!({"destination": "/x", "type": "bind", "source": "/tmp",
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]})),
            "gidMappings",
        ),
        wrong("/linux/namespaces", namespaces(json!({"type": "quantum"})), "\"quantum\""),
        wrong("/linux/namespaces", namespaces(json!({"type": "pid"})), "twice"),
        wrong(
            "/linux/namespaces",
            namespaces(json!({"type": "user", "path": "/proc/1/ns/user"})),
            "/proc/1/ns/user",
        ),
        wrong("/linux/namespaces", without("network"), "network namespace"),
        wrong("/linux/namespaces", without("pid"), "pid namespace"),
        wrong("/linux/namespaces", without("ipc"), "ipc namespace"),
        in_vain("/linux/namespaces", without("mount"), "mount namespace"),
        wrong("/linux/namespaces", namespaces(json!({"type": "user"})), "linux.uidMappings"),
        wrong("/linux/timeOffsets", json!({"monotonic": {"secs": 5}}), "linux.timeOffsets"),
        wrong(
            "/linux/devices",
            json!([{"path": "/dev/sda", "type": "c", "major": 8, "minor": 0}]),
            "/dev/sda",
        ),
        wrong("/linux/maskedPaths", json!(["relative"]), "linux.maskedPaths[0]"),
        wrong("/linux/readonlyPaths", json!(["relative"]), "linux.readonlyPaths[0]"),
        wrong("/linux/rootfsPropagation", json!("sideways"), "sideways"),
        wrong("/linux/cgroupsPath", json!(7), "cgroupsPath"),
        wrong("/linux/sysctl", json!({"../panic": "1"}), "../panic"),
        in_vain("/linux/mountLabel", json!("label"), "linux.mountLabel"),
        in_vain("/linux/intelRdt", json!({"closID": "class"}), "linux.intelRdt"),
        in_vain("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"}), "linux.memoryPolicy"),
        in_vain("/linux/netDevices", json!({"eth9": {}}), "linux.netDevices"),
        in_vain(
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}),
            "linux.personality",
        ),
        in_vain("/linux/resources/memory", json!({"swappiness": 10}), "memory.swappiness"),
        in_vain("/linux/resources/memory", json!({"kernel": 1_000_000}), "memory.kernel"),
        in_vain("/linux/resources/memory", json!({"disableOOMKiller": true}), "memory.disableOOMKiller"),
        in_vain("/linux/resources/cpu", json!({"realtimeRuntime": 1000}), "cpu.realtimeRuntime"),
        in_vain("/linux/resources/blockIO", json!({"leafWeight": 100}), "blockIO.leafWeight"),
        in_vain(
            "/linux/resources/blockIO",
            json!({"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}),
            "blockIO.throttleReadBpsDevice",
        ),
        in_vain("/linux/seccomp", seccomp(json!({"listenerMetadata": "words"})), "listenerMetadata"),
        in_vain("/linux/resources/network", json!({"classID": 5}), "network.classID"),
        wrong("/linux/resources/unified", json!({"../x": "1"}), "unified"),
        in_vain("/linux/resources/hugepageLimits", json!([{"pageSize": "3MB", "limit": 4096}]), "3MB"),
        wrong("/linux/seccomp", seccomp(json!({"defaultAction": "SCMP_ACT_FANCY"})), "seccomp"),
        in_vain("/linux/seccomp", seccomp(json!({"defaultAction": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY"),
        in_vain("/linux/seccomp", seccomp(json!({"listenerPath": "/run/listener"})), "listenerPath"),
        wrong("/hooks", json!({"prestart": [{"path": "relative"}]}), "hooks.prestart"),
        wrong("/hooks", json!({"createContainer": [{"path": "relative"}]}), "hooks.createContainer"),
        in_vain("/windows", json!({"layerFolders": ["C:"]}), "windows"),
        wrong("/annotations", json!({"io.saya.colour": "red"}), "io.saya.colour"),
        wrong(
            "/annotations",
            json!({"io.katacontainers.config.hypervisor.default_vcpus": "2"}),
            "default_vcpus",
        ),
        wrong("/annotations", json!({"io.saya.config.memory": "700"}), "only a pod as a whole has settings"),
        wrong("/linux/resources/memory", json!({"limit": 4096}), "linux.resources.memory.limit: is 4096"),
        Case {
            pointer: "/linux/sysctl",
            value: json!({"kernel.no_such_thing": "1"}),
            code: Code::UNKNOWN,
            words: "no_such_thing",
        },
    ]
}

/// What looks odd and is in order: a large annotation, and fields that nobody knows.
fn accepted(bad: &Bad<'_>, spec: &Value) -> anyhow::Result<()> {
    let mut spec = spec.clone();
    merge(
        &mut spec,
        &json!({
            "annotations": {"large": "x".repeat(1 << 20)},
            "linux": {"cgroupsPath": "/default/odd", "fieldOfTomorrow": {"a": 1}},
        }),
    );
    let bundle = bad.bundle("odd", &spec.to_string())?;
    let created = bad.create("odd", &bundle)?;
    ensure!(created.is_ok(), "{created:?}");
    let odd = bad.task.beside("odd");
    let _: DeleteResponse = odd.expect("Delete", &odd.delete_request(""))?;
    Ok(())
}

/// Makes bad containers beside a good one, in its shim.
struct Bad<'a> {
    context: &'a Context,
    task: &'a Task,
}

impl Bad<'_> {
    /// A bundle with this text as its `config.json`.
    fn bundle(&self, name: &str, config: &str) -> anyhow::Result<PathBuf> {
        let bundle = self.context.scratch.join(name);
        // What the good container runs; here it is never executed.
        fs::create_dir_all(bundle.join("rootfs/bin"))?;
        let program = bundle.join("rootfs/bin/sleep");
        fs::write(&program, "")?;
        fs::set_permissions(program, PermissionsExt::from_mode(0o755))?;
        fs::write(bundle.join("config.json"), config)?;
        Ok(bundle)
    }

    fn create(&self, id: &str, bundle: &Path) -> anyhow::Result<Result<CreateTaskResponse, Refusal>> {
        let bundle = bundle.display().to_string();
        self.task.call("Create", &CreateTaskRequest { id: id.to_owned(), bundle, ..Default::default() })
    }

    fn refused(&self, name: &str, config: &str, code: Code, words: &str) -> anyhow::Result<()> {
        let bundle = self.bundle(name, config)?;
        self.check(self.create(name, &bundle)?, code, words)
    }

    /// Checks that an answer is a refusal with this code and these words.
    fn check(
        &self,
        answer: Result<CreateTaskResponse, Refusal>,
        code: Code,
        words: &str,
    ) -> anyhow::Result<()> {
        match answer {
            Err(refusal) => {
                ensure!(
                    refusal.code == code && refusal.message.contains(words),
                    "{refusal:?}, not {code:?} {words:?}"
                );
                Ok(())
            }
            Ok(made) => bail!("it was accepted: {made:?}"),
        }
    }
}

fn set(spec: &mut Value, pointer: &str, value: &Value) -> anyhow::Result<()> {
    let keys: Vec<&str> = pointer.split('/').skip(1).collect();
    let mut place = spec;
    for key in keys {
        place =
            place.as_object_mut().context("no object on the way")?.entry(key).or_insert_with(|| json!({}));
    }
    *place = value.clone();
    Ok(())
}

/// `start` as containerd calls it, with bundles that containerd would not have made.
fn starts(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it is our shim's own answer")?;
    let spec = r#"{"ociVersion": "1.0.2", "process": {"args": ["true"]}, "root": {"path": "rootfs"}}"#;
    let sandboxless = r#"{"ociVersion": "1.0.2", "annotations": {"io.kubernetes.cri.sandbox-id": "nobody",
        "io.kubernetes.cri.container-type": "container"}}"#;
    let escaping = r#"{"ociVersion": "1.0.2", "annotations": {"io.kubernetes.cri.sandbox-id": "../../etc"}}"#;
    let long = "x".repeat(300);
    let table = [
        ("bundle", None, "config.json"),
        ("bundle", Some("{"), "is not JSON"),
        ("bundle", Some(sandboxless), "its sandbox nobody is not running"),
        ("bundle", Some(escaping), "../../etc"),
        ("../bundle", Some(spec), "\"../bundle\""),
        ("a/b", Some(spec), "\"a/b\""),
        (&long, Some(spec), "container id"),
    ];
    for (number, (id, config, words)) in table.into_iter().enumerate() {
        let bundle = context.scratch.join(number.to_string());
        fs::create_dir(&bundle)?;
        if let Some(config) = config {
            fs::write(bundle.join("config.json"), config)?;
        }
        let output = containerd::start_shim(&bundle, id).context("cannot start the shim")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(words), "{id:.40}: {}, {said:?}", output.status);
    }
    Ok(())
}

fn configuration(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it is our shim's configuration")?;
    let file = context.scratch.join("typo.toml");
    let path = file.display().to_string();
    for (text, words) in [
        ("memroy = 512\n", "memroy"),
        ("memory = \"much\"\n", "memory"),
        ("memory = 1\n", "memory"),
        ("memory = \n", "line 1"),
    ] {
        fs::write(&file, text)?;
        let ended = context.run(&["--runtime-config-path", &path], "typo", &["true"])?;
        let named = ended.stderr.contains(words) && ended.stderr.contains(&path);
        ensure!(ended.status != Some(0) && named, "{text:?}: {ended:?}");
    }
    settings(context)
}

/// What a pod sets of the configuration for itself.
fn settings(context: &Context) -> anyhow::Result<()> {
    /// What the pod wants, more than it has by default or by its limit.
    const MEMORY_MIB: u64 = 700;
    let allowed = ("allowed_annotations", vec!["memory"].into());
    let file = silent_guest::configuration(context, &[allowed], &[])?;
    let run = |annotation: &str, value: &str| {
        let annotation = format!("{annotation}={value}");
        let flags =
            ["--runtime-config-path", &file, "--annotation", &annotation, "--memory-limit", "134217728"];
        context.run(&flags, "set", &["awk", "/^MemTotal:/ {print int($2 / 1024)}", "/proc/meminfo"])
    };
    for (annotation, value, words) in [
        ("io.saya.config.vcpus", "2", "does not list"),
        ("io.saya.config.memory", "much", "not a whole number"),
        ("io.saya.config.memory", "3", "out of range"),
        ("io.saya.config.kernel", "/tmp/kernel", "no pod may set kernel"),
        ("io.katacontainers.config.hypervisor.default_memory", "700", "io.saya.config.KEY"),
    ] {
        let refused = run(annotation, value)?;
        let told = refused.stderr.contains(words) && refused.stderr.contains(annotation);
        ensure!(refused.status != Some(0) && told, "{refused:?}");
    }
    let made = run("io.saya.config.memory", &MEMORY_MIB.to_string())?;
    // The kernel takes some of it away.
    let range = MEMORY_MIB - 100..=MEMORY_MIB;
    let memory = String::from_utf8_lossy(&made.stdout).trim().parse();
    ensure!(made.status == Some(0) && memory.is_ok_and(|memory| range.contains(&memory)), "{made:?}");
    Ok(())
}
