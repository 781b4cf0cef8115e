//! The FUSE server behind the virtio-fs device: it shows a guest one directory of the host, and nothing else.
//!
//! - [`wire`]: the protocol's structures as bytes.
//! - [`buffers`]: where a request is read from and its reply written to.
//! - [`server`]: decodes a request, calls the operation, encodes the reply.
//! - [`operations`]: what each request does to the host's files.
//! - [`inode_store`], [`handle_store`] and [`implicit_files`]: what the guest knows by number.
//! - [`credentials`]: as whom a request acts.
//! - [`cache_policy`]: how long the guest may trust what it was told.
//!
//! **Confinement.** The server holds a descriptor of the shared directory and reaches everything else from there by
//! one name at a time, relative to the descriptor of a directory that it has already reached, without following
//! links. It uses no absolute path. Files are opened for reading and writing only after their descriptor has shown
//! them to be regular files or directories; device nodes, fifos and sockets of the host are never opened.

pub mod buffers;
pub mod cache_policy;
pub mod credentials;
mod directory_stream;
mod file_system;
mod handle_store;
mod host;
mod implicit_files;
mod inode_store;
mod limits;
mod operations;
pub mod server;
mod table;
pub mod wire;

pub use cache_policy::{CachePolicy, Caching};
pub use file_system::{FsConfig, FsError};
pub use limits::DescriptorBudget;
pub use server::{Served, Server};

#[cfg(test)]
mod tests;
