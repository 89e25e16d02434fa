//! The uids that workers run under, one for each live worker.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{policy, procfs};

/// Chooses the worker uids of this process: a random block of a range that its user namespace maps.
pub(super) fn choose() -> Range<u32> {
    choose_from(&procfs::mapped_ids(), RandomState::new().hash_one(std::process::id()))
}

/// Returns the name of a capability that this process, as root, needs for worker uids and does not have.
pub(super) fn missing_capability() -> Option<&'static str> {
    let held = procfs::capabilities()?;
    let missing = policy::OWN_UID_CAPABILITIES.iter().find(|(bit, _)| held >> bit & 1 == 0);
    missing.map(|(_, name)| *name)
}

fn choose_from(mapped: &[Range<u32>], random: u64) -> Range<u32> {
    let usable = |range: &&Range<u32>| {
        mapped.iter().any(|mapped| mapped.start <= range.start && range.end <= mapped.end)
    };
    let [first, _] = &policy::WORKER_UID_RANGES;
    // If none is mapped, the probe finds that workers get no uid of their own.
    block(policy::WORKER_UID_RANGES.iter().find(usable).unwrap_or(first), random)
}

/// The block of `range` that `random` selects.
fn block(range: &Range<u32>, random: u64) -> Range<u32> {
    let blocks = u64::from(range.end - range.start) / u64::from(policy::WORKER_UIDS);
    let start = range.start + (random % blocks) as u32 * policy::WORKER_UIDS;
    start..start + policy::WORKER_UIDS
}

/// The uids that no live worker has. Uids are handed out in the order in which they were returned, so that each rests
/// as long as possible before another worker gets it.
#[derive(Clone)]
pub(super) struct Uids(Arc<Mutex<VecDeque<u32>>>);

impl Uids {
    /// Returns a pool of these uids.
    pub(super) fn new(uids: Range<u32>) -> Uids {
        Uids(Arc::new(Mutex::new(uids.collect())))
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
        let uids = Uids::new(7..10);
        let first = uids.take().unwrap().number();
        let others: Vec<OwnUid> = (1..3).filter_map(|_| uids.take()).collect();
        assert_eq!(others.iter().map(OwnUid::number).collect::<Vec<_>>(), [8, 9]);
        let last = uids.take().unwrap();
        assert_eq!((first, last.number()), (7, 7));
        assert!(uids.take().is_none());
    }

    #[test]
    fn every_block_is_whole_and_within_its_range() {
        for range in policy::WORKER_UID_RANGES {
            let last = u64::from((range.end - range.start) / policy::WORKER_UIDS) - 1;
            assert_eq!(block(&range, 0), range.start..range.start + 1000);
            assert_eq!(block(&range, last + 1), block(&range, 0));
            let last = block(&range, last);
            assert!(last.end <= range.end && last.end - last.start == 1000, "{last:?}");
        }
    }

    #[test]
    fn the_chosen_uids_are_of_the_first_range_that_is_mapped() {
        let [first, second] = policy::WORKER_UID_RANGES;
        let one = |range: Range<u32>| vec![range];
        for (mapped, start) in [
            (one(0..u32::MAX), first.start),
            (vec![0..1, 1..65_537], second.start),
            (one(1000..1001), first.start),
        ] {
            assert_eq!(choose_from(&mapped, 0).start, start, "{mapped:?}");
        }
        assert!(procfs::mapped_ids().iter().all(|mapped| !mapped.is_empty()));
    }
}
