//! guest-kernel
