//! The machine that a hostile guest runs in, watched from outside.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{Pid, setpriority_process};
use rustix::thread::UnshareFlags;
use saya_vmm::control::{
    BlockDevice, Boot, Device, Event, FileRole, Interface, Request, Share, StopReason, Writers,
};

use crate::common::tap::{bring_up, open_queue};
use crate::common::{Vmm, boot, kernel, kvm_is_there};

/// The threads of a VMM with one vCPU: main, vCPU, fs (two), vsock; one that KVM adds; and what a test program has.
const THREADS: usize = 9;
/// Descriptors that a VMM with such devices has when its guest does nothing, and what a test may add.
const DESCRIPTORS: usize = 96;
/// Memory that a VMM may take beyond what guests touch, in KiB: its text and its data, in builds without optimisation.
const RESIDENT_KIB: u64 = (32 + 64) * 1024;

/// How long a guest may run that comes to its own end, on any machine. It is stopped then, and the test fails.
const PATIENCE: Duration = Duration::from_secs(600);

/// The "nice" value of who comes last (setpriority(2)).
const LEAST_PRIORITY: i32 = 19;

/// The directories that the guest is served, as a pod's: one that it alone changes, and one that the host changes, too.
const SERVED: [(&str, Writers); 2] = [("private", Writers::Guest), ("live", Writers::GuestAndHost)];

/// What the machine's thread leaves: taps are in a network of its own, too.
const NAMESPACES: UnshareFlags = UnshareFlags::FS.union(UnshareFlags::NEWNS).union(UnshareFlags::NEWNET);

/// The interface's queue pairs.
const QUEUE_PAIRS: usize = 2;
/// Sectors of the disk.
const SECTORS: u64 = 2048;

/// What a guest may cost at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) descriptors: usize,
    /// How long it may run before it is stopped.
    pub(crate) patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { descriptors: DESCRIPTORS, patience: PATIENCE }
    }
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: StopReason,
    /// How many connections it has made to the host.
    pub(crate) connections: usize,
}

/// Runs a guest in a machine whose directories are `fill`ed, to its end, and checks meanwhile that the VMM stays within its
/// bounds and that a machine beside it is not disturbed. `None` where no machine can be had.
pub(crate) fn run(code: &[u8], bounds: Bounds, fill: impl Fn(&Path) + Sync) -> Option<End> {
    if !kvm_is_there() {
        return None;
    }
    // On a thread of its own, whose mounts go with it.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let directory = tempfile::tempdir().unwrap();
            // SAFETY: the thread has nothing that the namespace it leaves would still be needed for.
            if unsafe { rustix::thread::unshare_unsafe(NAMESPACES) }.is_err() {
                eprintln!("skipped: no right to make namespaces");
                return None;
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let share = directory.path().join("share");
            std::fs::create_dir(&share).unwrap();
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("share", &share, "tmpfs", flags, c"size=16m").unwrap();
            for (name, _) in SERVED {
                let served = share.join(name);
                std::fs::create_dir(&served).unwrap();
                fill(&served);
            }
            let end = run_on(code, bounds, directory.path(), &share);
            // The directory cannot be removed while anything is mounted in it.
            unmount(&share, UnmountFlags::DETACH).unwrap();
            Some(end)
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Boots a machine that shares the directories, listens at a new socket, and has an interface if there are taps for it.
fn boot_machine(vmm: &Vmm, code: &[u8], share: &Path, socket: &Path, taps: &[OwnedFd]) {
    let listener = UnixListener::bind(socket).unwrap();
    let (share, kernel) = (File::open(share).unwrap(), kernel(code));
    let shares = SERVED.map(|(name, writers)| Share { name: name.into(), writers }).to_vec();
    let mut roles = vec![FileRole::Kernel, FileRole::Share, FileRole::Vsock];
    let mut files = vec![kernel.as_fd(), share.as_fd(), listener.as_fd()];
    for (queue_pair, tap) in (0..).zip(taps) {
        roles.push(FileRole::Tap { interface: 0, queue_pair });
        files.push(tap.as_fd());
    }
    let queue_pairs = u16::try_from(taps.len()).unwrap();
    let interface = Interface { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, queue_pairs };
    let interfaces = if taps.is_empty() { Vec::new() } else { vec![interface] };
    vmm.boot(Boot { shares, interfaces, ..boot(&roles) }, &files);
}

/// Has a disk come when the machine runs, which by then may have ended.
fn attach_disk(vmm: &Vmm) {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(512 * SECTORS).unwrap();
    let device = BlockDevice { sectors: SECTORS, block_size: 512, read_only: false, id: "disk".into() };
    if let Err(error) = vmm.control.send(&Request::Attach(Device::Block(device)), &[disk.as_fd()]) {
        eprintln!("no disk: {error}");
    }
}

fn run_on(code: &[u8], bounds: Bounds, directory: &Path, share: &Path) -> End {
    let neighbour = Neighbour::start(share, &directory.join("neighbour"));
    let vmm = Vmm::spawn();
    let taps: Vec<_> = (0..QUEUE_PAIRS).map(|_| open_queue().unwrap()).collect();
    bring_up();
    boot_machine(&vmm, code, share, &directory.join("vsock"), &taps);
    drop(taps);
    attach_disk(&vmm);
    let (over, works_on) = (AtomicBool::new(false), AtomicBool::new(false));
    let (reason, connections) = std::thread::scope(|scope| {
        let watchers = [
            scope.spawn(|| watch(&vmm, bounds, &works_on, &over)),
            scope.spawn(|| neighbour.watch(&works_on, &over)),
        ];
        let told = follow(&vmm);
        over.store(true, Ordering::SeqCst);
        for watcher in watchers {
            watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        told
    });
    let Vmm { control, mut process } = vmm;
    assert!(control.receive().unwrap().is_none(), "the end was not the last message");
    let status = process.wait().unwrap();
    assert!(status.code().is_some(), "the VMM was killed: {status}");
    neighbour.assert_undisturbed();
    End { reason, connections }
}

/// A machine beside the hostile one, whose guest works, and now and then writes to a port that nobody has. It takes what
/// time of processors others leave.
struct Neighbour(Vmm);

impl Neighbour {
    fn start(share: &Path, socket: &Path) -> Self {
        // again: mov ecx, 20000; pause; dec ecx; jnz -5; out 0x80, al; jmp again
        let work = [0xB9, 0x20, 0x4E, 0, 0, 0xF3, 0x90, 0x49, 0x75, 0xFB, 0xE6, 0x80, 0xEB, 0xF2];
        let vmm = Vmm::spawn();
        // Its threads will have this from the one that makes them.
        setpriority_process(Some(Pid::from_child(&vmm.process)), LEAST_PRIORITY).unwrap();
        boot_machine(&vmm, &work, share, socket, &[]);
        assert!(matches!(vmm.event(), Event::Started(_)));
        Self(vmm)
    }

    fn writes(&self) -> u64 {
        self.0.control.send(&Request::Counters, &[]).unwrap();
        let Event::Counters(counters) = self.0.event() else {
            panic!("no counters of the machine beside it")
        };
        counters.exits.get("io_out").copied().unwrap_or(0)
    }

    /// Has its VMM answer until the other guest's end, and says when its guest has worked on beside that.
    fn watch(&self, works_on: &AtomicBool, over: &AtomicBool) {
        let before = self.writes();
        while !over.load(Ordering::SeqCst) {
            if self.writes() > before {
                works_on.store(true, Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its guest works on, its VMM answers, and it ends when it is told to.
    fn assert_undisturbed(self) {
        let (before, deadline) = (self.writes(), Instant::now() + PATIENCE);
        while self.writes() == before {
            assert!(Instant::now() < deadline, "the guest of the machine beside it has stopped");
            std::thread::yield_now();
        }
        self.0.control.send(&Request::Stop, &[]).unwrap();
        let Event::Stopped { reason, .. } = self.0.event() else { panic!("no end of the machine beside it") };
        assert_eq!(reason, StopReason::Stopped);
        let Vmm { control, mut process } = self.0;
        assert!(control.receive().unwrap().is_none());
        assert!(process.wait().unwrap().success());
    }
}

/// Takes the VMM's messages until it says that the machine has ended.
fn follow(vmm: &Vmm) -> (StopReason, usize) {
    let mut connections = 0;
    loop {
        match vmm.event() {
            Event::Stopped { reason, .. } => return (reason, connections),
            // The host hangs up at once.
            Event::GuestConnected { .. } => connections += 1,
            Event::Started(_) | Event::Attached(_) => {}
            Event::Refused { message } => {
                eprintln!("no disk: {message}");
                vmm.control.send(&Request::Stop, &[]).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Looks at the VMM from time to time until the guest's end. When the patience with the guest is over it is stopped, but not
/// before the one of the machine beside it has worked on meanwhile.
fn watch(vmm: &Vmm, bounds: Bounds, works_on: &AtomicBool, over: &AtomicBool) {
    let directory = Path::new("/proc").join(vmm.process.id().to_string());
    let mut deadline = Some(Instant::now() + bounds.patience);
    let count = |what: &str| std::fs::read_dir(directory.join(what)).map_or(0, Iterator::count);
    while !over.load(Ordering::SeqCst) {
        let (descriptors, threads) = (count("fd"), count("task"));
        assert!(descriptors <= bounds.descriptors, "the VMM has {descriptors} descriptors");
        assert!(threads <= THREADS, "the VMM has {threads} threads");
        let status = std::fs::read_to_string(directory.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        assert!(resident.unwrap_or(0) <= RESIDENT_KIB, "{resident:?} KiB of the VMM are resident");
        let (now, beside) = (Instant::now(), works_on.load(Ordering::SeqCst));
        let is_over = |deadline: &mut Instant| *deadline < now && (beside || *deadline + PATIENCE < now);
        if deadline.take_if(is_over).is_some() {
            vmm.control.send(&Request::Stop, &[]).unwrap();
            assert!(beside, "the guest of the machine beside it has stood still meanwhile");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a guest that has nothing to do with files.
pub(crate) fn run_without_files(code: &[u8], bounds: Bounds) -> Option<End> {
    run(code, bounds, |_| {})
}

/// Runs it, and it must come to its own end.
pub(crate) fn assert_survived(code: &[u8]) {
    if let Some(end) = run_without_files(code, Bounds::default()) {
        assert_eq!(end.reason, StopReason::PoweredOff);
    }
}
