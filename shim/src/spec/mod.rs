//! OCI runtime specs: reading them and translating them for the guest.

pub(crate) mod annotations;
pub(crate) mod devices;
mod document;
pub(crate) mod hooks;
pub(crate) mod host_cpus;
pub(crate) mod mappings;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod number_list;
pub(crate) mod own_volumes;
pub(crate) mod pause;
pub(crate) mod security_modules;
pub(crate) mod settings;
pub(crate) mod translation;

pub(crate) use document::{Document, DocumentError};
