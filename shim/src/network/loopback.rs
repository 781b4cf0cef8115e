//! Connections to the loopback of the pod's network namespace, where nobody listens: the servers are in the guest.
//! `kubectl port-forward` has containerd make such connections.
//!
//! A program on the namespace's socket lookup (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9) gives every connection, to
//! whatever port, to one listening socket. No packet filter is needed, and nothing in the namespace changes.

use std::io;
use std::mem::size_of;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A socket that every TCP connection within a network namespace arrives at.
#[derive(Debug)]
pub(crate) struct LoopbackListener {
    /// Accepts without blocking. The local address of what it accepts has the port that was asked for.
    pub(crate) listener: TcpListener,
    /// The program's hold on the namespace.
    pub(crate) link: OwnedFd,
}

/// Listens in the thread's network namespace.
pub(super) fn listen() -> io::Result<LoopbackListener> {
    let listener = any_port()?;
    let map = create_map()?;
    insert(&map, &listener)?;
    let program = load(&program(&map))?;
    let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
    let link = attach(&program, &namespace.into())?;
    Ok(LoopbackListener { listener, link })
}

/// A socket for both families, or for IPv4 where there is no other.
fn any_port() -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let open = |family| rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    let socket = match open(AddressFamily::INET6) {
        Ok(socket) => {
            rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
            rustix::net::bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
            socket
        }
        // Listening binds it.
        Err(_) => open(AddressFamily::INET)?,
    };
    rustix::net::listen(&socket, libc::SOMAXCONN)?;
    Ok(socket.into())
}

// Commands, types and functions of <linux/bpf.h>.
const MAP_CREATE: libc::c_int = 0; // BPF_MAP_CREATE
const MAP_UPDATE: libc::c_int = 2; // BPF_MAP_UPDATE_ELEM
const PROGRAM_LOAD: libc::c_int = 5; // BPF_PROG_LOAD
const LINK_CREATE: libc::c_int = 28; // BPF_LINK_CREATE
const SOCKET_MAP: u32 = 15; // BPF_MAP_TYPE_SOCKMAP
const SOCKET_LOOKUP: u32 = 30; // BPF_PROG_TYPE_SK_LOOKUP
const ATTACH_LOOKUP: u32 = 36; // BPF_SK_LOOKUP
const MAP_LOOKUP: u32 = 1; // bpf_map_lookup_elem
const SOCKET_RELEASE: u32 = 86; // bpf_sk_release
const SOCKET_ASSIGN: u32 = 124; // bpf_sk_assign
const PASS: u32 = 1; // SK_PASS

/// `struct bpf_insn`: code, registers (the destination in the lower four bits), offset, immediate.
#[repr(C)]
struct Instruction(u8, u8, i16, i32);

/// Gives the lookup the one socket of the map. Lookups of other protocols than the socket's stay as they are.
fn program(map: &OwnedFd) -> [Instruction; 17] {
    // Codes of <linux/bpf_common.h>; the name says what is done to a register or a place on the stack.
    let copy = |to: u8, from: u8| Instruction(0xbf, to | from << 4, 0, 0);
    let set = |to: u8, value: u32| Instruction(0xb7, to, 0, value.cast_signed());
    let call = |function: u32| Instruction(0x85, 0, 0, function.cast_signed());
    [
        copy(6, 1),
        // The key 0, four bytes below the end of the stack, whose address is in register 10.
        Instruction(0x62, 10, -4, 0),
        copy(2, 10),
        Instruction(0x07, 2, 0, -4),
        // The map, by its descriptor (BPF_PSEUDO_MAP_FD); an instruction of twice the length.
        Instruction(0x18, 1 | 1 << 4, 0, map.as_raw_fd()),
        Instruction(0, 0, 0, 0),
        call(MAP_LOOKUP),
        // No socket: to the last two.
        Instruction(0x15, 0, 7, 0),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        set(3, 0),
        call(SOCKET_ASSIGN),
        copy(1, 7),
        call(SOCKET_RELEASE),
        set(0, PASS),
        Instruction(0x95, 0, 0, 0),
    ]
}

/// The parts of `union bpf_attr` that the commands read.
#[repr(C)]
struct CreateArguments {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct UpdateArguments {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadArguments {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkArguments {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

fn create_map() -> io::Result<OwnedFd> {
    let arguments = CreateArguments { map_type: SOCKET_MAP, key_size: 4, value_size: 8, max_entries: 1 };
    // SAFETY: `arguments` begins a `union bpf_attr`, and has no pointer.
    unsafe { descriptor(MAP_CREATE, &arguments) }
}

fn insert(map: &OwnedFd, listener: &TcpListener) -> io::Result<()> {
    let (key, value) = (0_u32, number(listener.as_raw_fd()));
    let arguments = UpdateArguments {
        map: number(map.as_raw_fd()),
        key: (&raw const key).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: key and value are as large as the map has them, and live through the call.
    unsafe { bpf(MAP_UPDATE, &arguments) }.map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let arguments = LoadArguments {
        program_type: SOCKET_LOOKUP,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        expected_attach_type: ATTACH_LOOKUP,
    };
    // SAFETY: `arguments` begins a `union bpf_attr`, and the instructions and the license live through the call.
    unsafe { descriptor(PROGRAM_LOAD, &arguments) }
}

fn attach(program: &OwnedFd, namespace: &OwnedFd) -> io::Result<OwnedFd> {
    let arguments = LinkArguments {
        program: program.as_raw_fd().cast_unsigned(),
        target: namespace.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_LOOKUP,
        flags: 0,
    };
    // SAFETY: `arguments` begins a `union bpf_attr`, and has no pointer.
    unsafe { descriptor(LINK_CREATE, &arguments) }
}

fn number(descriptor: libc::c_int) -> u64 {
    u64::from(descriptor.cast_unsigned())
}

/// # Safety
///
/// As for [`bpf`], with a command that returns a descriptor.
unsafe fn descriptor<T>(command: libc::c_int, arguments: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller says.
    let descriptor = unsafe { bpf(command, arguments) }?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
///
/// `arguments` is laid out as the part of `union bpf_attr` that `command` reads, and its pointers are valid.
unsafe fn bpf<T>(command: libc::c_int, arguments: &T) -> io::Result<libc::c_int> {
    // SAFETY: the structure is of the size given, and as the caller says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(arguments), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        libc::c_int::try_from(result).map_err(io::Error::other)
    }
}
