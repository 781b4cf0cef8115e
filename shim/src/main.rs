//! shim

fn main() {}
