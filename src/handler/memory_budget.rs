//! A memory budget that all requests share. It bounds what no limit of a single request can bound.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The budget is counted in units of this size, bytes.
const UNIT_BYTES: usize = 1024;
/// Text that outgrows what was expected gets at most this much more room than it needs, bytes.
const STEP_BYTES: usize = 64 * 1024;

/// A number of bytes that may be held at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryBudget {
    bytes: usize,
    units: Arc<Semaphore>,
}

/// A part of a budget. Dropping it gives it back.
#[derive(Debug)]
pub struct Reservation {
    budget: MemoryBudget,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> MemoryBudget {
        MemoryBudget { bytes, units: Arc::new(Semaphore::new(bytes / UNIT_BYTES)) }
    }

    /// A reservation of no bytes yet.
    pub fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0, permit: None }
    }

    /// `value` as JSON, and the reservation of its bytes. The `expected` bytes are reserved first, and more as the text
    /// grows.
    ///
    /// # Errors
    /// When the budget has no room for the text.
    pub fn json(
        &self,
        value: &impl Serialize,
        expected: usize,
    ) -> Result<(Vec<u8>, Reservation), OverBudget> {
        let reservation = self.reservation();
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
    /// Reserves `bytes` more. Returns whether the budget had room for them.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let held = self.bytes.div_ceil(UNIT_BYTES);
        let wanted = (self.bytes + bytes).div_ceil(UNIT_BYTES);
        let Ok(more) = u32::try_from(wanted - held) else { return false };
        let Ok(more) = Arc::clone(&self.budget.units).try_acquire_many_owned(more) else {
            return false;
        };
        self.bytes += bytes;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        true
    }
}

/// Why a text was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// Others hold too much of the budget.
    #[error("the memory budget has no room now")]
    Now,
    /// The text is larger than the whole budget.
    #[error("the text is larger than the memory budget")]
    Ever,
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
            let is_possible = capacity + missing <= self.reservation.budget.bytes;
            let over = if is_possible { OverBudget::Now } else { OverBudget::Ever };
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

/// The same body, which drops `kept` when its last byte has been handed to the kernel.
pub fn release_when_sent<T: Send + 'static>(body: Full<Bytes>, kept: T) -> Full<Bytes> {
    let body = body.into_inner().unwrap_or_default();
    Full::new(Bytes::from_owner(KeepingBody { body, _kept: kept }))
}

struct KeepingBody<T> {
    body: Bytes,
    _kept: T,
}

impl<T> AsRef<[u8]> for KeepingBody<T> {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_reserved_before_it_is_written_and_may_outgrow_what_was_expected() {
        let budget = MemoryBudget::new(200 * 1024);
        let of = |length| "x".repeat(length);
        let (text, held) = budget.json(&of(150 * 1024), 10).unwrap();
        assert_eq!((text.len(), text.capacity() / 1024), (150 * 1024 + 2, 150));
        assert_eq!(budget.units.available_permits(), 200 - 151);
        assert_eq!(budget.json(&"", 100 * 1024).err(), Some(OverBudget::Now));
        assert_eq!(budget.json(&of(100 * 1024), 1).err(), Some(OverBudget::Now));
        assert_eq!(budget.json(&of(200 * 1024), 1).err(), Some(OverBudget::Ever));
        assert_eq!(budget.json(&"", 201 * 1024).err(), Some(OverBudget::Ever));
        drop(held);
        assert_eq!(budget.units.available_permits(), 200);
    }

    #[test]
    fn a_reservation_is_given_back_and_never_exceeds_the_budget() {
        let budget = MemoryBudget::new(4096);
        let mut first = budget.reservation();
        assert!(first.grow(1) && first.grow(1023) && first.grow(1));
        let mut second = budget.reservation();
        assert!(!second.grow(2049));
        assert!(second.grow(2048));
        assert!(!budget.reservation().grow(1));
        drop(second);
        assert!(budget.reservation().grow(2048));
        let body = release_when_sent(Full::new(Bytes::from_static(b"body")), first);
        assert!(!budget.reservation().grow(2049));
        let sent = body.into_inner().unwrap();
        assert_eq!(sent, "body");
        drop(sent);
        assert!(budget.reservation().grow(4096));
    }
}
