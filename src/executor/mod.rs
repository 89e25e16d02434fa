//! Who runs where, for how long, and what came of it.

mod conversation;
mod imports;
pub mod outcome;
mod pool;
pub mod protocol;
pub mod selftest;
pub mod worker;
pub mod zygote;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::outcome::{Execution, Live};
use self::pool::Pool;
use self::protocol::ZygoteInfo;
use self::selftest::Finding;
use crate::api::{ExecuteRequest, Failure, Kind};
use crate::config::{Config, Policy};
use crate::files::Files;
use crate::metrics::Metrics;
use crate::python::Python;
use crate::sandbox::{Sandbox, sys};

/// Why nothing is run any more once a script has left what could not be removed.
const TRACES: &str = "What a script left could not be removed; the service must be restarted";

/// A script to run, with the limits that it runs under.
#[derive(Debug)]
pub struct Job {
    /// Python source.
    pub script: String,
    /// The argument of `main`, as raw JSON.
    pub input: Option<Box<RawValue>>,
    /// What is laid in its working directory.
    pub files: Files,
    /// Wall time.
    pub timeout: Duration,
    /// Who looks on.
    pub live: Option<Live>,
    /// When time is up even before that.
    pub deadline: Option<Instant>,
    /// Bytes on top of the preloaded interpreter.
    pub memory_bytes: u64,
    /// What is refused before it runs.
    pub policy: Policy,
}

impl Job {
    /// What `request` asks for, under the server's own limits: a request may only lower them.
    pub fn new(request: ExecuteRequest, config: &Config) -> Job {
        let memory = request.memory_mb.map(|mb| mb.saturating_mul(1 << 20));
        Job {
            script: request.script,
            input: request.input,
            files: request.files,
            timeout: request.timeout.map_or(config.timeout, |asked| asked.min(config.timeout)),
            live: None,
            deadline: None,
            memory_bytes: memory
                .map_or(config.memory_bytes, |asked| asked.min(config.memory_bytes)),
            policy: config.policy,
        }
    }
}

/// Whether scripts can be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not yet: Python is starting or the sandbox has not proved itself.
    Starting,
    /// Yes.
    Healthy,
    /// No, and why.
    Unhealthy(String),
}

/// How long a zygote may be stopped. One that is stopped with everything else, and continued, is so for less.
const STOPPED_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a worker may take to be gone and the next to be ready, before [`Executor::settle`] gives up. Usual are 20 ms.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why this environment must not serve another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsettled {
    /// A script must have killed it.
    #[error("the zygote died")]
    ZygoteDied,
    /// It could meet the next request.
    #[error("what a script left could not be removed")]
    Traces,
    /// A script may have stopped the zygote.
    #[error("the next worker was not ready in time")]
    TooSlow,
}

/// Runs scripts, each in a worker of its own.
pub struct Executor {
    config: Arc<Config>,
    sandbox: Arc<Sandbox>,
    /// For scripts that import what every interpreter has, while the other still imports or to spare its memory. None
    /// where files cannot be opened later, so that a wrong guess would be an error.
    bare: Option<Arc<Pool>>,
    preloaded: Arc<Pool>,
    turns: usize,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    metrics: Arc<Metrics>,
}

impl Executor {
    /// Starts the zygotes, and the self-test of each as soon as it has a worker. Needs the tokio runtime.
    pub fn start(config: Arc<Config>, sandbox: Arc<Sandbox>, python: Python) -> Arc<Executor> {
        let turns = if sandbox.one_at_a_time() { 1 } else { config.concurrency };
        // As many as can run: where workers are not kept apart, none waits beside the one that runs.
        let metrics = Arc::new(Metrics::new(sandbox.tier_name()));
        let pool = |preload| {
            let (config, sandbox, metrics) = (&config, &sandbox, &metrics);
            Pool::new(Arc::clone(config), Arc::clone(sandbox), Arc::clone(metrics), preload, turns)
        };
        let two = sandbox.opens_files() && !config.preload.is_empty();
        let executor = Arc::new(Executor {
            turns,
            running: Arc::new(Semaphore::new(turns)),
            waiting: Semaphore::new(config.queue),
            bare: two.then(|| pool(vec![])),
            preloaded: pool(config.preload.clone()),
            metrics,
            config,
            sandbox,
        });
        tokio::spawn(reap_orphans());
        for pool in executor.pools() {
            tokio::spawn(Arc::clone(pool).keep_zygote(python.clone()));
            tokio::spawn(Arc::clone(pool).rest());
            tokio::spawn(Arc::clone(&executor).prove(Arc::clone(pool)));
        }
        executor
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.bare.iter().chain([&self.preloaded])
    }

    /// The pool whose workers have what `script` wants.
    async fn pool_for(&self, script: &str) -> &Arc<Pool> {
        let Some(bare) = &self.bare else { return &self.preloaded };
        // Soon over: the bare zygote imports next to nothing.
        bare.findings().await;
        match bare.info() {
            Some(info) if imports::are_standard(script, &info.standard, &self.config.preload) => {
                bare
            }
            _ => &self.preloaded,
        }
    }

    /// Runs `job` as soon as it is its turn.
    ///
    /// # Errors
    /// `busy` when the queue is full, `internal` when the sandbox has not held.
    pub async fn execute(&self, job: Job) -> Result<Execution, Failure> {
        let arrived = Instant::now();
        let turn = self.turn().await?;
        let pool = self.pool_for(&job.script).await;
        self.proof(pool).await?;
        self.run(pool, &job, arrived, Some(turn)).await
    }

    async fn run(
        &self,
        pool: &Arc<Pool>,
        job: &Job,
        arrived: Instant,
        mut turn: Option<OwnedSemaphorePermit>,
    ) -> Result<Execution, Failure> {
        let one_at_a_time = self.sandbox.one_at_a_time();
        // Once more when a worker was gone before it had read its request; not again, as that may be what ends them.
        for last_try in [one_at_a_time, true] {
            let mut worker = pool.take().await.ok_or_else(cannot_start)?;
            // The turn is over with the answer, or only when the worker has left no trace.
            worker.occupy(if one_at_a_time { turn.take() } else { None });
            // Also when the client leaves and this future is dropped.
            let _refill = Refill { executor: self, pool };
            let run = worker.run(job, &self.config, arrived.elapsed(), last_try);
            let Some((execution, process)) = run.await else { continue };
            if !one_at_a_time && !self.somebody_waits() {
                tokio::spawn(process.end_in(pool::ANSWER_FIRST));
            }
            return Ok(execution);
        }
        Err(worker::lost())
    }

    fn somebody_waits(&self) -> bool {
        self.waiting.available_permits() < self.config.queue
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(permit);
        }
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(Failure::new(Kind::Busy, "All workers are busy and the queue is full"));
        };
        Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(|_| Failure::new(Kind::Busy, "The service is shutting down"))
    }

    async fn proof(&self, pool: &Pool) -> Result<(), Failure> {
        if self.sandbox.has_traces() {
            return Err(Failure::new(Kind::Internal, TRACES));
        }
        match pool.findings().await {
            Some(findings) if selftest::holds(&findings) => Ok(()),
            Some(_) => Err(Failure::new(Kind::Internal, "The sandbox did not pass its self-test")),
            None => Err(cannot_start()),
        }
    }

    async fn prove(self: Arc<Self>, pool: Arc<Pool>) {
        let job = selftest::job(&self.config);
        let execution = loop {
            match self.run(&pool, &job, Instant::now(), None).await {
                Ok(execution) => break execution,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let findings = selftest::findings(&execution, &self.sandbox);
        for finding in findings.iter().filter(|finding| !finding.held) {
            tracing::error!(promise = finding.promise, answer = finding.answer, "self-test failed");
        }
        pool.prove(findings);
    }

    /// Whether scripts can be run, whatever they import.
    pub fn health(&self) -> Health {
        if self.sandbox.has_traces() {
            return Health::Unhealthy(String::from(TRACES));
        }
        if self.pools().any(|pool| pool.is_failing()) {
            return Health::Unhealthy(String::from("workers cannot be started; the log says why"));
        }
        let proofs: Vec<_> = self.pools().map(|pool| pool.proof()).collect();
        if proofs.iter().flatten().any(|findings| !selftest::holds(findings)) {
            return Health::Unhealthy(String::from("the sandbox did not pass its self-test"));
        }
        let ready = self.pools().all(|pool| pool.info().is_some());
        if ready && proofs.iter().all(Option::is_some) { Health::Healthy } else { Health::Starting }
    }

    /// Waits until every self-test is over, and says what they found; `None` when workers turn out not to start.
    pub async fn findings(&self) -> Option<Arc<[Finding]>> {
        let mut all: Arc<[Finding]> = Arc::new([]);
        for pool in self.pools() {
            let findings = pool.findings().await?;
            // The same attempts in each: what one did not hold is what there is to tell.
            if all.is_empty() || !selftest::holds(&findings) {
                all = findings;
            }
        }
        Some(all)
    }

    /// Ends when workers turn out not to start at all. Once the first has, the service stays and says how it is.
    pub async fn never_starts(&self) {
        for pool in self.pools() {
            if pool.findings().await.is_some() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this environment is as it was before the last request: the worker is gone and swept up after, and
    /// the next is ready. Where it may be frozen at any time, nothing is left to do then.
    ///
    /// # Errors
    /// When that is not to be had.
    pub async fn settle(&self) -> Result<(), Unsettled> {
        let settled = async {
            // Where workers are not kept apart, the last one keeps its turn until it has left no trace.
            let turns = self.running.acquire_many(self.turns as u32).await;
            for pool in self.pools().filter(|pool| pool.info().is_some()) {
                pool.spare().await;
            }
            drop(turns);
        };
        tokio::select! {
            biased;
            () = self.lost_zygote() => Err(Unsettled::ZygoteDied),
            settled = tokio::time::timeout(SETTLE_TIMEOUT, settled) => match settled {
                _ if self.sandbox.has_traces() => Err(Unsettled::Traces),
                Ok(()) => Ok(()),
                Err(_) => Err(Unsettled::TooSlow),
            }
        }
    }

    async fn lost_zygote(&self) {
        match &self.bare {
            Some(bare) => tokio::select! {
                () = bare.lost_zygote() => {}
                () = self.preloaded.lost_zygote() => {}
            },
            None => self.preloaded.lost_zygote().await,
        }
    }

    /// Ends all spares and forks none until [`Executor::renew_spares`]. Before a snapshot from which many environments
    /// are made: a worker may exist only once.
    pub async fn retire_spares(&self) {
        for pool in self.pools() {
            pool.retire().await;
        }
    }

    /// Forks spares again and waits until one is ready.
    ///
    /// # Errors
    /// As [`Executor::settle`].
    pub async fn renew_spares(&self) -> Result<(), Unsettled> {
        self.pools().for_each(Pool::renew);
        self.settle().await
    }

    /// What the preloaded zygote said of itself, once there is one.
    pub fn zygote(&self) -> Option<Arc<ZygoteInfo>> {
        self.preloaded.info()
    }

    /// Where executions are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What is counted, with what is true at this moment.
    pub fn measured(&self) -> &Metrics {
        let taken = |there: usize, free: usize| (there - free) as i64;
        self.metrics.running.set(taken(self.turns, self.running.available_permits()));
        self.metrics.waiting.set(taken(self.config.queue, self.waiting.available_permits()));
        self.pools().for_each(|pool| pool.count_spares());
        &self.metrics
    }

    /// The sandbox that workers run in.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn cannot_start() -> Failure {
    Failure::new(Kind::Internal, "Workers cannot be started; the service's log says why")
}

/// Starts a worker in the place of the one that is used up, once this is dropped.
struct Refill<'a> {
    executor: &'a Executor,
    pool: &'a Arc<Pool>,
}

impl Drop for Refill<'_> {
    fn drop(&mut self) {
        self.pool.refill(self.executor.somebody_waits());
    }
}

/// Reaps our zygotes and the orphans that they leave: as process 1 of a container, or as their subreaper, we are the
/// only one who can.
async fn reap_orphans() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    if let Err(error) = sys::set_child_subreaper() {
        tracing::debug!(%error, "orphans go to init");
    }
    let mut children = match signal(SignalKind::child()) {
        Ok(children) => children,
        Err(error) => {
            tracing::error!(%error, "SIGCHLD cannot be received");
            return;
        }
    };
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            match status {
                WaitStatus::StillAlive => break,
                WaitStatus::Stopped(child, _) => {
                    tokio::spawn(end_unless_it_goes_on(child));
                }
                _ => tracing::debug!(?status, "reaped"),
            }
        }
        children.recv().await;
    }
}

/// Ends a zygote that was stopped and not continued: a script that shares its uid may have done that, and no worker would
/// start any more.
async fn end_unless_it_goes_on(child: Pid) {
    tokio::time::sleep(STOPPED_TIMEOUT).await;
    if worker::is_stopped_child(child) {
        tracing::error!(%child, "a zygote was stopped; ending it");
        // Not reaped yet, since it was alive a moment ago and only its end would be.
        let _ = kill(child, Signal::SIGKILL);
    }
}
