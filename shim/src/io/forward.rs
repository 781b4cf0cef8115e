//! Moving the bytes of a stream between its vsock connection and its end on the host.
//!
//! Bytes are spliced inside the kernel wherever a pipe is one of the two ends. A stream waits for its own reader and
//! for nobody else's.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::target::Target;
use crate::readiness::{register, take_turns};

/// The most bytes that one system call moves.
const CHUNK: usize = 64 * 1024;

/// How far a stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes that have reached the host's end.
    pub(crate) forwarded: u64,
    /// Nothing more will come.
    pub(crate) ended: bool,
}

/// Moves a process's output to `target` until the stream ends, and says in `progress` how far it is.
pub(crate) async fn forward_output(stream: UnixStream, target: Target, progress: watch::Sender<Progress>) {
    let moved = match target {
        Target::Pipe(pipe) => output_to_pipe(stream, pipe, &progress).await,
        Target::File(file) => output_to_file(stream, file, &progress).await,
    };
    if let Err(error) = moved {
        tracing::warn!(%error, "an output stream broke off");
    }
    progress.send_modify(|progress| progress.ended = true);
}

async fn output_to_pipe(
    stream: UnixStream,
    pipe: OwnedFd,
    progress: &watch::Sender<Progress>,
) -> io::Result<()> {
    let stream = register(OwnedFd::from(stream.into_std()?))?;
    let pipe = register(pipe)?;
    loop {
        match splice_once(&stream, &pipe).await? {
            0 => return Ok(()),
            moved => progress.send_modify(|progress| progress.forwarded += moved),
        }
    }
}

async fn output_to_file(
    stream: UnixStream,
    mut file: File,
    progress: &watch::Sender<Progress>,
) -> io::Result<()> {
    loop {
        take_turns().await;
        stream.readable().await?;
        let moved = with_buffer(|buffer| match stream.try_read(buffer) {
            Ok(length) => {
                file.write_all(buffer.get(..length).unwrap_or_default())?;
                Ok(Some(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        })?;
        match moved {
            Some(0) => return Ok(()),
            Some(length) => {
                progress.send_modify(|progress| progress.forwarded += u64::try_from(length).unwrap_or(0));
            }
            None => {}
        }
    }
}

/// Lends the one buffer that all streams of this thread share: nothing is kept in it while a stream waits.
fn with_buffer<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(CHUNK, 0);
        work(buffer)
    })
}

/// Moves a process's input from `reader` to the stream until one of them ends, then says so to the guest.
pub(crate) async fn forward_input(reader: OwnedFd, stream: UnixStream) {
    match input_to_stream(reader, stream).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(%error, "an input stream is given up");
        }
        // The process has closed its input, or is gone: nobody wants the rest.
        Err(error) => tracing::debug!(%error, "an input stream broke off"),
        Ok(()) => {}
    }
}

async fn input_to_stream(reader: OwnedFd, stream: UnixStream) -> io::Result<()> {
    let reader = register(reader)?;
    let stream = register(OwnedFd::from(stream.into_std()?))?;
    loop {
        let moved = tokio::select! {
            moved = splice_once(&reader, &stream) => moved?,
            closed = closed_by_peer(&stream) => return closed,
        };
        if moved == 0 {
            break;
        }
    }
    drop(reader);
    rustix::net::shutdown(stream.get_ref(), rustix::net::Shutdown::Write)?;
    // The connection stays until the guest has taken everything and closes its side.
    closed_by_peer(&stream).await
}

/// Waits until the other side of a stream that carries nothing towards us has closed it.
///
/// # Errors
/// `InvalidData` where it sends something nevertheless, or what read(2) returned.
async fn closed_by_peer(stream: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = stream.readable().await?;
        match rustix::io::read(stream.get_ref(), &mut [0]) {
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Ok(0) => return Ok(()),
            Ok(_) => {
                let words = "the guest has written to the input of a process";
                return Err(io::Error::new(io::ErrorKind::InvalidData, words));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Moves bytes once from one descriptor to another, one of which is a pipe; waits until both are ready.
/// Answers 0 at the end of `from`.
async fn splice_once(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<u64> {
    loop {
        take_turns().await;
        let mut readable = from.readable().await?;
        let mut writable = to.writable().await?;
        match splice(from, None, to, None, CHUNK, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(moved) => return Ok(u64::try_from(moved).unwrap_or(0)),
            Err(Errno::INTR) => {}
            // One of the two was not ready; only that one is to be waited for.
            Err(Errno::AGAIN) => {
                if !is_ready(from, PollFlags::IN)? {
                    readable.clear_ready();
                }
                if !is_ready(to, PollFlags::OUT)? {
                    writable.clear_ready();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_ready(descriptor: &impl AsFd, wanted: PollFlags) -> io::Result<bool> {
    let mut polled = [PollFd::new(descriptor, wanted)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now)))? > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn everything_written_to_the_stream_reaches_the_pipe_however_slow_its_reader() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        let (progress, watched) = watch::channel(Progress::default());
        let task = tokio::spawn(forward_output(host, Target::Pipe(writer), progress));

        let sent: Vec<u8> = (0..300_000u32).map(|number| number.to_le_bytes()[0]).collect();
        let copy = sent.clone();
        let writing = tokio::spawn(async move { guest.write_all(&copy).await.unwrap() });
        let received = tokio::task::spawn_blocking(move || {
            rustix::io::ioctl_fionbio(&reader, false).unwrap();
            let mut received = Vec::new();
            File::from(reader).read_to_end(&mut received).unwrap();
            received
        });
        writing.await.unwrap();
        task.await.unwrap();
        assert!(received.await.unwrap() == sent);
        assert_eq!(*watched.borrow(), Progress { forwarded: 300_000, ended: true });
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_full_pipe_holds_the_stream_and_its_sender() {
        const SENT: usize = 16 << 20;
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        let (progress, mut watched) = watch::channel(Progress::default());
        let task = tokio::spawn(forward_output(host, Target::Pipe(writer), progress));
        let writing = tokio::spawn(async move { guest.write_all(&vec![1; SENT]).await });
        // Moves until the pipe, and then the socket before it, take no more: time passes only then.
        while tokio::time::timeout(std::time::Duration::from_millis(100), watched.changed()).await.is_ok() {}
        assert!(watched.borrow().forwarded > 0);
        assert!(watched.borrow().forwarded < SENT as u64);
        assert!(!watched.borrow().ended && !writing.is_finished());

        drop(reader);
        task.await.unwrap();
        writing.await.unwrap().unwrap_err();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_file_gets_everything_appended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let file = crate::io::target::open_log("stdout", &path).unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (progress, watched) = watch::channel(Progress::default());
        let task = tokio::spawn(forward_output(host, Target::File(file), progress));
        guest.write_all(b"line\n").await.unwrap();
        drop(guest);
        task.await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"line\n");
        assert_eq!(*watched.borrow(), Progress { forwarded: 5, ended: true });
    }

    #[tokio::test(flavor = "current_thread")]
    async fn input_reaches_the_guest_and_its_end_is_a_half_close() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        let task = tokio::spawn(forward_input(reader, host));
        File::from(writer).write_all(b"typed").unwrap();
        let mut received = String::new();
        guest.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "typed");
        assert!(!task.is_finished(), "the guest's side is open");
        drop(guest);
        task.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn input_for_a_process_that_is_gone_ends_without_waiting_for_more() {
        let (guest, host) = UnixStream::pair().unwrap();
        let (reader, _writer) = pipe();
        let task = tokio::spawn(forward_input(reader, host));
        drop(guest);
        task.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_guest_that_talks_back_on_the_input_stream_loses_it() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, _writer) = pipe();
        let task = tokio::spawn(forward_input(reader, host));
        guest.write_all(b"x").await.unwrap();
        task.await.unwrap();
        // Also once its own input is over.
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        let task = tokio::spawn(forward_input(reader, host));
        drop(writer);
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
        guest.write_all(b"x").await.unwrap();
        task.await.unwrap();
    }

    /// The most bytes that a stream may move while another task waits for its turn. A task's share is 128 rounds, and it may
    /// have one before and one after the thread has looked what is ready.
    const TURN: usize = 2 * 128 * CHUNK;

    /// Sends on a thread of its own until nobody reads any more. It does end, but long after what is waited for, so that
    /// whoever gives no turns fails instead of going on for ever.
    fn flood(guest: UnixStream) -> std::thread::JoinHandle<()> {
        let mut guest = guest.into_std().unwrap();
        guest.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            (0..32 * TURN / CHUNK).all(|_| guest.write_all(&[b'x'; CHUNK]).is_ok());
        })
    }

    async fn assert_others_have_their_turns(watched: &watch::Receiver<Progress>) {
        let most = TURN as u64;
        while watched.borrow().forwarded < 16 * most {
            let before = watched.borrow().forwarded;
            tokio::task::yield_now().await;
            let moved = watched.borrow().forwarded - before;
            assert!(moved <= most, "{moved} bytes while the others waited");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_without_end_into_a_file_leaves_the_other_tasks_their_turns() {
        let (guest, host) = UnixStream::pair().unwrap();
        let (progress, watched) = watch::channel(Progress::default());
        let nowhere = File::options().append(true).open("/dev/null").unwrap();
        let task = tokio::spawn(forward_output(host, Target::File(nowhere), progress));
        let guest = flood(guest);
        assert_others_have_their_turns(&watched).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        guest.join().unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_without_end_into_a_pipe_leaves_the_other_tasks_their_turns() {
        let (guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        rustix::io::ioctl_fionbio(&reader, false).unwrap();
        let reading = std::thread::spawn(move || io::copy(&mut File::from(reader), &mut io::sink()).unwrap());
        let (progress, watched) = watch::channel(Progress::default());
        let task = tokio::spawn(forward_output(host, Target::Pipe(writer), progress));
        let guest = flood(guest);
        assert_others_have_their_turns(&watched).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        guest.join().unwrap();
        reading.join().unwrap();
    }
}
