//! Watches a running script for what the kernel does not limit: memory that replaces mapped libraries, a scratch directory
//! that is not a file system of its own, threads of workers that share a uid, and more CPU time than its share.

use std::time::{Duration, Instant};

use crate::sandbox::policy::{MAX_THREADS, MEMORY_RESERVE_BYTES};
use crate::sandbox::process::ProcessHandle;
use crate::sandbox::procfs::{self, Memory};
use crate::sandbox::sys;
use crate::sandbox::usage::{Excess, ScratchGauge};

/// How often a script is looked at. At full speed, one that writes to memory gets 50 MB further meanwhile.
const INTERVAL: Duration = Duration::from_millis(25);
/// The same for a script whose scratch directory is watched. Looking costs 40 us, so this takes half a percent of a CPU.
const SCRATCH_INTERVAL: Duration = Duration::from_millis(10);
/// How many threads of an honest script may have ended for Python and not yet for the kernel.
const ENDING_THREADS: u64 = 16;
/// How much more CPU time than its share a script may use at once.
const BURST: Duration = Duration::from_millis(100);

/// What is watched.
pub(super) struct Watched<'a> {
    /// The process of the worker.
    pub(super) process: &'a ProcessHandle,
    /// Its memory before the request; `None` if it was not readable.
    pub(super) memory: Option<Memory>,
    /// Its memory limit, bytes.
    pub(super) memory_bytes: u64,
    /// Its scratch directory, unless the kernel limits that.
    pub(super) scratch: Option<ScratchGauge>,
    /// The CPUs that it may use now.
    pub(super) cpus: &'a (dyn Fn() -> f64 + Sync),
}

/// The limit that a script has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breach {
    /// Memory.
    Memory,
    /// What is in the scratch directory.
    Scratch(Excess),
    /// The number of threads, where the kernel does not hold it.
    Threads,
}

impl Watched<'_> {
    /// Waits until the script passes a limit. Stops the process for a while whenever it has used more than its share of the
    /// CPUs.
    pub(super) async fn breach(mut self) -> Breach {
        let pid = self.process.pid;
        let most = self.memory.and_then(|memory| most_anonymous(memory, self.memory_bytes));
        let interval = if self.scratch.is_some() { SCRATCH_INTERVAL } else { INTERVAL };
        let mut allowance = Allowance::default();
        let (mut looked, mut used) = (Instant::now(), sys::cpu_time(pid));
        loop {
            tokio::time::sleep(interval).await;
            // `None` once the process has ended, which the exchange notices.
            let memory = procfs::memory(pid);
            let bytes = memory.and_then(|memory| memory.anonymous_bytes);
            if most.zip(bytes).is_some_and(|(most, bytes)| bytes > most) {
                return Breach::Memory;
            }
            if memory.is_some_and(|memory| memory.threads > Some(MAX_THREADS + ENDING_THREADS)) {
                return Breach::Threads;
            }
            if let Some(excess) = self.scratch_excess().await {
                return Breach::Scratch(excess);
            }
            let (now, total) = (Instant::now(), sys::cpu_time(pid));
            if let (Some(before), Some(total)) = (used, total) {
                let cpus = (self.cpus)();
                let over = allowance.spend(total.saturating_sub(before), now - looked, cpus);
                // The kernel shares the CPUs fairly among threads, so a single one takes nothing from others.
                let has_several = memory.is_some_and(|memory| memory.threads > Some(1));
                if let (Some(pause), true) = (over, has_several) {
                    self.process.stop();
                    tokio::time::sleep(pause).await;
                    self.process.resume();
                }
            }
            (looked, used) = (now, total);
        }
    }

    async fn scratch_excess(&mut self) -> Option<Excess> {
        let mut gauge = self.scratch.take()?;
        let measured = tokio::task::spawn_blocking(move || {
            let excess = gauge.excess();
            (gauge, excess)
        });
        // Fails only by a panic. Then the script cannot be watched.
        let Ok((gauge, excess)) = measured.await else { return Some(Excess::Bytes) };
        self.scratch = Some(gauge);
        excess
    }
}

/// The most anonymous memory that a process may have, bytes. Beyond its limit and the reserve, it may use what its zygote
/// had mapped and not touched, such as the buffer of a BLAS library, since RLIMIT_AS does not count that again.
fn most_anonymous(before: Memory, limit: u64) -> Option<u64> {
    let untouched = before.private_bytes?.saturating_sub(before.anonymous_bytes?);
    Some(before.anonymous_bytes? + untouched + limit + MEMORY_RESERVE_BYTES)
}

/// How much CPU time a script may use at once, seconds.
struct Allowance(f64);

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance(BURST.as_secs_f64())
    }
}

impl Allowance {
    /// Accounts for CPU time that was `used` while `elapsed` passed, with a share of `cpus`. Returns how long the script must
    /// pause if it has used more than allowed.
    fn spend(&mut self, used: Duration, elapsed: Duration, cpus: f64) -> Option<Duration> {
        let earned = elapsed.as_secs_f64() * cpus;
        self.0 = (self.0 + earned - used.as_secs_f64()).min(BURST.as_secs_f64());
        (self.0 < 0.0).then(|| Duration::from_secs_f64(-self.0 / cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(25);

    #[test]
    fn a_script_that_stays_within_its_share_is_never_paused() {
        let mut allowance = Allowance::default();
        for _ in 0..1000 {
            assert_eq!(allowance.spend(TICK, TICK, 1.0), None);
        }
    }

    #[test]
    fn a_script_on_two_cpus_is_paused_as_long_as_it_was_over_its_share_of_one() {
        let mut allowance = Allowance::default();
        for _ in 0..4 {
            assert_eq!(allowance.spend(2 * TICK, TICK, 1.0), None);
        }
        let pause = allowance.spend(2 * TICK, TICK, 1.0).unwrap();
        assert_eq!(pause.as_millis(), 25);
        // From then on it works for half of the time, on two CPUs.
        let next = allowance.spend(2 * TICK, TICK + pause, 1.0).unwrap();
        assert_eq!(next.as_millis(), 25);
    }

    #[test]
    fn time_without_work_is_saved_up_to_the_burst() {
        let mut allowance = Allowance::default();
        assert_eq!(allowance.spend(Duration::ZERO, Duration::from_secs(60), 1.0), None);
        assert_eq!(allowance.spend(BURST, Duration::ZERO, 1.0), None);
        assert!(allowance.spend(TICK, Duration::ZERO, 0.5).unwrap() == 2 * TICK);
    }

    #[test]
    fn the_memory_of_a_script_includes_what_its_zygote_had_not_touched() {
        let before = Memory {
            mapped_bytes: 160 << 20,
            resident_bytes: 56 << 20,
            peak_bytes: 56 << 20,
            anonymous_bytes: Some(44 << 20),
            private_bytes: Some(80 << 20),
            threads: Some(1),
        };
        assert_eq!(most_anonymous(before, 256 << 20), Some((80 + 256 + 16) << 20));
        assert_eq!(most_anonymous(Memory { anonymous_bytes: None, ..before }, 1), None);
    }
}
