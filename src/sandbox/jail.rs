//! A jail: the resources that one worker has to itself and returns when it ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::OwnedSemaphorePermit;

use super::scratch::Scratch;
use super::sweep::{Before, Sweeper};
use super::uids::OwnUid;

/// The resources of one worker: its scratch directory, its Landlock ruleset and its uid. Dropping the jail removes the
/// worker's leftovers and returns the uid, so the jail must outlive the worker's process.
pub struct Jail {
    /// The worker's scratch directory.
    pub scratch: Scratch,
    /// The Landlock ruleset that the worker enters; `None` if the kernel does not offer Landlock.
    pub ruleset: Option<OwnedFd>,
    sweeper: Option<Sweeper>,
    before: Option<Before>,
    contamination: Contamination,
    // These fields must be the last, in this order: fields are dropped in the order of their declaration, and all
    // leftovers must be removed before another worker gets the uid or the run permit.
    uid: Option<OwnUid>,
    run_permit: Option<OwnedSemaphorePermit>,
}

impl Jail {
    /// Creates the jail of a worker that no script uses yet.
    pub(super) fn new(
        scratch: Scratch,
        ruleset: Option<OwnedFd>,
        uid: Option<OwnUid>,
        sweeper: Option<Sweeper>,
        contamination: Contamination,
    ) -> Jail {
        Jail { scratch, ruleset, sweeper, before: None, contamination, uid, run_permit: None }
    }

    /// The worker's own uid; `None` if workers run under the uid of the service.
    pub fn uid(&self) -> Option<u32> {
        self.uid.as_ref().map(OwnUid::number)
    }

    /// Prepares the jail for a script that is about to run in it: takes stock of the files that exist before. Keeps
    /// `run_permit`, if given, until the worker is gone and its leftovers are removed.
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
            tracing::error!(%error, "cannot remove the leftovers of a worker");
            self.contamination.0.store(true, Ordering::Release);
        }
    }
}

/// A flag, shared by all jails, that is set once the leftovers of some worker could not be removed. No script may run
/// after that, since it could read them.
#[derive(Clone, Default)]
pub(super) struct Contamination(Arc<AtomicBool>);

impl Contamination {
    /// Returns whether the leftovers of any worker could not be removed.
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
