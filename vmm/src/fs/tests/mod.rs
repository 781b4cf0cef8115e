//! The server as a client sees it: requests and replies in memory, a scratch directory as the share.

mod attributes;
mod caching;
mod client;
mod confinement;
mod directories;
mod eviction;
mod files;
mod hostile;
mod implicit;
mod names;
mod open_directories;
mod submounts;
mod xattrs;
