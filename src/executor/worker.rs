//! A worker as the supervisor sees it: forked ahead of time, locked down, and used for one request.

mod process;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use mainbox_zygote::messages::Start;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until, timeout};

pub(super) use self::process::Process;
use self::process::{REAP_TIMEOUT, give_back};
use super::exchange::{ExchangeEnd, exchange};
use super::job::Job;
use super::kept_output::KeptOutput;
use super::live_output::Stream;
use super::outcome::{self, Execution};
use super::output_capture::OutputCapture;
use super::protocol::start_frame;
use super::worker_start::{self, StartError, discard_early_output, fork_error, greeting, pipe};
use super::zygote::Zygote;
use crate::api::catalogue::{Failure, Kind};
use crate::config::Config;
use crate::sandbox::jail::Kept;
use crate::sandbox::process::ProcessHandle;
use crate::sandbox::procfs::Memory;
use crate::sandbox::rlimits::{self, Limit};
use crate::sandbox::scratch::Scratch;
use crate::sandbox::{Sandbox, namespaces, procfs};

/// How long a worker may take to lock itself down and warm up before its zygote counts as stuck.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the cause of a failed start may take to arrive after the worker's own end: the report of a failed fork, or the
/// death of the zygote.
const CAUSE_GRACE: Duration = Duration::from_millis(50);

/// A worker that waits for its request.
pub(super) struct Worker {
    process: Process,
    channel: UnixStream,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    kept: KeptOutput,
    /// Its memory before the request. Peak memory is reported on top of it.
    memory: Option<Memory>,
}

impl Worker {
    /// Forks worker number `worker` from `zygote` and waits until it has locked itself down. With `warm_up` it also runs
    /// the warm-up scripts first.
    ///
    /// # Errors
    /// See [`StartError`]; in every case, the process is gone.
    pub(super) async fn start(
        worker: u64,
        zygote: &Arc<Zygote>,
        sandbox: &Sandbox,
        config: &Config,
        warm_up: bool,
    ) -> Result<Worker, StartError> {
        let mut jail = sandbox.jail()?;
        // RLIMIT_AS counts what the worker shares with its zygote, so that comes on top of the script's own limit.
        let mapped_bytes = procfs::memory(zygote.pid()).map_or(0, |memory| memory.mapped_bytes);
        let text =
            |text: Vec<u8>| CString::new(text).map_err(|error| StartError::Text(error.into()));
        let memory = mapped_bytes + config.memory_bytes;
        let limits = rlimits::limits(config, config.timeout, memory, sandbox.max_tasks());
        let limits: Vec<_> = limits.into_iter().map(Limit::encode).collect();
        let mount = match jail.scratch {
            Scratch::Mount => {
                Some(text(namespaces::scratch_options(config.scratch_bytes, jail.uid()).into())?)
            }
            Scratch::Directory { .. } | Scratch::Nowhere => None,
        };
        let start = start_frame(&Start {
            uid: jail.uid(),
            warm_up,
            scratch: &text(jail.scratch.path().as_os_str().as_bytes().to_vec())?,
            mount: mount.as_deref(),
            has_ruleset: jail.ruleset.is_some(),
            limits: &limits,
        });
        let (channel, their_channel) =
            worker_start::channel(&start).map_err(StartError::Descriptors)?;
        let (stdout, their_stdout) = pipe().map_err(StartError::Descriptors)?;
        let (stderr, their_stderr) = pipe().map_err(StartError::Descriptors)?;
        let kept = KeptOutput::new().map_err(StartError::Descriptors)?;
        let their_kept = kept.share().map_err(StartError::Descriptors)?;
        let mut descriptors = vec![their_channel, their_stdout, their_stderr, their_kept];
        descriptors.extend(jail.ruleset.take());
        let fork = zygote.fork(worker, descriptors);
        // Completes only with a failure: the sender is dropped when the zygote dies, which is noticed by its state.
        let mut failed_fork = pin!(async {
            match fork.await {
                Ok(errno) => errno,
                Err(_) => std::future::pending().await,
            }
        });
        let mut process =
            Process { worker, handle: None, zygote: Arc::clone(zygote), jail: Some(jail) };
        let started = tokio::select! {
            greeting = greeting(&channel) => greeting,
            errno = &mut failed_fork => Err(fork_error(errno)),
            () = zygote.gone() => Err(StartError::ZygoteGone),
            () = tokio::time::sleep(START_TIMEOUT) => {
                zygote.kill();
                Err(StartError::Stuck)
            }
        };
        discard_early_output(worker, &stdout, &stderr);
        let started = match started {
            // A zygote that cannot fork reports that and then closes the channel, and a zygote that dies takes its
            // workers with it. In both cases, the end of the worker may be noticed first.
            Err(
                error @ (StartError::Died | StartError::Lockdown(..) | StartError::NotReady(_)),
            ) => tokio::select! {
                errno = failed_fork => Err(fork_error(errno)),
                () = zygote.gone() => Err(StartError::ZygoteGone),
                () = tokio::time::sleep(CAUSE_GRACE) => Err(error),
            },
            started => started,
        };
        let pid = started?;
        zygote.forked(worker);
        process.handle = Some(ProcessHandle::of(pid));
        let memory = procfs::memory(pid);
        Ok(Worker { process, channel, stdout, stderr, kept, memory })
    }

    /// Its number. Later workers have higher ones.
    pub(super) fn number(&self) -> u64 {
        self.process.worker
    }

    /// Returns whether the worker can still be given a request: it lives, and nothing has removed its scratch directory.
    pub(super) fn is_usable(&self) -> bool {
        self.is_alive() && self.process.jail.as_ref().is_some_and(|jail| jail.scratch.exists())
    }

    /// Returns whether the worker lives. Reading from the channel of a dead worker does not block.
    pub(super) fn is_alive(&self) -> bool {
        let mut byte = [0];
        !self.process.zygote.is_gone()
            && self
                .channel
                .try_read(&mut byte)
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Its scratch directory.
    #[cfg(test)]
    pub(super) fn scratch(&self) -> std::path::PathBuf {
        self.process.jail.as_ref().unwrap().scratch.path().to_owned()
    }

    /// The id of its process.
    #[cfg(test)]
    pub(super) fn pid(&self) -> nix::unistd::Pid {
        self.process.pid().unwrap()
    }

    /// Ends the worker unused, and waits until it is gone.
    pub(super) async fn end(mut self) {
        self.process.kill();
        let Some(jail) = self.process.jail.take() else { return };
        let worker = self.process.worker;
        let reaped = self.process.zygote.reap(worker);
        // Not forever: the caller waits for this before a snapshot.
        let given_back = tokio::spawn(give_back(worker, reaped, jail));
        let _ = timeout(REAP_TIMEOUT, given_back).await;
    }

    /// Marks the worker as used. It keeps `kept`, if given, until it is gone and its leftovers are removed.
    pub(super) async fn begin_use(&mut self, kept: Option<Kept>) {
        if let Some(jail) = &mut self.process.jail {
            let processes = [nix::unistd::getpid(), self.process.zygote.pid()];
            jail.begin_use(kept, &processes).await;
        }
    }

    /// Runs `job`. Every wait for the worker has a deadline. The process is returned together with the execution;
    /// dropping it, or this future, kills the worker.
    ///
    /// `cpus` returns how many CPUs the script may use now.
    ///
    /// Returns `None` if the worker died before it had read the request, which means that nothing has run. On the last
    /// try (`is_last_try`), this is reported as a failure instead.
    pub(super) async fn run(
        mut self,
        job: &Job,
        config: &Config,
        queue: Duration,
        is_last_try: bool,
        cpus: &(dyn Fn() -> f64 + Sync),
    ) -> Option<(Execution, Process)> {
        let started = Instant::now();
        let own_end = started + job.timeout;
        let deadline = job.deadline.map_or(own_end, |end| own_end.min(Instant::from_std(end)));
        let cpu_before = self.process.cpu_time();
        let capture = |pipe, stream| {
            let live = job.live.clone().map(|live| (live, stream));
            OutputCapture::new(pipe, config.max_stdout_bytes, live)
        };
        let mut stdout = capture(self.stdout, Stream::Stdout);
        let mut stderr = capture(self.stderr, Stream::Stderr);
        let end = {
            let gone = self.process.zygote.gone();
            let exchange = exchange(&mut self.channel, job, config);
            let breach = self.process.breach(self.memory, job, config, cpus);
            tokio::pin!(gone, exchange, breach);
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(deadline) => break ExchangeEnd::Timeout,
                    () = &mut gone => break ExchangeEnd::ZygoteGone,
                    end = &mut exchange => break end,
                    breach = &mut breach => break ExchangeEnd::Breached(breach),
                    () = stdout.pump() => {}
                    () = stderr.pump() => {}
                }
            }
        };
        let run = started.elapsed();
        let cost = self.process.cost();
        let has_answered = matches!(end, ExchangeEnd::Answered(_));
        let (outcome, exit) = match end {
            ExchangeEnd::Answered(outcome) => (outcome, None),
            ExchangeEnd::Timeout if deadline < own_end => {
                (Err(outcome::deadline_passed(job.timeout)), None)
            }
            ExchangeEnd::Timeout => (Err(outcome::timed_out(job.timeout)), None),
            ExchangeEnd::ZygoteGone => (Err(lost()), None),
            ExchangeEnd::Breached(breach) => {
                let memory_mb = job.memory_bytes >> 20;
                (Err(outcome::of_breach(breach, memory_mb, config.scratch_bytes)), None)
            }
            ExchangeEnd::NotStarted if !is_last_try => return None,
            // On the last try, the request itself may be what ended the worker.
            ExchangeEnd::NotStarted | ExchangeEnd::Closed => self.process.explain_end(job).await,
        };
        // A worker that answers has written all that it kept.
        let kept = if has_answered {
            Vec::new()
        } else {
            // It must not write any more. Its pipe closes when it is gone.
            self.process.kill();
            stdout.drain(CAUSE_GRACE).await;
            let (received, tail) = stdout.received();
            self.kept.rest(received, tail)
        };
        let cpu = exit
            .map(|exit| Duration::from_micros(exit.cpu_us))
            .or(cost.cpu)
            .map_or(Duration::ZERO, |cpu| cpu.saturating_sub(cpu_before.unwrap_or_default()));
        // This includes what the script has read of the memory of the zygote, which the kernel does not tell apart.
        let peak = exit.map(|exit| exit.peak_bytes).or(cost.peak_bytes).unwrap_or(0);
        let execution = Execution {
            outcome,
            stdout: stdout.finish(&kept),
            stderr: stderr.finish(&[]),
            queue,
            run,
            cpu,
            peak_memory: peak.saturating_sub(self.memory.map_or(0, |memory| memory.resident_bytes)),
        };
        Some((execution, self.process))
    }
}

/// The failure for a worker that was lost through no fault of the script.
pub(super) fn lost() -> Failure {
    Failure::new(Kind::Internal, "The worker was lost; this is not the script's fault")
}

#[cfg(test)]
mod tests;
