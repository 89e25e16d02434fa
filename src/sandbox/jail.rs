//! What one worker gets for itself, and gives back.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::OwnedSemaphorePermit;

use super::policy;
use super::scratch::Scratch;
use super::sweep::{Before, Sweeper};

/// What one worker gets for itself. Dropping it gives it back, so it must outlive the worker's process.
pub struct Jail {
    /// Its working directory.
    pub scratch: Scratch,
    /// The Landlock ruleset that it enters, where the kernel has Landlock.
    pub ruleset: Option<OwnedFd>,
    sweeper: Option<Sweeper>,
    before: Option<Before>,
    contamination: Contamination,
    // Last, in this order: nobody else gets the uid or the turn before all traces are gone.
    uid: Option<OwnUid>,
    run_permit: Option<OwnedSemaphorePermit>,
}

impl Jail {
    pub(super) fn new(
        scratch: Scratch,
        ruleset: Option<OwnedFd>,
        uid: Option<OwnUid>,
        sweeper: Option<Sweeper>,
        contamination: Contamination,
    ) -> Jail {
        Jail { scratch, ruleset, sweeper, before: None, contamination, uid, run_permit: None }
    }

    /// Its uid, where it has one of its own.
    pub fn uid(&self) -> Option<u32> {
        self.uid.as_ref().map(OwnUid::number)
    }

    /// A script is about to run in it. The jail keeps `turn`, if it is given one, until the worker has left no trace.
    pub fn begin_use(&mut self, run_permit: Option<OwnedSemaphorePermit>) {
        self.before = self.sweeper.as_ref().map(|sweeper| sweeper.look(self.uid()));
        self.run_permit = run_permit;
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let swept = match (&self.sweeper, &self.before) {
            (Some(sweeper), Some(before)) => sweeper.sweep(before),
            _ => Ok(()),
        };
        if let Err(error) = self.scratch.remove().and(swept) {
            tracing::error!(%error, "what a worker left could not be removed");
            self.contamination.0.store(true, Ordering::Release);
        }
    }
}

/// Whether some worker left a trace that could not be removed: then no other may run here.
#[derive(Clone, Default)]
pub(super) struct Contamination(Arc<AtomicBool>);

impl Contamination {
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The uids that no live worker has; the one that rested longest goes out first.
#[derive(Clone)]
pub(super) struct Uids(Arc<Mutex<VecDeque<u32>>>);

impl Uids {
    pub(super) fn new() -> Uids {
        Uids(Arc::new(Mutex::new(policy::WORKER_UIDS.collect())))
    }

    /// A uid that nobody else has, for as long as it is kept.
    pub(super) fn take(&self) -> Option<OwnUid> {
        let uid = self.free().pop_front()?;
        Some(OwnUid { uid, uids: self.clone() })
    }

    fn free(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.0.lock().expect("BUG: no code panics under this lock")
    }
}

/// A uid of a worker's own. Dropping it gives it back.
pub(super) struct OwnUid {
    uid: u32,
    uids: Uids,
}

impl OwnUid {
    pub(super) fn number(&self) -> u32 {
        self.uid
    }
}

impl Drop for OwnUid {
    fn drop(&mut self) {
        self.uids.free().push_back(self.uid);
    }
}
