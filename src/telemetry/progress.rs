//! How far a request has come, for the log line of one that ends without a response.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How far a request to run a script has come. Cheap to clone. A front attaches it to a request as an extension and can
/// still read it when the request is cancelled.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<OnceLock<Run>>);

#[derive(Debug)]
struct Run {
    queue: Duration,
    began: Instant,
}

impl Progress {
    /// Records that a worker has the request, after `queue`.
    pub fn begin_run(&self, queue: Duration) {
        // A request that gets a second worker counts from the first.
        let _ = self.0.set(Run { queue, began: Instant::now() });
    }

    /// The time in the queue and the wall time of the run so far; `None` before a worker has the request.
    pub fn times(&self) -> Option<(Duration, Duration)> {
        self.0.get().map(|run| (run.queue, run.began.elapsed()))
    }
}
