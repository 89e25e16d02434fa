//! The pool: spares forked ahead, and the zygote that they come from.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::protocol::ZygoteInfo;
use super::selftest::Finding;
use super::worker::{StartError, Worker};
use super::zygote::{Life, Zygote};
use crate::config::Config;
use crate::metrics::{self, Metrics};
use crate::python::Python;
use crate::sandbox::Sandbox;

/// After so many workers in a row that could not be started, the service is not healthy.
const FAILURES_IN_A_ROW: u32 = 3;
/// Between the death of a zygote and the next one, and between workers that could not be started; longer with every
/// failure in a row.
const RETRY: Duration = Duration::from_millis(100);
/// Failures in a row beyond which the time between tries grows no more.
const MOST_RETRIES_COUNTED: u32 = 50;

/// How long the kernel is left alone after an answer, when nobody waits: the end of a worker and the fork of the next
/// take it a millisecond each, and on few CPUs the client would learn of its answer only after that.
pub(super) const ANSWER_FIRST: Duration = Duration::from_millis(1);

/// Spares and their zygote.
pub(super) struct Pool {
    config: Arc<Config>,
    sandbox: Arc<Sandbox>,
    metrics: Arc<Metrics>,
    preload: Vec<String>,
    /// How many spares there are to be under load.
    most: usize,
    /// When one was last asked for: long after that, one is enough.
    last_taken: Mutex<Instant>,
    /// The findings of the self-test in one of its workers, once it is over.
    proved: watch::Sender<Option<Arc<[Finding]>>>,
    spares: Mutex<VecDeque<Worker>>,
    starting: AtomicUsize,
    changed: Notify,
    next_worker: AtomicU64,
    /// Whether a worker of the zygote of the moment has been ready.
    forked_once: AtomicBool,
    failures: watch::Sender<u32>,
    /// Zygotes that died after they had been ready.
    lost: watch::Sender<u32>,
    /// Whether no spare may be forked.
    retired: AtomicBool,
    current: watch::Sender<Option<Current>>,
}

/// The zygote of the moment.
#[derive(Clone)]
struct Current {
    zygote: Arc<Zygote>,
    info: Arc<ZygoteInfo>,
}

impl Pool {
    /// Of workers that have imported `preload`, `most` at a time.
    pub(super) fn new(
        config: Arc<Config>,
        sandbox: Arc<Sandbox>,
        metrics: Arc<Metrics>,
        preload: Vec<String>,
        most: usize,
    ) -> Arc<Pool> {
        Arc::new(Pool {
            config,
            sandbox,
            metrics,
            preload,
            most,
            last_taken: Mutex::new(Instant::now()),
            proved: watch::Sender::new(None),
            spares: Mutex::default(),
            starting: AtomicUsize::new(0),
            changed: Notify::new(),
            next_worker: AtomicU64::new(0),
            forked_once: AtomicBool::new(false),
            failures: watch::Sender::new(0),
            lost: watch::Sender::new(0),
            retired: AtomicBool::new(false),
            current: watch::Sender::new(None),
        })
    }

    /// Keeps a zygote alive for as long as the process lives.
    pub(super) async fn keep_zygote(self: Arc<Self>, python: Python) {
        loop {
            self.live_with_zygote(&python).await;
            self.current.send_replace(None);
            self.spares().clear();
            self.metrics.zygote_restarts.get_or_create(&self.label()).inc();
            tokio::time::sleep(RETRY * self.failures_counted()).await;
        }
    }

    /// Returns when the zygote is dead.
    async fn live_with_zygote(self: &Arc<Self>, python: &Python) {
        let started =
            Zygote::start(python, &self.preload, self.config.archive.as_deref(), &self.sandbox);
        let zygote = match started {
            Ok(zygote) => Arc::new(zygote),
            Err(error) => {
                tracing::error!(%error, "no zygote");
                self.count_failure();
                return;
            }
        };
        let mut life = zygote.life();
        let known = life.wait_for(|life| !matches!(life, Life::Starting)).await;
        let Ok(Life::Ready(info)) = known.map(|life| life.clone()) else {
            tracing::error!("the zygote died before it was ready");
            self.count_failure();
            return;
        };
        for (module, error) in &info.missing {
            tracing::warn!(
                module,
                error,
                "a preload module could not be imported; serving without it"
            );
        }
        self.forked_once.store(false, Ordering::Release);
        self.current.send_replace(Some(Current { zygote, info }));
        // The self-test waits for the first of them.
        self.refill(true);
        let _ = life.wait_for(|life| matches!(life, Life::Gone)).await;
        if !self.forked_once.load(Ordering::Acquire) {
            self.count_failure();
        }
        self.lost.send_modify(|lost| *lost += 1);
        tracing::error!("the zygote died");
    }

    /// Keeps the findings of the self-test.
    pub(super) fn prove(&self, findings: Vec<Finding>) {
        self.proved.send_replace(Some(findings.into()));
    }

    /// The findings of the self-test, if it is over.
    pub(super) fn proof(&self) -> Option<Arc<[Finding]>> {
        self.proved.borrow().clone()
    }

    /// Waits until the self-test is over; `None` when workers turn out not to start.
    pub(super) async fn findings(&self) -> Option<Arc<[Finding]>> {
        let mut proved = self.proved.subscribe();
        tokio::select! {
            biased;
            findings = proved.wait_for(Option::is_some) => {
                findings.ok().and_then(|findings| findings.clone())
            }
            () = self.failing() => None,
        }
    }

    /// What the zygote said of itself, once there is one.
    pub(super) fn info(&self) -> Option<Arc<ZygoteInfo>> {
        self.current.borrow().as_ref().map(|current| Arc::clone(&current.info))
    }

    /// Whether workers cannot be started at all.
    pub(super) fn is_failing(&self) -> bool {
        *self.failures.borrow() >= FAILURES_IN_A_ROW
    }

    /// Waits until workers cannot be started at all.
    pub(super) async fn failing(&self) {
        let mut failures = self.failures.subscribe();
        // Fails only when the sender is gone, which is ours.
        let _ = failures.wait_for(|failures| *failures >= FAILURES_IN_A_ROW).await;
    }

    /// Waits until a zygote has died that had been ready, now or ever before.
    pub(super) async fn lost_zygote(&self) {
        let mut lost = self.lost.subscribe();
        // Fails only when the sender is gone, which is ours.
        let _ = lost.wait_for(|lost| *lost > 0).await;
    }

    /// Ends all spares and forks none until [`Pool::renew`].
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

    /// Forks spares again.
    pub(super) fn renew(self: &Arc<Self>) {
        self.retired.store(false, Ordering::Release);
        self.refill(false);
    }

    /// Waits until there is a spare.
    pub(super) async fn spare(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.spares().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Tells how many spares there are.
    pub(super) fn count_spares(&self) {
        let spares = self.spares().len() as i64;
        self.metrics.spares.get_or_create(&self.label()).set(spares);
        // Told from the beginning, so that the first restart is a change.
        let _ = self.metrics.zygote_restarts.get_or_create(&self.label());
    }

    fn label(&self) -> metrics::Zygote {
        metrics::Zygote { zygote: if self.preload.is_empty() { "bare" } else { "preloaded" } }
    }

    fn count_failure(&self) {
        self.failures.send_modify(|failures| *failures += 1);
    }

    fn failures_counted(&self) -> u32 {
        self.failures.borrow().clamp(1, MOST_RETRIES_COUNTED)
    }

    /// Ends the spares that a burst wanted, once there has been no request for a while. Never returns.
    pub(super) async fn rest(self: Arc<Self>) {
        loop {
            let left = self.config.rest.saturating_sub(self.unused_for());
            if !left.is_zero() {
                tokio::time::sleep(left).await;
                continue;
            }
            self.spares().truncate(1);
            tokio::time::sleep(self.config.rest).await;
        }
    }

    fn unused_for(&self) -> Duration {
        self.last_taken.lock().expect("BUG: no code panics under this lock").elapsed()
    }

    /// How many spares there are to be now.
    fn wanted(&self) -> usize {
        if self.unused_for() < self.config.rest { self.most } else { 1 }
    }

    /// Takes a spare, or waits for one; `None` when workers cannot be started.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Worker> {
        *self.last_taken.lock().expect("BUG: no code panics under this lock") = Instant::now();
        loop {
            let changed = self.changed.notified();
            let spare = self.spares().pop_front();
            match spare {
                Some(worker) if worker.is_alive() => return Some(worker),
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

    /// Starts as many workers as are missing: at once, if `somebody_waits`, and without a rehearsal. That makes requests
    /// faster that come later; one that waits already would wait for it too, and gain less by it.
    pub(super) fn refill(self: &Arc<Self>, somebody_waits: bool) {
        if self.retired.load(Ordering::Acquire) {
            return;
        }
        let Some(current) = self.current.borrow().clone() else { return };
        let there = self.spares().len() + self.starting.load(Ordering::Relaxed);
        for _ in there..self.wanted() {
            self.starting.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(Arc::clone(self).start_spare(current.clone(), somebody_waits));
        }
    }

    async fn start_spare(self: Arc<Self>, current: Current, somebody_waits: bool) {
        if !somebody_waits {
            tokio::time::sleep(ANSWER_FIRST).await;
        }
        let worker = self.next_worker.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let started =
            Worker::start(worker, &current.zygote, &self.sandbox, &self.config, !somebody_waits)
                .await;
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
                if matches!(error, StartError::Lockdown(_)) {
                    self.metrics.lockdown_failures.inc();
                }
                // A zygote that dies is counted by itself, once.
                if !matches!(error, StartError::ZygoteGone) {
                    self.count_failure();
                    self.changed.notify_waiters();
                    tracing::error!(%error, worker, "a worker could not be started");
                    tokio::time::sleep(RETRY * self.failures_counted()).await;
                }
                self.starting.fetch_sub(1, Ordering::Relaxed);
                self.changed.notify_waiters();
                self.refill(false);
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, VecDeque<Worker>> {
        self.spares.lock().expect("BUG: no code panics under this lock")
    }
}
