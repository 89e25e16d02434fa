//! How far a request has come: for the log line of one that ends without a response, and for a response that begins when
//! the script does.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How far a request to run a script has come. Cheap to clone. A front attaches it to a request as an extension and can
/// still read it when the request is cancelled.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    run: OnceLock<Run>,
    begun: Notify,
}

#[derive(Debug)]
struct Run {
    queue: Duration,
    began: Instant,
}

impl Progress {
    /// Records that a worker has the request, after `queue`.
    pub fn begin_run(&self, queue: Duration) {
        // A request that gets a second worker counts from the first.
        let _ = self.0.run.set(Run { queue, began: Instant::now() });
        self.0.begun.notify_one();
    }

    /// Waits until a worker has the request. One task may wait.
    pub async fn begun(&self) {
        self.0.begun.notified().await;
    }

    /// The time in the queue and the wall time of the run so far; `None` before a worker has the request.
    pub fn times(&self) -> Option<(Duration, Duration)> {
        self.0.run.get().map(|run| (run.queue, run.began.elapsed()))
    }
}
