//! A memory budget that all requests share. It bounds what no limit of a single request can bound.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The budget is counted in units of this size, bytes.
const UNIT_BYTES: usize = 1024;

/// A number of bytes that may be held at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Semaphore>);

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
        MemoryBudget(Arc::new(Semaphore::new(bytes / UNIT_BYTES)))
    }

    /// A reservation of no bytes yet.
    pub fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0, permit: None }
    }
}

impl Reservation {
    /// Reserves `bytes` more. Returns whether the budget had room for them.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let held = self.bytes.div_ceil(UNIT_BYTES);
        let wanted = (self.bytes + bytes).div_ceil(UNIT_BYTES);
        let Ok(more) = u32::try_from(wanted - held) else { return false };
        let Ok(more) = Arc::clone(&self.budget.0).try_acquire_many_owned(more) else {
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
