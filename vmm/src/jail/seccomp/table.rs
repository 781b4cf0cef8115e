//! Which system calls which role may make, and who makes them.
//!
//! A rule that not every run needs is marked `rare`: an error path, a host that differs, a guest that does something
//! unusual. The others are needed by a container that does what containers do, or have no reason to be here: the end-to-end
//! test `every_rule_of_the_filters_that_is_not_rare_is_used` has the kernel count them.

use libc::{
    MADV_DONTNEED, PROT_EXEC, SYS_accept4, SYS_brk, SYS_capget, SYS_capset, SYS_clock_gettime, SYS_close,
    SYS_copy_file_range, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2, SYS_exit,
    SYS_exit_group, SYS_fallocate, SYS_fchmodat, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fstatfs,
    SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getdents64, SYS_getpid, SYS_getrandom, SYS_getxattr, SYS_ioctl,
    SYS_linkat, SYS_listxattr, SYS_lseek, SYS_madvise, SYS_mkdirat, SYS_mknodat, SYS_mmap, SYS_mprotect,
    SYS_mremap, SYS_munmap, SYS_openat, SYS_openat2, SYS_preadv, SYS_pwritev, SYS_read, SYS_readlinkat,
    SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_removexattr, SYS_renameat2, SYS_restart_syscall,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_yield, SYS_sendmsg, SYS_sendto, SYS_setfsgid,
    SYS_setfsuid, SYS_setxattr, SYS_shutdown, SYS_sigaltstack, SYS_socketpair, SYS_statx, SYS_symlinkat,
    SYS_syncfs, SYS_tgkill, SYS_umask, SYS_unlinkat, SYS_utimensat, SYS_write, SYS_writev, c_long,
};
use syscalls::Sysno;

use crate::jail::Role;

use Condition::{Is, IsNull, Lacks};

/// A system call that a role may make.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    number: c_long,
    /// With which arguments: all of these hold.
    pub conditions: &'static [Condition],
    /// Who makes it, and what for.
    pub who: &'static str,
    /// Not every run needs it.
    pub is_rare: bool,
}

/// What an argument of a system call, of this number counted from 0, has to be.
#[derive(Debug, Clone, Copy)]
pub enum Condition {
    /// Its lower 32 bits are one of these.
    Is(u8, &'static [u64]),
    /// It is a null pointer.
    IsNull(u8),
    /// It has none of these bits.
    Lacks(u8, u64),
}

impl Rule {
    /// The call's number.
    pub fn number(&self) -> i64 {
        self.number
    }

    /// The call's name.
    pub fn name(&self) -> &'static str {
        usize::try_from(self.number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name())
    }
}

/// What a role may do.
pub fn rules(role: Role) -> impl Iterator<Item = &'static Rule> + Clone {
    let own = match role {
        Role::Main => MAIN,
        Role::Vcpu => VCPU,
        Role::Fs => FS,
        Role::Vsock => VSOCK,
        Role::Net => NET,
        Role::Blk => BLK,
    };
    COMMON.iter().chain(own)
}

const fn usual(number: c_long, who: &'static str) -> Rule {
    only(number, &[], who)
}

const fn rare(number: c_long, who: &'static str) -> Rule {
    rarely_only(number, &[], who)
}

const fn only(number: c_long, conditions: &'static [Condition], who: &'static str) -> Rule {
    Rule { number, conditions, who, is_rare: false }
}

const fn rarely_only(number: c_long, conditions: &'static [Condition], who: &'static str) -> Rule {
    Rule { number, conditions, who, is_rare: true }
}

/// `_IO(KVMIO, 0x80)` (linux/kvm.h).
const KVM_RUN: u64 = 0xAE80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`, of 144 bytes.
const KVM_GET_REGS: u64 = 0x8090_AE81;
/// `_IOW(KVMIO, 0x6a, struct kvm_irq_routing)`, of 8 bytes.
const KVM_SET_GSI_ROUTING: u64 = 0x4008_AE6A;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`, of 64 bytes.
const KVM_IOEVENTFD: u64 = 0x4040_AE79;
/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`, of 32 bytes.
const KVM_IRQFD: u64 = 0x4020_AE76;
/// A socket does not block (asm-generic/ioctls.h).
const FIONBIO: u64 = 0x5421;
/// What frames for the guest may leave undone: `_IOW('T', 208, unsigned int)` (linux/if_tun.h).
const TUNSETOFFLOAD: u64 = 0x4004_54D0;
/// How long the header before a frame is: `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: u64 = 0x4004_54D8;
/// Whether frames go into a queue of a tap: `_IOW('T', 217, int)`.
const TUNSETQUEUE: u64 = 0x4004_54D9;
/// The protection bit that no mapping gets.
const EXECUTABLE: u64 = PROT_EXEC as u64;
/// The type of a pair of sockets. Streams send to no address; one of datagrams would reach any socket of the host's that lies in a
/// volume.
const STREAM: u64 = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64;
/// The flags of an open file that change (`fs/handle_store.rs`).
const CHANGEABLE: u64 = (libc::O_APPEND | libc::O_DIRECT) as u64;

/// What the language's and the C library's own machinery may need on any thread.
const COMMON: &[Rule] = &[
    usual(
        SYS_write,
        "eventfds: interrupts, wake-ups of other threads. Standard error: what a person should read",
    ),
    usual(SYS_close, "whatever a thread has opened or been handed"),
    usual(SYS_futex, "locks and channels between threads"),
    // Builds with debug assertions alone: whether what std closes is open.
    #[cfg(debug_assertions)]
    rarely_only(SYS_fcntl, &[Is(1, &[libc::F_GETFD as u64])], "std: OwnedFd's drop"),
    rare(SYS_sched_yield, "channels (std::sync::mpmc::utils::Backoff), when two threads meet"),
    rarely_only(SYS_mmap, &[Lacks(2, EXECUTABLE)], "the allocator: large blocks"),
    rarely_only(
        SYS_mprotect,
        &[Lacks(2, EXECUTABLE)],
        "the allocator: more of its arena (musl; glibc beyond the main arena)",
    ),
    rare(SYS_munmap, "the allocator, the stack of a thread that ends"),
    rare(SYS_mremap, "the allocator: a large block grows"),
    rare(SYS_brk, "the allocator: the main arena grows or shrinks"),
    rarely_only(SYS_madvise, &[Is(2, &[MADV_DONTNEED as u64])], "glibc: the stack of a thread that ends"),
    rare(SYS_clock_gettime, "a host whose clock source the vDSO cannot read"),
    rare(SYS_getrandom, "the seed of a hash map (std::hash::RandomState); rng"),
    rare(
        SYS_restart_syscall,
        "the kernel, after a stop (SIGSTOP, cgroup freezer, a tracer) in a wait with a timeout",
    ),
    rare(SYS_rt_sigreturn, "the end of a signal handler"),
    rare(SYS_rt_sigprocmask, "glibc: a thread that ends or sends a signal"),
    rare(SYS_sigaltstack, "std: a thread that ends gives its signal stack back"),
    rare(SYS_exit, "a thread that ends"),
    rare(SYS_exit_group, "the handler of violations, and of panics"),
];

const MAIN: &[Rule] = &[
    usual(SYS_read, "eventfds: notifications of queues, the end of the machine"),
    usual(SYS_epoll_pwait, "the event loop"),
    usual(SYS_epoll_ctl, "the event loop: the control socket is waited for"),
    only(
        SYS_fcntl,
        &[Is(1, &[libc::F_DUPFD_CLOEXEC as u64])],
        "the event loop: a duplicate of what is waited for",
    ),
    usual(SYS_recvmsg, "the control socket: requests of the shim"),
    usual(SYS_sendmsg, "the control socket: the end of the machine, counters"),
    only(SYS_madvise, &[Is(2, &[MADV_DONTNEED as u64])], "balloon: guest memory goes back to the host"),
    rarely_only(
        SYS_ioctl,
        &[Is(1, &[KVM_IOEVENTFD, KVM_IRQFD])],
        "a device comes or goes while the machine runs",
    ),
    rare(SYS_eventfd2, "a device comes: its notifications and its interrupt"),
    rarely_only(
        SYS_ioctl,
        &[Is(1, &[FIONBIO, TUNSETVNETHDRSZ, TUNSETOFFLOAD])],
        "an interface comes: its tap does not block, has headers of our length, and what it can do",
    ),
    rare(SYS_getpid, "pthread_kill"),
    rarely_only(SYS_tgkill, &[Is(2, &[libc::SIGABRT as u64])], "abort"),
];

/// A vCPU answers its exits; a driver that sets a device up has it do that too.
const VCPU: &[Rule] = &[
    only(SYS_ioctl, &[Is(1, &[KVM_RUN, KVM_SET_GSI_ROUTING])], "the guest runs; the I/O APIC is programmed"),
    rarely_only(SYS_ioctl, &[Is(1, &[KVM_GET_REGS])], "where the guest was when KVM could not go on"),
    rarely_only(
        SYS_ioctl,
        &[Is(1, &[TUNSETOFFLOAD, TUNSETQUEUE])],
        "a network driver has agreed on features",
    ),
    usual(SYS_eventfd2, "activation of a device: what stops it again"),
    only(
        SYS_fcntl,
        &[Is(1, &[libc::F_DUPFD_CLOEXEC as u64])],
        "activation of a device: duplicates of its eventfds",
    ),
    usual(SYS_epoll_ctl, "activation and reset of a device on the event loop"),
];

/// The FUSE server. What it can reach is a matter of namespaces, capabilities and Landlock: names are in memory, where no
/// filter sees them.
const FS: &[Rule] = &[
    usual(SYS_epoll_pwait, "queues and wake-ups"),
    usual(SYS_epoll_create1, "activation of the device"),
    usual(SYS_epoll_ctl, "activation of the device"),
    usual(SYS_statx, "attributes"),
    usual(SYS_openat2, "LOOKUP, CREATE: one name in a directory"),
    usual(SYS_openat, "OPEN, OPENDIR: by /proc/self/fd"),
    usual(SYS_readlinkat, "READLINK"),
    usual(SYS_getdents64, "READDIR"),
    usual(SYS_lseek, "READDIR at an offset; LSEEK"),
    usual(SYS_preadv, "READ"),
    usual(SYS_pwritev, "WRITE"),
    usual(SYS_mkdirat, "MKDIR"),
    usual(SYS_mknodat, "MKNOD"),
    usual(SYS_symlinkat, "SYMLINK"),
    usual(SYS_linkat, "LINK"),
    usual(SYS_unlinkat, "UNLINK, RMDIR"),
    usual(SYS_renameat2, "RENAME, RENAME2"),
    usual(SYS_fchmodat, "SETATTR: mode"),
    usual(SYS_fchownat, "SETATTR: owner"),
    usual(SYS_ftruncate, "SETATTR: size"),
    usual(SYS_utimensat, "SETATTR: times"),
    usual(SYS_fallocate, "FALLOCATE"),
    usual(SYS_fsync, "FSYNC"),
    usual(SYS_fdatasync, "FSYNC of data alone"),
    usual(SYS_syncfs, "SYNCFS"),
    rare(SYS_copy_file_range, "COPY_FILE_RANGE"),
    usual(SYS_fstatfs, "STATFS"),
    usual(SYS_getxattr, "GETXATTR"),
    rare(SYS_setxattr, "SETXATTR"),
    rare(SYS_listxattr, "LISTXATTR"),
    rare(SYS_removexattr, "REMOVEXATTR"),
    rarely_only(
        SYS_fcntl,
        &[Is(1, &[libc::F_SETFL as u64]), Lacks(2, !CHANGEABLE)],
        "READ, WRITE: O_APPEND or O_DIRECT of an open file has changed",
    ),
    rarely_only(SYS_fcntl, &[Is(1, &[libc::F_DUPFD_CLOEXEC as u64])], "COPY_FILE_RANGE holds both files"),
    usual(SYS_setfsuid, "as whom a file is made"),
    usual(SYS_setfsgid, "as whom a file is made"),
    usual(SYS_umask, "the umask by which a file is made"),
    rare(SYS_capget, "writes that clear set-id bits"),
    rare(SYS_capset, "writes that clear set-id bits: CAP_FSETID goes and comes"),
];

/// Sockets that others have made, and pairs of them for connections of the guest.
const VSOCK: &[Rule] = &[
    usual(SYS_epoll_pwait, "queues, listener and streams"),
    usual(SYS_epoll_create1, "activation of the device"),
    usual(SYS_epoll_ctl, "a stream begins, ends, or waits for something else"),
    usual(SYS_accept4, "the shim connects to a port of the guest"),
    usual(SYS_recvfrom, "the handshake; whether a stream has ended"),
    usual(SYS_recvmsg, "bytes to the guest"),
    only(SYS_sendto, &[IsNull(4)], "the handshake's answer, to nobody but who is at the other end"),
    usual(SYS_sendmsg, "bytes from the guest; one end of a connection of the guest, to the shim"),
    usual(SYS_shutdown, "a stream ends in one direction"),
    only(
        SYS_socketpair,
        &[Is(0, &[libc::AF_UNIX as u64]), Is(1, &[STREAM])],
        "the guest connects to a port of the host",
    ),
    only(SYS_ioctl, &[Is(1, &[FIONBIO])], "streams do not block"),
];

/// Taps that others have made.
const NET: &[Rule] = &[
    usual(SYS_read, "eventfds: orders to the thread"),
    usual(SYS_epoll_pwait, "queues and taps"),
    usual(SYS_epoll_ctl, "queues come and go with their driver"),
    usual(SYS_readv, "a frame from the tap"),
    usual(SYS_writev, "a frame to the tap"),
    rarely_only(SYS_ioctl, &[Is(1, &[TUNSETOFFLOAD, TUNSETQUEUE])], "the control queue"),
];

/// Devices that the shim has opened. A pod need not have any.
const BLK: &[Rule] = &[
    usual(SYS_epoll_pwait, "queues"),
    rare(SYS_read, "eventfds: orders to the thread"),
    rare(SYS_epoll_ctl, "queues come and go with their driver"),
    rare(SYS_preadv, "a request to read"),
    rare(SYS_pwritev, "a request to write"),
    rare(SYS_fdatasync, "a request to flush"),
    rare(SYS_fallocate, "a request to discard or to write zeroes"),
];
