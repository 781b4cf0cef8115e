//! Packet filters in a pod's network namespace: rules of iptables and nftables, as the CNI plugins of service meshes make
//! them. The guest's frames pass the namespace's IP stack by, so that no such rule sees any of them.

mod nftables;
mod xtables;

use std::io;

use super::error::NetworkError;

/// What is done about packet filters that have no effect on the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum PacketFilters {
    /// Such a network is refused: what they were to keep out or to redirect would not be.
    #[default]
    Refused,
    /// They are named in containerd's log.
    Ignored,
}

/// Looks for packet filters in the thread's network namespace.
///
/// # Errors
/// There are some and they are not to be ignored; or the kernel does not tell.
pub(super) fn check(filters: PacketFilters) -> Result<(), NetworkError> {
    let tables = tables().map_err(NetworkError::host("looking for packet filters"))?;
    match filters {
        _ if tables.is_empty() => Ok(()),
        PacketFilters::Refused => Err(NetworkError::Filters { tables: tables.join(", ") }),
        PacketFilters::Ignored => {
            tracing::warn!(
                ?tables,
                "the packet filters in the pod's network namespace see none of the guest's packets"
            );
            Ok(())
        }
    }
}

/// The names of the tables that have a rule, or a policy other than to accept.
fn tables() -> io::Result<Vec<String>> {
    let mut tables = xtables::tables()?;
    tables.extend(nftables::tables()?);
    Ok(tables)
}

#[cfg(test)]
mod tests;
