//! A job: a script to run and the limits that apply to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::live_output::LiveOutput;
use crate::api::collect::Collect;
use crate::api::files::Files;
use crate::api::request::{Entry, ExecuteRequest};
use crate::config::Config;
use crate::config::choices::Policy;
use crate::telemetry::progress::Progress;

/// A script to run and the limits that apply to it.
///
/// Cloning one does not copy its script and its files.
#[derive(Clone, Debug)]
pub struct Job {
    /// Python source.
    pub script: Arc<str>,
    /// The argument of `main`, as JSON text; `None` calls `main()` without an argument.
    pub input: Option<Box<RawValue>>,
    /// What the script reads from its standard input; `None` is empty.
    pub stdin: Option<Arc<str>>,
    /// How the script is run.
    pub entry: Entry,
    /// Files to write to the working directory first.
    pub files: Arc<Files>,
    /// Which files come back besides those in `outputs/`.
    pub collect: Arc<Collect>,
    /// Wall time limit.
    pub timeout: Duration,
    /// Receives output while the script runs, if a front wants to show it.
    pub live: Option<LiveOutput>,
    /// Records when a worker has the job.
    pub progress: Progress,
    /// When the platform ends the request, if that may come before the timeout.
    pub deadline: Option<Instant>,
    /// Memory limit on top of the preloaded interpreter, bytes.
    pub memory_bytes: u64,
    /// What is refused before the script runs.
    pub policy: Policy,
}

impl Job {
    /// The job of a script and nothing else, within the limits of the server.
    pub fn of_script(script: &str, config: &Config) -> Job {
        Job {
            script: script.into(),
            input: None,
            stdin: None,
            entry: Entry::default(),
            files: Arc::default(),
            collect: Arc::default(),
            timeout: config.timeout,
            live: None,
            progress: Progress::default(),
            deadline: None,
            memory_bytes: config.memory_bytes,
            policy: config.policy,
        }
    }

    /// The job of `request`. A request can lower the server's limits but not raise them.
    pub fn new(request: ExecuteRequest, config: &Config) -> Job {
        let usual = Job::of_script(&request.script, config);
        let memory = request.memory_mb.map(|mb| mb.saturating_mul(1 << 20));
        Job {
            input: request.input,
            stdin: request.stdin.map(Arc::from),
            entry: request.entry.unwrap_or_default(),
            files: request.files.into(),
            collect: request.collect.into(),
            timeout: request
                .timeout
                .map_or(usual.timeout, |requested| requested.min(usual.timeout)),
            memory_bytes: memory
                .map_or(usual.memory_bytes, |requested| requested.min(usual.memory_bytes)),
            ..usual
        }
    }
}
