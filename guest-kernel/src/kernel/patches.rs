//! Our changes to Debian's source, each in a file of its own that says what it is for.

/// Name and text of each patch, in the order in which they are applied.
pub(super) const ALL: &[(&str, &str)] = &[
    (
        "fuse-capabilities-after-writes.patch",
        include_str!("../../patches/fuse-capabilities-after-writes.patch"),
    ),
    (
        "fuse-directory-keeps-its-mode.patch",
        include_str!("../../patches/fuse-directory-keeps-its-mode.patch"),
    ),
    ("fuse-exclusive-create.patch", include_str!("../../patches/fuse-exclusive-create.patch")),
    ("fuse-new-file-nosec.patch", include_str!("../../patches/fuse-new-file-nosec.patch")),
    ("fuse-submount-nosec.patch", include_str!("../../patches/fuse-submount-nosec.patch")),
    ("fuse-write-clears-set-id.patch", include_str!("../../patches/fuse-write-clears-set-id.patch")),
    ("pvh-without-xen.patch", include_str!("../../patches/pvh-without-xen.patch")),
    ("scattered-features-once.patch", include_str!("../../patches/scattered-features-once.patch")),
    (
        "virtio-mmio-no-acknowledgement.patch",
        include_str!("../../patches/virtio-mmio-no-acknowledgement.patch"),
    ),
    ("virtio-mmio-new-device.patch", include_str!("../../patches/virtio-mmio-new-device.patch")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_patch_says_what_it_is_for_and_under_which_licence() {
        for (name, text) in ALL {
            let (words, changes) = text.split_once("\n--- a/").unwrap();
            assert!(words.contains("SPDX-License-Identifier: GPL-2.0-only"), "{name}");
            assert!(words.split_whitespace().count() > 30, "{name}");
            assert!(changes.contains("\n@@ "), "{name}");
        }
    }
}
