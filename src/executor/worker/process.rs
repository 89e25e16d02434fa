//! The process of a worker: what it has used, how it ended, and the resources that it returns when it is gone.

use std::sync::Arc;
use std::time::Duration;

use mainbox_zygote::messages::Exit;
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::Instrument;

use super::lost;
use crate::api::catalogue::Failure;
use crate::config::Config;
use crate::executor::job::Job;
use crate::executor::outcome::{self, Returned};
use crate::executor::watch::{Breach, Watched};
use crate::executor::zygote::Zygote;
use crate::sandbox::jail::Jail;
use crate::sandbox::process::ProcessHandle;
use crate::sandbox::procfs::Memory;
use crate::sandbox::scratch::Scratch;
use crate::sandbox::usage::ScratchGauge;
use crate::sandbox::{procfs, rlimits, sys};

/// How long a worker that closed its channel may take to exit, so that its exit status can explain what happened. It
/// usually takes a millisecond; on an overloaded machine, it has taken more than 50.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How long the zygote may take to reap a worker that was killed, before that is logged.
pub(super) const REAP_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };

/// The process of a worker. Dropping it kills the process and then releases its jail.
pub(in crate::executor) struct Process {
    /// The number of the worker.
    pub(super) worker: u64,
    /// `None` before the process is known and once it is reaped or killed.
    pub(super) handle: Option<ProcessHandle>,
    /// The zygote that it is a fork of.
    pub(super) zygote: Arc<Zygote>,
    /// Its resources; `None` once they are given back.
    pub(super) jail: Option<Jail>,
}

/// What a process has used so far.
pub(super) struct Cost {
    /// CPU time.
    pub(super) cpu: Option<Duration>,
    /// The largest resident set, bytes.
    pub(super) peak_bytes: Option<u64>,
}

impl Process {
    /// Ends the process after `delay`.
    pub(in crate::executor) async fn end_after(self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }

    /// Its process id. The zygote reaps only on order, so the id belongs to this worker as long as the zygote lives.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.handle.as_ref().map(|handle| handle.pid)
    }

    pub(super) fn cpu_time(&self) -> Option<Duration> {
        self.pid().and_then(sys::cpu_time)
    }

    /// Measured from outside, so a script cannot report less than it used.
    pub(super) fn cost(&self) -> Cost {
        Cost {
            cpu: self.cpu_time(),
            peak_bytes: self.pid().and_then(procfs::memory).map(|memory| memory.peak_bytes),
        }
    }

    /// Waits until the script passes a limit that the supervisor watches.
    pub(super) async fn breach(
        &self,
        memory: Option<Memory>,
        job: &Job,
        config: &Config,
        cpus: &(dyn Fn() -> f64 + Sync),
    ) -> Breach {
        let scratch = match self.jail.as_ref().map(|jail| &jail.scratch) {
            Some(Scratch::Directory { host, .. }) => {
                Some(ScratchGauge::new(host.clone(), config.scratch_bytes))
            }
            _ => None,
        };
        let Some(process) = &self.handle else { std::future::pending().await };
        Watched { process, memory, memory_bytes: job.memory_bytes, scratch, cpus }.breach().await
    }

    /// Finds out why the channel closed without an answer, from the exit status.
    pub(super) async fn explain_end(
        &mut self,
        job: &Job,
    ) -> (Result<Returned, Failure>, Option<Exit>) {
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
        self.handle = None;
        self.jail = None;
        let cpu_seconds = rlimits::cpu_seconds(job.timeout);
        (Err(outcome::of_exit(exit.status, job.memory_bytes >> 20, cpu_seconds)), Some(exit))
    }

    pub(super) fn kill(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.kill();
        }
    }

    /// Kills the process, and releases its jail once the process is certainly gone.
    fn end(&mut self, reaped: Option<oneshot::Receiver<Exit>>) {
        self.kill();
        let Some(jail) = self.jail.take() else { return };
        let reaped = reaped.unwrap_or_else(|| self.zygote.reap(self.worker));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(give_back(self.worker, reaped, jail).in_current_span());
        }
    }
}

/// Gives a jail back once its worker is certainly gone. Until then its uid and its directory stay in use, however long
/// the worker takes to die: a process in an uninterruptible sleep ignores even SIGKILL.
pub(super) async fn give_back(worker: u64, mut reaped: oneshot::Receiver<Exit>, jail: Jail) {
    if timeout(REAP_TIMEOUT, &mut reaped).await.is_err() {
        tracing::warn!(worker, "a killed worker still lives; its uid and directory stay in use");
        // Fails when the zygote is gone, and then the kernel kills its workers.
        let _ = reaped.await;
    }
    drop(jail);
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(None);
    }
}
