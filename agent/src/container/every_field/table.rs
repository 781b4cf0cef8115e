//! A spec with a value in each field that is heeded, and what becomes of every field of the spec when it changes.

use serde_json::{Value, json};

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The guest does something else, or says by name why not.
    Heeded,
    /// It is refused by name.
    Refused,
    /// The guest does the same: the shim or a later call heeds it, and this test shows it.
    Elsewhere(&'static str),
    /// It says nothing to a container of Linux, for this reason.
    Meaningless(&'static str),
}

/// One field, or one object of fields that are all alike, with another value.
pub(super) struct Change {
    /// Where it is in the spec.
    pub(super) pointer: &'static str,
    /// Another value than the base has, if that has one.
    pub(super) value: Value,
    /// What becomes of it.
    pub(super) fate: Fate,
}

/// A spec that is accepted.
pub(super) fn base() -> Value {
    let hook = json!([{"path": "/h", "args": ["h"], "env": ["A=a"], "timeout": 1}]);
    let ids = json!([{"containerID": 0, "hostID": 0, "size": 10}]);
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "/r", "readonly": false},
        "hostname": "a",
        "domainname": "a",
        "annotations": {"k": "a"},
        "mounts": [{"destination": "/m", "type": "tmpfs", "source": "s", "options": ["ro"]}],
        "hooks": {"createContainer": hook, "startContainer": hook},
        "process": {
            "terminal": true,
            "consoleSize": {"height": 20, "width": 80},
            "args": ["p"],
            "env": ["A=a"],
            "cwd": "/",
            "user": {"uid": 1, "gid": 1, "umask": 1, "additionalGids": [1]},
            "capabilities": {
                "bounding": ["CAP_CHOWN"],
                "effective": ["CAP_CHOWN"],
                "inheritable": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"],
                "ambient": ["CAP_CHOWN"],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
            "noNewPrivileges": false,
            "oomScoreAdj": 1,
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
            "scheduler": {"policy": "SCHED_DEADLINE", "nice": 0, "priority": 0, "flags": ["SCHED_FLAG_RECLAIM"],
                "runtime": 10, "deadline": 20, "period": 30},
        },
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
                {"type": "user"}, {"type": "time"}],
            "uidMappings": ids,
            "gidMappings": ids,
            "timeOffsets": {"monotonic": {"secs": 1, "nanosecs": 1}},
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 0, "gid": 0}],
            "sysctl": {"kernel.msgmax": "1"},
            "cgroupsPath": "/a",
            "rootfsPropagation": "private",
            "maskedPaths": ["/a"],
            "readonlyPaths": ["/a"],
            "personality": {"domain": "LINUX"},
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2,
                    "args": [{"index": 0, "value": 3, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}],
            },
            "resources": {
                "devices": [{"allow": true, "type": "c", "major": 5, "minor": 9, "access": "r"}],
                "memory": {"limit": 1 << 24, "reservation": 1 << 20, "swap": 1 << 25},
                "cpu": {"shares": 512, "quota": 1000, "period": 2000, "burst": 10, "cpus": "0", "mems": "0"},
                "pids": {"limit": 5},
                "blockIO": {"weight": 100},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}],
                "rdma": {"d": {"hcaHandles": 1, "hcaObjects": 1}},
                "unified": {"memory.high": "1"},
            },
        },
    })
}

/// What becomes of every field.
pub(super) fn changes() -> Vec<Change> {
    [whole(), process(), linux(), resources()].into_iter().flatten().collect()
}

fn heeded(pointer: &'static str, value: impl Into<Value>) -> Change {
    Change { pointer, value: value.into(), fate: Fate::Heeded }
}

fn refused(pointer: &'static str, value: impl Into<Value>) -> Change {
    Change { pointer, value: value.into(), fate: Fate::Refused }
}

fn whole() -> Vec<Change> {
    let ids = || json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    let hook = || json!([{"path": "/h"}]);
    let elsewhere = |pointer, value, test| Change { pointer, value, fate: Fate::Elsewhere(test) };
    let host_hook = |pointer| elsewhere(pointer, hook(), "a_specs_fields_hold_inside_the_container");
    vec![
        heeded("/ociVersion", "1.0.2"),
        heeded("/root/path", "/other"),
        heeded("/root/readonly", true),
        heeded("/hostname", "b"),
        heeded("/domainname", "b"),
        heeded("/annotations/k", "b"),
        heeded("/mounts/0/destination", "/n"),
        heeded("/mounts/0/type", "mqueue"),
        heeded("/mounts/0/source", "t"),
        heeded("/mounts/0/options/0", "nosuid"),
        // The shim takes them out of bind mounts; any other mount has none.
        refused("/mounts/0/uidMappings", ids()),
        refused("/mounts/0/gidMappings", ids()),
        refused("/uidMappings", ids()),
        refused("/gidMappings", ids()),
        host_hook("/hooks/prestart"),
        host_hook("/hooks/createRuntime"),
        host_hook("/hooks/poststart"),
        host_hook("/hooks/poststop"),
        heeded("/hooks/createContainer/0/path", "/i"),
        heeded("/hooks/createContainer/0/args/0", "i"),
        heeded("/hooks/createContainer/0/env/0", "A=b"),
        heeded("/hooks/createContainer/0/timeout", 2),
        heeded("/hooks/startContainer/0/path", "/i"),
        heeded("/hooks/startContainer/0/args/0", "i"),
        heeded("/hooks/startContainer/0/env/0", "A=b"),
        heeded("/hooks/startContainer/0/timeout", 2),
        refused("/solaris", json!({"milestone": "m"})),
        refused("/windows", json!({"layerFolders": ["C:"]})),
        refused("/vm", json!({"kernel": {"path": "/k"}})),
        refused("/zos", json!({"namespaces": []})),
    ]
}

fn process() -> Vec<Change> {
    let of_windows = Fate::Meaningless("Windows has it instead of args, or of uid and gid");
    vec![
        // It says the same as the call that makes the process.
        refused("/process/terminal", false),
        heeded("/process/consoleSize/height", 21),
        heeded("/process/consoleSize/width", 81),
        heeded("/process/args/0", "q"),
        Change { pointer: "/process/commandLine", value: "q".into(), fate: of_windows },
        heeded("/process/env/0", "A=b"),
        heeded("/process/cwd", "/d"),
        heeded("/process/user/uid", 2),
        heeded("/process/user/gid", 2),
        heeded("/process/user/umask", 2),
        heeded("/process/user/additionalGids/0", 2),
        Change { pointer: "/process/user/username", value: "u".into(), fate: of_windows },
        heeded("/process/capabilities/bounding/0", "CAP_KILL"),
        heeded("/process/capabilities/effective/0", "CAP_KILL"),
        heeded("/process/capabilities/inheritable/0", "CAP_KILL"),
        heeded("/process/capabilities/permitted/0", "CAP_KILL"),
        heeded("/process/capabilities/ambient/0", "CAP_KILL"),
        heeded("/process/rlimits/0/type", "RLIMIT_CORE"),
        heeded("/process/rlimits/0/soft", 2),
        heeded("/process/rlimits/0/hard", 3),
        heeded("/process/noNewPrivileges", true),
        heeded("/process/oomScoreAdj", 2),
        heeded("/process/ioPriority/class", "IOPRIO_CLASS_RT"),
        heeded("/process/ioPriority/priority", 2),
        heeded("/process/scheduler/policy", "SCHED_BATCH"),
        heeded("/process/scheduler/nice", 1),
        heeded("/process/scheduler/priority", 1),
        heeded("/process/scheduler/flags/0", "SCHED_FLAG_DL_OVERRUN"),
        heeded("/process/scheduler/runtime", 11),
        heeded("/process/scheduler/deadline", 21),
        heeded("/process/scheduler/period", 31),
        refused("/process/apparmorProfile", "p"),
        refused("/process/selinuxLabel", "l"),
        refused("/process/execCPUAffinity", json!({"initial": "0"})),
        refused("/process/execCPUAffinity", json!({"final": "0"})),
    ]
}

fn linux() -> Vec<Change> {
    vec![
        heeded("/linux/namespaces/0/type", "cgroup"),
        heeded("/linux/namespaces/0/path", "/proc/2/ns/pid"),
        heeded("/linux/uidMappings/0/containerID", 1),
        heeded("/linux/uidMappings/0/hostID", 1),
        heeded("/linux/uidMappings/0/size", 11),
        heeded("/linux/gidMappings/0/containerID", 1),
        heeded("/linux/gidMappings/0/hostID", 1),
        heeded("/linux/gidMappings/0/size", 11),
        heeded("/linux/timeOffsets/monotonic/secs", 2),
        heeded("/linux/timeOffsets/monotonic/nanosecs", 2),
        heeded("/linux/devices/0/path", "/dev/y"),
        heeded("/linux/devices/0/type", "p"),
        heeded("/linux/devices/0/major", 2),
        heeded("/linux/devices/0/minor", 5),
        heeded("/linux/devices/0/fileMode", 0o644),
        heeded("/linux/devices/0/uid", 1),
        heeded("/linux/devices/0/gid", 1),
        refused("/linux/netDevices", json!({"eth0": {"name": "n"}})),
        heeded("/linux/sysctl/kernel.msgmax", "2"),
        heeded("/linux/cgroupsPath", "/b"),
        heeded("/linux/rootfsPropagation", "slave"),
        heeded("/linux/maskedPaths/0", "/b"),
        heeded("/linux/readonlyPaths/0", "/b"),
        refused("/linux/mountLabel", "l"),
        refused("/linux/intelRdt", json!({"closID": "c"})),
        refused("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
        heeded("/linux/personality/domain", "LINUX32"),
        refused("/linux/personality/flags", json!(["ADDR_NO_RANDOMIZE"])),
        heeded("/linux/seccomp/defaultAction", "SCMP_ACT_LOG"),
        heeded("/linux/seccomp/defaultErrnoRet", 3),
        heeded("/linux/seccomp/architectures/0", "SCMP_ARCH_X86"),
        heeded("/linux/seccomp/flags/0", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
        refused("/linux/seccomp/listenerPath", "/l"),
        refused("/linux/seccomp/listenerMetadata", "m"),
        heeded("/linux/seccomp/syscalls/0/names/0", "write"),
        heeded("/linux/seccomp/syscalls/0/action", "SCMP_ACT_TRAP"),
        heeded("/linux/seccomp/syscalls/0/errnoRet", 3),
        heeded("/linux/seccomp/syscalls/0/args/0/index", 1),
        heeded("/linux/seccomp/syscalls/0/args/0/value", 5),
        heeded("/linux/seccomp/syscalls/0/args/0/valueTwo", 2),
        heeded("/linux/seccomp/syscalls/0/args/0/op", "SCMP_CMP_EQ"),
    ]
}

fn resources() -> Vec<Change> {
    let device = || json!([{"major": 8, "minor": 0, "rate": 1}]);
    vec![
        heeded("/linux/resources/devices/0/allow", false),
        heeded("/linux/resources/devices/0/type", "b"),
        heeded("/linux/resources/devices/0/major", 6),
        heeded("/linux/resources/devices/0/minor", 10),
        heeded("/linux/resources/devices/0/access", "rw"),
        heeded("/linux/resources/memory/limit", 1 << 23),
        heeded("/linux/resources/memory/reservation", 1 << 21),
        heeded("/linux/resources/memory/swap", 1 << 26),
        Change {
            pointer: "/linux/resources/memory/checkBeforeUpdate",
            value: true.into(),
            fate: Fate::Elsewhere("limits_are_in_the_cgroups_files_enforced_and_changed_while_it_runs"),
        },
        refused("/linux/resources/memory/kernel", 1),
        refused("/linux/resources/memory/kernelTCP", 1),
        refused("/linux/resources/memory/swappiness", 1),
        refused("/linux/resources/memory/disableOOMKiller", true),
        refused("/linux/resources/memory/useHierarchy", false),
        heeded("/linux/resources/cpu/shares", 1024),
        heeded("/linux/resources/cpu/quota", 1001),
        heeded("/linux/resources/cpu/period", 2001),
        heeded("/linux/resources/cpu/burst", 11),
        heeded("/linux/resources/cpu/cpus", "1"),
        heeded("/linux/resources/cpu/mems", "1"),
        heeded("/linux/resources/cpu/idle", 1),
        refused("/linux/resources/cpu/realtimeRuntime", 1),
        refused("/linux/resources/cpu/realtimePeriod", 1),
        heeded("/linux/resources/pids/limit", 6),
        heeded("/linux/resources/blockIO/weight", 200),
        refused("/linux/resources/blockIO/leafWeight", 1),
        refused("/linux/resources/blockIO/weightDevice", json!([{"major": 8, "minor": 0, "weight": 10}])),
        refused("/linux/resources/blockIO/throttleReadBpsDevice", device()),
        refused("/linux/resources/blockIO/throttleWriteBpsDevice", device()),
        refused("/linux/resources/blockIO/throttleReadIOPSDevice", device()),
        refused("/linux/resources/blockIO/throttleWriteIOPSDevice", device()),
        heeded("/linux/resources/hugepageLimits/0/pageSize", "1GB"),
        heeded("/linux/resources/hugepageLimits/0/limit", 1 << 22),
        refused("/linux/resources/network/classID", 1),
        refused("/linux/resources/network/priorities", json!([{"name": "n", "priority": 1}])),
        heeded("/linux/resources/rdma/d/hcaHandles", 2),
        heeded("/linux/resources/rdma/d/hcaObjects", 2),
        heeded("/linux/resources/unified/memory.high", "2"),
    ]
}
