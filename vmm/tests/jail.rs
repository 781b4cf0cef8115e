//! What a VMM that was taken over can do: a thread in the jail is given system calls to make, as an attacker would.
//!
//! This test program re-executes itself as the jailed process: the test `jailed_process` is that process where the
//! environment says so, and nothing otherwise. Without the rights to make namespaces the tests are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test program"
)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};
use std::sync::Arc;

use libc::{c_int, c_long};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, no_new_privs};
use saya_vmm::control::{self, Event, StopReason, VmmEnd};
use saya_vmm::jail::{self, Condition, Jail, Role, in_new_pid_namespace, left_by_landlock, rules};
use saya_vmm::process::report_panics_to;

/// Name the control descriptor, the role and the attack to the re-executed test program.
const CONTROL_FD: &str = "SAYA_TEST_CONTROL_FD";
const ROLE: &str = "SAYA_TEST_ROLE";
const ATTACK: &str = "SAYA_TEST_ATTACK";
/// The pid of the test itself, which is a process of the host's.
const HOST_PID: &str = "SAYA_TEST_HOST_PID";

/// The exit status of a process whose attack was successful.
const SUCCESS: c_int = 0;
/// The exit status after a violation of a filter.
const VIOLATION: c_int = 128 + libc::SIGSYS;

/// An attack of which the rest of the name is a system call: its number and its six arguments.
const CALL: &str = "call ";

/// Something that an attacker would like to do. 0 or more is success, as of a system call.
struct Attack {
    name: &'static str,
    run: fn(&Jail) -> c_long,
    /// With what it fails in the jail, even where no filter stops it: with Landlock there may be another answer.
    fails_with: &'static [c_int],
}

/// No attack, but a mistake of ours.
const PANIC: Attack = Attack { name: "panic", run: |_| panic!("on purpose"), fails_with: &[] };

const ATTACKS: &[Attack] = &[
    Attack { name: "open a host file", run: |_| open(c"/etc/passwd"), fails_with: &[libc::ENOENT] },
    Attack { name: "leave the root", run: |_| open(c"/../../../etc/passwd"), fails_with: &[libc::ENOENT] },
    Attack { name: "see the other pods", run: |_| open(c"/run/saya"), fails_with: &[libc::ENOENT] },
    Attack {
        name: "leave the directory of descriptors",
        run: |jail| open_at(jail.descriptor_directory.as_raw_fd(), c"../status", libc::O_RDONLY),
        fails_with: &[libc::ENOENT],
    },
    Attack {
        name: "reach the kernel's settings by the directory of descriptors",
        run: |jail| {
            open_at(jail.descriptor_directory.as_raw_fd(), c"../../sys/kernel/core_pattern", libc::O_WRONLY)
        },
        fails_with: &[libc::ENOENT],
    },
    Attack {
        name: "use a device of its own making",
        run: |_| make_device_and_open(),
        fails_with: &[libc::EACCES],
    },
    Attack { name: "open a file by its handle", run: |_| open_by_handle(), fails_with: &[libc::EPERM] },
    // SAFETY: these calls read their arguments alone, and are to fail.
    Attack { name: "mount", run: |_| unsafe { mount_proc() }, fails_with: &[libc::EPERM] },
    Attack {
        name: "change the root",
        // SAFETY: as above.
        run: |_| unsafe { libc::syscall(libc::SYS_chroot, c"/".as_ptr()) },
        fails_with: &[libc::EPERM],
    },
    Attack {
        name: "trace a process of the host",
        // SAFETY: as above.
        run: |_| unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, host_pid(), 0, 0) },
        fails_with: &[libc::ESRCH],
    },
    Attack {
        name: "signal a process of the host",
        // SAFETY: as above.
        run: |_| unsafe { libc::syscall(libc::SYS_kill, host_pid(), 0) },
        fails_with: &[libc::ESRCH],
    },
    Attack {
        name: "connect to the network",
        run: |_| connect_to_network(),
        fails_with: &[libc::ENETUNREACH, libc::EACCES],
    },
    Attack {
        name: "connect to an abstract socket of the host",
        run: |_| connect_to_abstract_socket(),
        fails_with: &[libc::ECONNREFUSED, libc::EPERM],
    },
    Attack { name: "get capabilities back", run: |_| raise_capabilities(), fails_with: &[libc::EPERM] },
];

/// No attack, but a look at what the process has, which panics where that is too much.
const LOOK: Attack = Attack { name: "look", run: |_| look_at_limits_and_privileges(), fails_with: &[] };

/// Where Landlock is not in force this fails with `ENOEXEC`.
const EXECUTE: Attack =
    Attack { name: "execute a file of the share", run: |_| execute_own_file(), fails_with: &[libc::EACCES] };

fn look_at_limits_and_privileges() -> c_long {
    assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    assert_eq!(no_new_privs(), Ok(true));
    for (resource, most) in
        [(Resource::Core, 1), (Resource::Msgqueue, 0), (Resource::Rtprio, 0), (Resource::Nofile, 96 * 1024)]
    {
        let limit = getrlimit(resource);
        let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
        assert!(soft <= most && hard <= most, "{resource:?}: {limit:?}");
        let raised = Rlimit { current: Some(hard + 1), maximum: Some(hard + 1) };
        assert_eq!(setrlimit(resource, raised), Err(Errno::PERM), "{resource:?} can be raised");
    }
    0
}

fn execute_own_file() -> c_long {
    std::fs::write("/program", b"no program").unwrap();
    std::fs::set_permissions("/program", std::fs::Permissions::from_mode(0o755)).unwrap();
    let [arguments, environment] = [[std::ptr::null::<u8>(); 1]; 2];
    // SAFETY: the path is a C string, and the lists end with a null pointer.
    unsafe { libc::syscall(libc::SYS_execve, c"/program".as_ptr(), arguments.as_ptr(), environment.as_ptr()) }
}

/// Makes the system call whose number and arguments stand in `call`. A filter is to stop it before its arguments mean anything.
fn system_call(call: &str) -> c_long {
    let words: Vec<c_long> = call.split(' ').map(|word| word.parse::<u64>().unwrap() as c_long).collect();
    let [number, a, b, c, d, e, f] = words[..] else { panic!("{call}") };
    // SAFETY: no filter lets it through.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

fn open(path: &CStr) -> c_long {
    open_at(libc::AT_FDCWD, path, libc::O_RDONLY)
}

fn open_at(directory: RawFd, path: &CStr, flags: c_int) -> c_long {
    // SAFETY: the path is a C string.
    unsafe { libc::syscall(libc::SYS_openat, directory, path.as_ptr(), flags) }
}

fn make_device_and_open() -> c_long {
    let zero = libc::makedev(1, 5);
    // SAFETY: the path is a C string.
    let made = unsafe {
        libc::syscall(libc::SYS_mknodat, libc::AT_FDCWD, c"/zero".as_ptr(), libc::S_IFCHR | 0o666, zero)
    };
    if made < 0 { made } else { open(c"/zero") }
}

fn open_by_handle() -> c_long {
    // struct file_handle: two words, then the handle itself, whatever it is.
    let handle = [8u32, 1, 2, 3];
    // SAFETY: the handle is as long as its first word says.
    unsafe { libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_ptr(), libc::O_RDONLY) }
}

/// # Safety
/// Always sound; the marker keeps the table's rows alike.
unsafe fn mount_proc() -> c_long {
    // SAFETY: all arguments are C strings or null.
    unsafe {
        libc::syscall(
            libc::SYS_mount,
            c"proc".as_ptr(),
            c"/".as_ptr(),
            c"proc".as_ptr(),
            0,
            std::ptr::null::<u8>(),
        )
    }
}

fn host_pid() -> c_int {
    std::env::var(HOST_PID).unwrap().parse().unwrap()
}

fn connect_to_network() -> c_long {
    // SAFETY: the structure is plain data, and as long as it is said to be.
    unsafe {
        let socket = libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
        if socket < 0 {
            return socket;
        }
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 80u16.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        libc::syscall(libc::SYS_connect, socket, &raw const address, size_of_val(&address))
    }
}

fn abstract_address() -> SocketAddr {
    SocketAddr::from_abstract_name(format!("saya-test-{}", host_pid())).unwrap()
}

fn connect_to_abstract_socket() -> c_long {
    match std::os::unix::net::UnixStream::connect_addr(&abstract_address()) {
        Ok(_) => 0,
        Err(error) => {
            // SAFETY: errno is this thread's own.
            unsafe { *libc::__errno_location() = error.raw_os_error().unwrap() };
            -1
        }
    }
}

fn raise_capabilities() -> c_long {
    let header = [0x2008_0522u32, 0];
    let all = [u32::MAX; 6];
    // SAFETY: header and data are as version 3 has them (capset(2)).
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), all.as_ptr()) }
}

#[test]
fn jailed_process() {
    if let Ok(number) = std::env::var(CONTROL_FD) {
        // SAFETY: the parent has left the descriptor for this process.
        let control = unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) };
        std::process::exit(attack(&control));
    }
}

/// Enters the jail and attacks. The exit status is the error's number.
fn attack(control: &OwnedFd) -> c_int {
    jail::report_violations_to(control.as_fd()).unwrap();
    report_panics_to(Arc::new(VmmEnd::from(control.try_clone().unwrap())));
    let Jail { root, descriptor_directory, confinement } = jail::enter(share()).unwrap();
    let jail = Jail { root, descriptor_directory, confinement: confinement.clone() };
    let name = std::env::var(ATTACK).unwrap();
    let role = std::env::var(ROLE).ok();
    let role = role.map(|name| Role::ALL.into_iter().find(|role| role.name() == name).unwrap());
    if let Some(role) = role {
        confinement.enter(role).unwrap();
    }
    let result = match name.strip_prefix(CALL) {
        Some(call) => system_call(call),
        None => {
            let all = ATTACKS.iter().chain([&EXECUTE, &LOOK, &PANIC]);
            let attack = all.into_iter().find(|attack| attack.name == name).unwrap();
            (attack.run)(&jail)
        }
    };
    // SAFETY: errno is this thread's own; _exit touches no memory.
    unsafe { libc::_exit(if result >= 0 { SUCCESS } else { *libc::__errno_location() }) }
}

/// A share as the shim makes it, in a mount namespace of the process's own.
fn share() -> OwnedFd {
    // SAFETY: the process has one thread, and takes up no mount from before.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount("share", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"").unwrap();
    std::fs::File::open("/tmp").unwrap().into()
}

/// Runs an attack, as a thread of the given role or as one with the capabilities of the fs thread and no filter. The
/// exit status and the report, if there was one.
fn outcome_of(attack: &str, role: Option<Role>) -> (Option<c_int>, Option<String>) {
    let (shim, theirs) = control::pair().unwrap();
    fcntl_setfd(theirs.as_fd(), FdFlags::empty()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "jailed_process", "--nocapture", "--test-threads", "1"])
        .env(CONTROL_FD, theirs.as_raw_fd().to_string())
        .env(ATTACK, attack)
        .env(HOST_PID, std::process::id().to_string())
        // The VMM's environment is empty. A backtrace takes files.
        .env_remove("RUST_BACKTRACE")
        .stdout(Stdio::null());
    if let Some(role) = role {
        command.env(ROLE, role.name());
    }
    let mut process = in_new_pid_namespace(|| command.spawn()).unwrap();
    drop(theirs);
    let status = process.wait().unwrap().code();
    let report = shim.receive().unwrap().map(|(event, _)| match event {
        Event::Stopped { reason: StopReason::Failed { message }, .. } => message,
        other => panic!("{other:?}"),
    });
    (status, report)
}

fn assert_fails(attack: &Attack, role: Option<Role>) {
    let (status, report) = outcome_of(attack.name, role);
    let fails = status.is_some_and(|status| attack.fails_with.contains(&status));
    assert!(fails && report.is_none(), "{}: {status:?}, {report:?}", attack.name);
}

fn may_make_namespaces() -> bool {
    let allowed = in_new_pid_namespace(|| Ok(())).is_ok();
    if !allowed {
        eprintln!("skipped: no right to make namespaces");
    }
    allowed
}

#[test]
fn without_any_filter_the_jail_holds() {
    if !may_make_namespaces() {
        return;
    }
    // SAFETY: nobody changes the environment at the same time: the other tests only read it.
    unsafe { std::env::set_var(HOST_PID, std::process::id().to_string()) };
    let _listener = UnixListener::bind_addr(&abstract_address()).unwrap();
    for attack in ATTACKS {
        assert_fails(attack, None);
    }
}

#[test]
fn a_jailed_process_has_low_limits_and_is_not_dumpable_and_gains_no_privileges() {
    if !may_make_namespaces() {
        return;
    }
    assert_eq!(outcome_of(LOOK.name, None), (Some(SUCCESS), None));
}

#[test]
fn landlock_is_in_force_where_the_kernel_has_it() {
    if !may_make_namespaces() {
        return;
    }
    if left_by_landlock().is_none() {
        eprintln!("skipped: a kernel without Landlock, or with its first version alone");
        return;
    }
    assert_fails(&EXECUTE, None);
}

#[test]
fn a_forbidden_call_of_any_role_ends_the_process_with_a_report_of_role_and_call() {
    if !may_make_namespaces() {
        return;
    }
    let forbidden = [
        ("open a host file", "openat", libc::SYS_openat),
        ("mount", "mount", libc::SYS_mount),
        ("change the root", "chroot", libc::SYS_chroot),
        ("trace a process of the host", "ptrace", libc::SYS_ptrace),
        ("signal a process of the host", "kill", libc::SYS_kill),
        ("connect to the network", "socket", libc::SYS_socket),
        ("open a file by its handle", "open_by_handle_at", libc::SYS_open_by_handle_at),
    ];
    for role in Role::ALL {
        for (name, call, number) in forbidden {
            let attack = ATTACKS.iter().find(|attack| attack.name == name).unwrap();
            if rules(role).any(|rule| rule.number() == number) {
                continue;
            }
            let (status, report) = outcome_of(attack.name, Some(role));
            let report = report.unwrap_or_default();
            assert_eq!(status, Some(VIOLATION), "{role}: {name}: {report}");
            let told =
                report.contains(&format!("{role} thread")) && report.contains(&format!("{call} ({number})"));
            assert!(told, "{role}: {name}: {report}");
        }
    }
}

/// Calls that a rule of the role's allows, each with one argument that its rules do not allow.
fn calls_with_another_argument(role: Role) -> Vec<(&'static str, i64, [u64; 6])> {
    let mut calls = Vec::new();
    for rule in rules(role) {
        let mut allowed = [0; 6];
        for condition in rule.conditions {
            if let Condition::Is(argument, values) = condition {
                allowed[usize::from(*argument)] = values[0];
            }
        }
        for condition in rule.conditions {
            let (argument, other) = match condition {
                // No system call has such a flag, request or type.
                Condition::Is(argument, _) => (argument, 0x7FFF_FFFF),
                Condition::IsNull(argument) => (argument, 0x1000),
                Condition::Lacks(argument, bits) => (argument, bits & bits.wrapping_neg()),
            };
            let mut arguments = allowed;
            arguments[usize::from(*argument)] = other;
            calls.push((rule.name(), rule.number(), arguments));
        }
    }
    calls
}

#[test]
fn a_call_with_another_argument_than_its_rules_allow_ends_the_process_with_a_report() {
    if !may_make_namespaces() {
        return;
    }
    for role in Role::ALL {
        for (name, number, arguments) in calls_with_another_argument(role) {
            let call = arguments
                .iter()
                .fold(format!("{CALL}{number}"), |call, argument| format!("{call} {argument}"));
            let (status, report) = outcome_of(&call, Some(role));
            let report = report.unwrap_or_default();
            let told = report.contains(&format!("{role} thread")) && report.contains(name);
            assert!(status == Some(VIOLATION) && told, "{role}: {name}{arguments:x?}: {status:?}, {report}");
        }
    }
}

#[test]
fn a_panic_of_any_role_is_reported_as_what_it_is() {
    if !may_make_namespaces() {
        return;
    }
    for role in Role::ALL {
        let (status, report) = outcome_of(PANIC.name, Some(role));
        let report = report.unwrap_or_default();
        assert!(status == Some(1) && report.contains("on purpose"), "{role}: {status:?}, {report}");
    }
}

#[test]
fn what_the_fs_thread_may_call_reaches_nothing_outside_the_share() {
    if !may_make_namespaces() {
        return;
    }
    let names = [
        "open a host file",
        "leave the root",
        "see the other pods",
        "leave the directory of descriptors",
        "reach the kernel's settings by the directory of descriptors",
        "use a device of its own making",
    ];
    for attack in ATTACKS.iter().filter(|attack| names.contains(&attack.name)) {
        assert_fails(attack, Some(Role::Fs));
    }
}
