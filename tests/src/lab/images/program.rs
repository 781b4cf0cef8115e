//! Images of a program from Debian's packages with the libraries that it needs, and busybox for a shell.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::super::cache::{self, Key};
use super::super::debian;
use super::layout::{self, Defaults, Layer};

/// What an image is made of.
struct Program {
    /// The image's name.
    image: &'static str,
    /// Its entry in the cache.
    entry: &'static str,
    packages: &'static [&'static str],
    /// Packages that are needed as well begin with this, if they are no libraries.
    family: &'static str,
    command: &'static [&'static str],
    /// What ends it; empty for the usual signal.
    stop_signal: &'static str,
    /// The working directory.
    directory: &'static str,
    /// The user and group 999.
    user: &'static str,
    /// Files that the packages do not have.
    files: &'static [(&'static str, &'static str)],
}

const REDIS: Program = Program {
    image: "docker.io/library/redis:latest",
    entry: "image-redis",
    packages: &["redis-server", "redis-tools"],
    family: "redis",
    command: &["redis-server"],
    stop_signal: "",
    directory: "/data",
    user: "redis",
    files: &[],
};

/// Serves /www; what it would write to files goes to where a container's output goes.
const NGINX: Program = Program {
    image: "docker.io/library/nginx:latest",
    entry: "image-nginx",
    packages: &["nginx"],
    family: "nginx",
    command: &["nginx", "-g", "daemon off;"],
    // As in the image that everybody uses: what it is doing is done first.
    stop_signal: "SIGQUIT",
    directory: "/www",
    user: "www-data",
    files: &[
        (
            "etc/nginx/nginx.conf",
            "worker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr notice;\nevents {}\nhttp {\n  access_log /dev/stdout;\n  server { listen 80; root /www; }\n}\n",
        ),
        ("www/index.html", "served by nginx\n"),
        ("var/lib/nginx/body/.keep", ""),
        ("var/log/nginx/.keep", ""),
    ],
};

const IPERF3: Program = Program {
    image: "docker.io/library/iperf3:latest",
    entry: "image-iperf3",
    packages: &["iperf3"],
    family: "iperf3",
    command: &["iperf3", "--server"],
    stop_signal: "",
    directory: "/tmp",
    user: "iperf3",
    files: &[],
};

/// What is not needed to run.
const UNUSED: [&str; 5] = ["usr/share", "etc/init.d", "etc/logrotate.d", "usr/lib/systemd", "lib/systemd"];
const APPLETS: [&str; 9] = ["sh", "cat", "id", "ls", "ps", "sleep", "true", "wc", "grep"];

/// The archives of all of them.
///
/// # Errors
///
/// A package cannot be had.
pub(super) fn archives() -> Result<Vec<PathBuf>> {
    [&REDIS, &NGINX, &IPERF3].into_iter().map(Program::archive).collect()
}

impl Program {
    fn archive(&self) -> Result<PathBuf> {
        let mut key = Key::default().with("2").with(debian::release()).with(self.packages.join(" "));
        if !self.stop_signal.is_empty() {
            key = key.with(self.stop_signal);
        }
        for (path, content) in self.files {
            key = key.with(path).with(content);
        }
        let entry = cache::entry(self.entry, &key.finish(), |directory| {
            let root = directory.join("root");
            self.install(directory, &root)?;
            let mut layer = Layer::new();
            layer.tree(&root)?;
            fs::remove_dir_all(&root)?;
            let defaults = Defaults {
                entrypoint: &[],
                command: self.command,
                environment: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                directory: self.directory,
                stop_signal: self.stop_signal,
            };
            layout::write(&directory.join("image.tar"), self.image, layer, &defaults)
        })?;
        Ok(entry.join("image.tar"))
    }

    /// Unpacks the program and the libraries below it into `root`.
    fn install(&self, directory: &Path, root: &Path) -> Result<()> {
        merge_usr(root)?;
        debian::update_lists()?;
        // Only libraries: what a package's scripts would need, nothing in the image runs.
        let wanted =
            |name: &str| name.starts_with("lib") || name.starts_with("zlib") || name.starts_with(self.family);
        let packages: Vec<String> = debian::closure(self.packages, wanted)?.into_iter().collect();
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
        let home = self.directory.trim_start_matches('/');
        for directory in [home, "dev", "etc", "proc", "sys", "tmp", "root", "run"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let user = self.user;
        fs::write(
            root.join("etc/passwd"),
            format!(
                "root:x:0:0:root:/root:/bin/sh\n{user}:x:999:999:{user}:/{home}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
            ),
        )?;
        fs::write(root.join("etc/group"), format!("root:x:0:\n{user}:x:999:\nnogroup:x:65534:\n"))?;
        for (path, content) in self.files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap_or(root))?;
            fs::write(path, content)?;
        }
        shell(root)
    }
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
    fs::copy("/usr/bin/busybox", busybox).context("the images need the package busybox-static")?;
    for applet in APPLETS {
        symlink("busybox", root.join("usr/bin").join(applet))?;
    }
    Ok(())
}
