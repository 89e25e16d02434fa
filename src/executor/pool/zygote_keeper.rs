//! Keeps the zygote of a pool: starts it within a time limit, proves the sandbox of its workers, and replaces it when it
//! dies.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Current, FAILURES_IN_A_ROW, Pool, RETRY_INTERVAL};
use crate::executor::essential::spawn_essential;
use crate::executor::protocol::ZygoteInfo;
use crate::executor::self_test::{self, Finding, Proof};
use crate::executor::zygote::{Zygote, ZygoteError, ZygoteState};
use crate::python::interpreter::Python;

/// The interval of warnings while a zygote starts.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// The number of self-tests in a row that do not run before the service is unhealthy. It keeps trying.
const SELF_TESTS_IN_A_ROW: u32 = 3;
/// The longest pause between two of them.
const MAX_SELF_TEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a zygote is not ready.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// Its process could not be started.
    #[error("cannot start a zygote: {0}")]
    Spawn(#[from] ZygoteError),
    /// It died.
    #[error("the zygote died before it was ready")]
    Died,
    /// It took too long.
    #[error("{doing} took longer than MAINBOX_START_SECONDS, which is {seconds}")]
    Late {
        /// What it was doing.
        doing: String,
        /// The limit.
        seconds: u64,
    },
}

impl Pool {
    /// Keeps a zygote running for as long as the process lives, once it is [wanted](Pool::want).
    pub(in crate::executor) async fn keep_zygote(self: Arc<Self>, python: Python) {
        let mut wanted = self.wanted.subscribe();
        let preload = match wanted.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(preload)) => preload.clone(),
            // The pool lives as long as this runs.
            _ => return,
        };
        loop {
            match Zygote::start(&python, &preload, &self.config, &self.sandbox) {
                Ok(zygote) => self.use_zygote(Arc::new(zygote)).await,
                Err(_) if self.scratch_was_gone() => {}
                Err(error) => self.count_failure(StartError::from(error).to_string(), 1),
            }
            self.metrics.zygote_restarts.get_or_create(&self.label()).inc();
            tokio::time::sleep(RETRY_INTERVAL * self.failures_counted()).await;
        }
    }

    /// Starts spares from `zygote` once it is ready, and proves their sandbox. Returns when the zygote is dead.
    pub(super) async fn use_zygote(self: &Arc<Self>, zygote: Arc<Zygote>) {
        let scratch_generation = self.sandbox.scratch_generation();
        let info = match self.ready(&zygote).await {
            Ok(info) => info,
            Err(error @ StartError::Late { .. }) => {
                zygote.kill();
                // Another attempt would take as long.
                self.count_failure(error.to_string(), FAILURES_IN_A_ROW);
                return zygote.gone().await;
            }
            Err(error) => return self.count_failure(error.to_string(), 1),
        };
        self.warn_about(&info);
        self.forked_once.store(false, Ordering::Release);
        let current = Current { zygote: Arc::clone(&zygote), info, scratch_generation };
        self.current.send_replace(Some(current.clone()));
        // The self-test waits for the first worker.
        self.refill(true);
        if !self.sandbox.one_at_a_time() {
            spawn_essential(Arc::clone(self).replace_spares(current));
        }
        tokio::select! {
            () = zygote.gone() => {}
            () = self.prove() => zygote.gone().await,
        }
        // The next zygote is proved anew, and has its own spares.
        self.set_proof(Proof::Pending);
        self.current.send_replace(None);
        self.spares().clear();
        let error = "the zygote died";
        if self.forked_once.load(Ordering::Acquire) {
            tracing::error!("{error}");
        } else {
            self.count_failure(String::from(error), 1);
        }
        self.lost.send_modify(|lost| *lost += 1);
    }

    /// Waits until `zygote` is ready. Warns at intervals, naming the module that is being imported.
    async fn ready(&self, zygote: &Zygote) -> Result<Arc<ZygoteInfo>, StartError> {
        let began = Instant::now();
        let end = began + self.config.start_timeout;
        let mut next_warning = began + WARNING_INTERVAL;
        let mut state = zygote.state();
        loop {
            let module = match &*state.borrow_and_update() {
                ZygoteState::Ready(info) => return Ok(Arc::clone(info)),
                ZygoteState::Gone => return Err(StartError::Died),
                ZygoteState::Starting(module) => module.clone(),
            };
            if timeout_at(next_warning.min(end), state.changed()).await.is_ok() {
                continue;
            }
            if Instant::now() >= end {
                let doing = module.map_or_else(
                    || String::from("the start of the interpreter"),
                    |module| format!("the import of {module}"),
                );
                return Err(StartError::Late {
                    doing,
                    seconds: self.config.start_timeout.as_secs(),
                });
            }
            let seconds = began.elapsed().as_secs();
            tracing::warn!(module, seconds, "the interpreter is still importing");
            next_warning += WARNING_INTERVAL;
        }
    }

    /// Returns whether a worker of `current` did not start since something had removed the scratch root. A zygote with a
    /// private root keeps the old directories, so it is replaced.
    pub(super) fn is_excused(&self, current: &Current) -> bool {
        let was_gone = self.scratch_was_gone();
        let keeps_old = self.sandbox.plan().mounts.is_some()
            && current.scratch_generation != self.sandbox.scratch_generation();
        if keeps_old {
            current.zygote.kill();
        }
        was_gone || keeps_old
    }

    /// Returns whether something had removed the scratch root. It is there again now.
    fn scratch_was_gone(&self) -> bool {
        match self.sandbox.repair_scratch() {
            Ok(true) => {
                tracing::warn!("the scratch root was gone; it was made anew");
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(%error, "the scratch root is gone and cannot be made anew");
                false
            }
        }
    }

    fn warn_about(&self, info: &ZygoteInfo) {
        for (module, error) in &info.missing {
            tracing::warn!(
                module,
                error,
                "cannot import a module of MAINBOX_PRELOAD; serving without it"
            );
        }
        for module in &info.threaded {
            let hint = "a worker forked meanwhile can wait for a lock forever";
            tracing::warn!(module, hint, "a module of MAINBOX_PRELOAD left threads running");
        }
    }

    /// Runs the self-test until it has run once.
    async fn prove(self: &Arc<Self>) {
        for attempt in 1.. {
            match self.run_self_test().await {
                Ok(findings) => {
                    for finding in findings.iter().filter(|finding| !finding.held) {
                        let (promise, answer) = (finding.promise, &finding.answer);
                        tracing::error!(promise, answer, "self-test failed");
                    }
                    return self.set_proof(Proof::of(findings));
                }
                Err(error) => {
                    tracing::warn!(error, attempt, "the self-test did not run; trying again");
                    if attempt >= SELF_TESTS_IN_A_ROW {
                        self.set_proof(Proof::not_run(&error));
                    }
                }
            }
            tokio::time::sleep((RETRY_INTERVAL * attempt).min(MAX_SELF_TEST_PAUSE)).await;
        }
    }

    /// Replaces what is known about the sandbox. One that allowed something stays broken, whatever follows.
    pub(super) fn set_proof(&self, new: Proof) {
        self.proof.send_if_modified(|proof| {
            let is_final = matches!(proof, Proof::Broken(_));
            if !is_final {
                *proof = new;
            }
            !is_final
        });
    }

    /// Runs the self-test in a worker. The error says why it did not run.
    async fn run_self_test(self: &Arc<Self>) -> Result<Vec<Finding>, String> {
        let mut worker = loop {
            match self.next_worker().await {
                Some(worker) => break worker,
                // The service is unhealthy until one can be started.
                None => tokio::time::sleep(RETRY_INTERVAL).await,
            }
        };
        worker.begin_use(None).await;
        let job = self_test::job(&self.config);
        let run = worker.run(&job, &self.config, Duration::ZERO, false, &|| 1.0).await;
        self.refill(false);
        let (execution, _process) = run.ok_or("the worker died")?;
        self_test::findings(&execution, &self.sandbox)
    }
}
