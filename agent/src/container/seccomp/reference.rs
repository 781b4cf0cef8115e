//! Our filters against libseccomp's, which other runtimes use: the same spec must give the same verdict on every call.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

use libc::sock_filter;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};

use super::machine::{Call, run};
use super::policy::read;
use super::program::{NARROW, WIDE, assemble};
use super::table::SYSTEM_CALLS;

/// `struct scmp_arg_cmp`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Comparison {
    argument: c_uint,
    operator: c_int,
    first: u64,
    second: u64,
}

/// libseccomp, if this machine has it.
struct Library {
    init: unsafe extern "C" fn(u32) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void),
    arch_add: unsafe extern "C" fn(*mut c_void, u32) -> c_int,
    resolve: unsafe extern "C" fn(*const c_char) -> c_int,
    rule_add: unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
    export: unsafe extern "C" fn(*const c_void, c_int) -> c_int,
}

impl Library {
    fn load() -> Option<Self> {
        // SAFETY: loads a library whose initialisation does nothing.
        let handle = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return None;
        }
        Some(Self {
            init: symbol(handle, c"seccomp_init"),
            release: symbol(handle, c"seccomp_release"),
            arch_add: symbol(handle, c"seccomp_arch_add"),
            resolve: symbol(handle, c"seccomp_syscall_resolve_name"),
            rule_add: symbol(handle, c"seccomp_rule_add_array"),
            export: symbol(handle, c"seccomp_export_bpf"),
        })
    }

    /// The filter as runc has libseccomp make it.
    fn compile(&self, seccomp: &LinuxSeccomp) -> Vec<sock_filter> {
        let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
        // SAFETY: takes no pointer.
        let context = unsafe { (self.init)(default) };
        assert!(!context.is_null());
        if seccomp.architectures().iter().flatten().any(|architecture| *architecture == Arch::ScmpArchX86) {
            // SAFETY: the context is live.
            assert_eq!(unsafe { (self.arch_add)(context, NARROW) }, 0);
        }
        for rule in seccomp.syscalls().iter().flatten() {
            self.add(context, rule, default);
        }
        let mut file = tempfile::tempfile().unwrap();
        // SAFETY: the context is live, and the descriptor open.
        assert_eq!(unsafe { (self.export)(context, file.as_raw_fd()) }, 0);
        // SAFETY: the context is live, and not used after.
        unsafe { (self.release)(context) };
        instructions(&mut file)
    }

    fn add(&self, context: *mut c_void, rule: &LinuxSyscall, default: u32) {
        let action = rule.action().as_u32(rule.errno_ret());
        if action == default {
            return;
        }
        let comparisons: Vec<Comparison> = rule.args().iter().flatten().map(comparison).collect();
        let twice = (0..6).any(|index| comparisons.iter().filter(|c| c.argument == index).count() > 1);
        for name in rule.names() {
            let name = CString::new(name.as_str()).unwrap();
            // SAFETY: the name is a C string.
            let number = unsafe { (self.resolve)(name.as_ptr()) };
            // __NR_SCMP_ERROR
            if number == -1 {
                continue;
            }
            let sets: Vec<&[Comparison]> =
                if twice { comparisons.chunks(1).collect() } else { vec![&comparisons] };
            for set in sets {
                // SAFETY: the context is live, and the array as long as it says.
                let result =
                    unsafe { (self.rule_add)(context, action, number, set.len() as c_uint, set.as_ptr()) };
                assert_eq!(result, 0, "{name:?}");
            }
        }
    }
}

/// A function of the library; `T` must be its type in seccomp.h.
fn symbol<T: Copy>(library: *mut c_void, name: &CStr) -> T {
    assert_eq!(size_of::<T>(), size_of::<*mut c_void>());
    // SAFETY: the handle is of a library that stays loaded.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!symbol.is_null(), "{name:?}");
    // SAFETY: a function pointer is as large as this one, and of the type that the caller says.
    unsafe { std::mem::transmute_copy(&symbol) }
}

fn comparison(argument: &LinuxSeccompArg) -> Comparison {
    Comparison {
        argument: argument.index() as c_uint,
        operator: argument.op() as c_int,
        first: argument.value(),
        second: argument.value_two().unwrap_or(0),
    }
}

fn instructions(file: &mut File) -> Vec<sock_filter> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let one = |chunk: &[u8]| sock_filter {
        code: u16::from_ne_bytes([chunk[0], chunk[1]]),
        jt: chunk[2],
        jf: chunk[3],
        k: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
    };
    bytes.chunks_exact(8).map(one).collect()
}

/// Arguments at and around the values that the specs below compare with.
const ARGUMENTS: [[u64; 6]; 12] = [
    [0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1],
    [2, 5, 0, 0, 0, 0],
    [8, 9, 10, 11, 12, 13],
    [16, 15, 14, 13, 12, 11],
    [40, 0, 0, 0, 0, 0],
    [0x20008, 0, 0, 0, 0, 0],
    [0xffff_ffff, 0xffff_ffff, 0xffff_ffff, 0, 0, 0],
    [0x7e02_0000, 0x7e02_0000, 0, 0, 0, 0],
    [0x1_0000_0005, 0x1_0000_0005, 0x1_0000_0005, 5, 5, 5],
    [0x2_0000_0004, 0x2_0000_0006, 0x1_0000_0004, 0, 0, 0],
    [u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX],
];

/// Compares both filters on every call that the library may know, as it knows no newer one than it is itself.
fn agree(seccomp: &str) {
    let Some(library) = Library::load() else {
        eprintln!("skipped: needs libseccomp.so.2");
        return;
    };
    let seccomp: LinuxSeccomp = serde_json::from_str(seccomp).unwrap();
    let ours = assemble(&read(&seccomp).unwrap()).unwrap();
    let theirs = library.compile(&seccomp);
    for (name, wide, narrow) in SYSTEM_CALLS {
        let c_name = CString::new(name).unwrap();
        // SAFETY: the name is a C string.
        if unsafe { (library.resolve)(c_name.as_ptr()) } == -1 {
            continue;
        }
        for (architecture, number) in [(WIDE, wide), (NARROW, narrow)] {
            let Ok(number) = u32::try_from(number) else { continue };
            let beyond = newest(&seccomp, architecture).is_some_and(|newest| number > newest);
            for arguments in ARGUMENTS {
                let narrowed = arguments.map(|a| if architecture == NARROW { a & 0xffff_ffff } else { a });
                let call = Call { architecture, number, arguments: narrowed };
                let (our, their) = (run(&ours, &call), run(&theirs, &call));
                // There ours says ENOSYS, as runc's addition to libseccomp does.
                if beyond && our == 0x0005_0000 | libc::ENOSYS.cast_unsigned() {
                    continue;
                }
                assert_eq!(our, their, "{name} {call:x?}");
            }
        }
    }
}

/// The largest number of a call that the spec names. The specs below that name calls of `socketcall` or `ipc` for 32-bit
/// programs name newer ones, too.
fn newest(seccomp: &LinuxSeccomp, architecture: u32) -> Option<u32> {
    let named = |name: &str| {
        seccomp.syscalls().iter().flatten().any(|rule| rule.names().iter().any(|other| other == name))
    };
    SYSTEM_CALLS
        .iter()
        .filter(|(name, ..)| named(name))
        .filter_map(|(_, wide, narrow)| {
            u32::try_from(if architecture == WIDE { *wide } else { *narrow }).ok()
        })
        .max()
}

#[test]
fn a_profile_of_allowed_calls_gives_libseccomps_verdicts() {
    agree(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
        "syscalls":[
          {"names":["accept","accept4","access","bind","brk","chdir","chmod","clone3","close","connect","dup","dup2",
            "epoll_wait","execve","exit","exit_group","fork","futex","getpid","ipc","mmap","mmap2","munmap","open",
            "openat","openat2","read","readv","recvfrom","rt_sigaction","semget","send","sendto","set_tid_address",
            "socketcall","statx","wait4","waitpid","write","writev","faccessat2","landlock_restrict_self"],
           "action":"SCMP_ACT_ALLOW"},
          {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
          {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
          {"names":["personality"],"action":"SCMP_ACT_ALLOW",
           "args":[{"index":0,"value":131080,"op":"SCMP_CMP_EQ"}]},
          {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]},
          {"names":["clone"],"action":"SCMP_ACT_ALLOW",
           "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
          {"names":["mount"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
          {"names":["ptrace"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
}

#[test]
fn every_comparison_and_action_gives_libseccomps_verdicts() {
    for operator in ["EQ", "NE", "LT", "LE", "GT", "GE"] {
        for (first, second) in [(5_u64, 9_u64), (0x1_0000_0005, 0x2_0000_0005), (0, u64::MAX)] {
            agree(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
                {{"names":["read","lseek"],"action":"SCMP_ACT_TRAP",
                  "args":[{{"index":0,"value":{first},"op":"SCMP_CMP_{operator}"}},
                          {{"index":1,"value":{second},"op":"SCMP_CMP_{operator}"}}]}},
                {{"names":["write"],"action":"SCMP_ACT_ERRNO","errnoRet":7,
                  "args":[{{"index":2,"value":{first},"op":"SCMP_CMP_{operator}"}},
                          {{"index":2,"value":{second},"op":"SCMP_CMP_EQ"}}]}}]}}"#
            ));
        }
    }
    for action in ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW"] {
        agree(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":3,"syscalls":[
            {{"names":["ioctl"],"action":"SCMP_ACT_{action}"}},
            {{"names":["fcntl"],"action":"SCMP_ACT_{action}",
              "args":[{{"index":1,"value":255,"valueTwo":9,"op":"SCMP_CMP_MASKED_EQ"}}]}}]}}"#
        ));
    }
}
