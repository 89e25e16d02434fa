//! Admission: how many scripts run at once and how many requests wait for that.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::api::catalogue::{Failure, Kind};

/// Hands out permits to run. A request without a permit waits in a queue of limited length.
pub(super) struct Admission {
    slots: usize,
    run_permits: Arc<Semaphore>,
    queue_length: usize,
    queue_places: Semaphore,
}

impl Admission {
    /// Admits `slots` requests to run at once and `queue_length` to wait.
    pub(super) fn new(slots: usize, queue_length: usize) -> Admission {
        Admission {
            slots,
            run_permits: Arc::new(Semaphore::new(slots)),
            queue_length,
            queue_places: Semaphore::new(queue_length),
        }
    }

    /// Waits for a permit to run one script.
    ///
    /// # Errors
    /// `busy` when the queue is full.
    pub(super) async fn run_permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(permit) = Arc::clone(&self.run_permits).try_acquire_owned() {
            return Ok(permit);
        }
        let Ok(_place) = self.queue_places.try_acquire() else {
            return Err(Failure::new(Kind::Busy, "All workers are busy and the queue is full"));
        };
        Arc::clone(&self.run_permits)
            .acquire_owned()
            .await
            .map_err(|_| Failure::new(Kind::Busy, "The service is shutting down"))
    }

    /// Waits until no script runs, and keeps others from running until the permits are dropped.
    pub(super) async fn all_permits(&self) -> Option<SemaphorePermit<'_>> {
        self.run_permits.acquire_many(self.slots as u32).await.ok()
    }

    /// Returns whether a request is waiting in the queue.
    pub(super) fn has_waiters(&self) -> bool {
        self.waiting() > 0
    }

    /// The number of scripts that are running.
    pub(super) fn running(&self) -> usize {
        self.slots - self.run_permits.available_permits()
    }

    /// The number of requests that are waiting.
    pub(super) fn waiting(&self) -> usize {
        self.queue_length - self.queue_places.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_beyond_slots_and_queue_is_busy() {
        let admission = Arc::new(Admission::new(1, 1));
        let running = admission.run_permit().await.unwrap();
        assert_eq!((admission.running(), admission.has_waiters()), (1, false));
        let waiting = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.run_permit().await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!((admission.running(), admission.waiting()), (1, 1));
        let refused = admission.run_permit().await.unwrap_err();
        assert_eq!((refused.kind, refused.retry_after), (Kind::Busy, Some(1)));
        drop(running);
        waiting.await.unwrap().unwrap();
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_cancelled_request_leaves_the_queue() {
        let admission = Admission::new(1, 1);
        let _running = admission.run_permit().await.unwrap();
        let waiting = admission.run_permit();
        assert!(tokio::time::timeout(std::time::Duration::ZERO, waiting).await.is_err());
        assert_eq!(admission.waiting(), 0);
    }
}
