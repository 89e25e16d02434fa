//! A memory budget that all requests share. It bounds what no limit of a single request can bound. A caller gets a quarter of
//! it at most, so that it takes more than a few to starve the others.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::callers::rate_limit::Caller;

/// The budget is counted in units of this size, bytes.
pub const UNIT_BYTES: usize = 1024;
/// Text that outgrows what was expected gets at most this much more room than it needs, bytes.
const STEP_BYTES: usize = 64 * 1024;

/// The part of a budget that one caller may hold: one of this many.
pub const SHARES: usize = 4;

/// A number of bytes that may be held at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryBudget {
    bytes: usize,
    units: Arc<Semaphore>,
    /// The units that each caller holds, if it holds any.
    callers: Arc<Mutex<HashMap<Caller, usize>>>,
}

/// A part of a budget. Dropping it gives it back.
#[derive(Debug)]
pub struct Reservation {
    budget: MemoryBudget,
    caller: Option<Caller>,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> MemoryBudget {
        let units = Arc::new(Semaphore::new(bytes / UNIT_BYTES));
        MemoryBudget { bytes, units, callers: Arc::default() }
    }

    /// A reservation of no bytes yet. It counts for the share of `caller`, if given.
    pub fn reservation(&self, caller: Option<Caller>) -> Reservation {
        Reservation { budget: self.clone(), caller, bytes: 0, permit: None }
    }

    /// The most that `caller` can hold, bytes.
    fn most(&self, caller: Option<Caller>) -> usize {
        let bytes = if caller.is_some() { self.bytes / SHARES } else { self.bytes };
        bytes / UNIT_BYTES * UNIT_BYTES
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<Caller, usize>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `value` as JSON, and the reservation of its bytes for `caller`. The `expected` bytes are reserved first, and more as
    /// the text grows.
    ///
    /// # Errors
    /// When the budget has no room for the text.
    pub fn json(
        &self,
        value: &impl Serialize,
        expected: usize,
        caller: Option<Caller>,
    ) -> Result<(Vec<u8>, Reservation), OverBudget> {
        let reservation = self.reservation(caller);
        let mut text = BudgetedText { text: Vec::new(), reservation, over: None };
        text.make_room(expected)?;
        let written = serde_json::to_writer(&mut text, value);
        match text.over {
            Some(over) => Err(over),
            None => {
                written.expect("BUG: what becomes JSON is plain data");
                Ok((text.text, text.reservation))
            }
        }
    }
}

impl Reservation {
    /// Reserves `bytes` more. Returns whether the budget, and the share of the caller, had room for them.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let wanted = (self.bytes + bytes).div_ceil(UNIT_BYTES);
        let more = wanted - self.units();
        let mut callers = self.budget.callers();
        if let Some(caller) = self.caller {
            let held = callers.get(&caller).copied().unwrap_or_default();
            if held + more > self.budget.most(self.caller) / UNIT_BYTES {
                return false;
            }
        }
        let Ok(count) = u32::try_from(more) else { return false };
        let Ok(permit) = Arc::clone(&self.budget.units).try_acquire_many_owned(count) else {
            return false;
        };
        if let (Some(caller), 1..) = (self.caller, more) {
            *callers.entry(caller).or_default() += more;
        }
        drop(callers);
        self.bytes += bytes;
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        true
    }

    fn units(&self) -> usize {
        self.bytes.div_ceil(UNIT_BYTES)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(caller) = self.caller else { return };
        let units = self.units();
        let mut callers = self.budget.callers();
        if let Some(held) = callers.get_mut(&caller) {
            *held -= units;
            if *held == 0 {
                callers.remove(&caller);
            }
        }
    }
}

/// Why a text was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// Others, or other requests of the caller, hold too much of the budget.
    #[error("the memory budget has no room now")]
    Now,
    /// The text is larger than all that the caller can hold, which is this many bytes.
    #[error("the text is larger than {0} bytes")]
    Ever(usize),
}

/// Text that is written within a budget. Every byte that it occupies is reserved before it is allocated.
struct BudgetedText {
    text: Vec<u8>,
    reservation: Reservation,
    over: Option<OverBudget>,
}

impl BudgetedText {
    fn make_room(&mut self, bytes: usize) -> Result<(), OverBudget> {
        let (length, capacity) = (self.text.len(), self.text.capacity());
        let Some(missing) = (length + bytes).checked_sub(capacity).filter(|missing| *missing > 0)
        else {
            return Ok(());
        };
        // First exactly what is expected, then in larger steps than single characters, if there is room for that.
        let grown = [missing.max(capacity.min(STEP_BYTES)), missing]
            .into_iter()
            .find(|more| self.reservation.grow(*more));
        let Some(more) = grown else {
            let most = self.reservation.budget.most(self.reservation.caller);
            let is_possible = capacity + missing <= most;
            let over = if is_possible { OverBudget::Now } else { OverBudget::Ever(most) };
            self.over = Some(over);
            return Err(over);
        };
        self.text.reserve_exact(capacity - length + more);
        Ok(())
    }
}

impl Write for BudgetedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.make_room(bytes.len()).map_err(io::Error::other)?;
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same bytes, which drop `kept` when the last one has been handed to the kernel.
pub fn release_when_sent<T: Send + 'static>(bytes: Bytes, kept: T) -> Bytes {
    Bytes::from_owner(Keeping { bytes, _kept: kept })
}

struct Keeping<T> {
    bytes: Bytes,
    _kept: T,
}

impl<T> AsRef<[u8]> for Keeping<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_reserved_before_it_is_written_and_may_outgrow_what_was_expected() {
        let budget = MemoryBudget::new(200 * 1024);
        let of = |length| "x".repeat(length);
        let (text, held) = budget.json(&of(150 * 1024), 10, None).unwrap();
        assert_eq!((text.len(), text.capacity() / 1024), (150 * 1024 + 2, 150));
        assert_eq!(budget.units.available_permits(), 200 - 151);
        assert_eq!(budget.json(&"", 100 * 1024, None).err(), Some(OverBudget::Now));
        assert_eq!(budget.json(&of(100 * 1024), 1, None).err(), Some(OverBudget::Now));
        assert_eq!(budget.json(&of(200 * 1024), 1, None).err(), Some(OverBudget::Ever(200 * 1024)));
        assert_eq!(budget.json(&"", 201 * 1024, None).err(), Some(OverBudget::Ever(200 * 1024)));
        drop(held);
        assert_eq!(budget.units.available_permits(), 200);
    }

    #[test]
    fn a_caller_holds_a_quarter_at_most_and_is_forgotten_once_it_holds_nothing() {
        let budget = MemoryBudget::new(64 * 1024);
        let [one, other] = [0, 1].map(|number| Some(Caller::Key(number)));
        let (mut first, mut second) = (budget.reservation(one), budget.reservation(one));
        assert!(first.grow(10 * 1024) && second.grow(6 * 1024) && !first.grow(1));
        assert!(
            budget.reservation(other).grow(16 * 1024) && budget.reservation(None).grow(48 * 1024)
        );
        drop(second);
        assert!(first.grow(6 * 1024) && !first.grow(1));
        let long = "x".repeat(20 * 1024);
        assert_eq!(budget.json(&long, 1, other).err(), Some(OverBudget::Ever(16 * 1024)));
        assert_eq!(budget.json(&"", 1024, one).err(), Some(OverBudget::Now));
        drop(first);
        assert!(budget.callers().is_empty());
        assert_eq!(budget.units.available_permits(), 64);
    }

    #[test]
    fn a_reservation_is_given_back_and_never_exceeds_the_budget() {
        let budget = MemoryBudget::new(4096);
        let mut first = budget.reservation(None);
        assert!(first.grow(1) && first.grow(1023) && first.grow(1));
        let mut second = budget.reservation(None);
        assert!(!second.grow(2049));
        assert!(second.grow(2048));
        assert!(!budget.reservation(None).grow(1));
        drop(second);
        assert!(budget.reservation(None).grow(2048));
        let sent = release_when_sent(Bytes::from_static(b"body"), first);
        assert!(!budget.reservation(None).grow(2049));
        assert_eq!(sent, "body");
        drop(sent);
        assert!(budget.reservation(None).grow(4096));
    }
}
