//! Serves the one job of a lab: sets the lab up, runs the command, sends its output and its exit status.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::super::protocol::{FromLab, Job, TerminalSize, ToLab, read_input};
use super::process::{self, Running};
use super::{configuration, containerd, ports};
use crate::at_terminal;

/// Where all threads of the server write their frames.
#[derive(Clone)]
pub(super) struct Reporter(Arc<Mutex<File>>);

impl Reporter {
    /// Sends one message.
    ///
    /// # Errors
    ///
    /// The port is closed: the host is gone.
    pub(super) fn send(&self, message: &FromLab) -> Result<()> {
        message.write(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves the job that the host sends.
pub(super) fn serve() -> Result<()> {
    let mut control = ports::control()?;
    let reporter = Reporter(Arc::new(Mutex::new(control.try_clone()?)));
    reporter.send(&FromLab::Hello)?;
    let Some(ToLab::Job(job)) = ToLab::read(&mut control)? else { bail!("the host sent no job first") };
    let terminal = Arc::new(Mutex::new(None));
    answer_pings(control, reporter.clone(), Arc::clone(&terminal));
    match run(&job, &reporter, &terminal) {
        Ok(status) => reporter.send(&FromLab::Exited(status))?,
        Err(error) => reporter.send(&FromLab::Failed(format!("{error:#}")))?,
    }
    // The host ends the machine when it has read the last message; until then the port has to stay open.
    loop {
        thread::park();
    }
}

fn run(job: &Job, reporter: &Reporter, terminal: &Mutex<Option<File>>) -> Result<i32> {
    configuration::prepare_system(job)?;
    let containerd = if job.containerd { Some(containerd::start(job)?) } else { None };
    if job.command.is_empty() {
        if let Some(containerd) = containerd {
            containerd.import(&job.images)?;
            containerd.stop()?;
        }
        return Ok(0);
    }
    let running = process::start(job)?;
    if let Some(master) = &running.terminal {
        *terminal.lock().unwrap_or_else(PoisonError::into_inner) = Some(master.try_clone()?);
    }
    reporter.send(&FromLab::Ready)?;
    pass_streams(running, reporter)
}

/// Moves bytes between the host and the command until the command has ended and its output is closed.
fn pass_streams(mut running: Running, reporter: &Reporter) -> Result<i32> {
    if let Some(stdin) = running.stdin.take() {
        thread::spawn(move || pass_input(stdin));
    }
    let output = running.stdout.take().map(|pipe| pass_output(pipe, reporter.clone(), FromLab::Output));
    let error = running.stderr.take().map(|pipe| pass_output(pipe, reporter.clone(), FromLab::Error));
    let status = running.wait()?;
    // As in any pipeline, a daemon that the command left behind with its output keeps the stream open.
    for drain in [output, error].into_iter().flatten() {
        drain.finish()?;
    }
    Ok(status)
}

fn pass_input(mut stdin: File) {
    // Either end may close first; both mean that there is no more to pass on.
    let Ok(mut port) = ports::input() else { return };
    while let Ok(bytes) = read_input(&mut port) {
        if bytes.is_empty() || stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// A thread that sends what comes out of a pipe.
struct Drain {
    thread: thread::JoinHandle<Result<()>>,
}

impl Drain {
    /// Waits until the pipe is closed and all of it is sent.
    fn finish(self) -> Result<()> {
        self.thread.join().map_err(|_| anyhow::anyhow!("a thread that sends output died"))?
    }
}

fn pass_output(mut pipe: File, reporter: Reporter, message: fn(Vec<u8>) -> FromLab) -> Drain {
    let thread = thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        // The read on a terminal fails with EIO when the last process on it has gone: that is its end.
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            reporter.send(&message(buffer.get(..count).unwrap_or_default().to_vec()))?;
        }
        Ok(())
    });
    Drain { thread }
}

/// Answers the host's messages for as long as the lab lives.
fn answer_pings(mut control: File, reporter: Reporter, terminal: Arc<Mutex<Option<File>>>) {
    thread::spawn(move || {
        while let Ok(Some(message)) = ToLab::read(&mut control) {
            let answered = match message {
                ToLab::Ping => reporter.send(&FromLab::Alive),
                ToLab::Resize(size) => resize(&terminal, size),
                ToLab::Job(_) => Err(anyhow::anyhow!("a second job")),
            };
            if let Err(error) = answered {
                eprintln!("lab: {error:#}");
            }
        }
    });
}

fn resize(terminal: &Mutex<Option<File>>, size: TerminalSize) -> Result<()> {
    match &*terminal.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(master) => {
            at_terminal::set_size(master, size.rows, size.columns).context("setting the terminal's size")
        }
        None => Ok(()),
    }
}
