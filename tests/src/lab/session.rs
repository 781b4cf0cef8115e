//! The host's side of a lab that runs: feeds it its job and its input, passes on its output, watches that it is alive,
//! and ends it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::console::Tail;
use super::machine::Machine;
use super::protocol::{FromLab, Job, ToLab, write_input};
use super::terminal;

/// How often the lab is asked whether it is alive.
const PING: Duration = Duration::from_secs(5);
/// A machine that boots says little for a while, and a busy host makes that longer.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How many lines of the console a failure shows.
const CONSOLE_LINES: usize = 40;

/// What the caller wants of a session.
pub(super) struct Wishes {
    /// A lab that answers nothing for this long is taken for frozen.
    pub(super) stall_limit: Duration,
    /// A session that lasts longer is ended, however lively the lab is: its job may hang all the same.
    pub(super) time_limit: Option<Duration>,
    /// Show the lab's console as it is written.
    pub(super) show_console: bool,
    /// Pass on this process's standard input.
    pub(super) input: bool,
    /// Say on standard error how long the lab took to be ready.
    pub(super) announce: bool,
}

/// What can happen to a session.
enum Event {
    FromLab(FromLab),
    Console,
    ControlClosed(String),
    Signal(Signal),
}

/// Ends the machine however the session ends.
struct Reaper(Child);

impl Drop for Reaper {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Keeps the signals that end a session for the thread that waits for them. Threads inherit this, so it has to come
/// before any thread is started.
fn block_signals() -> Result<()> {
    handled_signals().thread_block().context("blocking signals")
}

fn handled_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH].into_iter().collect()
}

/// Runs `job` on `machine` and gives the command's exit status: 128 + n when signal n ended the session.
///
/// # Errors
///
/// The lab failed: it could not be set up, its machine ended, or it froze. The message has the tail of its console.
pub(super) fn run(mut machine: Machine, job: Job, wishes: &Wishes) -> Result<i32> {
    block_signals()?;
    let console = Arc::new(Tail::default());
    let (events, receiver) = sync_channel(16);
    watch_console(&mut machine.process, &console, &events, wishes.show_console);
    watch_control(machine.control.try_clone()?, events.clone());
    watch_signals(events);
    let control = machine.control;
    let _reaper = Reaper(machine.process);
    let _raw = job.terminal.map(|_| terminal::Raw::enter()).transpose()?;
    let mut session =
        Session { control, input: Some(machine.input), job: Some(job), started: Instant::now(), wishes };
    let result = session.follow(&receiver);
    // Threads that still read or write for this session must not hold up its end.
    let _ = session.control.shutdown(Shutdown::Both);
    result.map_err(|error| with_console(&error, &console))
}

fn with_console(error: &anyhow::Error, console: &Tail) -> anyhow::Error {
    anyhow::anyhow!(
        "the lab failed: {error:#}\n--- the last lines of its console ---\n{}",
        console.last_lines(CONSOLE_LINES)
    )
}

struct Session<'a> {
    control: UnixStream,
    input: Option<UnixStream>,
    job: Option<Job>,
    started: Instant,
    wishes: &'a Wishes,
}

impl Session<'_> {
    /// Handles events until the command has ended.
    fn follow(&mut self, events: &Receiver<Event>) -> Result<i32> {
        let mut heard = Instant::now();
        let mut asked = Instant::now();
        loop {
            self.check_time()?;
            // However much the console has to say, the lab is asked in time.
            if asked.elapsed() >= PING {
                self.ping(heard)?;
                asked = Instant::now();
            }
            match events.recv_timeout(PING.saturating_sub(asked.elapsed())) {
                Ok(Event::FromLab(message)) => {
                    if let Some(status) = self.heed(message)? {
                        return Ok(status);
                    }
                    heard = Instant::now();
                }
                // While it boots, the lab has no other sign of life.
                Ok(Event::Console) if self.job.is_some() => heard = Instant::now(),
                Ok(Event::Console) => {}
                Ok(Event::ControlClosed(reason)) => {
                    bail!("its machine ended before the command did ({reason})")
                }
                Ok(Event::Signal(Signal::SIGWINCH)) => self.resize()?,
                Ok(Event::Signal(signal)) => return Ok(128 + signal as i32),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("nobody watches the machine any more"),
            }
        }
    }

    fn heed(&mut self, message: FromLab) -> Result<Option<i32>> {
        match message {
            FromLab::Hello => {
                let job = self.job.take().context("the lab's server started twice")?;
                ToLab::Job(Box::new(job)).write(&mut self.control)?;
            }
            FromLab::Alive => {}
            FromLab::Ready => {
                if self.wishes.announce {
                    eprintln!("lab: ready after {:.1} s", self.started.elapsed().as_secs_f64());
                }
                if let Some(port) = self.input.take().filter(|_| self.wishes.input) {
                    thread::spawn(move || feed_input(port));
                }
            }
            // A reader of ours that has gone away (`| head`) is no failure of the lab.
            FromLab::Output(bytes) => {
                let _ = std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush());
            }
            FromLab::Error(bytes) => drop(std::io::stderr().write_all(&bytes)),
            FromLab::Exited(status) => return Ok(Some(status)),
            FromLab::Failed(message) => bail!("{message}"),
        }
        Ok(None)
    }

    fn check_time(&self) -> Result<()> {
        match self.wishes.time_limit {
            Some(limit) if self.started.elapsed() > limit => {
                bail!("its command has not ended after {} s", limit.as_secs())
            }
            _ => Ok(()),
        }
    }

    fn ping(&mut self, heard: Instant) -> Result<()> {
        let silent = heard.elapsed();
        let booting = self.job.is_some();
        let limit = if booting { BOOT_LIMIT.max(self.wishes.stall_limit) } else { self.wishes.stall_limit };
        if silent > limit {
            bail!("it is frozen: no sign of life for {} s", silent.as_secs());
        }
        // While it boots, the lab does not listen yet.
        if booting { Ok(()) } else { ToLab::Ping.write(&mut self.control) }
    }

    fn resize(&mut self) -> Result<()> {
        match terminal::size() {
            Some(size) if self.job.is_none() => ToLab::Resize(size).write(&mut self.control),
            _ => Ok(()),
        }
    }
}

/// The console is QEMU's standard output; what QEMU itself has to say is on its standard error. Both are kept.
fn watch_console(process: &mut Child, console: &Arc<Tail>, events: &SyncSender<Event>, show: bool) {
    let outputs: [Option<Box<dyn Read + Send>>; 2] = [
        process.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        process.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
    ];
    for mut output in outputs.into_iter().flatten() {
        let (console, events) = (Arc::clone(console), events.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                let bytes = buffer.get(..count).unwrap_or_default();
                console.push(bytes);
                if show {
                    // The console is an aid; failing to show it must not end the lab.
                    let _ = std::io::stderr().write_all(bytes);
                }
                if events.send(Event::Console).is_err() {
                    return;
                }
            }
        });
    }
}

fn watch_control(mut control: UnixStream, events: SyncSender<Event>) {
    thread::spawn(move || {
        loop {
            let event = match FromLab::read(&mut control) {
                Ok(Some(message)) => Event::FromLab(message),
                Ok(None) => Event::ControlClosed("its control port was closed".to_owned()),
                Err(error) => Event::ControlClosed(format!("{error:#}")),
            };
            let last = matches!(event, Event::ControlClosed(_));
            if events.send(event).is_err() || last {
                return;
            }
        }
    });
}

fn watch_signals(events: SyncSender<Event>) {
    thread::spawn(move || {
        while let Ok(signal) = handled_signals().wait() {
            if events.send(Event::Signal(signal)).is_err() {
                // This session is over: the signal is for the next one.
                let _ = kill(Pid::this(), signal);
                return;
            }
        }
    });
}

/// Copies this process's standard input to the lab until either ends.
fn feed_input(mut port: UnixStream) {
    let mut buffer = vec![0; 64 << 10];
    let mut stdin = std::io::stdin().lock();
    loop {
        let count = stdin.read(&mut buffer).unwrap_or(0);
        let sent = write_input(&mut port, buffer.get(..count).unwrap_or_default());
        if count == 0 || sent.is_err() {
            break;
        }
    }
    // Closing the port now could overtake the frames: keep it open until the process ends.
    std::mem::forget(port);
}
