//! A zygote: a Python process that has imported the preloaded modules and then only forks and reaps workers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mainbox_zygote::messages::{Event, Exit, FORK_ALONE, FORK_THROUGH_PYTHON, Order, Report};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::code_cache::CodeCache;
use super::essential::spawn_essential;
use super::exchange::run_options;
use super::frames::{FrameError, message, receive_bytes, receive_message};
use super::harness::{LOADER, MODULES};
use super::job::Job;
use super::protocol::{Boot, Native, Progress, ZygoteInfo};
use crate::config::Config;
use crate::python::interpreter::Python;
use crate::sandbox::Sandbox;
use crate::sandbox::process::ProcessHandle;
use crate::sandbox::procfs;
use crate::sandbox::sys::{self, Program, SpawnError};

/// The largest report of a zygote that imports, bytes. It bounds a mistake: a zygote is trusted.
const MAX_PROGRESS_BYTES: usize = 16 << 20;

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

/// A running zygote.
pub(super) struct Zygote {
    process: Arc<ProcessHandle>,
    outbox: mpsc::UnboundedSender<Message>,
    shared: Arc<Shared>,
}

/// What the tasks of a zygote share with its owner.
struct Shared {
    awaited: Mutex<Awaited>,
    state: watch::Sender<ZygoteState>,
    has_moved: watch::Sender<bool>,
    cache: Mutex<Option<CodeCache>>,
}

#[derive(Default)]
struct Awaited {
    exits: HashMap<u64, oneshot::Sender<Exit>>,
    forks: HashMap<u64, oneshot::Sender<i32>>,
}

/// The state of a zygote.
#[derive(Clone, Debug)]
pub(super) enum ZygoteState {
    /// It is importing this module; `None` before the first one.
    Starting(Option<String>),
    /// It accepts orders.
    Ready(Arc<ZygoteInfo>),
    /// It is dead, and its workers with it.
    Gone,
}

/// A message to the zygote, and the descriptors to attach to it.
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Zygote {
    /// Starts a zygote. It imports `preload` in the background, and then becomes ready.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(super) fn start(
        python: &Python,
        preload: &[String],
        config: &Config,
        sandbox: &Sandbox,
    ) -> Result<Zygote, ZygoteError> {
        let (ours, theirs) = StdUnixStream::pair().map_err(ZygoteError::Control)?;
        let program = program(python).map_err(ZygoteError::Control)?;
        let pid = sys::spawn(&program, theirs.as_fd(), sandbox.plan())?;
        drop(theirs);
        let cache = CodeCache::of(python, config, sandbox);
        // Fails the first time.
        let cached = cache.as_ref().map(|cache| cache.read().unwrap_or_default());
        let zygote = Zygote::connect(ours, pid, cache).map_err(ZygoteError::Control)?;
        let lockdown = &sandbox.lockdown();
        let archive = config.archive.as_deref().filter(|_| !preload.is_empty());
        let usual_options = &run_options(&Job::of_script("", config), config);
        let native = Native::new(sandbox);
        let boot = Boot {
            harness: MODULES,
            harness_archive: config.archive.as_deref(),
            harness_cache: cached.map(|code| BASE64_STANDARD.encode(code)),
            preload,
            archive,
            lockdown,
            native,
            usual_options,
        };
        let text = serde_json::to_vec(&boot).expect("BUG: the first message is plain data");
        zygote.post(message(&text), vec![]);
        Ok(zygote)
    }

    /// The zygote with process id `pid` at the other end of `control`. What it compiles is kept in `cache`.
    pub(super) fn connect(
        control: StdUnixStream,
        pid: Pid,
        cache: Option<CodeCache>,
    ) -> io::Result<Zygote> {
        control.set_nonblocking(true)?;
        let control = Arc::new(UnixStream::from_std(control)?);
        let process = Arc::new(ProcessHandle::of(pid));
        let shared = Arc::new(Shared {
            awaited: Mutex::default(),
            state: watch::Sender::new(ZygoteState::Starting(None)),
            has_moved: watch::Sender::new(false),
            cache: Mutex::new(cache),
        });
        let (outbox, orders) = mpsc::unbounded_channel();
        spawn_essential(send_orders(Arc::clone(&control), orders, Arc::clone(&process)));
        spawn_essential(receive_reports(control, Arc::clone(&shared), Arc::clone(&process)));
        Ok(Zygote { process, outbox, shared })
    }

    /// The id of the process.
    pub(super) fn pid(&self) -> Pid {
        self.process.pid
    }

    /// The state, as a channel to watch.
    pub(super) fn state(&self) -> watch::Receiver<ZygoteState> {
        self.shared.state.subscribe()
    }

    /// Waits until it has moved its memory, which it may never do.
    pub(super) async fn has_moved(&self) {
        // Fails only if the sender is dropped, and the zygote owns it.
        let _ = self.shared.has_moved.subscribe().wait_for(|has_moved| *has_moved).await;
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
    pub(super) fn fork(&self, worker: u64, descriptors: Vec<OwnedFd>) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.awaited().forks.insert(worker, sender);
        self.post(Order::Fork(worker).encode().to_vec(), descriptors);
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
            self.post(Order::Reap(worker).encode().to_vec(), vec![]);
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
        self.process.kill();
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, Awaited> {
        self.shared.awaited()
    }

    fn post(&self, bytes: Vec<u8>, descriptors: Vec<OwnedFd>) {
        // Fails only when the zygote is gone, which its owner learns from its state.
        let _ = self.outbox.send(Message { bytes, descriptors });
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

/// Sends every order. An order that cannot be sent ends the zygote, which would wait for it forever.
async fn send_orders(
    control: Arc<UnixStream>,
    mut orders: mpsc::UnboundedReceiver<Message>,
    process: Arc<ProcessHandle>,
) {
    while let Some(message) = orders.recv().await {
        if let Err(error) = send(&control, &message).await {
            // A zygote that has died is reported by its owner.
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::error!(%error, "an order could not be sent to the zygote; killing it");
            }
            process.kill();
            return;
        }
    }
}

async fn send(control: &UnixStream, message: &Message) -> io::Result<()> {
    let descriptors: Vec<RawFd> = message.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let attached = [ControlMessage::ScmRights(&descriptors)];
    let attached = if descriptors.is_empty() { &attached[..0] } else { &attached[..] };
    let bytes = [IoSlice::new(&message.bytes)];
    // The descriptors go with the first byte. The kernel takes as many bytes as its buffer has room for.
    let sent = control
        .async_io(Interest::WRITABLE, || {
            sendmsg::<()>(control.as_raw_fd(), &bytes, attached, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(io::Error::from)
        })
        .await?;
    let mut rest = &message.bytes[sent..];
    while !rest.is_empty() {
        control.writable().await?;
        match control.try_write(rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives reports until the zygote is gone.
async fn receive_reports(
    control: Arc<UnixStream>,
    shared: Arc<Shared>,
    process: Arc<ProcessHandle>,
) {
    match shared.follow(&control, &process).await {
        ReportError::Frame(FrameError::Closed | FrameError::Unread) => {}
        error => tracing::error!(%error, "the control socket of the zygote failed; killing it"),
    }
    // The zygote may have closed its socket without dying.
    process.kill();
    shared.state.send_replace(ZygoteState::Gone);
    *shared.awaited() = Awaited::default();
}

/// Why no further report is received.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("malformed report: {0}")]
    Progress(#[from] serde_json::Error),
    #[error("malformed report of a worker")]
    Report,
}

impl Shared {
    fn awaited(&self) -> std::sync::MutexGuard<'_, Awaited> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives reports until that fails.
    async fn follow(&self, control: &UnixStream, process: &ProcessHandle) -> ReportError {
        let received = async {
            while self.receive_progress(control, process).await? {}
            loop {
                self.receive_report(control).await?;
            }
        };
        let Err(error): Result<Infallible, ReportError> = received.await;
        error
    }

    /// Receives a report of a zygote that imports. Returns whether it still does.
    async fn receive_progress(
        &self,
        control: &UnixStream,
        process: &ProcessHandle,
    ) -> Result<bool, ReportError> {
        let text = receive_message(control, MAX_PROGRESS_BYTES).await?;
        let state = match serde_json::from_slice(&text)? {
            // Only before it has imported anything. A package may write to the socket, too.
            Progress::Compiled { code } => {
                match &*self.state.borrow() {
                    ZygoteState::Starting(None) => self.keep(code),
                    _ => tracing::warn!("code that came too late is not kept"),
                }
                return Ok(true);
            }
            Progress::Importing { module } => ZygoteState::Starting(Some(module)),
            Progress::Ready(info) => {
                // Only the kernel knows of the threads of libraries that are not written in Python.
                let threads = procfs::memory(process.pid).and_then(|memory| memory.threads);
                let how = if threads == Some(1) { FORK_ALONE } else { FORK_THROUGH_PYTHON };
                let message = Message { bytes: vec![how], descriptors: vec![] };
                send(control, &message).await.map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => FrameError::Closed,
                    _ => FrameError::Io(error),
                })?;
                ZygoteState::Ready(Arc::new(info))
            }
        };
        let imports = matches!(state, ZygoteState::Starting(_));
        self.state.send_replace(state);
        Ok(imports)
    }

    /// Keeps the compiled harness for the next start, in the background.
    fn keep(&self, code: String) {
        // Once.
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(cache) = cache else { return };
        tokio::task::spawn_blocking(move || {
            let code = BASE64_STANDARD.decode(code).map_err(io::Error::other);
            if let Err(error) = code.and_then(|code| cache.write(&code)) {
                tracing::debug!(%error, "the compiled harness is not kept for the next start");
            }
        });
    }

    async fn receive_report(&self, control: &UnixStream) -> Result<(), ReportError> {
        let report = Report::decode(&receive_bytes(control).await?).ok_or(ReportError::Report)?;
        let mut awaited = self.awaited();
        // Fails when nothing waits for it any more.
        let _ = match report.event {
            Event::HeapMoved { bytes, errno } => {
                drop(awaited);
                tracing::debug!(bytes, "the zygote has moved its memory");
                if errno != 0 {
                    let error = Errno::from_raw(errno);
                    tracing::warn!(%error, "the zygote could not move all of its memory; forks take longer");
                }
                self.has_moved.send_replace(true);
                return Ok(());
            }
            Event::ForkFailed(errno) => {
                awaited.forks.remove(&report.worker).map(|sender| sender.send(errno).is_ok())
            }
            Event::Reaped(exit) => {
                awaited.exits.remove(&report.worker).map(|sender| sender.send(exit).is_ok())
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
