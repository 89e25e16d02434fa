//! A worker as the supervisor sees it: forked ahead, locked down, good for one request.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::UnixCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::unistd::{Pid, pipe2};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::Job;
use super::conversation::{Ending, MAX_FAILURE_BYTES, converse};
use super::outcome::{self, Capture, Execution, Returned};
use super::protocol::{LockdownFailure, Order, answer};
use super::zygote::{Exit, Life, Zygote};
use crate::api::{Failure, Kind};
use crate::config::Config;
use crate::sandbox::jail::Jail;
use crate::sandbox::rlimits;
use crate::sandbox::scratch::Scratch;
use crate::sandbox::{Sandbox, SandboxError, namespaces, sys};

/// How long a worker may take to lock itself down and rehearse before its zygote counts as stuck.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a worker that closed its channel may take to die by itself, so that we learn how. Usual is a millisecond;
/// on a starved machine it has taken more than 50.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How long the zygote may take to reap a worker that was killed.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);
/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What it was to get for itself.
    #[error(transparent)]
    Jail(#[from] SandboxError),
    /// Its descriptors.
    #[error("descriptors of a worker: {0}")]
    Descriptors(io::Error),
    /// The fork.
    #[error("fork of a worker: {0}")]
    Fork(io::Error),
    /// It did not lock itself down, so it is gone.
    #[error("lock-down failed at {step}: {error}", step = .0.step, error = .0.error)]
    Lockdown(LockdownFailure),
    /// It died before it was ready.
    #[error("a worker died before it was ready")]
    Died,
    /// It, or its zygote, is stuck.
    #[error("a worker was not ready in time")]
    Stuck,
    /// Its zygote died.
    #[error("the zygote died")]
    ZygoteGone,
}

/// A worker that waits for its request.
pub struct Worker {
    process: Process,
    channel: UnixStream,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    resident_bytes: u64,
}

/// The process of a worker. Dropping it ends the process, and then gives back what it had for itself.
pub struct Process {
    worker: u64,
    pid: Option<Pid>,
    zygote: Arc<Zygote>,
    jail: Option<Jail>,
}

impl Worker {
    /// Forks worker number `worker` from `zygote`, and waits until it has locked itself down, and made a run of its own
    /// if it is to `rehearse`.
    ///
    /// # Errors
    /// See [`StartError`]; nothing of the worker is left then.
    pub async fn start(
        worker: u64,
        zygote: &Arc<Zygote>,
        sandbox: &Sandbox,
        config: &Config,
        rehearse: bool,
    ) -> Result<Worker, StartError> {
        let mut jail = sandbox.jail()?;
        let (channel, their_channel) = socket_pair().map_err(StartError::Descriptors)?;
        let (stdout, their_stdout) = pipe().map_err(StartError::Descriptors)?;
        let (stderr, their_stderr) = pipe().map_err(StartError::Descriptors)?;
        let mut descriptors = vec![their_channel, their_stdout, their_stderr];
        descriptors.extend(jail.ruleset.take());
        // What it shares with its zygote does not count as its own.
        let mapped_bytes = memory(zygote.pid).map_or(0, |memory| memory.mapped_bytes);
        let order = Order::Fork {
            worker,
            uid: jail.uid(),
            scratch: &jail.scratch.path().to_string_lossy(),
            mount: matches!(jail.scratch, Scratch::Mount)
                .then(|| namespaces::scratch_options(config.scratch_bytes, jail.uid())),
            limits: &rlimits::limits(config, config.timeout, mapped_bytes + config.memory_bytes),
            rehearse,
        };
        let failed_fork = zygote.fork(&order, worker, descriptors);
        let mut process =
            Process { worker, pid: None, zygote: Arc::clone(zygote), jail: Some(jail) };
        let mut life = zygote.life();
        let pid = tokio::select! {
            greeting = greeting(&channel) => greeting?,
            Ok(errno) = failed_fork => {
                return Err(StartError::Fork(io::Error::from_raw_os_error(errno)));
            }
            _ = life.wait_for(|life| matches!(life, Life::Gone)) => {
                return Err(StartError::ZygoteGone);
            }
            () = tokio::time::sleep(START_TIMEOUT) => {
                zygote.kill();
                return Err(StartError::Stuck);
            }
        };
        zygote.forked(worker);
        process.pid = Some(pid);
        let resident_bytes = memory(pid).map_or(0, |memory| memory.resident_bytes);
        Ok(Worker { process, channel, stdout, stderr, resident_bytes })
    }

    /// Whether it can still be given a request: one that died while it waited has an end on its channel.
    pub fn is_alive(&self) -> bool {
        let mut byte = [0];
        !self.process.zygote.is_gone()
            && self
                .channel
                .try_read(&mut byte)
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Ends it unused, and waits until it is gone.
    pub async fn end(mut self) {
        self.process.kill();
        let reaped = self.process.zygote.reap(self.process.worker);
        // Fails when the zygote is gone, and the worker with it.
        let _ = timeout(REAP_TIMEOUT, reaped).await;
        self.process.jail = None;
    }

    /// Marks the worker as used. It keeps `turn`, if it is given one, until it is gone and swept up after.
    pub fn occupy(&mut self, turn: Option<OwnedSemaphorePermit>) {
        if let Some(jail) = &mut self.process.jail {
            jail.occupy(turn);
        }
    }

    /// Runs `job`. Never waits for the worker's goodwill: everything that it is waited for has a deadline. The process is
    /// over with what is returned beside the execution, or when the future is dropped. `None`, unless this is the
    /// `last_try`, when it was gone before it had read its request, of which nothing can have run then.
    pub async fn run(
        mut self,
        job: &Job,
        config: &Config,
        queue: Duration,
        last_try: bool,
    ) -> Option<(Execution, Process)> {
        let started = Instant::now();
        let own_end = started + job.timeout;
        let deadline = job.deadline.map_or(own_end, |end| own_end.min(Instant::from_std(end)));
        let cpu_before = self.process.cpu_time();
        let mut stdout = Capture::new(self.stdout, config.max_stdout_bytes, job.live.clone());
        let mut stderr = Capture::new(self.stderr, config.max_stdout_bytes, job.live.clone());
        let ending = {
            let mut life = self.process.zygote.life();
            let conversation = converse(&mut self.channel, job, config);
            tokio::pin!(conversation);
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(deadline) => break Ending::Timeout,
                    _ = life.wait_for(|life| matches!(life, Life::Gone)) => break Ending::ZygoteGone,
                    ending = &mut conversation => break ending,
                    () = stdout.pump() => {}
                    () = stderr.pump() => {}
                }
            }
        };
        let run = started.elapsed();
        let cost = self.process.cost();
        let (outcome, exit) = match ending {
            Ending::Answered(outcome) => (outcome, None),
            Ending::Timeout if deadline < own_end => {
                (Err(outcome::deadline_passed(job.timeout)), None)
            }
            Ending::Timeout => (Err(outcome::timed_out(job.timeout)), None),
            Ending::ZygoteGone => (Err(lost()), None),
            Ending::NotStarted if !last_try => return None,
            // Its own request may be what ended it.
            Ending::NotStarted | Ending::Closed => self.process.explain_end(job).await,
        };
        let cpu = exit
            .map(|exit| Duration::from_micros(exit.cpu_us))
            .or(cost.cpu)
            .map_or(Duration::ZERO, |cpu| cpu.saturating_sub(cpu_before.unwrap_or_default()));
        let peak = exit.map(|exit| exit.peak_bytes).or(cost.peak_bytes).unwrap_or(0);
        let execution = Execution {
            outcome,
            stdout: stdout.finish(),
            stderr: stderr.finish(),
            queue,
            run,
            cpu,
            peak_memory: peak.saturating_sub(self.resident_bytes),
        };
        Some((execution, self.process))
    }
}

pub(super) fn lost() -> Failure {
    Failure::new(Kind::Internal, "The worker was lost; this is not the script's fault")
}

/// What a process has used until now.
struct Cost {
    cpu: Option<Duration>,
    peak_bytes: Option<u64>,
}

impl Process {
    /// Ends it after `delay`.
    pub async fn end_in(self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.pid.and_then(sys::cpu_time)
    }

    /// Measured from outside, so that a script cannot tell us less than it used.
    fn cost(&self) -> Cost {
        Cost {
            cpu: self.cpu_time(),
            peak_bytes: self.pid.and_then(memory).map(|memory| memory.peak_bytes),
        }
    }

    /// The channel has ended without an answer: finds out how the process did.
    async fn explain_end(&mut self, job: &Job) -> (Result<Returned, Failure>, Option<Exit>) {
        let mut reaped = self.zygote.reap(self.worker);
        let exit = match timeout(EXIT_GRACE, &mut reaped).await {
            Ok(Ok(exit)) => Some(exit),
            Ok(Err(_)) => return (Err(lost()), None),
            Err(_) => None,
        };
        let Some(exit) = exit else {
            self.end(Some(reaped));
            return (Err(outcome::nonsense()), None);
        };
        self.pid = None;
        self.jail = None;
        let cpu_seconds = rlimits::cpu_seconds(job.timeout);
        (Err(outcome::of_exit(exit.status, job.memory_bytes >> 20, cpu_seconds)), Some(exit))
    }

    fn kill(&mut self) {
        if let Some(pid) = self.pid.take() {
            // The zygote has not reaped it, so the id is still its own.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Kills the process and gives its jail back once it is gone for certain.
    fn end(&mut self, reaped: Option<oneshot::Receiver<Exit>>) {
        self.kill();
        let Some(jail) = self.jail.take() else { return };
        let reaped = reaped.unwrap_or_else(|| self.zygote.reap(self.worker));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let worker = self.worker;
            runtime.spawn(async move {
                if timeout(REAP_TIMEOUT, reaped).await.is_err() {
                    tracing::warn!(worker, "a killed worker was not reaped in time");
                }
                // Removing a directory that a script filled takes its time.
                tokio::task::spawn_blocking(move || drop(jail));
            });
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// Waits for the first frame. The kernel attaches who sent it, which is how we learn the worker's process id in our own
/// namespace; nothing of a script has run by then.
async fn greeting(channel: &UnixStream) -> Result<Pid, StartError> {
    let mut header = [0u8; 5];
    let (length, pid) = channel
        .async_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!(UnixCredentials);
            let mut buffer = [IoSliceMut::new(&mut header)];
            let message = recvmsg::<()>(
                channel.as_raw_fd(),
                &mut buffer,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let sender = message.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::ScmCredentials(who) => Some(Pid::from_raw(who.pid())),
                _ => None,
            });
            Ok((message.bytes, sender))
        })
        .await
        .map_err(StartError::Descriptors)?;
    match (length, header[0], pid) {
        (5, answer::READY, Some(pid)) if pid.as_raw() > 0 => Ok(pid),
        (5, answer::LOCKDOWN, _) => Err(lockdown_failure(channel, header).await),
        _ => Err(StartError::Died),
    }
}

async fn lockdown_failure(channel: &UnixStream, header: [u8; 5]) -> StartError {
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let mut payload = vec![0; length.min(MAX_FAILURE_BYTES)];
    let mut filled = 0;
    while filled < payload.len() {
        if channel.readable().await.is_err() {
            return StartError::Died;
        }
        match channel.try_read(&mut payload[filled..]) {
            Ok(0) => return StartError::Died,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return StartError::Died,
        }
    }
    serde_json::from_slice(&payload).map_or(StartError::Died, StartError::Lockdown)
}

fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

/// More than the kernel has to say of a process.
const STATUS_BYTES: usize = 8192;

/// Sizes of a process, from its status in /proc.
pub(super) struct Memory {
    pub(super) mapped_bytes: u64,
    pub(super) resident_bytes: u64,
    pub(super) peak_bytes: u64,
}

/// `None` when the process is gone.
pub(super) fn memory(process: Pid) -> Option<Memory> {
    let status = Status::of(process)?;
    let bytes = |name: &str| {
        let kib = status.field(name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?;
        Some(kib * 1024)
    };
    let resident_bytes = bytes("VmRSS:")?;
    Some(Memory {
        mapped_bytes: bytes("VmSize:")?,
        resident_bytes,
        // gVisor does not tell it.
        peak_bytes: bytes("VmHWM:").unwrap_or(resident_bytes),
    })
}

/// Whether `process` is a child of ours that does not run until it is continued.
pub(super) fn is_stopped_child(process: Pid) -> bool {
    Status::of(process).is_some_and(|status| {
        status.field("PPid:") == Some(&std::process::id().to_string())
            && status.field("State:").is_some_and(|state| state.starts_with('T'))
    })
}

/// What /proc says of a process.
struct Status(Vec<u8>);

impl Status {
    fn of(process: Pid) -> Option<Status> {
        let mut file = std::fs::File::open(format!("/proc/{process}/status")).ok()?;
        // In one read: the kernel writes the whole text anew for each.
        let mut text = vec![0; STATUS_BYTES];
        let length = file.read(&mut text).ok()?;
        text.truncate(length);
        Some(Status(text))
    }

    fn field(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.0).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
    }
}
