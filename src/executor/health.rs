//! Whether the executor can run scripts, and why it can no longer.

use serde::Serialize;

/// Whether scripts can run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not yet: Python is starting, or the self-test is running.
    Starting,
    /// Yes.
    Healthy,
    /// No, for this reason.
    Unhealthy(String),
}

/// Why the process must not serve another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsettled {
    /// The zygote died; on AWS Lambda only a script can have killed it.
    #[error("the zygote died")]
    ZygoteDied,
    /// A script left something that could not be removed, or changed the limits or the priority of this process or the
    /// zygote, so the next request could meet it.
    #[error("a script left something that cannot be removed or undone")]
    Contaminated,
    /// No worker became ready in time; a script may have stopped the zygote.
    #[error("the next worker was not ready in time")]
    TooSlow,
}
