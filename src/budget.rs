//! A budget of memory that many share: what no single limit bounds, all of them together.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the budget is counted in.
const UNIT_BYTES: usize = 1024;

/// Bytes that may be held at a time; cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

/// A part of a budget. Dropping it gives it back.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(bytes / UNIT_BYTES)))
    }

    /// Nothing of it yet.
    pub fn nothing(&self) -> Held {
        Held { budget: self.clone(), bytes: 0, permit: None }
    }
}

impl Held {
    /// Holds `bytes` more. Returns whether there was room for them.
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

/// The same body, which keeps `kept` until it is gone: when its last byte has been handed to the kernel.
pub fn until_gone<T: Send + 'static>(body: Full<Bytes>, kept: T) -> Full<Bytes> {
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
    fn what_is_held_is_given_back_and_no_more_is_given_than_there_is() {
        let budget = Budget::new(4096);
        let mut first = budget.nothing();
        assert!(first.grow(1) && first.grow(1023) && first.grow(1));
        let mut second = budget.nothing();
        assert!(!second.grow(2049));
        assert!(second.grow(2048));
        assert!(!budget.nothing().grow(1));
        drop(second);
        assert!(budget.nothing().grow(2048));
        let body = until_gone(Full::new(Bytes::from_static(b"body")), first);
        assert!(!budget.nothing().grow(2049));
        let taken = body.into_inner().unwrap();
        assert_eq!(taken, "body");
        drop(taken);
        assert!(budget.nothing().grow(4096));
    }
}
