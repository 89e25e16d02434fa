//! The executor: runs scripts, each in a worker of its own.
//!
//! [`Executor::execute`] is the only way to run a script. It waits for a run permit (`admission.rs`), chooses the
//! zygote that suits the script's imports (`import_scan.rs`), takes a spare worker (`pool.rs`), and has the worker run
//! the script (`worker.rs`, `exchange.rs`). Nothing that a worker sends is trusted (`outcome.rs`).

mod admission;
mod code_cache;
mod essential;
mod exchange;
#[cfg(test)]
mod fake_zygote;
pub mod frames;
pub mod harness;
mod health;
mod import_scan;
mod job;
mod kept_output;
pub mod live_output;
pub mod outcome;
pub mod output_capture;
mod pool;
pub mod protocol;
mod reaper;
pub mod self_test;
mod watch;
mod worker;
mod worker_start;
mod zygote;

use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Instant as Deadline, timeout_at};

use self::admission::{Admission, RunPermit};
pub use self::admission::{Unfinished, Waiting};
use self::essential::spawn_essential;
pub use self::health::{Health, Unsettled};
pub use self::job::Job;
use self::outcome::Execution;
use self::pool::Pool;
use self::protocol::ZygoteInfo;
use self::self_test::{Finding, Proof};
use crate::api::catalogue::{Failure, Kind};
use crate::config::Config;
use crate::python::interpreter::Python;
use crate::sandbox::Sandbox;
use crate::sandbox::jail::Kept;
use crate::telemetry::log;
use crate::telemetry::prometheus::Metrics;

/// The error of every request after a script left something that could not be removed or undone.
const CONTAMINATED: &str =
    "A script left something that cannot be removed or undone; the service must be restarted";

/// How long [`Executor::settle`] waits for a worker to be gone and the next one to be ready. It usually takes 20 ms.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which zygotes are needed from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// All of them, for scripts that are not known yet.
    All,
    /// None. Each is started for the first script that needs it, with the modules that this script names.
    None,
}

/// Runs scripts, each in a worker of its own.
pub struct Executor {
    config: Arc<Config>,
    sandbox: Arc<Sandbox>,
    /// For scripts that import the standard library only. It is ready before the other pool and its workers are
    /// smaller. `None` in the tier in which a script cannot open files, since a script sent to the wrong pool could not
    /// import its packages there.
    bare: Option<Arc<Pool>>,
    preloaded: Arc<Pool>,
    admission: Admission,
    metrics: Arc<Metrics>,
    needed: Needed,
    /// The CPUs of this process.
    cpus: usize,
}

impl Executor {
    /// Starts the zygotes that are needed from the beginning. The first worker of each runs the self-test. Must be called
    /// within the tokio runtime.
    pub fn start(
        config: Arc<Config>,
        sandbox: Arc<Sandbox>,
        python: Python,
        needed: Needed,
    ) -> Arc<Executor> {
        let slots = if sandbox.one_at_a_time() { 1 } else { config.concurrency };
        let metrics = Arc::new(Metrics::new(sandbox.tier_name()));
        // One spare for each script that can run. Where workers are not separated, this is one, so no spare exists
        // while a script runs.
        let pool = |preload| {
            let (config, sandbox, metrics) = (&config, &sandbox, &metrics);
            Pool::new(Arc::clone(config), Arc::clone(sandbox), Arc::clone(metrics), preload, slots)
        };
        let has_two_pools = sandbox.opens_files() && !config.preload.is_empty();
        let executor = Arc::new(Executor {
            bare: has_two_pools.then(|| pool(vec![])),
            preloaded: pool(config.preload.clone()),
            needed,
            admission: Admission::new(slots, config.queue, config.queue_timeout),
            metrics,
            config,
            sandbox,
            cpus: std::thread::available_parallelism().map_or(1, NonZero::get),
        });
        spawn_essential(reaper::reap_children());
        for pool in executor.pools() {
            if needed == Needed::All {
                pool.want(|_| true);
            }
            spawn_essential(Arc::clone(pool).keep_zygote(python.clone()));
            spawn_essential(Arc::clone(pool).shrink_when_idle());
        }
        executor
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.bare.iter().chain([&self.preloaded])
    }

    /// The pool whose workers have the modules that a script and the modules among its files import.
    async fn pool_for(&self, job: &Job) -> &Arc<Pool> {
        let Some(bare) = &self.bare else {
            // A script that cannot open files cannot import later, so it gets all modules.
            self.preloaded.want(|_| true);
            return &self.preloaded;
        };
        let sources = import_scan::sources(job);
        let names = |module: &str| sources.iter().any(|source| import_scan::names(source, module));
        if !self.config.preload.iter().any(|module| names(module)) {
            bare.want(|_| true);
            if self.needed == Needed::None {
                return bare; // the other pool would preload nothing
            }
            // This wait is short: the bare zygote imports next to nothing.
            let _ = bare.proved().await;
            if let Some(info) = bare.info()
                && sources.iter().all(|source| import_scan::is_standard(source, &info.standard))
            {
                return bare;
            }
        }
        self.preloaded.want(names);
        &self.preloaded
    }

    /// Waits for a turn and a worker, and runs `job`.
    ///
    /// # Errors
    /// Those of [`Executor::turn`] and [`Executor::run`].
    pub async fn execute(&self, job: &Job) -> Result<Execution, Failure> {
        let turn = self.turn(job, Waiting::InQueue).await?;
        self.run(turn, job).await
    }

    /// Waits until `job` may run.
    ///
    /// # Errors
    /// `busy` when the queue is full, or when it is not the turn of the job in time; `internal` when no worker can be
    /// started or the sandbox did not pass its self-test.
    pub async fn turn(&self, job: &Job, waiting: Waiting) -> Result<Turn, Failure> {
        let arrived = Instant::now();
        let ready_pool = async {
            self.check_contamination()?;
            let pool = self.pool_for(job).await;
            pool.proved().await?;
            Ok(pool)
        };
        let deadline = job.deadline.map(Deadline::from_std);
        let (pool, permit, latest) = self.admission.admit(ready_pool, deadline, waiting).await?;
        Ok(Turn { pool: Arc::clone(pool), permit, latest, arrived })
    }

    /// Waits for a worker and runs `job`, whose turn it is.
    ///
    /// # Errors
    /// `busy` when no worker is free in time; `internal` when no worker can be started.
    pub async fn run(&self, turn: Turn, job: &Job) -> Result<Execution, Failure> {
        let Turn { pool, permit, latest, arrived } = turn;
        let pool = &pool;
        let one_at_a_time = self.sandbox.one_at_a_time();
        let mut run_permit = Some(permit);
        // A worker that died before it read the request is replaced once. Not twice, since the request may be what
        // kills them.
        for is_last_try in [one_at_a_time, true] {
            // Dropped in every case, even when the client disconnects and this future is cancelled.
            let _refill = Refill { executor: self, pool };
            let worker = timeout_at(latest, async {
                let mut worker = pool.take().await?;
                // The permit is released with the response or, where workers are not separated, once the leftovers are
                // removed.
                let kept =
                    run_permit.take_if(|_| one_at_a_time).map(|permit| Box::new(permit) as Kept);
                worker.begin_use(kept).await;
                Ok(worker)
            });
            let worker = worker.await.map_err(|_| no_worker_in_time())??;
            self.check_contamination()?;
            let queue = arrived.elapsed();
            job.progress.begin_run(queue);
            let cpus = || self.cpus_for_each();
            let run = worker.run(job, &self.config, queue, is_last_try, &cpus);
            let Some((execution, process)) = run.await else { continue };
            if !one_at_a_time && !self.admission.has_waiters() {
                tokio::spawn(process.end_after(pool::RESPONSE_FIRST));
            }
            return Ok(execution);
        }
        Err(worker::lost())
    }

    /// Begins a request with several inputs. Until the value is dropped, workers are started for them at once.
    ///
    /// # Errors
    /// `busy` when too many of these requests have begun.
    pub fn begin_inputs(&self) -> Result<Unfinished<'_>, Failure> {
        self.admission.begin_inputs()
    }

    /// How many scripts can run at once.
    pub fn slots(&self) -> usize {
        self.admission.slots()
    }

    /// The CPUs that each running script may use now.
    fn cpus_for_each(&self) -> f64 {
        let share = self.cpus as f64 / self.admission.running().max(1) as f64;
        share.min(self.config.cpus_per_script as f64)
    }

    fn check_contamination(&self) -> Result<(), Failure> {
        match self.sandbox.is_contaminated() {
            true => Err(Failure::new(Kind::Internal, CONTAMINATED)),
            false => Ok(()),
        }
    }

    /// Whether scripts can run, whatever they import.
    pub fn health(&self) -> Health {
        if self.sandbox.is_contaminated() {
            return Health::Unhealthy(String::from(CONTAMINATED));
        }
        if self.pools().any(|pool| pool.is_failing()) {
            return Health::Unhealthy(String::from("workers cannot be started; the log says why"));
        }
        let proofs: Vec<Proof> = self.pools().map(|pool| pool.proof()).collect();
        if proofs.iter().any(|proof| matches!(proof, Proof::Broken(_))) {
            return Health::Unhealthy(String::from("the sandbox did not pass its self-test"));
        }
        if proofs.iter().any(|proof| matches!(proof, Proof::NotRun(_))) {
            let error = "the self-test of the sandbox does not run; the log says why";
            return Health::Unhealthy(String::from(error));
        }
        if proofs.iter().all(Proof::held) { Health::Healthy } else { Health::Starting }
    }

    /// Why only a restart of the process can make it work again; `None` if it works or can recover by itself.
    pub fn needs_restart(&self) -> Option<&'static str> {
        self.sandbox.is_contaminated().then_some(CONTAMINATED)
    }

    /// Waits until every self-test is over. Returns the findings of the first pool, or those of a pool that failed;
    /// `None` when workers cannot be started.
    pub async fn self_test_results(&self) -> Option<Arc<[Finding]>> {
        let mut reported: Arc<[Finding]> = Arc::new([]);
        for pool in self.pools() {
            let findings = pool.self_test_results().await?;
            if reported.is_empty() || findings.iter().any(|finding| !finding.held) {
                reported = findings;
            }
        }
        Some(reported)
    }

    /// Waits until it is clear that the start has failed, and returns the reason. Never returns once every kind of worker
    /// has started: from then on, `/health` reports problems.
    pub async fn never_starts(&self) -> String {
        match &self.bare {
            Some(bare) => tokio::select! {
                error = bare.never_starts() => error,
                error = self.preloaded.never_starts() => error,
            },
            None => self.preloaded.never_starts().await,
        }
    }

    /// Waits until the last request has left nothing: its worker is gone, its leftovers are removed and the next worker
    /// is ready. AWS Lambda may freeze the process after that, so nothing may be left to do.
    ///
    /// # Errors
    /// See [`Unsettled`]; then the process must not serve another request.
    pub async fn settle(&self) -> Result<(), Unsettled> {
        let settled = async {
            // Where workers are not separated, a request keeps its permit until its leftovers are removed.
            let permits = self.admission.all_permits().await;
            for pool in self.pools().filter(|pool| pool.info().is_some()) {
                pool.wait_for_spare().await;
            }
            drop(permits);
        };
        tokio::select! {
            biased;
            () = self.lost_zygote() => Err(Unsettled::ZygoteDied),
            settled = tokio::time::timeout(SETTLE_TIMEOUT, settled) => match settled {
                _ if self.sandbox.is_contaminated() => Err(Unsettled::Contaminated),
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

    /// Ends all spares and starts none until [`Executor::renew_spares`]. Called before a snapshot: environments restored
    /// from one snapshot must not share a worker.
    pub async fn retire_spares(&self) {
        for pool in self.pools() {
            pool.retire().await;
        }
    }

    /// Starts spares again and waits until one is ready.
    ///
    /// # Errors
    /// As [`Executor::settle`].
    pub async fn renew_spares(&self) -> Result<(), Unsettled> {
        self.pools().for_each(Pool::renew);
        self.settle().await
    }

    /// Waits until scripts can run, and returns what the preloaded zygote reported.
    ///
    /// # Errors
    /// `internal` when workers cannot be started or the self-test failed; `busy` while Python is started again.
    pub async fn ready_zygote(&self) -> Result<Arc<ZygoteInfo>, Failure> {
        self.preloaded.proved().await?;
        self.zygote().ok_or_else(|| Failure::new(Kind::Busy, "Python is being started again"))
    }

    /// What the preloaded zygote reported when it became ready.
    pub fn zygote(&self) -> Option<Arc<ZygoteInfo>> {
        self.preloaded.info()
    }

    /// The metrics, for counting executions.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The metrics, with all gauges updated.
    pub fn updated_metrics(&self) -> &Metrics {
        self.metrics.running.set(self.admission.running() as i64);
        self.metrics.waiting.set(self.admission.waiting() as i64);
        let new_lost = log::lost_lines().saturating_sub(self.metrics.log_lines_lost.get());
        self.metrics.log_lines_lost.inc_by(new_lost);
        self.pools().for_each(|pool| pool.update_metrics());
        &self.metrics
    }

    /// The sandbox in force.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn no_worker_in_time() -> Failure {
    Failure::new(Kind::Busy, "No worker was ready in time")
}

/// The right to run one script, and since when it was waited for.
pub struct Turn {
    pool: Arc<Pool>,
    permit: RunPermit,
    /// When a worker must be found.
    latest: Deadline,
    arrived: Instant,
}

impl Turn {
    /// How long the script has waited so far.
    pub fn waited(&self) -> Duration {
        self.arrived.elapsed()
    }
}

/// Refills the pool when it is dropped.
struct Refill<'a> {
    executor: &'a Executor,
    pool: &'a Arc<Pool>,
}

impl Drop for Refill<'_> {
    fn drop(&mut self) {
        self.pool.refill(self.executor.admission.has_waiters());
    }
}
