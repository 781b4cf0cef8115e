//! Promises of `deploy/install.sh`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use saya_tests::leaks;
use tempfile::TempDir;

const FILES: [&str; 3] = ["containerd-shim-kata-v2", "vmlinux", "initramfs.cpio"];

/// A machine's root, and what is to be installed there.
struct Machine {
    root: TempDir,
    files: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { root: TempDir::new().unwrap(), files: TempDir::new().unwrap() };
        for name in FILES {
            fs::write(machine.files.path().join(name), name).unwrap();
        }
        machine
    }

    fn with_configuration(text: &str) -> Self {
        let machine = Self::new();
        fs::create_dir_all(machine.root.path().join("etc/containerd")).unwrap();
        fs::write(machine.configuration(), text).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn configuration(&self) -> PathBuf {
        self.path("etc/containerd/config.toml")
    }

    fn read_configuration(&self) -> String {
        fs::read_to_string(self.configuration()).unwrap()
    }

    fn run(&self, options: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/install.sh");
        let mut command = Command::new(script);
        command.arg("--root").arg(self.root.path()).args(options);
        if !options.contains(&"--remove") {
            command.arg("--files").arg(self.files.path());
        }
        command.output().unwrap()
    }

    fn succeed(&self, options: &[&str]) {
        let output = self.run(options);
        assert!(output.status.success(), "{output:?}");
    }

    /// What the script says when it refuses.
    fn refusal(&self, options: &[&str]) -> String {
        let output = self.run(options);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// All files, directories left out.
    fn everything(&self) -> Vec<PathBuf> {
        leaks::walk(self.root.path(), &|path| !path.is_dir())
    }
}

#[test]
fn all_files_are_installed_and_all_are_removed() {
    let machine = Machine::new();
    machine.succeed(&["--containerd"]);
    let programs = machine.root.path().join("usr/local/bin");
    assert_eq!(fs::read_to_string(programs.join("saya")).unwrap(), FILES[0], "the command is the shim");
    assert_eq!(machine.everything().len(), 7, "{:?}", machine.everything());
    machine.succeed(&["--remove"]);
    assert_eq!(machine.everything(), [] as [PathBuf; 0]);
}

/// The CRI plugin that has the runtimes from containerd 2.0 on, with configurations of version 3 and later.
const CRI_OF_2: &str = "io.containerd.cri.v1.runtime";

#[test]
fn a_configuration_is_as_it_was_after_installing_twice_and_removing() {
    let plugins = [("2", "io.containerd.grpc.v1.cri"), ("3", CRI_OF_2), ("4", CRI_OF_2)];
    for (version, plugin) in plugins {
        let original = format!("version = {version}\n[debug]\n  level = \"info\"\n");
        let machine = Machine::with_configuration(&original);
        machine.succeed(&["--containerd"]);
        let once = machine.read_configuration();
        let handler =
            once.parse::<toml::Table>().unwrap()["plugins"][plugin]["containerd"]["runtimes"]["kata"].clone();
        assert_eq!(handler["runtime_type"].as_str(), Some("io.containerd.kata.v2"), "{once}");
        let written = machine.configuration().metadata().unwrap().ino();
        machine.succeed(&["--containerd"]);
        assert_eq!(machine.read_configuration(), once);
        assert_eq!(machine.configuration().metadata().unwrap().ino(), written, "the file itself stays");
        machine.succeed(&["--remove"]);
        assert_eq!(machine.read_configuration(), original);
    }
}

#[test]
fn settings_are_the_installers_until_somebody_changes_them() {
    let machine = Machine::new();
    let (settings, pristine) =
        (machine.path("etc/saya/config.toml"), machine.path("usr/local/share/saya/config.installed.toml"));
    machine.succeed(&[]);
    let sample = fs::read_to_string(&settings).unwrap();
    assert!(sample.contains("\n#memory = "), "{sample}");

    // As an earlier version may have left it.
    for file in [&settings, &pristine] {
        fs::write(file, "# earlier\n").unwrap();
    }
    machine.succeed(&[]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), sample, "a later version's has its keys");

    fs::write(&settings, "memory = 1024\n").unwrap();
    machine.succeed(&[]);
    machine.succeed(&["--remove"]);
    assert_eq!(machine.everything(), std::slice::from_ref(&settings));
    assert_eq!(fs::read_to_string(settings).unwrap(), "memory = 1024\n");
}

#[test]
fn settings_at_their_other_place_are_not_hidden_by_new_ones() {
    let machine = Machine::new();
    let settings = machine.path("usr/local/share/saya/config.toml");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    fs::write(&settings, "memory = 1024\n").unwrap();
    machine.succeed(&[]);
    assert!(!machine.path("etc/saya/config.toml").exists());
    machine.succeed(&["--remove"]);
    assert_eq!(machine.everything(), [settings]);
}

#[test]
fn what_the_operator_has_named_kata_is_left_alone() {
    let original = "version = 2\n[plugins.\"x\".containerd.runtimes.kata]\n";
    let machine = Machine::with_configuration(original);
    let said = machine.refusal(&["--containerd"]);
    assert!(said.contains("names a runtime kata already"), "{said}");
    machine.succeed(&["--remove"]);
    assert_eq!(machine.read_configuration(), original);
}

#[test]
fn what_is_wrong_is_named() {
    let machine = Machine::with_configuration("root = \"/var/lib/containerd\"\n");
    assert!(machine.refusal(&["--containerd"]).contains("version 1"));
    fs::write(machine.configuration(), "version = 5\n").unwrap();
    assert!(machine.refusal(&["--containerd"]).contains("version 5"));
    assert!(machine.refusal(&["--contained"]).contains("--contained"));
    assert!(machine.refusal(&["--root", "/nonexistent"]).contains("/nonexistent: no such directory"));
    fs::remove_file(machine.files.path().join("vmlinux")).unwrap();
    assert!(machine.refusal(&[]).contains("vmlinux"));
}

#[test]
fn containerd_reads_the_handler() {
    let Ok(version) = Command::new("containerd").arg("--version").output() else {
        eprintln!("skipped: containerd is not installed");
        return;
    };
    assert!(version.status.success());
    let machine = Machine::with_configuration("version = 2\n# no newline at the end");
    machine.succeed(&["--containerd"]);
    let dump = Command::new("containerd")
        .arg("--config")
        .arg(machine.configuration())
        .args(["config", "dump"])
        .output()
        .unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    let (_, handler) = dump.split_once("runtimes.kata]").unwrap();
    assert!(handler.contains("runtime_type = \"io.containerd.kata.v2\""), "{dump}");
    assert!(handler.contains("privileged_without_host_devices = true"), "{dump}");
}
