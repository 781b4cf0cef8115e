//! docker.io/library/busybox:latest: Debian's static busybox with a link for every applet.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::super::cache::{self, Key};
use super::super::debian::output_of;
use super::layout::{self, Defaults, Layer};

const NAME: &str = "docker.io/library/busybox:latest";
const BUSYBOX: &str = "/usr/bin/busybox";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";

pub(super) fn archive() -> Result<PathBuf> {
    let key = Key::default().with("1").with(PASSWD).with(GROUP).with_file(Path::new(BUSYBOX));
    let key = key.context("the busybox image needs the package busybox-static")?.finish();
    let entry = cache::entry("image-busybox", &key, |directory| {
        let mut layer = Layer::new();
        skeleton(&mut layer)?;
        let defaults = Defaults {
            entrypoint: &[],
            command: &["sh"],
            environment: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            directory: "/",
            stop_signal: "",
        };
        layout::write(&directory.join("image.tar"), NAME, layer, &defaults)
    })?;
    Ok(entry.join("image.tar"))
}

fn skeleton(layer: &mut Layer) -> Result<()> {
    for (path, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
        ("var/www", 0o755),
    ] {
        layer.directory(path, mode)?;
    }
    layer.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    layer.file("etc/group", 0o644, GROUP.as_bytes())?;
    layer.file("bin/busybox", 0o755, &std::fs::read(BUSYBOX)?)?;
    applet_links(layer, "bin")?;
    layer.symlink("sbin", "bin")
}

/// A link for every applet of this machine's busybox in `directory`, beside the program itself.
fn applet_links(layer: &mut Layer, directory: &str) -> Result<()> {
    let applets = output_of(Command::new(BUSYBOX).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.symlink(&format!("{directory}/{applet}"), "busybox")?;
    }
    Ok(())
}
