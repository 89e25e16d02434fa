//! The resource limits of a worker, as numbers that the harness sets. See
//! <https://man7.org/linux/man-pages/man2/setrlimit.2.html>.

use std::time::Duration;

use mainbox_zygote::messages::{self, EncodedLimit};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Serialize, Serializer};

use super::policy::{
    MAX_DESCRIPTORS, MAX_QUEUED_SIGNALS, MAX_THREADS, MEMORY_RESERVE_BYTES, STACK_BYTES,
};
use crate::config::Config;

/// One resource limit, as for setrlimit(2). The unit depends on the resource: bytes, seconds or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The resource; serialized as the kernel's number for it.
    #[serde(serialize_with = "number")]
    pub resource: Resource,
    /// The limit that the kernel enforces.
    pub soft: u64,
    /// The limit up to which the worker may raise the soft limit.
    pub hard: u64,
}

fn limit(resource: Resource, soft: u64, hard: u64) -> Limit {
    Limit { resource, soft, hard }
}

fn number<S: Serializer>(resource: &Resource, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(*resource as u32)
}

impl Limit {
    /// The limit as a worker receives it.
    pub fn encode(self) -> EncodedLimit {
        let Limit { resource, soft, hard } = self;
        messages::Limit { resource: resource as u32, soft, hard }.encode()
    }

    /// Sets the limit for this process, capped at the hard limit that the process already has.
    ///
    /// # Errors
    /// When getrlimit(2) or setrlimit(2) fails.
    pub fn set(&self) -> nix::Result<()> {
        // Raising a hard limit needs CAP_SYS_RESOURCE, which the service may not have.
        let (_, most) = getrlimit(self.resource)?;
        setrlimit(self.resource, self.soft.min(most), self.hard.min(most))
    }
}

/// The CPU time limit for a wall time limit, seconds. The kernel counts whole seconds, so this is the wall time limit
/// rounded up, plus one: a script with a single thread reaches the wall time limit first.
pub fn cpu_seconds(timeout: Duration) -> u64 {
    timeout.as_secs_f64().ceil() as u64 + 1
}

/// The limits of a worker with a wall time limit of `timeout` and an address space of `memory` bytes. `memory` must
/// include what the zygote has mapped, since RLIMIT_AS counts it too. The hard memory limit is higher by
/// [`MEMORY_RESERVE_BYTES`], which the worker uses to report a `MemoryError`. `tasks` limits the processes and threads of
/// the uid that the worker has.
pub fn limits(config: &Config, timeout: Duration, memory: u64, tasks: u64) -> Vec<Limit> {
    let cpu = cpu_seconds(timeout);
    let mut limits = vec![
        limit(Resource::RLIMIT_AS, memory, memory + MEMORY_RESERVE_BYTES),
        limit(Resource::RLIMIT_CPU, cpu, cpu + 1),
        limit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS),
        limit(Resource::RLIMIT_NPROC, tasks, tasks),
        limit(Resource::RLIMIT_FSIZE, config.scratch_bytes, config.scratch_bytes),
        limit(Resource::RLIMIT_STACK, STACK_BYTES, STACK_BYTES),
        limit(Resource::RLIMIT_CORE, 0, 0),
    ];
    if is_settable(Resource::RLIMIT_SIGPENDING) {
        limits.push(limit(Resource::RLIMIT_SIGPENDING, MAX_QUEUED_SIGNALS, MAX_QUEUED_SIGNALS));
    }
    limits
}

/// Returns whether the kernel lets a process set this limit. gVisor refuses those that it does not enforce.
fn is_settable(resource: Resource) -> bool {
    getrlimit(resource).and_then(|(soft, hard)| setrlimit(resource, soft, hard)).is_ok()
}

/// The limits of the tier `rlimits` that a worker sets after the imports of the script and before its first line. From
/// then on no file descriptor, file, process or thread can be created. The hard limits are zero too, so that a worker
/// without privileges cannot raise them again.
pub fn late_limits() -> Vec<Limit> {
    [Resource::RLIMIT_NOFILE, Resource::RLIMIT_NPROC, Resource::RLIMIT_FSIZE]
        .map(|resource| limit(resource, 0, 0))
        .to_vec()
}

/// How much lower the limits of a request are than those of the server, under which its worker already runs. Limits
/// that do not differ are left out. These are differences rather than limits, since the memory limit of the worker
/// includes what its zygote has mapped.
pub fn differences(config: &Config, timeout: Duration, memory_bytes: u64) -> Vec<Limit> {
    let server = limits(config, config.timeout, config.memory_bytes, MAX_THREADS);
    let requested = limits(config, timeout, memory_bytes, MAX_THREADS);
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
