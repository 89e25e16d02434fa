//! The record of an execution, for logs and metrics: its outcome and its cost, never what the caller sent or got.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::api::catalogue::Kind;

/// The outcome and cost of one request to `/execute`. The handler attaches it to the response as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutionRecord {
    /// Whether the script ran at all.
    pub ran: bool,
    /// The kind of the failure; `None` for a success.
    pub kind: Option<Kind>,
    /// Time between arrival and the start of the run.
    pub queue: Duration,
    /// Wall time of the run.
    pub run: Duration,
    /// CPU time of the run.
    pub cpu: Duration,
    /// Peak memory on top of the preloaded interpreter, bytes.
    pub peak_memory: u64,
}

impl ExecutionRecord {
    /// The record of a request whose script did not run.
    pub fn refused(kind: Kind) -> ExecutionRecord {
        ExecutionRecord { kind: Some(kind), ..ExecutionRecord::blank() }
    }

    /// The record of a request whose scripts have not run yet.
    pub fn blank() -> ExecutionRecord {
        ExecutionRecord {
            ran: false,
            kind: None,
            queue: Duration::ZERO,
            run: Duration::ZERO,
            cpu: Duration::ZERO,
            peak_memory: 0,
        }
    }

    /// Adds what another script of the same request took, without its times of waiting and running, which overlap.
    pub fn add(&mut self, other: &ExecutionRecord) {
        self.ran |= other.ran;
        self.cpu += other.cpu;
        self.peak_memory = self.peak_memory.max(other.peak_memory);
    }

    /// `ok`, or the name of the failure's kind.
    pub fn outcome(&self) -> &'static str {
        self.kind.map_or("ok", Kind::name)
    }
}

/// The record of an execution that has not ended yet. The handler attaches it to a response that is sent meanwhile. Cheap
/// to clone.
#[derive(Clone, Debug, Default)]
pub struct EventualRecord(Arc<OnceLock<ExecutionRecord>>);

impl EventualRecord {
    /// Records the end.
    pub fn set(&self, record: ExecutionRecord) {
        // An execution ends once.
        let _ = self.0.set(record);
    }

    /// The record, if the execution has ended.
    pub fn get(&self) -> Option<&ExecutionRecord> {
        self.0.get()
    }
}

/// The outcome of a request whose client has left.
pub const LEFT: &str = "left";

/// A duration in milliseconds, for logs and headers.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
