//! A pool: spare workers forked ahead of time, and the zygote they come from (`pool/zygote_keeper.rs`).

mod zygote_keeper;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::essential::spawn_essential;
use super::protocol::ZygoteInfo;
use super::self_test::{Finding, Proof};
use super::worker::Worker;
use super::worker_start::StartError;
use super::zygote::Zygote;
use crate::api::catalogue::{Failure, Kind};
use crate::config::Config;
use crate::sandbox::Sandbox;
use crate::telemetry::prometheus::{self, Metrics};

/// The number of consecutive failed worker starts after which the service is unhealthy.
const FAILURES_IN_A_ROW: u32 = 3;
/// The delay before a dead zygote is replaced and before a failed worker start is retried. It is multiplied by the
/// number of consecutive failures.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The number of consecutive failures beyond which the delay stops growing.
const MAX_COUNTED_FAILURES: u32 = 50;

/// How long the end of a worker and the fork of the next one are delayed after a response if no request waits. Each
/// keeps the kernel busy for a millisecond, and with few CPUs the response would reach the client only after that.
pub(super) const RESPONSE_FIRST: Duration = Duration::from_millis(1);

/// Spare workers and their zygote.
pub(super) struct Pool {
    config: Arc<Config>,
    sandbox: Arc<Sandbox>,
    metrics: Arc<Metrics>,
    preload: Vec<String>,
    /// The number of spares under load.
    max_spares: usize,
    /// When a worker was last taken. After `MAINBOX_REST_SECONDS` without requests, one spare is enough.
    last_taken: Mutex<Instant>,
    /// What is known about the sandbox of the workers of the current zygote.
    proof: watch::Sender<Proof>,
    spares: Mutex<VecDeque<Worker>>,
    starting: AtomicUsize,
    changed: Notify,
    next_worker: AtomicU64,
    /// Whether a worker of the current zygote has been ready.
    forked_once: AtomicBool,
    /// The number of consecutive failures to start a zygote or a worker.
    failures: watch::Sender<u32>,
    /// The reason for the last one.
    last_error: Mutex<String>,
    /// The number of zygotes that died after they had been ready.
    lost: watch::Sender<u32>,
    /// Whether no spare may be started.
    retired: AtomicBool,
    /// What a zygote must import of `preload`; `None` until one is needed.
    wanted: watch::Sender<Option<Vec<String>>>,
    current: watch::Sender<Option<Current>>,
}

/// The current zygote.
#[derive(Clone)]
struct Current {
    zygote: Arc<Zygote>,
    info: Arc<ZygoteInfo>,
    /// The scratch root that it started with.
    scratch_generation: u64,
}

impl Pool {
    /// A pool of at most `max_spares` spares that have imported `preload`.
    pub(super) fn new(
        config: Arc<Config>,
        sandbox: Arc<Sandbox>,
        metrics: Arc<Metrics>,
        preload: Vec<String>,
        max_spares: usize,
    ) -> Arc<Pool> {
        Arc::new(Pool {
            config,
            sandbox,
            metrics,
            preload,
            max_spares,
            last_taken: Mutex::new(Instant::now()),
            proof: watch::Sender::default(),
            spares: Mutex::default(),
            starting: AtomicUsize::new(0),
            changed: Notify::new(),
            next_worker: AtomicU64::new(0),
            forked_once: AtomicBool::new(false),
            failures: watch::Sender::new(0),
            last_error: Mutex::default(),
            lost: watch::Sender::new(0),
            retired: AtomicBool::new(false),
            wanted: watch::Sender::new(None),
            current: watch::Sender::new(None),
        })
    }

    /// Starts the zygote unless it has been started. It imports those modules of the preload for which `is_needed` is true.
    pub(super) fn want(&self, is_needed: impl Fn(&str) -> bool) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted.is_none();
            wanted.get_or_insert_with(|| {
                self.preload.iter().filter(|module| is_needed(module)).cloned().collect()
            });
            is_new
        });
    }

    /// What is known about the sandbox of the workers of the current zygote.
    pub(super) fn proof(&self) -> Proof {
        self.proof.borrow().clone()
    }

    /// Waits until the self-test of the current zygote is over. Returns `None` when workers cannot be started.
    pub(super) async fn self_test_results(&self) -> Option<Arc<[Finding]>> {
        let mut proof = self.proof.subscribe();
        tokio::select! {
            biased;
            proof = proof.wait_for(|proof| proof.findings().is_some()) => proof.ok()?.findings(),
            () = self.failing() => None,
        }
    }

    /// Waits until the sandbox of the workers is proved.
    ///
    /// # Errors
    /// `internal` when the self-test failed or does not run, and when workers cannot be started.
    pub(super) async fn proved(&self) -> Result<(), Failure> {
        self.self_test_results().await.ok_or_else(cannot_start)?;
        match self.proof() {
            Proof::Held(_) => Ok(()),
            Proof::Broken(_) => {
                Err(Failure::new(Kind::Internal, "The sandbox did not pass its self-test"))
            }
            Proof::Pending | Proof::NotRun(_) => {
                Err(Failure::new(Kind::Internal, "The self-test of the sandbox does not run"))
            }
        }
    }

    /// Waits until the sandbox of the workers is to be proved again, since their zygote died.
    async fn unproved(&self) {
        let mut proof = self.proof.subscribe();
        // Fails only if the sender is dropped, and the pool owns it.
        let _ = proof.wait_for(|proof| !proof.held()).await;
    }

    /// What the current zygote reported when it became ready.
    pub(super) fn info(&self) -> Option<Arc<ZygoteInfo>> {
        self.current.borrow().as_ref().map(|current| Arc::clone(&current.info))
    }

    /// Returns whether workers cannot be started.
    pub(super) fn is_failing(&self) -> bool {
        *self.failures.borrow() >= FAILURES_IN_A_ROW
    }

    /// Waits until it is clear that no worker of the first zygote can be started, and returns the reason. Never returns
    /// once one has run the self-test.
    pub(super) async fn never_starts(&self) -> String {
        if self.self_test_results().await.is_some() {
            std::future::pending::<()>().await;
        }
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until workers cannot be started.
    pub(super) async fn failing(&self) {
        let mut failures = self.failures.subscribe();
        // Fails only if the sender is dropped, and the pool owns it.
        let _ = failures.wait_for(|failures| *failures >= FAILURES_IN_A_ROW).await;
    }

    /// Waits until a zygote has died after it had been ready. Returns at once if that happened before.
    pub(super) async fn lost_zygote(&self) {
        let mut lost = self.lost.subscribe();
        // Fails only if the sender is dropped, and the pool owns it.
        let _ = lost.wait_for(|lost| *lost > 0).await;
    }

    /// Ends all spares and starts none until [`Pool::renew`].
    pub(super) async fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        loop {
            let changed = self.changed.notified();
            let spare = self.spares().pop_front();
            match spare {
                Some(worker) => worker.end().await,
                None if self.starting.load(Ordering::Acquire) == 0 => return,
                None => changed.await,
            }
        }
    }

    /// Starts spares again.
    pub(super) fn renew(self: &Arc<Self>) {
        self.retired.store(false, Ordering::Release);
        self.refill(false);
    }

    /// Waits until a spare is ready.
    pub(super) async fn wait_for_spare(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.spares().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Updates the gauges of this pool.
    pub(super) fn update_metrics(&self) {
        let spares = self.spares().len() as i64;
        self.metrics.spares.get_or_create(&self.label()).set(spares);
        // Reported as 0 from the start, so that Prometheus sees the first restart as an increase.
        let _ = self.metrics.zygote_restarts.get_or_create(&self.label());
    }

    fn label(&self) -> prometheus::Zygote {
        prometheus::Zygote { zygote: if self.preload.is_empty() { "bare" } else { "preloaded" } }
    }

    /// Logs and counts a failure to start a zygote or a worker, `count` times if it is not worth another attempt.
    fn count_failure(&self, error: String, count: u32) {
        tracing::error!("{error}");
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        self.failures.send_modify(|failures| *failures += count);
    }

    fn failures_counted(&self) -> u32 {
        self.failures.borrow().clamp(1, MAX_COUNTED_FAILURES)
    }

    /// Ends all spares but one whenever there has been no request for a while. Never returns.
    pub(super) async fn shrink_when_idle(self: Arc<Self>) {
        loop {
            let left = self.config.idle_after.saturating_sub(self.unused_for());
            if !left.is_zero() {
                tokio::time::sleep(left).await;
                continue;
            }
            self.spares().truncate(1);
            tokio::time::sleep(self.config.idle_after).await;
        }
    }

    fn unused_for(&self) -> Duration {
        self.last_taken.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// The number of spares to keep now.
    fn wanted_spares(&self) -> usize {
        if self.unused_for() < self.config.idle_after { self.max_spares } else { 1 }
    }

    /// Takes a worker for a request, or waits for one. The sandbox of the worker is proved.
    ///
    /// # Errors
    /// As for [`Pool::proved`].
    pub(super) async fn take(self: &Arc<Self>) -> Result<Worker, Failure> {
        *self.last_taken.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        loop {
            self.proved().await?;
            tokio::select! {
                biased;
                () = self.unproved() => {}
                worker = self.next_worker() => return worker.ok_or_else(cannot_start),
            }
        }
    }

    /// Takes a spare, or waits for one, whether the sandbox is proved or not. Returns `None` when workers cannot be
    /// started.
    async fn next_worker(self: &Arc<Self>) -> Option<Worker> {
        loop {
            let changed = self.changed.notified();
            let spare = self.spares().pop_front();
            match spare {
                Some(worker) if worker.is_usable() => return Some(worker),
                Some(_) => {}
                None if self.is_failing() => return None,
                None => {
                    self.refill(true);
                    tokio::select! {
                        () = changed => {}
                        () = self.failing() => {}
                    }
                }
            }
        }
    }

    /// Starts the missing spares. If a request is waiting (`has_waiters`), they start at once and without a warm-up:
    /// the warm-up makes a later request faster, but would delay a request that is already waiting by more than it
    /// saves.
    pub(super) fn refill(self: &Arc<Self>, has_waiters: bool) {
        if self.retired.load(Ordering::Acquire) {
            return;
        }
        let Some(current) = self.current.borrow().clone() else { return };
        let ready_or_starting = self.spares().len() + self.starting.load(Ordering::Relaxed);
        for _ in ready_or_starting..self.wanted_spares() {
            self.starting.fetch_add(1, Ordering::Relaxed);
            spawn_essential(Arc::clone(self).start_spare(current.clone(), has_waiters));
        }
    }

    /// Replaces every spare by a new one, one after the other, once the zygote has moved its memory. Older ones keep a copy
    /// of what newer ones share. Runs to its end, since a start that is cancelled would still be counted.
    async fn replace_spares(self: Arc<Self>, current: Current) {
        tokio::select! {
            () = current.zygote.gone() => return,
            () = current.zygote.has_moved() => {}
        }
        let first = self.next_worker.load(Ordering::Relaxed);
        let is_old = |spare: &Worker| spare.number() < first;
        while self.spares().iter().any(is_old)
            && !current.zygote.is_gone()
            && !self.retired.load(Ordering::Acquire)
        {
            self.starting.fetch_add(1, Ordering::Relaxed);
            Arc::clone(&self).start_spare(current.clone(), false).await;
            let mut spares = self.spares();
            // The new one is not there if it could not be started, or has been taken.
            if spares.back().is_some_and(|spare| !is_old(spare))
                && let Some(index) = spares.iter().position(is_old)
            {
                spares.remove(index);
            }
        }
        let most = self.wanted_spares();
        self.spares().truncate(most);
        tracing::debug!("the spares share the moved memory");
        self.refill(false);
    }

    async fn start_spare(self: Arc<Self>, current: Current, has_waiters: bool) {
        if !has_waiters {
            tokio::time::sleep(RESPONSE_FIRST).await;
        }
        let worker = self.next_worker.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let started =
            Worker::start(worker, &current.zygote, &self.sandbox, &self.config, !has_waiters).await;
        match started {
            Ok(ready) => {
                tracing::debug!(worker, took = ?began.elapsed(), "a worker is ready");
                self.failures.send_replace(0);
                self.forked_once.store(true, Ordering::Release);
                self.spares().push_back(ready);
                self.starting.fetch_sub(1, Ordering::Relaxed);
                self.changed.notify_waiters();
            }
            Err(error) => {
                if matches!(error, StartError::Lockdown(..) | StartError::NotReady(_)) {
                    self.metrics.lockdown_failures.inc();
                }
                // The death of the zygote is counted once, by its keeper.
                if !matches!(error, StartError::ZygoteGone) && !self.is_excused(&current) {
                    self.count_failure(format!("cannot start worker {worker}: {error}"), 1);
                    self.changed.notify_waiters();
                    tokio::time::sleep(RETRY_INTERVAL * self.failures_counted()).await;
                }
                self.starting.fetch_sub(1, Ordering::Relaxed);
                self.changed.notify_waiters();
                self.refill(false);
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, VecDeque<Worker>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cannot_start() -> Failure {
    Failure::new(Kind::Internal, "Workers cannot be started; the log of the service says why")
}

#[cfg(test)]
mod tests;
