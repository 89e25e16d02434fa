//! The record of an execution, for logs and metrics: what it cost and what came of it, never what the caller sent or got.

use std::time::Duration;

use crate::api::{Failure, Kind};
use crate::executor::outcome::Execution;

/// What one execution cost and what came of it. The handler attaches it to its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whether a script was run at all.
    pub ran: bool,
    /// Why there is no result; `None` when there is one.
    pub kind: Option<Kind>,
    /// Waited for a turn and a worker.
    pub queue: Duration,
    /// Wall time of the run.
    pub run: Duration,
    /// CPU time of the run.
    pub cpu: Duration,
    /// Bytes on top of the preloaded interpreter.
    pub peak_memory: u64,
}

impl Record {
    /// Of a script that was run.
    pub fn of(execution: &Execution) -> Record {
        Record {
            ran: true,
            kind: execution.outcome.as_ref().err().map(|failure| failure.kind),
            queue: execution.queue,
            run: execution.run,
            cpu: execution.cpu,
            peak_memory: execution.peak_memory,
        }
    }

    /// Of a request that was not run.
    pub fn refused(failure: &Failure) -> Record {
        Record {
            ran: false,
            kind: Some(failure.kind),
            queue: Duration::ZERO,
            run: Duration::ZERO,
            cpu: Duration::ZERO,
            peak_memory: 0,
        }
    }

    /// `ok`, or the kind of the failure as the contract names it.
    pub fn outcome(&self) -> &'static str {
        self.kind.map_or("ok", Kind::name)
    }
}

/// A duration in milliseconds, as logs and headers give it.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
