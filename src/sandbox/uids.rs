//! The pool of uids that workers run under, one for each live worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::policy;

/// The uids that no live worker has. Uids are handed out in the order in which they were returned, so that each rests
/// as long as possible before another worker gets it.
#[derive(Clone)]
pub(super) struct Uids(Arc<Mutex<VecDeque<u32>>>);

impl Uids {
    /// Returns a pool with all of [`policy::WORKER_UIDS`].
    pub(super) fn new() -> Uids {
        Uids(Arc::new(Mutex::new(policy::WORKER_UIDS.collect())))
    }

    /// Takes a uid out of the pool until the returned guard is dropped. Returns `None` if every uid is in use.
    pub(super) fn take(&self) -> Option<OwnUid> {
        let uid = self.free().pop_front()?;
        Some(OwnUid { uid, uids: self.clone() })
    }

    fn free(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.0.lock().expect("BUG: no code panics under this lock")
    }
}

/// A uid that only one worker has. Dropping it returns the uid to the pool.
pub(super) struct OwnUid {
    uid: u32,
    uids: Uids,
}

impl OwnUid {
    /// The uid as a number.
    pub(super) fn number(&self) -> u32 {
        self.uid
    }
}

impl Drop for OwnUid {
    fn drop(&mut self) {
        self.uids.free().push_back(self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_uid_is_handed_out_last() {
        let uids = Uids::new();
        let first = uids.take().unwrap().number();
        let others: Vec<OwnUid> =
            (1..policy::WORKER_UIDS.len()).filter_map(|_| uids.take()).collect();
        assert_eq!(others.len(), policy::WORKER_UIDS.len() - 1);
        assert!(others.iter().all(|uid| uid.number() != first));
        let last = uids.take().unwrap();
        assert_eq!(last.number(), first);
        assert!(uids.take().is_none());
    }
}
