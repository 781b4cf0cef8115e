//! A container in the same pod as that of a case, which does from inside, when it is told, what nobody can do from outside:
//! the guest's kernel panics, or another container's first process is killed while it is still being made.

use std::fs;
use std::path::PathBuf;

use super::moment::{Case, Moment};
use super::part::Part;
use crate::ctr::ctr;
use crate::e2e::context::{BUSYBOX, Context, bind};

/// Its container, with which its pod begins and ends, as with a pause container.
pub(super) const POD: &str = "matrix-pod";

/// It waits, and then acts.
pub(super) struct Insider {
    /// A file for which it waits.
    word: PathBuf,
    /// `ctr`'s flags for a container beside it.
    pub(super) flags: Vec<String>,
}

impl Insider {
    /// The one that a case needs.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn for_case(context: &Context, network: &str, case: &Case) -> anyhow::Result<Option<Self>> {
        let mut acts = Vec::new();
        let joins = case.kills(Part::Process) && case.moment == Moment::Creating;
        if joins {
            // All but itself, which is the first of the pid namespace: whoever comes next is killed as soon as there is anybody.
            acts.push("until kill -9 -1; do :; done 2>/dev/null");
        }
        if case.kills(Part::Guest) {
            acts.push("echo c > /sys/sysrq-trigger");
        }
        if acts.is_empty() {
            return Ok(None);
        }
        let directory = context.scratch.join("insider");
        fs::create_dir_all(&directory)?;
        let word = directory.join("word");
        fs::remove_file(&word).ok();
        let script = format!(
            "mount -t proc proc /sys; until [ -e /insider/word ]; do usleep 20000; done; {}; sleep 3600",
            acts.join("; ")
        );
        let mount = bind(&directory, "/insider", "rbind:ro");
        let of_pod =
            |kind| ["--annotation", kind, "--annotation", "io.kubernetes.cri.sandbox-id=matrix-pod", network];
        // Who may mount has a /proc of its own to write to.
        let own = ["--cap-add", "CAP_SYS_ADMIN", "--mount", &mount];
        let own = [&of_pod("io.kubernetes.cri.container-type=sandbox"), &own[..]].concat();
        context.start(BUSYBOX, POD, &own, &["sh", "-c", &script])?;
        let mut flags = of_pod("io.kubernetes.cri.container-type=container").map(str::to_owned).to_vec();
        if joins {
            flags.push(format!("--with-ns=pid:/proc/{}/ns/pid", pid()?));
        }
        Ok(Some(Self { word, flags }))
    }

    /// Has it act. It has what it needs, whatever else is killed.
    pub(super) fn act(&self) -> anyhow::Result<()> {
        Ok(fs::write(&self.word, "")?)
    }
}

/// Its pid, by which the namespaces of its pod are known on the host.
fn pid() -> anyhow::Result<String> {
    let list = ctr(["task", "list"])?;
    let line = list.lines().find(|line| line.starts_with(POD)).unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().to_owned())
}
