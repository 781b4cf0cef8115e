//! A stream through the vsock device, rings and thread and all, against a model of it: what goes in comes out, in order, the end
//! comes last, nobody is sent more than he has room for; whatever else the guest sends meanwhile.
//!
//! The first byte says who connects, and the next two how much room the guest has. Each step has a byte before it.

mod driver;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use tempfile::TempDir;

use self::driver::{Driver, HEADER_SIZE, Header, PACKET_MAX};
use crate::input::Input;

/// The most steps of one input.
const STEPS: usize = 256;
/// The most packets that are not of the stream: so many answers the device keeps for a guest that takes none.
const STRAYS: usize = 64;
/// The ports of the stream.
const HOST_PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;
/// How long a stream may stand still that has something to bring.
const PATIENCE: Duration = Duration::from_secs(60);

/// Operations (virtio 1.2, 5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const READ_WRITE: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`.
const NO_MORE: u32 = 2;

pub(crate) fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let (Some(first), Some(room)) = (input.byte(), input.number::<2>()) else { return };
    let room = u32::try_from(room).unwrap_or(u32::MAX).max(1);
    let mut model =
        if first % 2 == 0 { Model::connected_by_guest(room) } else { Model::connected_by_host(room) };
    for _ in 0..STEPS {
        if model.step(&mut input).is_none() {
            break;
        }
    }
    model.settle();
}

/// The bytes of a stream from this one on.
fn content(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|index| (index % 251) as u8).collect()
}

/// Both ends of the stream and what has passed between them.
struct Model {
    driver: Driver,
    host: UnixStream,
    host_port: u32,
    _files: TempDir,
    /// How much the guest has room for.
    room: u32,
    guest_sent: usize,
    guest_ended: bool,
    host_received: usize,
    host_saw_end: bool,
    host_sent: usize,
    host_ended: bool,
    guest_received: usize,
    guest_saw_end: bool,
    /// How much the guest's program has taken, and how much of that the device was told.
    guest_read: u32,
    guest_told: u32,
    /// `buf_alloc` and `fwd_cnt` of the device's last packet.
    credit: (u32, u32),
    /// How many packets that are not of the stream were sent.
    strays: usize,
}

impl Model {
    fn connected_by_guest(room: u32) -> Self {
        let (files, mut driver) = start();
        let listener = UnixListener::bind(files.path().join(format!("vsock_{HOST_PORT}"))).expect("a socket");
        driver.send(&header(HOST_PORT, REQUEST, room, 0), &[]);
        let response = first_packet(&mut driver);
        assert_eq!(response.operation, RESPONSE, "{response:?}");
        let host = listener.accept().expect("a connection").0;
        Self::around(files, driver, host, &response, room)
    }

    fn connected_by_host(room: u32) -> Self {
        let (files, mut driver) = start();
        let mut host = UnixStream::connect(files.path().join("vsock")).expect("a connection");
        writeln!(host, "CONNECT {GUEST_PORT}").expect("room in a socket");
        let request = first_packet(&mut driver);
        assert_eq!((request.operation, request.destination), (REQUEST, GUEST_PORT), "{request:?}");
        driver.send(&header(request.source, RESPONSE, room, 0), &[]);
        let mut line = [0; 32];
        let mut length = 0;
        host.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        while line.get(length.max(1) - 1) != Some(&b'\n') {
            let rest = line.get_mut(length..=length).expect("a line of a few bytes");
            host.read_exact(rest).expect("an answer");
            length += 1;
        }
        assert_eq!(line.get(..length), Some(format!("OK {}\n", request.source).as_bytes()));
        Self::around(files, driver, host, &request, room)
    }

    fn around(files: TempDir, driver: Driver, host: UnixStream, first: &Header, room: u32) -> Self {
        host.set_nonblocking(true).expect("a socket");
        // Small, so that the stream is blocked often.
        rustix::net::sockopt::set_socket_send_buffer_size(&host, 4096).expect("a socket");
        Self {
            driver,
            host,
            host_port: first.source,
            _files: files,
            room,
            guest_sent: 0,
            guest_ended: false,
            host_received: 0,
            host_saw_end: false,
            host_sent: 0,
            host_ended: false,
            guest_received: 0,
            guest_saw_end: false,
            guest_read: 0,
            guest_told: 0,
            credit: (first.buf_alloc, first.fwd_cnt),
            strays: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.byte()? % 9 {
            0 => self.guest_writes(input.number::<2>()? as usize),
            1 => self.host_reads(input.number::<2>()? as usize),
            2 => self.host_writes(input.number::<2>()? as usize),
            3 => self.guest_takes(input.byte()?.into(), input.number::<2>()? as usize),
            4 => self.guest_reads(u32::try_from(input.number::<2>()?).ok()?, input.byte()? % 2 == 0),
            5 => self.guest_sends(CREDIT_REQUEST, 0, &[]),
            6 => {
                self.guest_ended = true;
                self.guest_sends(SHUTDOWN, NO_MORE, &[]);
            }
            7 => {
                self.host_ended = true;
                self.host.shutdown(Shutdown::Write).expect("a socket");
            }
            _ => self.guest_strays(input)?,
        }
        Some(())
    }

    fn guest_sends(&mut self, operation: u16, flags: u32, data: &[u8]) {
        self.guest_told = self.guest_read;
        let header = Header { flags, ..header(self.host_port, operation, self.room, self.guest_read) };
        self.driver.send(&header, data);
    }

    /// A packet of any kind that is not of the stream.
    fn guest_strays(&mut self, input: &mut Input<'_>) -> Option<()> {
        let (operation, flags) = (input.number::<2>()? as u16, u32::from(input.byte()?));
        let (buf_alloc, fwd_cnt) = (input.number::<4>()? as u32, input.number::<4>()? as u32);
        let (port, length) = (u32::from(input.byte()?), input.byte()?.into());
        self.strays += 1;
        if self.strays > STRAYS {
            return Some(());
        }
        let stray = Header {
            source: GUEST_PORT + 1 + port % 4,
            flags,
            buf_alloc,
            fwd_cnt,
            ..header(HOST_PORT + 1 + port / 64, operation, 0, 0)
        };
        self.driver.send(&stray, &content(0, length));
        Some(())
    }

    /// As Linux does: no more than there is credit for.
    fn guest_writes(&mut self, count: usize) {
        if self.guest_ended {
            return;
        }
        let (buf_alloc, fwd_cnt) = self.credit;
        let in_flight = self.guest_sent - fwd_cnt as usize;
        let mut left = count.min((buf_alloc as usize).saturating_sub(in_flight));
        while left > 0 {
            let data = content(self.guest_sent, left.min(PACKET_MAX - HEADER_SIZE));
            left -= data.len();
            self.guest_sent += data.len();
            self.guest_sends(READ_WRITE, 0, &data);
        }
    }

    fn host_reads(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        match self.host.read(&mut bytes) {
            Ok(0) if count == 0 => {}
            Ok(0) => {
                assert!(self.guest_ended, "an end that nobody has sent");
                assert_eq!(self.host_received, self.guest_sent, "an end before the last byte");
                self.host_saw_end = true;
            }
            Ok(read) => {
                assert_eq!(bytes.get(..read), Some(&*content(self.host_received, read)));
                self.host_received += read;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn host_writes(&mut self, count: usize) {
        if self.host_ended {
            return;
        }
        match self.host.write(&content(self.host_sent, count)) {
            Ok(written) => self.host_sent += written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    /// The guest offers buffers of this size, and looks at what has come in those before.
    fn guest_takes(&mut self, buffers: usize, size: usize) {
        self.driver.offer(buffers, size);
        while let Some((header, data)) = self.driver.receive() {
            if header.destination == GUEST_PORT {
                self.guest_got(&header, &data);
            } else {
                assert!(data.is_empty(), "bytes for nobody: {header:?}");
            }
        }
    }

    fn guest_got(&mut self, header: &Header, data: &[u8]) {
        assert_eq!(header.source, self.host_port, "{header:?}");
        self.credit = (header.buf_alloc, header.fwd_cnt);
        assert!(header.fwd_cnt as usize <= self.guest_sent, "more was taken than was sent: {header:?}");
        match header.operation {
            READ_WRITE => {
                assert!(!self.guest_saw_end, "bytes after the end");
                assert_eq!(data, content(self.guest_received, data.len()));
                self.guest_received += data.len();
                let most = self.guest_told as usize + self.room as usize;
                assert!(self.guest_received <= most, "more than there is room for");
            }
            SHUTDOWN => {
                assert!(self.host_ended && header.flags & NO_MORE != 0, "{header:?}");
                assert_eq!(self.guest_received, self.host_sent, "an end before the last byte");
                self.guest_saw_end = true;
            }
            CREDIT_REQUEST => self.guest_sends(CREDIT_UPDATE, 0, &[]),
            RESET => assert!(self.guest_ended && self.host_ended, "a stream that was reset"),
            other => assert_eq!(other, CREDIT_UPDATE),
        }
    }

    fn guest_reads(&mut self, count: u32, tells: bool) {
        let buffered = u32::try_from(self.guest_received).unwrap_or(u32::MAX) - self.guest_read;
        self.guest_read += count.min(buffered);
        if tells {
            self.guest_sends(CREDIT_UPDATE, 0, &[]);
        }
    }

    /// Everybody takes what there is until all that was sent has come.
    fn settle(&mut self) {
        let mut deadline = Instant::now() + PATIENCE;
        while !self.is_complete() {
            let before = (self.host_received, self.guest_received);
            self.guest_takes(8, 4096);
            self.guest_reads(u32::MAX, self.guest_told != u32::try_from(self.guest_received).unwrap_or(0));
            self.host_reads(1 << 20);
            if before != (self.host_received, self.guest_received) {
                deadline = Instant::now() + PATIENCE;
                continue;
            }
            assert!(Instant::now() < deadline, "the stream stands still: {}", self.story());
            self.wait();
        }
    }

    fn is_complete(&self) -> bool {
        (self.host_received, self.guest_received) == (self.guest_sent, self.host_sent)
            && (self.host_saw_end, self.guest_saw_end) == (self.guest_ended, self.host_ended)
    }

    /// Until the device has done something, or a moment.
    fn wait(&self) {
        let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let mut events = vec![PollFd::from_borrowed_fd(self.driver.interrupt(), PollFlags::IN)];
        if !self.host_saw_end {
            events.push(PollFd::from_borrowed_fd(self.host.as_fd(), PollFlags::IN));
        }
        // libFuzzer interrupts now and then, to look at the clock.
        retry_on_intr(|| poll(&mut events, Some(&moment))).expect("poll");
        self.driver.acknowledge();
    }

    fn story(&self) -> String {
        format!(
            "guest sent {} (ended: {}), host got {} (end seen: {}), host sent {} (ended: {}), guest got {} (end seen: {})",
            self.guest_sent,
            self.guest_ended,
            self.host_received,
            self.host_saw_end,
            self.host_sent,
            self.host_ended,
            self.guest_received,
            self.guest_saw_end
        )
    }
}

fn header(host_port: u32, operation: u16, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header { source: GUEST_PORT, destination: host_port, operation, flags: 0, buf_alloc, fwd_cnt }
}

fn start() -> (TempDir, Driver) {
    let files = tempfile::tempdir().expect("a directory");
    let driver = Driver::start(Path::new(&files.path().join("vsock")));
    (files, driver)
}

fn first_packet(driver: &mut Driver) -> Header {
    driver.offer(1, 4096);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((header, data)) = driver.receive() {
            assert!(data.is_empty());
            return header;
        }
        assert!(Instant::now() < deadline, "no packet comes");
        let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let mut events = [PollFd::from_borrowed_fd(driver.interrupt(), PollFlags::IN)];
        retry_on_intr(|| poll(&mut events, Some(&moment))).expect("poll");
        driver.acknowledge();
    }
}
