//! Terminals, as a person at one finds them.

use std::process::Command;

use anyhow::ensure;
use serde_json::json;

use super::Test;
use super::context::{BUSYBOX, Context, ImageRoot};
use super::image_root::merge;
use super::pseudo_terminal::PseudoTerminal;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a_terminal_has_its_size_from_the_first_byte_and_full_screen_programs_work",
        check: session,
    },
    Test { name: "an_exec_with_a_terminal_has_its_own", check: exec },
];

fn session(context: &Context) -> anyhow::Result<()> {
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let run = root.command(context, "session", &["--rm", "--tty"], |spec| {
        let size = json!({"height": 20, "width": 70});
        let process =
            json!({"terminal": true, "consoleSize": size, "args": ["sh", "-c", "stty size; exec sh"]});
        merge(spec, &json!({"process": process}));
        merge(spec, &json!({"process": {"env": ["PATH=/bin:/usr/bin", "TERM=xterm"]}}));
    })?;
    let mut terminal = PseudoTerminal::start(run, 20, 70)?;
    let before = terminal.expect("20 70\r")?;
    ensure!(before.is_empty(), "before the size came {before:?}");
    window_size_is_followed(&mut terminal)?;
    jobs_are_controlled(&mut terminal)?;
    full_screen_programs_work(&mut terminal)?;
    terminal.send("exit 7\n")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(7), "the session ended with {status}");
    Ok(())
}

/// What is typed is shown too: the quotes keep it apart from what is printed.
fn window_size_is_followed(terminal: &mut PseudoTerminal) -> anyhow::Result<()> {
    let script = "trap 'echo window=$(stty size)' WINCH; echo re\"\"ady; while :; do sleep 1; done";
    terminal.send(&format!("sh -c {}\n", quoted(script)))?;
    terminal.expect("ready")?;
    terminal.resize(50, 120)?;
    terminal.expect("window=50 120")?;
    terminal.send("\x03")?;
    terminal.send("echo st\"\"atus=$?\n")?;
    terminal.expect("status=130")?;
    Ok(())
}

fn jobs_are_controlled(terminal: &mut PseudoTerminal) -> anyhow::Result<()> {
    terminal.send("sh -c 'echo in\"\"front; exec sleep 1000'\n")?;
    terminal.expect("infront")?;
    terminal.send("\x1a")?;
    terminal.expect("Stopped")?;
    terminal.send("bg; jobs\n")?;
    terminal.expect("Running")?;
    terminal.send("kill %1; wait %1; echo go\"\"ne=$?\n")?;
    terminal.expect("gone=143")?;
    terminal.send("sh -c 'echo re\"\"ading; cat; echo in\"\"put ended'\n")?;
    terminal.expect("reading")?;
    terminal.send("\x04")?;
    terminal.expect("input ended")?;
    Ok(())
}

fn full_screen_programs_work(terminal: &mut PseudoTerminal) -> anyhow::Result<()> {
    terminal.send("vi /tmp/note\n")?;
    terminal.expect("~")?;
    terminal.send("ihello")?;
    terminal.expect("hello")?;
    // Keys that come right after an escape would be taken for one key with it.
    terminal.send("\x1b")?;
    terminal.expect("- /tmp/note")?;
    terminal.send(":wq\n")?;
    terminal.send("echo no\"\"te=$(cat /tmp/note)\n")?;
    terminal.expect("note=hello")?;
    terminal.send("less /etc/passwd\n")?;
    terminal.expect("root:")?;
    terminal.send("q")?;
    terminal.send("echo le\"\"ss=$?\n")?;
    terminal.expect("less=0")?;
    terminal.send("top\n")?;
    terminal.expect("Mem:")?;
    terminal.send("q")?;
    terminal.send("echo to\"\"p=$?\n")?;
    terminal.expect("top=0")?;
    Ok(())
}

fn exec(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "exec-terminal", &[], &["sleep", "3600"])?;
    let mut terminal = PseudoTerminal::start(exec_command("exec-terminal", "one", &["sh"]), 33, 99)?;
    // containerd's client says the size when the process runs already.
    terminal.send("until [ \"$(stty size)\" = '33 99' ]; do :; done; echo si\"\"zed\n")?;
    terminal.expect("sized")?;
    terminal.send("test -c $(tty) && test -t 0 -a -t 1 -a -t 2 && echo te\"\"rminal\n")?;
    terminal.expect("terminal")?;
    let script = "echo ready; exec sleep 3600";
    let mut second =
        PseudoTerminal::start(exec_command("exec-terminal", "two", &["sh", "-c", script]), 24, 80)?;
    second.expect("ready")?;
    second.send("\x03")?;
    let interrupted = second.wait()?;
    ensure!(interrupted.code() == Some(130), "Ctrl-C ended the second with {interrupted}");
    terminal.send("exit 9\n")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(9), "the first ended with {status}");
    container.exec("after", &["true"])?.expect_status(0)?;
    container.remove()
}

fn exec_command(container: &str, exec: &str, command: &[&str]) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.args(["task", "exec", "--tty", "--exec-id", exec, container]).args(command);
    ctr
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
