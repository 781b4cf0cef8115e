//! docker.io/library/redis:latest: Debian's redis with the libraries it needs, and busybox for a shell.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::super::cache::{self, Key};
use super::super::debian;
use super::layout::{self, Defaults, Layer};

const NAME: &str = "docker.io/library/redis:latest";
const PACKAGES: [&str; 2] = ["redis-server", "redis-tools"];
/// What is not needed to run.
const UNUSED: [&str; 5] = ["usr/share", "etc/init.d", "etc/logrotate.d", "usr/lib/systemd", "lib/systemd"];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nredis:x:999:999:redis:/data:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nredis:x:999:\nnogroup:x:65534:\n";

pub(super) fn archive() -> Result<PathBuf> {
    let key =
        Key::default().with("1").with(debian::release()).with(PACKAGES.join(" ")).with(PASSWD).with(GROUP);
    let entry = cache::entry("image-redis", &key.finish(), |directory| {
        let root = directory.join("root");
        install(directory, &root)?;
        let mut layer = Layer::new();
        layer.tree(&root)?;
        fs::remove_dir_all(&root)?;
        let defaults = Defaults {
            entrypoint: &[],
            command: &["redis-server"],
            environment: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            directory: "/data",
        };
        layout::write(&directory.join("image.tar"), NAME, layer, &defaults)
    })?;
    Ok(entry.join("image.tar"))
}

/// Unpacks redis and the libraries below it into `root`.
fn install(directory: &Path, root: &Path) -> Result<()> {
    merge_usr(root)?;
    debian::update_lists()?;
    // Only libraries: what a package's scripts would need, nothing in the image runs.
    let wanted =
        |name: &str| name.starts_with("lib") || name.starts_with("zlib") || name.starts_with("redis");
    let packages: Vec<String> = debian::closure(&PACKAGES, wanted)?.into_iter().collect();
    for archive in debian::download(&packages, directory)? {
        debian::unpack(&archive, root)?;
        fs::remove_file(archive)?;
    }
    for unused in UNUSED {
        let path = root.join(unused);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    for directory in ["data", "dev", "proc", "sys", "tmp", "root", "run"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    shell(root)
}

/// Debian's packages may carry files below /bin and below /usr/bin: one directory for both, as on Debian itself.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    Ok(())
}

fn shell(root: &Path) -> Result<()> {
    let busybox = root.join("usr/bin/busybox");
    fs::copy("/usr/bin/busybox", busybox).context("the redis image needs the package busybox-static")?;
    for applet in ["sh", "cat", "id", "ls", "ps", "sleep", "true", "wc", "grep"] {
        symlink("busybox", root.join("usr/bin").join(applet))?;
    }
    Ok(())
}
