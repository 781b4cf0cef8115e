//! Running the hooks that the spec wants run on the host.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::spec::hooks::Hook;

/// How much of what a failed hook says is passed on, in bytes.
const WORDS_MAX: usize = 1024;

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookFailure {
    /// It could not be executed.
    #[error("hook {path}: {source}")]
    Start {
        /// The hook.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("hook {path}: {status}: {words}")]
    Failed {
        /// The hook.
        path: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to its standard error.
        words: String,
    },
    /// It took too long.
    #[error("hook {path}: killed after its timeout of {seconds} s")]
    Timeout {
        /// The hook.
        path: String,
        /// Its timeout.
        seconds: u64,
    },
}

/// The state that a hook reads from its standard input, as the OCI runtime spec describes it.
pub(crate) fn state(container: &str, bundle: &Path, status: &str, pid: u32) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "id": container,
        "status": status,
        "pid": pid,
        "bundle": bundle,
    })
}

/// Runs hooks one after the other.
///
/// # Errors
/// The first that failed; those after it have not run.
pub(crate) async fn run(hooks: &[Hook], state: &Value) -> Result<(), HookFailure> {
    for hook in hooks {
        run_one(hook, state).await?;
    }
    Ok(())
}

async fn run_one(hook: &Hook, state: &Value) -> Result<(), HookFailure> {
    let start_failed = |source| HookFailure::Start { path: hook.path.clone(), source };
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(start_failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its state is free not to.
        let _ = stdin.write_all(state.to_string().as_bytes()).await;
    }
    let output = match hook.timeout {
        None => child.wait_with_output().await,
        Some(seconds) => tokio::time::timeout(Duration::from_secs(seconds), child.wait_with_output())
            .await
            .map_err(|_| HookFailure::Timeout { path: hook.path.clone(), seconds })?,
    };
    let output = output.map_err(start_failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = output.stderr.get(..WORDS_MAX).unwrap_or(&output.stderr);
    Err(HookFailure::Failed {
        path: hook.path.clone(),
        status: output.status,
        words: String::from_utf8_lossy(words).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["PATH=/usr/bin:/bin".into(), "MARK=m".into()],
            timeout,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_hook_reads_the_containers_state_and_its_own_environment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seen");
        let hook = shell(&format!("{{ echo $MARK; cat; }} > {}", path.display()), None);
        run(&[hook], &state("c1", Path::new("/bundle"), "creating", 7)).await.unwrap();
        let seen = std::fs::read_to_string(path).unwrap();
        let (mark, json) = seen.split_once('\n').unwrap();
        assert_eq!(mark, "m");
        let seen: Value = serde_json::from_str(json).unwrap();
        assert_eq!(
            (&seen["id"], &seen["pid"], &seen["bundle"]),
            (&json!("c1"), &json!(7), &json!("/bundle"))
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_failed_hook_says_why_and_stops_those_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ran");
        let hooks =
            [shell("echo no luck >&2; exit 3", None), shell(&format!("touch {}", path.display()), None)];
        let message = run(&hooks, &Value::Null).await.unwrap_err().to_string();
        assert!(message.contains("no luck") && message.contains('3'), "{message}");
        assert!(!path.exists());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_hook_that_takes_too_long_is_killed() {
        let failure = run(&[shell("exec sleep 1000", Some(1))], &Value::Null).await.unwrap_err();
        assert!(matches!(failure, HookFailure::Timeout { seconds: 1, .. }));
    }
}
