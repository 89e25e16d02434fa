//! A zygote: the Python process that has imported everything and does nothing but fork and reap.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use super::protocol::{Boot, Order, Report, ZygoteInfo};
use crate::archive;
use crate::python::Python;
use crate::sandbox::Sandbox;
use crate::sandbox::sys::{self, Program, SpawnError};

/// The modules of the harness, in the order of their execution: later ones import earlier ones.
const HARNESS: &[(&str, &str)] = &[
    ("mainbox_channel", include_str!("../harness/channel.py")),
    ("mainbox_lockdown", include_str!("../harness/lockdown.py")),
    ("mainbox_home", include_str!("../harness/home.py")),
    ("mainbox_failure", include_str!("../harness/failure.py")),
    ("mainbox_encoding", include_str!("../harness/encoding.py")),
    ("mainbox_validation", include_str!("../harness/validation.py")),
    ("mainbox_courtesy", include_str!("../harness/courtesy.py")),
    (MEMORY, include_str!("../harness/memory.py")),
    (LIBRARY, include_str!("../harness/library.py")),
    (ARCHIVE, archive::SOURCE),
    ("mainbox_files", include_str!("../harness/files.py")),
    ("mainbox_script", include_str!("../harness/script.py")),
    ("mainbox_rehearsal", include_str!("../harness/rehearsal.py")),
    ("mainbox_worker", include_str!("../harness/worker.py")),
    ("mainbox_zygote", include_str!("../harness/zygote.py")),
];

/// The modules that are of use only where scripts cannot open files.
const LIBRARY: &str = "mainbox_library";
const MEMORY: &str = "mainbox_memory";
/// The module that is of use only with an archive.
const ARCHIVE: &str = "mainbox_archive";

/// What Python runs first: reads the boot message, makes modules of the harness and enters the last.
const LOADER: &str = include_str!("../harness/loader.py");

/// The largest message of a zygote.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Why a zygote could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZygoteError {
    /// The control socket.
    #[error("control socket of the zygote: {0}")]
    Control(io::Error),
    /// The program.
    #[error("the zygote could not be started: {0}")]
    Spawn(#[from] SpawnError),
}

/// How a worker ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// As wait4 gives it.
    pub status: i32,
    /// CPU time, microseconds.
    pub cpu_us: u64,
    /// Largest resident size, bytes.
    pub peak_bytes: u64,
}

/// A running zygote.
pub struct Zygote {
    /// Its process.
    pub pid: Pid,
    outbox: mpsc::UnboundedSender<Message>,
    shared: Arc<Shared>,
}

/// What the tasks of a zygote share with its owner.
struct Shared {
    awaited: Mutex<Awaited>,
    life: watch::Sender<Life>,
}

#[derive(Default)]
struct Awaited {
    exits: HashMap<u64, oneshot::Sender<Exit>>,
    forks: HashMap<u64, oneshot::Sender<i32>>,
}

/// Where a zygote stands.
#[derive(Clone, Debug)]
pub enum Life {
    /// Still importing.
    Starting,
    /// Forking.
    Ready(Arc<ZygoteInfo>),
    /// Dead, and its workers with it.
    Gone,
}

struct Message {
    text: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Zygote {
    /// Starts a zygote; it imports `preload` on its own time, from the `archive` as far as it is in there.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(
        python: &Python,
        preload: &[String],
        archive: Option<&Path>,
        sandbox: &Sandbox,
    ) -> Result<Zygote, ZygoteError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| ZygoteError::Control(errno.into()))?;
        let program = program(python).map_err(ZygoteError::Control)?;
        let pid = sys::spawn(&program, theirs.as_fd(), sandbox.plan())?;
        drop(theirs);
        set_nonblocking(&ours).map_err(ZygoteError::Control)?;
        let control = Arc::new(sys::watch(ours).map_err(ZygoteError::Control)?);
        let shared = Arc::new(Shared {
            awaited: Mutex::default(),
            life: watch::Sender::new(Life::Starting),
        });
        let (outbox, orders) = mpsc::unbounded_channel();
        tokio::spawn(send_all(Arc::clone(&control), orders));
        tokio::spawn(receive_all(control, Arc::clone(&shared), pid));
        let zygote = Zygote { pid, outbox, shared };
        let lockdown = &sandbox.lockdown();
        let archive = archive.filter(|_| !preload.is_empty());
        let wanted = |(name, _): &&(&str, &str)| match *name {
            LIBRARY | MEMORY => !sandbox.opens_files(),
            ARCHIVE => archive.is_some(),
            _ => true,
        };
        let harness: Vec<_> = HARNESS.iter().filter(wanted).collect();
        zygote.post(&Boot { harness: &harness, preload, archive, lockdown }, vec![]);
        Ok(zygote)
    }

    /// Where it stands, to be watched.
    pub fn life(&self) -> watch::Receiver<Life> {
        self.shared.life.subscribe()
    }

    /// Whether it is dead.
    pub fn is_gone(&self) -> bool {
        matches!(*self.shared.life.borrow(), Life::Gone)
    }

    /// Orders a fork, with the worker's descriptors. The answer comes on the worker's own channel; only a failure
    /// comes here, as errno.
    pub fn fork(
        &self,
        order: &Order<'_>,
        worker: u64,
        descriptors: Vec<OwnedFd>,
    ) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.awaited().forks.insert(worker, sender);
        self.post(order, descriptors);
        receiver
    }

    /// Forgets that a fork could fail: the worker has spoken.
    pub fn forked(&self, worker: u64) {
        self.awaited().forks.remove(&worker);
    }

    /// Orders the zygote to wait for a worker. The receiver fails when the zygote dies first.
    pub fn reap(&self, worker: u64) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        if !self.is_gone() {
            let mut awaited = self.awaited();
            awaited.forks.remove(&worker);
            awaited.exits.insert(worker, sender);
            drop(awaited);
            self.post(&Order::Reap { worker }, vec![]);
        }
        receiver
    }

    /// Ends it, and with it its workers.
    pub fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, Awaited> {
        self.shared.awaited.lock().expect("BUG: no code panics under this lock")
    }

    fn post<T: serde::Serialize>(&self, message: &T, descriptors: Vec<OwnedFd>) {
        let text = serde_json::to_vec(message).expect("BUG: orders are plain data");
        // Fails only when the zygote is gone, which its owner learns from `life`.
        let _ = self.outbox.send(Message { text, descriptors });
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if !self.is_gone() {
            self.kill();
        }
    }
}

fn program(python: &Python) -> io::Result<Program> {
    use std::os::unix::ffi::OsStrExt;
    let mut environment = vec![
        // One request, one thread of arithmetic: the cores belong to the pool of workers.
        String::from("OPENBLAS_NUM_THREADS=1"),
        String::from("OMP_NUM_THREADS=1"),
        // One arena: each further one reserves 64 MB of address space, which the memory limit counts.
        String::from("GLIBC_TUNABLES=glibc.malloc.arena_max=1"),
        String::from("LANG=C.UTF-8"),
        String::from("PATH=/usr/local/bin:/usr/bin:/bin"),
        String::from("TZ=UTC"),
    ];
    if let Ok(path) = std::env::var("LD_LIBRARY_PATH") {
        environment.push(format!("LD_LIBRARY_PATH={path}"));
    }
    let arguments: [&[u8]; 7] = [
        python.name.as_os_str().as_bytes(),
        // No user site, no working directory on sys.path, no bytecode written, UTF-8 everywhere.
        b"-I",
        b"-B",
        b"-X",
        b"utf8",
        b"-c",
        LOADER.as_bytes(),
    ];
    Program::new(python.program.as_os_str().as_bytes(), arguments, environment)
}

fn set_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

async fn send_all(control: Arc<AsyncFd<OwnedFd>>, mut orders: mpsc::UnboundedReceiver<Message>) {
    while let Some(message) = orders.recv().await {
        let descriptors: Vec<RawFd> = message.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let attached = [ControlMessage::ScmRights(&descriptors)];
        let attached = if descriptors.is_empty() { &attached[..0] } else { &attached[..] };
        let text = [IoSlice::new(&message.text)];
        let sent = control
            .async_io(Interest::WRITABLE, |socket| {
                sendmsg::<()>(socket.as_raw_fd(), &text, attached, MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)
            })
            .await;
        if let Err(error) = sent {
            tracing::debug!(%error, "an order did not reach the zygote");
            return;
        }
    }
}

async fn receive_all(control: Arc<AsyncFd<OwnedFd>>, shared: Arc<Shared>, pid: Pid) {
    let mut message = vec![0; MESSAGE_BYTES];
    loop {
        let received = control
            .async_io(Interest::READABLE, |socket| {
                recv(socket.as_raw_fd(), &mut message, MsgFlags::empty()).map_err(io::Error::from)
            })
            .await;
        let report = match received {
            Ok(0) => break,
            Ok(length) => serde_json::from_slice(&message[..length]),
            Err(error) if error.raw_os_error() == Some(Errno::ECONNRESET as i32) => break,
            Err(error) => {
                tracing::error!(%error, "the zygote's control socket failed");
                break;
            }
        };
        match report {
            Ok(report) => shared.dispatch(report),
            Err(error) => {
                tracing::error!(%error, "the zygote sent a report that is none");
                break;
            }
        }
    }
    // It may have closed its socket without dying.
    let _ = kill(pid, Signal::SIGKILL);
    shared.life.send_replace(Life::Gone);
    *shared.awaited.lock().expect("BUG: no code panics under this lock") = Awaited::default();
}

impl Shared {
    fn dispatch(&self, report: Report) {
        let mut awaited = self.awaited.lock().expect("BUG: no code panics under this lock");
        match report {
            Report::Ready(info) => {
                self.life.send_replace(Life::Ready(Arc::new(info)));
            }
            Report::ForkFailed { worker, errno } => {
                if let Some(sender) = awaited.forks.remove(&worker) {
                    let _ = sender.send(errno);
                }
            }
            Report::Reaped { worker, status, cpu_us, peak_bytes } => {
                if let Some(sender) = awaited.exits.remove(&worker) {
                    let _ = sender.send(Exit { status, cpu_us, peak_bytes });
                }
            }
        }
    }
}
