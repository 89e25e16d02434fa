//! Admission: how many scripts run at once and how many requests wait for that.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::api::catalogue::{Failure, Kind};

/// Hands out permits to run. A request without a permit waits in a queue of limited length.
pub(super) struct Admission {
    slots: usize,
    run_permits: Arc<Semaphore>,
    queue_length: usize,
    queue_places: Semaphore,
    /// One for each slot: requests that would run if their pool were ready. They need no place in the queue, so that a
    /// service without a queue does not refuse requests while it starts.
    start_places: Semaphore,
}

impl Admission {
    /// Admits `slots` requests to run at once and `queue_length` to wait.
    pub(super) fn new(slots: usize, queue_length: usize) -> Admission {
        Admission {
            slots,
            run_permits: Arc::new(Semaphore::new(slots)),
            queue_length,
            queue_places: Semaphore::new(queue_length),
            start_places: Semaphore::new(slots),
        }
    }

    /// Waits for `ready_pool`, the pool of a request once it has workers, and then for a permit to run one script. In this
    /// order, so that requests that wait for a slow import keep no permit from requests that need none. Every request that
    /// waits has a place, so their number is bounded.
    ///
    /// # Errors
    /// Those of `ready_pool`, and `busy` when the queue is full.
    pub(super) async fn run_permit<P>(
        &self,
        ready_pool: impl Future<Output = Result<P, Failure>>,
    ) -> Result<(P, OwnedSemaphorePermit), Failure> {
        let mut ready_pool = pin!(ready_pool);
        let mut pool = tokio::select! {
            biased;
            pool = &mut ready_pool => Some(pool?),
            () = std::future::ready(()) => None,
        };
        if let Some(ready) = pool.take() {
            match Arc::clone(&self.run_permits).try_acquire_owned() {
                Ok(permit) => return Ok((ready, permit)),
                Err(_) => pool = Some(ready),
            }
        }
        let start_place = if pool.is_none() { self.start_places.try_acquire().ok() } else { None };
        let Some(_place) = start_place.or_else(|| self.queue_places.try_acquire().ok()) else {
            return Err(Failure::new(Kind::Busy, "All workers are busy and the queue is full"));
        };
        let pool = match pool {
            Some(pool) => pool,
            None => ready_pool.await?,
        };
        let permit = Arc::clone(&self.run_permits).acquire_owned().await;
        let permit =
            permit.map_err(|_| Failure::new(Kind::Busy, "The service is shutting down"))?;
        Ok((pool, permit))
    }

    /// Waits until no script runs, and keeps others from running until the permits are dropped.
    pub(super) async fn all_permits(&self) -> Option<SemaphorePermit<'_>> {
        self.run_permits.acquire_many(self.slots as u32).await.ok()
    }

    /// Returns whether a request is waiting in the queue.
    pub(super) fn has_waiters(&self) -> bool {
        self.queue_places.available_permits() < self.queue_length
    }

    /// The number of scripts that are running.
    pub(super) fn running(&self) -> usize {
        self.slots - self.run_permits.available_permits()
    }

    /// The number of requests that are waiting, for their pool or in the queue.
    pub(super) fn waiting(&self) -> usize {
        let starting = self.slots - self.start_places.available_permits();
        starting + self.queue_length - self.queue_places.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_request_beyond_slots_and_queue_is_busy() {
        let admission = Arc::new(Admission::new(1, 1));
        let running = admission.run_permit(ready(Ok(()))).await.unwrap();
        assert_eq!((admission.running(), admission.has_waiters()), (1, false));
        let waiting = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.run_permit(ready(Ok(()))).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!((admission.running(), admission.waiting()), (1, 1));
        let refused = admission.run_permit(ready(Ok(()))).await.unwrap_err();
        assert_eq!((refused.kind, refused.retry_after), (Kind::Busy, Some(1)));
        drop(running);
        waiting.await.unwrap().unwrap();
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_cancelled_request_leaves_the_queue() {
        let admission = Admission::new(1, 1);
        let _running = admission.run_permit(ready(Ok(()))).await.unwrap();
        let waiting = admission.run_permit(ready(Ok(())));
        assert!(tokio::time::timeout(Duration::ZERO, waiting).await.is_err());
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test]
    async fn a_request_whose_pool_is_not_ready_waits_without_a_permit() {
        let admission = Admission::new(1, 1);
        let mut waiting = [
            Box::pin(admission.run_permit::<()>(pending())),
            Box::pin(admission.run_permit(pending())),
        ];
        for (place, request) in waiting.iter_mut().enumerate() {
            assert!(tokio::time::timeout(Duration::ZERO, request).await.is_err());
            assert_eq!((admission.running(), admission.waiting()), (0, place + 1));
        }
        let running = admission.run_permit(ready(Ok(()))).await.unwrap();
        assert_eq!(admission.running(), 1);
        let refused = admission.run_permit::<()>(pending()).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Busy);
        drop(running);
    }

    #[tokio::test]
    async fn a_request_whose_pool_fails_gets_its_error_and_no_permit() {
        let admission = Admission::new(1, 1);
        let failed = ready(Err::<(), _>(Failure::new(Kind::Internal, "no")));
        assert_eq!(admission.run_permit(failed).await.unwrap_err().kind, Kind::Internal);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }
}
