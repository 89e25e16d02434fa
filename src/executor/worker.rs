//! A worker as the supervisor sees it: forked ahead of time, locked down, and good for one request.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use nix::unistd::{Pid, pipe2};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::exchange::{ExchangeEnd, MAX_FAILURE_BYTES, exchange};
use super::job::Job;
use super::outcome::{self, Execution, Returned};
use super::output_capture::OutputCapture;
use super::protocol::{LockdownFailure, Order, from_worker};
use super::zygote::{Exit, Zygote, ZygoteState};
use crate::api::catalogue::{Failure, Kind};
use crate::config::Config;
use crate::sandbox::jail::Jail;
use crate::sandbox::scratch::Scratch;
use crate::sandbox::{Sandbox, SandboxError, namespaces, procfs, rlimits, sys};

/// How long a worker may take to lock itself down and warm up before its zygote counts as stuck.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a worker that closed its channel may take to exit, so that its exit status can explain what happened. A
/// millisecond is usual; on a starved machine it has taken more than 50.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How long the report of a failed fork may take after the channel has closed.
const FORK_REPORT_GRACE: Duration = Duration::from_millis(50);
/// How long the zygote may take to reap a worker that was killed.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of what a worker wrote to stderr before it was ready is logged, bytes.
const EARLY_STDERR_BYTES: usize = 16 * 1024;

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum StartError {
    /// Its scratch directory, uid or ruleset could not be made.
    #[error(transparent)]
    Jail(#[from] SandboxError),
    /// Its descriptors could not be made.
    #[error("descriptors of a worker: {0}")]
    Descriptors(io::Error),
    /// The zygote could not fork it.
    #[error("fork of a worker: {0}")]
    Fork(io::Error),
    /// A step of its lock-down failed.
    #[error("lock-down failed at {step:?}: {error}", step = .0.step, error = .0.error)]
    Lockdown(LockdownFailure),
    /// It died before it was ready.
    #[error("a worker died before it was ready")]
    Died,
    /// It was not ready in time, so its zygote counts as stuck.
    #[error("a worker was not ready in time")]
    Stuck,
    /// Its zygote died.
    #[error("the zygote died")]
    ZygoteGone,
}

/// A worker that waits for its request.
pub(super) struct Worker {
    process: Process,
    channel: UnixStream,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    /// The resident set before the request, bytes. Peak memory is reported on top of it.
    resident_bytes: u64,
}

/// The process of a worker. Dropping it kills the process, and then gives its jail back.
pub(super) struct Process {
    worker: u64,
    pid: Option<Pid>,
    zygote: Arc<Zygote>,
    jail: Option<Jail>,
}

impl Worker {
    /// Forks worker number `worker` from `zygote` and waits until it has locked itself down. With `warm_up` it also runs
    /// the warm-up scripts first.
    ///
    /// # Errors
    /// See [`StartError`]; the process is gone then.
    pub(super) async fn start(
        worker: u64,
        zygote: &Arc<Zygote>,
        sandbox: &Sandbox,
        config: &Config,
        warm_up: bool,
    ) -> Result<Worker, StartError> {
        let mut jail = sandbox.jail()?;
        let (channel, their_channel) = socket_pair().map_err(StartError::Descriptors)?;
        let (stdout, their_stdout) = pipe().map_err(StartError::Descriptors)?;
        let (stderr, their_stderr) = pipe().map_err(StartError::Descriptors)?;
        let mut descriptors = vec![their_channel, their_stdout, their_stderr];
        descriptors.extend(jail.ruleset.take());
        // RLIMIT_AS counts what the worker shares with its zygote, so that comes on top of the script's own limit.
        let mapped_bytes = procfs::memory(zygote.pid).map_or(0, |memory| memory.mapped_bytes);
        let order = Order::Fork {
            worker,
            uid: jail.uid(),
            scratch: &jail.scratch.path().to_string_lossy(),
            mount: matches!(jail.scratch, Scratch::Mount)
                .then(|| namespaces::scratch_options(config.scratch_bytes, jail.uid())),
            limits: &rlimits::limits(config, config.timeout, mapped_bytes + config.memory_bytes),
            warm_up,
        };
        let mut failed_fork = zygote.fork(&order, worker, descriptors);
        let mut process =
            Process { worker, pid: None, zygote: Arc::clone(zygote), jail: Some(jail) };
        let mut state = zygote.state();
        let started = tokio::select! {
            greeting = greeting(&channel) => greeting,
            Ok(errno) = &mut failed_fork => Err(fork_error(errno)),
            _ = state.wait_for(|state| matches!(state, ZygoteState::Gone)) => {
                Err(StartError::ZygoteGone)
            }
            () = tokio::time::sleep(START_TIMEOUT) => {
                zygote.kill();
                Err(StartError::Stuck)
            }
        };
        log_early_stderr(worker, &stderr);
        let started = match started {
            // A zygote that cannot fork reports that and then closes the channel, and the end of the channel may be
            // noticed first.
            Err(StartError::Died) => match timeout(FORK_REPORT_GRACE, failed_fork).await {
                Ok(Ok(errno)) => Err(fork_error(errno)),
                _ => Err(StartError::Died),
            },
            started => started,
        };
        let pid = started?;
        zygote.forked(worker);
        process.pid = Some(pid);
        let resident_bytes = procfs::memory(pid).map_or(0, |memory| memory.resident_bytes);
        Ok(Worker { process, channel, stdout, stderr, resident_bytes })
    }

    /// Returns whether the worker can still be given a request. The channel of a worker that died has ended.
    pub(super) fn is_alive(&self) -> bool {
        let mut byte = [0];
        !self.process.zygote.is_gone()
            && self
                .channel
                .try_read(&mut byte)
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The id of its process.
    #[cfg(test)]
    pub(super) fn pid(&self) -> Pid {
        self.process.pid.unwrap()
    }

    /// Ends the worker unused, and waits until it is gone.
    pub(super) async fn end(mut self) {
        self.process.kill();
        let reaped = self.process.zygote.reap(self.process.worker);
        // Fails when the zygote is gone, and the worker with it.
        let _ = timeout(REAP_TIMEOUT, reaped).await;
        self.process.jail = None;
    }

    /// Marks the worker as used. It keeps `run_permit`, if given, until it is gone and its leftovers are removed.
    pub(super) fn begin_use(&mut self, run_permit: Option<OwnedSemaphorePermit>) {
        if let Some(jail) = &mut self.process.jail {
            jail.begin_use(run_permit);
        }
    }

    /// Runs `job`. Everything that the worker is waited for has a deadline. The process is returned beside the execution;
    /// dropping it, or this future, ends the worker.
    ///
    /// Returns `None` if the worker was gone before it had read the request, so that nothing can have run, unless this
    /// `is_last_try`.
    pub(super) async fn run(
        mut self,
        job: &Job,
        config: &Config,
        queue: Duration,
        is_last_try: bool,
    ) -> Option<(Execution, Process)> {
        let started = Instant::now();
        let own_end = started + job.timeout;
        let deadline = job.deadline.map_or(own_end, |end| own_end.min(Instant::from_std(end)));
        let cpu_before = self.process.cpu_time();
        let sink = || job.output_sink.clone();
        let mut stdout = OutputCapture::new(self.stdout, config.max_stdout_bytes, sink());
        let mut stderr = OutputCapture::new(self.stderr, config.max_stdout_bytes, sink());
        let end = {
            let mut state = self.process.zygote.state();
            let exchange = exchange(&mut self.channel, job, config);
            tokio::pin!(exchange);
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(deadline) => break ExchangeEnd::Timeout,
                    _ = state.wait_for(|state| matches!(state, ZygoteState::Gone)) => {
                        break ExchangeEnd::ZygoteGone;
                    }
                    end = &mut exchange => break end,
                    () = stdout.pump() => {}
                    () = stderr.pump() => {}
                }
            }
        };
        let run = started.elapsed();
        let cost = self.process.cost();
        let (outcome, exit) = match end {
            ExchangeEnd::Answered(outcome) => (outcome, None),
            ExchangeEnd::Timeout if deadline < own_end => {
                (Err(outcome::deadline_passed(job.timeout)), None)
            }
            ExchangeEnd::Timeout => (Err(outcome::timed_out(job.timeout)), None),
            ExchangeEnd::ZygoteGone => (Err(lost()), None),
            ExchangeEnd::NotStarted if !is_last_try => return None,
            // On the last try, the request itself may be what ended the worker.
            ExchangeEnd::NotStarted | ExchangeEnd::Closed => self.process.explain_end(job).await,
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

fn fork_error(errno: i32) -> StartError {
    StartError::Fork(io::Error::from_raw_os_error(errno))
}

/// The worker was lost through no fault of the script.
pub(super) fn lost() -> Failure {
    Failure::new(Kind::Internal, "The worker was lost; this is not the script's fault")
}

/// What a process has used so far.
struct Cost {
    cpu: Option<Duration>,
    peak_bytes: Option<u64>,
}

impl Process {
    /// Ends the process after `delay`.
    pub(super) async fn end_after(self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.pid.and_then(sys::cpu_time)
    }

    /// Measured from outside, so a script cannot report less than it used.
    fn cost(&self) -> Cost {
        Cost {
            cpu: self.cpu_time(),
            peak_bytes: self.pid.and_then(procfs::memory).map(|memory| memory.peak_bytes),
        }
    }

    /// Finds out why the channel closed without an answer, from the exit status.
    async fn explain_end(&mut self, job: &Job) -> (Result<Returned, Failure>, Option<Exit>) {
        let mut reaped = self.zygote.reap(self.worker);
        let exit = match timeout(EXIT_GRACE, &mut reaped).await {
            Ok(Ok(exit)) => Some(exit),
            Ok(Err(_)) => return (Err(lost()), None),
            Err(_) => None,
        };
        let Some(exit) = exit else {
            self.end(Some(reaped));
            return (Err(outcome::protocol_violation()), None);
        };
        self.pid = None;
        self.jail = None;
        let cpu_seconds = rlimits::cpu_seconds(job.timeout);
        (Err(outcome::of_exit(exit.status, job.memory_bytes >> 20, cpu_seconds)), Some(exit))
    }

    fn kill(&mut self) {
        if let Some(pid) = self.pid.take() {
            // The zygote reaps only on order, so the id still belongs to this worker.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Kills the process, and gives its jail back once it is certainly gone.
    fn end(&mut self, reaped: Option<oneshot::Receiver<Exit>>) {
        self.kill();
        let Some(jail) = self.jail.take() else { return };
        let reaped = reaped.unwrap_or_else(|| self.zygote.reap(self.worker));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let worker = self.worker;
            let give_back = async move {
                if timeout(REAP_TIMEOUT, reaped).await.is_err() {
                    tracing::warn!(worker, "a killed worker was not reaped in time");
                }
                // Removing a directory that a script filled can take seconds.
                tokio::task::spawn_blocking(move || drop(jail));
            };
            runtime.spawn(give_back.in_current_span());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// Receives the first frame. The kernel attaches the sender's credentials to it, which is how the supervisor learns the
/// worker's process id in its own pid namespace. No script has run by then, so the sender is the worker.
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
                ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
                _ => None,
            });
            Ok((message.bytes, sender))
        })
        .await
        .map_err(StartError::Descriptors)?;
    match (length, header[0], pid) {
        (5, from_worker::READY, Some(pid)) if pid.as_raw() > 0 => Ok(pid),
        (5, from_worker::LOCKDOWN, _) => Err(lockdown_failure(channel, header).await),
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

/// Logs what a worker wrote to stderr before it was ready, such as the traceback of a harness that failed. The read is
/// skipped unless it would be logged.
fn log_early_stderr(worker: u64, stderr: &pipe::Receiver) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let mut text = vec![0; EARLY_STDERR_BYTES];
    if let Ok(length @ 1..) = stderr.try_read(&mut text) {
        let text = String::from_utf8_lossy(&text[..length]);
        tracing::debug!(worker, stderr = %text, "a worker wrote to stderr before it was ready");
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::fake_zygote::{self, Fork, IDLE};
    use super::*;
    use crate::api::request::ExecuteRequest;
    use crate::config::choices::Platform;

    fn config() -> Config {
        Config::from_variables(&BTreeMap::new(), Platform::Elsewhere).unwrap()
    }

    async fn start(fork: Fork) -> Result<Worker, StartError> {
        let (zygote, sandbox) = (fake_zygote::start(fork), Sandbox::without_isolation());
        Worker::start(1, &zygote, &sandbox, &config(), false).await
    }

    async fn start_error(fork: Fork) -> String {
        start(fork).await.map(drop).unwrap_err().to_string()
    }

    async fn run(script: &'static str) -> Execution {
        let request = ExecuteRequest::from_python(b"def main(): pass", 100).unwrap();
        let config = config();
        let job = Job { timeout: Duration::from_secs(5), ..Job::new(request, &config) };
        let worker = start(Fork::Shell(script)).await.unwrap();
        let run = worker.run(&job, &config, Duration::ZERO, true).await;
        run.unwrap().0
    }

    #[tokio::test]
    async fn a_worker_is_known_by_the_process_that_said_that_it_is_ready() {
        let worker = start(IDLE).await.unwrap();
        let pid = worker.pid();
        assert!(worker.is_alive() && pid.as_raw() > 0 && pid != nix::unistd::getpid());
        worker.end().await;
        assert!(procfs::memory(pid).is_none());
    }

    #[tokio::test]
    async fn a_failed_lock_down_names_its_step() {
        let failed = Fork::Shell(
            "printf 'L\\055\\000\\000\\000{\"step\":\"no_new_privs\",\"error\":\"OSError: no\"}' >&0",
        );
        assert_eq!(start_error(failed).await, "lock-down failed at NoNewPrivs: OSError: no");
    }

    #[tokio::test]
    async fn a_worker_that_does_not_start_has_an_error_of_its_own() {
        assert_eq!(start_error(Fork::Dies).await, "a worker died before it was ready");
        assert_eq!(
            start_error(Fork::Fails(libc::EAGAIN)).await,
            "fork of a worker: Resource temporarily unavailable (os error 11)"
        );
    }

    #[tokio::test]
    async fn a_value_frame_is_the_result() {
        let execution = run(
            "printf 'R\\000\\000\\000\\000' >&0; head -c 1 >/dev/null; printf 'V\\002\\000\\000\\00042' >&0; sleep 60",
        )
        .await;
        assert_eq!(execution.outcome.unwrap().result.get(), "42");
    }

    #[tokio::test]
    async fn an_exit_without_an_answer_is_explained_by_its_status() {
        let execution =
            run("printf 'R\\000\\000\\000\\000' >&0; head -c 1 >/dev/null; exit 3")
                .await;
        let failure = execution.outcome.unwrap_err();
        assert_eq!(
            (failure.kind, failure.error.as_str()),
            (Kind::Exit, "The script ended its process with status 3 before main returned")
        );
        // As the zygote reports it, less what the worker had used before the request.
        assert!(execution.cpu > Duration::from_secs(4), "{:?}", execution.cpu);
    }
}
