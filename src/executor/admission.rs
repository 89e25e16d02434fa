//! Admission: how many scripts run at once, how many requests wait for that, and for how long.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::api::catalogue::{Failure, Kind};

/// The weight of the latest run in the mean of recent run times: one eighth, as in the round-trip time of TCP (RFC 6298).
const WEIGHT: u32 = 8;
/// How long a mean without a new run counts. An older one says nothing about current scripts.
const RECENT: Duration = Duration::from_secs(60);
const NEVER_CLOSED: &str = "BUG: the semaphore is never closed";
/// The longest `Retry-After`, seconds.
const MAX_RETRY_SECONDS: u64 = 300;

/// Hands out permits to run. A request without a permit waits in a queue, which is limited in length and in time.
pub(super) struct Admission {
    slots: usize,
    run_permits: Arc<Semaphore>,
    queue_length: usize,
    queue_time: Duration,
    waiting: AtomicUsize,
    /// Requests that have more inputs to run.
    unfinished: AtomicUsize,
    recent: Arc<RecentRuns>,
}

/// The largest number of requests that have more inputs to run. Each can have one input in front of a request that comes
/// later, and holds its own memory: together half of that for requests.
const MAX_UNFINISHED: usize = 4;

/// How a script waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// As a request does: it is refused if the queue is full, or if no permit is expected in time.
    InQueue,
    /// As the next input of a request that has had a turn. It waits however long the queue is, and takes no place in it.
    ForNextInput,
}

/// The right to run one script. Dropping it ends the run.
pub(super) struct RunPermit {
    _permit: OwnedSemaphorePermit,
    began: Instant,
    recent: Arc<RecentRuns>,
}

/// How long recent runs took.
#[derive(Default)]
struct RecentRuns(Mutex<Option<Mean>>);

#[derive(Clone, Copy)]
struct Mean {
    duration: Duration,
    updated: Instant,
}

/// A request that has more inputs to run.
pub struct Unfinished<'a>(#[expect(dead_code, reason = "counts until it is dropped")] Place<'a>);

/// A request that is counted.
struct Place<'a>(&'a AtomicUsize);

impl Place<'_> {
    fn take(places: &AtomicUsize) -> Place<'_> {
        places.fetch_add(1, Ordering::Relaxed);
        Place(places)
    }
}

impl Admission {
    /// Admits `slots` requests to run at once, and `queue_length` to wait for at most `queue_time`.
    pub(super) fn new(slots: usize, queue_length: usize, queue_time: Duration) -> Admission {
        Admission {
            slots,
            run_permits: Arc::new(Semaphore::new(slots)),
            queue_length,
            queue_time,
            waiting: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            recent: Arc::default(),
        }
    }

    /// Waits for `ready_pool`, the pool of a request once it has workers, and then for a permit to run one script. In this
    /// order, so that requests that wait for a slow import keep no permit from requests that need none. The time in the
    /// queue counts from the moment when the pool is ready. No wait is longer than `deadline`, if given.
    ///
    /// Returns the pool, the permit, and the time by which a worker must be found.
    ///
    /// # Errors
    /// Those of `ready_pool`; `busy` when the queue is full, when a permit is not expected in time, and when none was free
    /// in time.
    pub(super) async fn admit<P>(
        &self,
        ready_pool: impl Future<Output = Result<P, Failure>>,
        deadline: Option<Instant>,
        waiting: Waiting,
    ) -> Result<(P, RunPermit, Instant), Failure> {
        let mut ready_pool = pin!(ready_pool);
        let ready = tokio::select! {
            biased;
            pool = &mut ready_pool => Some(pool?),
            () = std::future::ready(()) => None,
        };
        let (pool, place) = match ready {
            Some(pool) => (pool, None),
            // A service without a queue does not refuse requests while it starts, so as many may wait as could run.
            None => {
                let place = self.place(self.queue_length + self.slots)?;
                (until(deadline, ready_pool).await.ok_or_else(not_started)??, Some(place))
            }
        };
        let latest = || {
            let latest = Instant::now() + self.queue_time;
            deadline.map_or(latest, |deadline| deadline.min(latest))
        };
        let run_permits = Arc::clone(&self.run_permits);
        let (permit, latest) = match (run_permits.try_acquire_owned(), waiting) {
            (Ok(permit), _) => (permit, latest()),
            (Err(_), Waiting::InQueue) => {
                let latest = latest();
                (self.wait_for_permit(place, latest).await?, latest)
            }
            (Err(_), Waiting::ForNextInput) => {
                let permit = Arc::clone(&self.run_permits).acquire_owned().await;
                (permit.expect(NEVER_CLOSED), latest())
            }
        };
        let permit =
            RunPermit { _permit: permit, began: Instant::now(), recent: Arc::clone(&self.recent) };
        Ok((pool, permit, latest))
    }

    async fn wait_for_permit(
        &self,
        place: Option<Place<'_>>,
        latest: Instant,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        let _place = match place {
            Some(place) => place,
            None => self.place(self.queue_length)?,
        };
        let began = Instant::now();
        if began + self.expected_wait() > latest {
            let seconds = (latest - began).as_secs_f64().round();
            let error = format!("All workers are busy, and none is expected within {seconds} s");
            return Err(self.busy(error));
        }
        let permit = Arc::clone(&self.run_permits).acquire_owned();
        match timeout_at(latest, permit).await {
            Ok(permit) => Ok(permit.expect(NEVER_CLOSED)),
            Err(_) => {
                let seconds = began.elapsed().as_secs_f64().round();
                Err(self.busy(format!("All workers were busy for {seconds} s")))
            }
        }
    }

    /// A place for a request that waits, if fewer than `most` are taken. One more can wait behind the inputs of a request that
    /// keeps all workers busy, or others would not get their turns without a queue.
    fn place(&self, most: usize) -> Result<Place<'_>, Failure> {
        let most = most + self.unfinished().min(1);
        if self.waiting.load(Ordering::Relaxed) >= most {
            return Err(self.busy("All workers are busy and the queue is full"));
        }
        Ok(Place::take(&self.waiting))
    }

    /// When the last request in the queue is expected to run, at the speed of recent runs.
    fn expected_wait(&self) -> Duration {
        // Each request with several inputs can have one in front.
        let waiting = (self.waiting() + self.unfinished()).max(1);
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        self.recent.mean().unwrap_or_default().saturating_mul(waiting) / self.slots as u32
    }

    fn busy(&self, error: impl Into<String>) -> Failure {
        let seconds = self.expected_wait().as_secs_f64().ceil() as u64;
        let retry_after = Some(seconds.clamp(1, MAX_RETRY_SECONDS));
        Failure { retry_after, ..Failure::new(Kind::Busy, error) }
    }

    /// Waits until no script runs, and keeps others from running until the permits are dropped.
    pub(super) async fn all_permits(&self) -> Option<SemaphorePermit<'_>> {
        self.run_permits.acquire_many(self.slots as u32).await.ok()
    }

    /// How many scripts can run at once.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Returns whether a script waits, or will once another has its turn.
    pub(super) fn has_waiters(&self) -> bool {
        self.waiting() > 0 || self.unfinished() > 0
    }

    /// Begins a request with several inputs, unless too many have begun.
    pub(super) fn begin_inputs(&self) -> Result<Unfinished<'_>, Failure> {
        if self.unfinished() >= MAX_UNFINISHED {
            return Err(self.busy("Too many requests with several inputs are running"));
        }
        Ok(Unfinished(Place::take(&self.unfinished)))
    }

    fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// The number of scripts that are running.
    pub(super) fn running(&self) -> usize {
        self.slots - self.run_permits.available_permits()
    }

    /// The number of requests that are waiting, for their pool or in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Waits for `future`, but no longer than `deadline`. Returns `None` when the deadline passes first.
async fn until<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

/// The failure of a request whose deadline passed before Python was ready.
fn not_started() -> Failure {
    Failure::new(Kind::Busy, "The service was still starting at the request's deadline")
}

impl RecentRuns {
    fn add(&self, duration: Duration) {
        let mean = self.mean().map_or(duration, |mean| (mean * (WEIGHT - 1) + duration) / WEIGHT);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Mean { duration: mean, updated: Instant::now() });
    }

    /// The mean of recent runs; `None` if there are none.
    fn mean(&self) -> Option<Duration> {
        let mean = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mean.filter(|mean| mean.updated.elapsed() < RECENT).map(|mean| mean.duration)
    }
}

impl Drop for RunPermit {
    fn drop(&mut self) {
        self.recent.add(self.began.elapsed());
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const QUEUE_TIME: Duration = Duration::from_secs(10);

    async fn admit(admission: &Admission) -> Result<RunPermit, Failure> {
        admission.admit(ready(Ok(())), None, Waiting::InQueue).await.map(|(_, permit, _)| permit)
    }

    /// An admission of one request at a time whose last run took `duration`.
    async fn after_a_run_of(duration: Duration) -> Arc<Admission> {
        let admission = Arc::new(Admission::new(1, 8, QUEUE_TIME));
        let permit = admit(&admission).await.unwrap();
        tokio::time::sleep(duration).await;
        drop(permit);
        admission
    }

    async fn spawn_waiting(admission: &Arc<Admission>) -> tokio::task::JoinHandle<Option<Failure>> {
        let admission = Arc::clone(admission);
        let waiting = tokio::spawn(async move { admit(&admission).await.err() });
        tokio::task::yield_now().await;
        waiting
    }

    #[tokio::test]
    async fn a_request_beyond_slots_and_queue_is_busy() {
        let admission = Arc::new(Admission::new(1, 1, QUEUE_TIME));
        let running = admit(&admission).await.unwrap();
        assert_eq!((admission.running(), admission.has_waiters()), (1, false));
        let waiting = spawn_waiting(&admission).await;
        assert_eq!((admission.running(), admission.waiting()), (1, 1));
        let refused = admit(&admission).await.err().unwrap();
        assert_eq!((refused.kind, refused.retry_after), (Kind::Busy, Some(1)));
        drop(running);
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_cancelled_request_leaves_the_queue() {
        let admission = Admission::new(1, 1, QUEUE_TIME);
        let _running = admit(&admission).await.unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, admit(&admission)).await.is_err());
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_in_the_queue_for_its_time_and_no_longer() {
        let admission = Admission::new(1, 1, QUEUE_TIME);
        let _running = admit(&admission).await.unwrap();
        let began = Instant::now();
        let refused = admit(&admission).await.err().unwrap();
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(refused.error, "All workers were busy for 10 s");
        let deadline = Instant::now() + Duration::from_secs(2);
        let refused =
            admission.admit(ready(Ok(())), Some(deadline), Waiting::InQueue).await.err().unwrap();
        assert_eq!(refused.error, "All workers were busy for 2 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_not_expected_to_run_in_time_is_refused_at_once() {
        let admission = after_a_run_of(Duration::from_secs(4)).await;
        let _running = admit(&admission).await.unwrap();
        // The third would wait 12 seconds.
        let _waiting = [spawn_waiting(&admission).await, spawn_waiting(&admission).await];
        let began = Instant::now();
        let refused = admit(&admission).await.err().unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(refused.error, "All workers are busy, and none is expected within 10 s");
        assert_eq!(refused.retry_after, Some(12));
    }

    #[tokio::test(start_paused = true)]
    async fn run_times_of_long_ago_refuse_nobody() {
        let admission = after_a_run_of(Duration::from_secs(40)).await;
        let _running = admit(&admission).await.unwrap();
        assert_eq!(admit(&admission).await.err().unwrap().retry_after, Some(40));
        tokio::time::sleep(RECENT).await;
        let began = Instant::now();
        assert_eq!(admit(&admission).await.err().unwrap().retry_after, Some(1));
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    #[tokio::test]
    async fn a_request_whose_pool_is_not_ready_waits_without_a_permit() {
        let admission = Admission::new(1, 1, QUEUE_TIME);
        let mut waiting = [
            Box::pin(admission.admit::<()>(pending(), None, Waiting::InQueue)),
            Box::pin(admission.admit(pending(), None, Waiting::InQueue)),
        ];
        for (place, request) in waiting.iter_mut().enumerate() {
            assert!(tokio::time::timeout(Duration::ZERO, request).await.is_err());
            assert_eq!((admission.running(), admission.waiting()), (0, place + 1));
        }
        let running = admit(&admission).await.unwrap();
        assert_eq!(admission.running(), 1);
        let refused = admission.admit::<()>(pending(), None, Waiting::InQueue).await.err().unwrap();
        assert_eq!(refused.kind, Kind::Busy);
        drop(running);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_pool_is_not_ready_waits_until_its_deadline() {
        let admission = Admission::new(1, 1, QUEUE_TIME);
        let deadline = Instant::now() + Duration::from_secs(25);
        let refused =
            admission.admit::<()>(pending(), Some(deadline), Waiting::InQueue).await.err().unwrap();
        assert_eq!(refused.error, "The service was still starting at the request's deadline");
        assert_eq!((Instant::now(), admission.waiting()), (deadline, 0));
    }

    #[tokio::test]
    async fn a_request_whose_pool_fails_gets_its_error_and_no_permit() {
        let admission = Admission::new(1, 1, QUEUE_TIME);
        let failed = ready(Err::<(), _>(Failure::new(Kind::Internal, "no")));
        assert_eq!(
            admission.admit(failed, None, Waiting::InQueue).await.err().unwrap().kind,
            Kind::Internal
        );
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }
}
