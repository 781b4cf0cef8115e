//! The tables of `iptables-legacy` and `ip6tables-legacy` (include/uapi/linux/netfilter_ipv4/ip_tables.h and
//! netfilter_ipv6/ip6_tables.h, which are alike).

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// One of the two programs' tables, and how the kernel tells of them.
struct Family {
    program: &'static str,
    /// The names of the tables that there are in the thread's namespace. To ask for another one would make it.
    names: &'static str,
    address_family: AddressFamily,
    /// The level of the socket options.
    level: libc::c_int,
    /// Where `target_offset` is in `struct ipt_entry` or `ip6t_entry`.
    target_offset: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        program: "iptables",
        names: "/proc/thread-self/net/ip_tables_names",
        address_family: AddressFamily::INET,
        level: libc::IPPROTO_IP,
        target_offset: 88,
    },
    Family {
        program: "ip6tables",
        names: "/proc/thread-self/net/ip6_tables_names",
        address_family: AddressFamily::INET6,
        level: libc::IPPROTO_IPV6,
        target_offset: 140,
    },
];

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, for IPv6 as well.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// `struct ipt_getinfo`: the table's name, then numbers of four bytes: a bit for each hook that it has, for each hook where
/// its chain begins and where its policy is, how many entries there are, and their size in bytes.
const INFO: usize = 84;
const VALID_HOOKS: usize = 32;
const HOOK_ENTRY: usize = 36;
const UNDERFLOW: usize = 56;
const SIZE: usize = 80;
/// `NF_INET_NUMHOOKS`.
const HOOKS: usize = 5;

/// `struct ipt_get_entries`: the name and the size, then the entries.
const ENTRIES: usize = 40;

/// `struct xt_standard_target`: the verdict follows `struct xt_entry_target`.
const VERDICT: usize = 32;
/// `-NF_ACCEPT - 1`.
const ACCEPT: u32 = 0_u32.wrapping_sub(2);

/// The names of those that have a rule in one of their hooks' chains, or a policy other than to accept.
pub(super) fn tables() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for family in &FAMILIES {
        let names = match fs::read_to_string(family.names) {
            // A kernel without them.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            names => names?,
        };
        for name in names.lines() {
            if family.has_effect(name)? {
                found.push(format!("{name} of {}", family.program));
            }
        }
    }
    Ok(found)
}

impl Family {
    fn has_effect(&self, table: &str) -> io::Result<bool> {
        let socket = socket_with(self.address_family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let mut info = request(table, INFO);
        get(&socket, self.level, GET_INFO, &mut info)?;
        let size = number(&info, SIZE).ok_or(ErrorKind::InvalidData)?;
        let mut entries = request(table, ENTRIES.saturating_add(size));
        let field = entries.get_mut(VALID_HOOKS..HOOK_ENTRY).ok_or(ErrorKind::InvalidData)?;
        field.copy_from_slice(info.get(SIZE..INFO).ok_or(ErrorKind::InvalidData)?);
        // Refused where the table has changed since.
        get(&socket, self.level, GET_ENTRIES, &mut entries)?;
        let entries = entries.get(ENTRIES..).unwrap_or_default();
        self.does_something(&info, entries).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Whether a hook's chain is more than a policy, or the policy another one than to accept. `None` where it cannot be told.
    fn does_something(&self, info: &[u8], entries: &[u8]) -> Option<bool> {
        let hooks = number(info, VALID_HOOKS)?;
        for hook in (0..HOOKS).filter(|hook| hooks >> hook & 1 != 0) {
            let first = number(info, HOOK_ENTRY + 4 * hook)?;
            let policy = number(info, UNDERFLOW + 4 * hook)?;
            let policy_entry = entries.get(policy..)?;
            let offset = policy_entry.get(self.target_offset..)?.first_chunk()?;
            let target = policy_entry.get(usize::from(u16::from_ne_bytes(*offset))..)?;
            if first != policy || target.get(VERDICT..)?.first_chunk() != Some(&ACCEPT.to_ne_bytes()) {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// Zeros that begin with the table's name.
fn request(table: &str, size: usize) -> Vec<u8> {
    let mut bytes = table.as_bytes().to_vec();
    bytes.truncate(VALID_HOOKS);
    bytes.resize(size, 0);
    bytes
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let number = u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?);
    usize::try_from(number).ok()
}

fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, answer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(answer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes at most `length` bytes, which are those of `answer`, and writes `length`; both outlive
    // the call.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, answer.as_mut_ptr().cast(), &mut length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_no_answer() {
        let [family, _] = &FAMILIES;
        let mut info = request("filter", INFO);
        info[VALID_HOOKS] = 1;
        assert_eq!(family.does_something(&info, &[]), None);
        // An entry whose target is behind its end.
        let mut entries = vec![0; 152];
        entries[88] = 150;
        assert_eq!(family.does_something(&info, &entries), None);
        assert_eq!(family.does_something(&info[..40], &entries), None);
    }
}
