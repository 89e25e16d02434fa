//! Resource limits of a worker, as numbers for the harness to set.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Serialize, Serializer};

use super::policy::{MAX_DESCRIPTORS, MAX_THREADS, MEMORY_RESERVE_BYTES, STACK_BYTES};
use crate::config::Config;

/// One limit: what `setrlimit` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Which resource; on the wire, the kernel's number of it.
    #[serde(serialize_with = "number")]
    pub resource: Resource,
    /// What is enforced.
    pub soft: u64,
    /// What the worker may raise it to.
    pub hard: u64,
}

fn limit(resource: Resource, soft: u64, hard: u64) -> Limit {
    Limit { resource, soft, hard }
}

fn number<S: Serializer>(resource: &Resource, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(*resource as u32)
}

impl Limit {
    /// Sets it for this process, or less where we were started with less.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set(&self) -> nix::Result<()> {
        let (_, most) = getrlimit(self.resource)?;
        setrlimit(self.resource, self.soft.min(most), self.hard.min(most))
    }
}

/// CPU seconds that belong to a wall time: the kernel counts whole seconds, so one more than it takes to reach the
/// wall time first with a single thread.
pub fn cpu_seconds(timeout: Duration) -> u64 {
    timeout.as_secs_f64().ceil() as u64 + 1
}

/// The limits of a worker with this wall time and `memory` bytes: those of the script and what its zygote has mapped, as
/// RLIMIT_AS counts what numpy has reserved already. The hard memory limit leaves the worker room to report a MemoryError.
pub fn limits(config: &Config, timeout: Duration, memory: u64) -> Vec<Limit> {
    let cpu = cpu_seconds(timeout);
    vec![
        limit(Resource::RLIMIT_AS, memory, memory + MEMORY_RESERVE_BYTES),
        limit(Resource::RLIMIT_CPU, cpu, cpu + 1),
        limit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS),
        limit(Resource::RLIMIT_NPROC, MAX_THREADS, MAX_THREADS),
        limit(Resource::RLIMIT_FSIZE, config.scratch_bytes, config.scratch_bytes),
        limit(Resource::RLIMIT_STACK, STACK_BYTES, STACK_BYTES),
        limit(Resource::RLIMIT_CORE, 0, 0),
    ]
}

/// The limits of the tier `rlimits`, set once everything that the script names is imported and before its first line
/// runs: from then on no descriptor, process, thread or file is to be had, irreversibly.
pub fn late_limits() -> Vec<Limit> {
    [Resource::RLIMIT_NOFILE, Resource::RLIMIT_NPROC, Resource::RLIMIT_FSIZE]
        .map(|resource| limit(resource, 0, 0))
        .to_vec()
}

/// By how much each limit of a request with this timeout and memory limit is below the server's own, under which every
/// worker runs. Differences, since the limits themselves include what the zygote has mapped.
pub fn differences(config: &Config, timeout: Duration, memory_bytes: u64) -> Vec<Limit> {
    let server = limits(config, config.timeout, config.memory_bytes);
    let requested = limits(config, timeout, memory_bytes);
    server
        .into_iter()
        .zip(requested)
        .filter(|(server, requested)| requested.soft < server.soft)
        .map(|(server, requested)| {
            let (soft, hard) = (server.soft - requested.soft, server.hard - requested.hard);
            limit(requested.resource, soft, hard)
        })
        .collect()
}
