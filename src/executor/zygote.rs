//! A zygote: a Python process that has imported the preloaded modules and then only forks and reaps workers.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use super::essential::spawn_essential;
use super::harness::{LOADER, MODULES};
use super::protocol::{Boot, Order, Report, ZygoteInfo};
use crate::python::interpreter::Python;
use crate::sandbox::Sandbox;
use crate::sandbox::sys::{self, Program, SpawnError};

/// The largest report of a zygote, bytes.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Why a zygote did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ZygoteError {
    /// The control socket could not be made.
    #[error("cannot set up the control socket of the zygote: {0}")]
    Control(io::Error),
    /// The process could not be started.
    #[error("cannot start the zygote: {0}")]
    Spawn(#[from] SpawnError),
}

/// How a worker ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    /// The status, as from wait4(2).
    pub(super) status: i32,
    /// CPU time, microseconds.
    pub(super) cpu_us: u64,
    /// Peak resident set, bytes.
    pub(super) peak_bytes: u64,
}

/// A running zygote.
pub(super) struct Zygote {
    /// The id of the process.
    pub(super) pid: Pid,
    outbox: mpsc::UnboundedSender<Message>,
    shared: Arc<Shared>,
}

/// What the tasks of a zygote share with its owner.
struct Shared {
    awaited: Mutex<Awaited>,
    state: watch::Sender<ZygoteState>,
}

#[derive(Default)]
struct Awaited {
    exits: HashMap<u64, oneshot::Sender<Exit>>,
    forks: HashMap<u64, oneshot::Sender<i32>>,
}

/// The state of a zygote.
#[derive(Clone, Debug)]
pub(super) enum ZygoteState {
    /// It is importing.
    Starting,
    /// It accepts orders.
    Ready(Arc<ZygoteInfo>),
    /// It is dead, and its workers with it.
    Gone,
}

struct Message {
    text: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Zygote {
    /// Starts a zygote. It imports `preload` in the background, from `archive` if given, and then becomes ready.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(super) fn start(
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
        let zygote = Zygote::connect(ours, pid).map_err(ZygoteError::Control)?;
        let lockdown = &sandbox.lockdown();
        let archive = archive.filter(|_| !preload.is_empty());
        zygote.post(&Boot { harness: MODULES, preload, archive, lockdown }, vec![]);
        Ok(zygote)
    }

    /// The zygote with process id `pid` at the other end of `control`, a SOCK_SEQPACKET socket.
    pub(super) fn connect(control: OwnedFd, pid: Pid) -> io::Result<Zygote> {
        set_nonblocking(&control)?;
        let control = Arc::new(sys::watch(control)?);
        let shared = Arc::new(Shared {
            awaited: Mutex::default(),
            state: watch::Sender::new(ZygoteState::Starting),
        });
        let (outbox, orders) = mpsc::unbounded_channel();
        spawn_essential(send_orders(Arc::clone(&control), orders));
        spawn_essential(receive_reports(control, Arc::clone(&shared), pid));
        Ok(Zygote { pid, outbox, shared })
    }

    /// The state, as a channel to watch.
    pub(super) fn state(&self) -> watch::Receiver<ZygoteState> {
        self.shared.state.subscribe()
    }

    /// Returns whether it is dead.
    pub(super) fn is_gone(&self) -> bool {
        matches!(*self.shared.state.borrow(), ZygoteState::Gone)
    }

    /// Waits until it is dead.
    pub(super) async fn gone(&self) {
        // Fails only if the sender is dropped, and the zygote owns it.
        let _ = self.state().wait_for(|state| matches!(state, ZygoteState::Gone)).await;
    }

    /// Orders a fork with the worker's descriptors. The worker reports on its own channel when it is ready. Only a failed
    /// fork is received here, as an errno.
    pub(super) fn fork(
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

    /// Stops waiting for the report of a failed fork. Called once the worker is ready.
    pub(super) fn forked(&self, worker: u64) {
        self.awaited().forks.remove(&worker);
    }

    /// Orders the zygote to reap a worker. The receiver fails if the zygote dies first.
    pub(super) fn reap(&self, worker: u64) -> oneshot::Receiver<Exit> {
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

    /// Reports the zygote as gone, as if its socket had closed.
    #[cfg(test)]
    pub(super) fn disconnect(&self) {
        self.shared.state.send_replace(ZygoteState::Gone);
        *self.awaited() = Awaited::default();
    }

    /// Kills the zygote. The kernel kills its workers with it.
    pub(super) fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, Awaited> {
        self.shared.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post<T: serde::Serialize>(&self, message: &T, descriptors: Vec<OwnedFd>) {
        let text = serde_json::to_vec(message).expect("BUG: orders are plain data");
        // Fails only when the zygote is gone, which its owner learns from its state.
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
        // One BLAS and OpenMP thread per script, since several scripts share the CPUs.
        String::from("OPENBLAS_NUM_THREADS=1"),
        String::from("OMP_NUM_THREADS=1"),
        // One malloc arena: each further arena reserves 64 MB of address space, which the memory limit counts.
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
        // -I: no user site and no working directory on sys.path. -B: no bytecode is written. UTF-8 everywhere.
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

async fn send_orders(control: Arc<AsyncFd<OwnedFd>>, mut orders: mpsc::UnboundedReceiver<Message>) {
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
            tracing::debug!(%error, "an order could not be sent to the zygote");
            return;
        }
    }
}

async fn receive_reports(control: Arc<AsyncFd<OwnedFd>>, shared: Arc<Shared>, pid: Pid) {
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
                tracing::error!(%error, "the control socket of the zygote failed");
                break;
            }
        };
        match report {
            Ok(report) => shared.dispatch(report),
            Err(error) => {
                tracing::error!(%error, "malformed report from the zygote");
                break;
            }
        }
    }
    // The zygote may have closed its socket without dying.
    let _ = kill(pid, Signal::SIGKILL);
    shared.state.send_replace(ZygoteState::Gone);
    *shared.awaited.lock().unwrap_or_else(PoisonError::into_inner) = Awaited::default();
}

impl Shared {
    fn dispatch(&self, report: Report) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        match report {
            Report::Ready(info) => {
                self.state.send_replace(ZygoteState::Ready(Arc::new(info)));
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
