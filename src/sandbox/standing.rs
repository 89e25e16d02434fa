//! The standing of the processes of the service: what a process with the same uid can change from outside. In the tier
//! `rlimits`, no filter stops a script from that.

use nix::unistd::Pid;

use super::{procfs, sys};

/// What a script could have changed of some processes.
#[derive(Debug)]
pub(super) struct Standing(Vec<OfProcess>);

#[derive(Debug, PartialEq, Eq)]
struct OfProcess {
    process: Pid,
    /// Resource limits, scheduling, affinity and signals; `None` if the process is gone.
    seen: Option<procfs::Standing>,
    /// The input and output priority; `None` if the kernel does not tell it.
    io_priority: Option<i32>,
}

impl Standing {
    /// The standing of these processes now.
    pub(super) fn of(processes: &[Pid]) -> Standing {
        let of_process = |process: &Pid| OfProcess {
            process: *process,
            seen: procfs::standing(*process),
            io_priority: sys::io_priority(*process),
        };
        Standing(processes.iter().map(of_process).collect())
    }

    /// Returns whether anything has changed since. The death of a process is no change: the executor notices it.
    pub(super) fn has_changed(&self) -> bool {
        let processes: Vec<Pid> = self.0.iter().map(|standing| standing.process).collect();
        let now = Standing::of(&processes);
        self.0.iter().zip(&now.0).any(|(before, now)| now.seen.is_some() && before != now)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::*;

    /// Runs a program on a process that sleeps, and returns whether its standing has changed.
    fn changes(act: impl FnOnce(&Child)) -> bool {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let standing = Standing::of(&[Pid::from_raw(sleeper.id() as i32), nix::unistd::getpid()]);
        assert!(!standing.has_changed());
        act(&sleeper);
        let changed = standing.has_changed();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        changed
    }

    fn run(program: &str, arguments: &[&str], sleeper: &Child) {
        let status = Command::new(program).args(arguments).arg(sleeper.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn limits_priority_affinity_and_scheduling_of_another_process_are_noticed() {
        assert!(!changes(|_| {}));
        assert!(changes(|sleeper| run("prlimit", &["--as=100000000", "--pid"], sleeper)));
        assert!(changes(|sleeper| run("renice", &["-n", "7", "-p"], sleeper)));
        assert!(changes(|sleeper| run("ionice", &["-c", "3", "-p"], sleeper)));
        assert!(changes(|sleeper| run("chrt", &["--idle", "--pid", "0"], sleeper)));
        assert!(changes(|sleeper| {
            let pid = Pid::from_raw(sleeper.id() as i32);
            let all = sched_getaffinity(pid).unwrap();
            let used = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
            let mut one = CpuSet::new();
            one.set(used).unwrap();
            sched_setaffinity(pid, &one).unwrap();
            assert_ne!(all, one, "this test needs two CPUs");
        }));
    }

    #[test]
    fn a_process_that_is_gone_has_not_changed() {
        let mut gone = Command::new("sleep").arg("60").spawn().unwrap();
        let standing = Standing::of(&[Pid::from_raw(gone.id() as i32)]);
        gone.kill().unwrap();
        gone.wait().unwrap();
        assert!(!standing.has_changed());
    }
}
