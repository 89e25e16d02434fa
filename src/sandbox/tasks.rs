//! How many processes and threads there are and may be, where workers share the uid of the service.

use std::fs;

use nix::sys::resource::Resource;

use super::attempts::try_limits;
use super::policy::MAX_SHARED_TASKS;
use super::rlimits::Limit;
use super::sys;

/// The largest process id of Linux, PID_MAX_LIMIT in linux/threads.h.
const MOST_TASKS: u64 = 1 << 22;
/// Where a container finds the limit of its processes and threads, in the second and the first version of cgroups:
/// <https://docs.kernel.org/admin-guide/cgroup-v2.html#pid>.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"];

/// The largest number of processes and threads that the user of this process may have while scripts run. Returns `None` if
/// the kernel does not apply such a limit. Must run while the process has a single thread.
pub(super) fn limit() -> Option<u64> {
    Some(of_user()? + allowance(free_in_container()))
}

/// How many a script may start before the supervisor looks again, given how many the container has room for. Half of that
/// is left to the service.
fn allowance(free: Option<u64>) -> u64 {
    free.map_or(MAX_SHARED_TASKS, |free| MAX_SHARED_TASKS.min(free / 2))
}

/// How many processes and threads this container may start; `None` if it has no limit.
fn free_in_container() -> Option<u64> {
    let number = |directory: &str, file: &str| -> Option<u64> {
        fs::read_to_string(format!("{directory}/{file}")).ok()?.trim().parse().ok()
    };
    CGROUPS.iter().find_map(|directory| {
        let most = number(directory, "pids.max")?;
        Some(most.saturating_sub(number(directory, "pids.current")?))
    })
}

/// How many processes and threads the user of this process has, in all containers, as RLIMIT_NPROC counts them. Returns
/// `None` if the kernel does not apply the limit to this process, for example since it runs as root. Nothing else tells the
/// number: /proc shows the processes of this container only.
fn of_user() -> Option<u64> {
    let allows = |tasks| {
        let attempt = || {
            let limit = Limit { resource: Resource::RLIMIT_NPROC, soft: tasks, hard: tasks };
            match try_limits(&[limit]) {
                0 => sys::in_child(|| 0).map_or(libc::EAGAIN, |_| 0),
                errno => errno,
            }
        };
        sys::in_child(attempt).is_ok_and(|errno| errno == 0)
    };
    if allows(1) {
        return None;
    }
    let (mut too_few, mut enough) = (1, 2);
    while !allows(enough) {
        (too_few, enough) = (enough, enough * 2);
        if enough > MOST_TASKS {
            return None;
        }
    }
    while enough - too_few > 1 {
        let middle = u64::midpoint(too_few, enough);
        if allows(middle) { enough = middle } else { too_few = middle }
    }
    Some(enough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_room_of_a_container_is_left_to_the_service() {
        assert_eq!(allowance(None), 1024);
        assert_eq!(allowance(Some(100_000)), 1024);
        assert_eq!(allowance(Some(500)), 250);
        assert_eq!(allowance(Some(0)), 0);
    }
}
