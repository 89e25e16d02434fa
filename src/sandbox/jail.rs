//! A jail: the resources that one worker has to itself and returns when it ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::Pid;

use super::janitor::Bin;
use super::scratch::Scratch;
use super::standing::Standing;
use super::sweep::{Before, Sweeper};
use super::uids::OwnUid;

/// Something that a jail keeps until its worker is gone and its leftovers are removed, such as a run permit.
pub type Kept = Box<dyn Send + Sync>;

/// The resources of one worker: its scratch directory, its Landlock ruleset and its uid. Dropping the jail has the janitor
/// remove the worker's leftovers and then return the uid, so the jail must outlive the worker's process.
pub struct Jail {
    /// The worker's scratch directory.
    pub scratch: Scratch,
    /// The Landlock ruleset that the worker enters; `None` if the kernel does not offer Landlock.
    pub ruleset: Option<OwnedFd>,
    sweeper: Option<Sweeper>,
    before: Option<Before>,
    reaches_processes: bool,
    standing: Option<Standing>,
    contamination: Contamination,
    uid: Option<OwnUid>,
    kept: Option<Kept>,
    bin: Bin,
}

impl Jail {
    /// Creates the jail of a worker that no script uses yet. `reaches_processes` tells whether the worker can change the
    /// standing of other processes.
    pub(super) fn new(
        scratch: Scratch,
        ruleset: Option<OwnedFd>,
        uid: Option<OwnUid>,
        sweeper: Option<Sweeper>,
        reaches_processes: bool,
        contamination: Contamination,
        bin: Bin,
    ) -> Jail {
        let (before, standing, kept) = (None, None, None);
        Jail {
            scratch,
            ruleset,
            sweeper,
            before,
            reaches_processes,
            standing,
            contamination,
            uid,
            kept,
            bin,
        }
    }

    /// The worker's own uid; `None` if workers run under the uid of the service.
    pub fn uid(&self) -> Option<u32> {
        self.uid.as_ref().map(OwnUid::number)
    }

    /// Prepares the jail for a script that is about to run in it: takes stock of the files that exist before. Keeps
    /// `kept`, if given, until the worker is gone and its leftovers are removed.
    ///
    /// `processes` are those of the service that outlive the worker.
    pub async fn begin_use(&mut self, kept: Option<Kept>, processes: &[Pid]) {
        self.kept = kept;
        self.standing = self.reaches_processes.then(|| Standing::of(processes));
        let Some(sweeper) = self.sweeper.clone() else { return };
        let uid = self.uid();
        // On another thread, since scripts decide how many files there are.
        match tokio::task::spawn_blocking(move || sweeper.look(uid)).await {
            Ok(before) => self.before = Some(before),
            // Without the stock, leftovers could not be told from other files.
            Err(_) => self.contamination.set(),
        }
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        self.bin.throw(Leftovers {
            scratch: std::mem::replace(&mut self.scratch, Scratch::Nowhere),
            sweeper: self.sweeper.take(),
            before: self.before.take(),
            standing: self.standing.take(),
            contamination: self.contamination.clone(),
            _uid: self.uid.take(),
            _kept: self.kept.take(),
        });
    }
}

/// What remains of a jail when its worker is gone.
pub(super) struct Leftovers {
    scratch: Scratch,
    sweeper: Option<Sweeper>,
    before: Option<Before>,
    standing: Option<Standing>,
    contamination: Contamination,
    // These fields must be the last, in this order: fields are dropped in the order of their declaration, and all
    // leftovers must be removed before another worker gets the uid or what is kept.
    _uid: Option<OwnUid>,
    _kept: Option<Kept>,
}

impl Leftovers {
    /// Removes everything that the worker left. This can take seconds.
    pub(super) fn remove(self) {
        // A panic here must not let the next script run. The guard is dropped before the uid and the permit.
        let _guard = ContaminateOnPanic(&self.contamination);
        let swept = match (&self.sweeper, &self.before) {
            (Some(sweeper), Some(before)) => sweeper.sweep(before),
            _ => Ok(()),
        };
        if let Err(error) = self.scratch.remove().and(swept) {
            tracing::error!(%error, "cannot remove the leftovers of a worker");
            self.contamination.set();
        }
        if self.standing.is_some_and(|standing| standing.has_changed()) {
            tracing::error!("a script changed the limits or the priority of the service");
            self.contamination.set();
        }
    }
}

/// Sets the flag if it is dropped by a panic.
struct ContaminateOnPanic<'a>(&'a Contamination);

impl Drop for ContaminateOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set();
        }
    }
}

/// A flag, shared by all jails, that is set once the leftovers of some worker could not be removed. No script may run
/// after that, since it could read them.
#[derive(Clone, Default)]
pub(super) struct Contamination(Arc<AtomicBool>);

impl Contamination {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns whether the leftovers of any worker could not be removed.
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
