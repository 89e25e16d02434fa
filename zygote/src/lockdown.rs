//! The lockdown: puts a worker into the sandbox, one mechanism per step, in a fixed order.
//!
//! The supervisor decides which steps there are. If one fails, the worker ends before it has read its request.

use core::ffi::CStr;

use crate::messages::{EncodedLimit, Failure, Limit, Policy, Start, Step};
use crate::numbers::{CLONE_NEWNS, CLONE_NEWUSER, ESRCH};
use crate::sys::{self, Errno, Output};

/// The channel to the supervisor, in a worker.
pub const CHANNEL: i32 = 3;
/// The Landlock ruleset, in a worker, until it has entered it.
const RULESET: i32 = 4;

/// The descriptors that the supervisor attaches to the order to fork a worker, with the numbers that they have in the
/// zygote.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// The channel to the supervisor.
    pub channel: i32,
    /// The standard output.
    pub stdout: i32,
    /// The standard error.
    pub stderr: i32,
    /// The file for the memory of its output.
    pub output: i32,
    /// The Landlock ruleset, if there is one.
    pub ruleset: Option<i32>,
}

/// What a worker is locked down with.
#[derive(Debug)]
pub struct Lockdown<'a, 'b> {
    /// What all workers have in common.
    pub policy: &'a mut Policy<'b>,
    /// How this worker starts.
    pub start: Start<'a>,
    /// Its descriptors.
    pub descriptors: Descriptors,
    /// Where the memory for its output is mapped.
    pub output: &'a Output,
    /// The process id of the zygote, in its pid namespace.
    pub zygote: i32,
}

impl Lockdown<'_, '_> {
    /// Takes every step in this process.
    ///
    /// # Errors
    /// The step that failed. The process must end.
    pub fn carry_out(&mut self) -> Result<(), Failure> {
        for step in Step::ALL {
            if self.has(step) {
                self.take(step).map_err(|Errno(errno)| Failure { step, errno })?;
            }
        }
        Ok(())
    }

    /// Returns whether the worker takes this step.
    fn has(&self, step: Step) -> bool {
        match step {
            Step::Start
            | Step::Output
            | Step::Descriptors
            | Step::Session
            | Step::Limits
            | Step::Scratch => true,
            Step::Mount => self.start.mount.is_some(),
            Step::UserNamespace => self.policy.user_namespace,
            Step::Uid => self.start.uid.is_some(),
            Step::Capabilities | Step::ParentDeathSignal | Step::NonDumpable | Step::NoNewPrivs => {
                self.policy.prctl
            }
            // Fails if the descriptor did not arrive.
            Step::Landlock => self.start.has_ruleset,
            Step::Seccomp => !self.policy.filter.is_empty(),
        }
    }

    fn take(&mut self, step: Step) -> Result<(), Errno> {
        match step {
            // Was read before.
            Step::Start => Ok(()),
            // Before the descriptors, since the worker must not keep this one.
            Step::Output => sys::map_output(self.output, self.descriptors.output),
            // First, so that every other descriptor of the zygote is closed before anything else happens.
            Step::Descriptors => place(self.descriptors),
            // Its own process group: killpg() in the script must not reach the zygote.
            Step::Session => sys::start_session(),
            // A file system in memory that only this worker sees, with limits on bytes and files that the kernel
            // enforces. Needs CAP_SYS_ADMIN in the zygote's user namespace, so it comes before everything that gives up
            // privileges. The kernel removes it when the process ends.
            Step::Mount => mount(self.start.scratch, self.start.mount),
            // The kernel counts threads for each user namespace and uid. Workers that share a uid need a namespace
            // each, or one could use up the threads of all. After the mount, so that the new namespace has no rights
            // over it.
            Step::UserNamespace => sys::unshare(CLONE_NEWUSER),
            // Bounds memory, CPU time, descriptors, threads and file size. After the user namespace, in which the
            // threads of this worker are counted alone; before the uid, so that nothing runs with that uid and the
            // limits of the service.
            Step::Limits => self.start.limits.iter().try_for_each(|limit| set(*limit)),
            // Keeps the worker from files, processes and memory of the service and of other workers. Needs CAP_SETUID.
            Step::Uid => self.start.uid.map_or(Ok(()), sys::change_uid),
            // After the uid, so that it fails now if the worker cannot enter its scratch directory.
            Step::Scratch => sys::change_directory(self.start.scratch),
            // A worker that stays root or is in a new user namespace still has capabilities. After the uid, which needs
            // one.
            Step::Capabilities => sys::drop_capabilities(),
            // If the zygote is killed, no worker may outlive it. The kernel resets this and the next flag when the uid
            // changes, so both come after it.
            Step::ParentDeathSignal => die_with(self.zygote),
            // Other processes of the same uid must not trace this one or read its memory.
            Step::NonDumpable => sys::become_non_dumpable(),
            // Executing a program cannot restore privileges. Landlock and seccomp require it from processes without
            // CAP_SYS_ADMIN.
            Step::NoNewPrivs => sys::forbid_new_privileges(),
            // Confines the worker to the files of the interpreter and its scratch directory, even if its uid may read
            // more. Before seccomp, which refuses the system call. The script must not inherit a descriptor that it has
            // no use for.
            Step::Landlock => {
                sys::enter_ruleset(RULESET)?;
                sys::close(RULESET);
                Ok(())
            }
            // Refuses every system call that scripts do not need, among them those of the steps above and further
            // filters, so it is the last.
            Step::Seccomp => {
                name_own_process(self.policy, sys::process_id());
                sys::install_filter(self.policy.filter)
            }
        }
    }
}

/// Gives /dev/null, stdout, stderr, channel and ruleset the numbers 0 to 4, and closes everything else.
fn place(descriptors: Descriptors) -> Result<(), Errno> {
    let Descriptors { stdout, stderr, channel, ruleset, .. } = descriptors;
    // First to high numbers, where they do not overwrite each other.
    let [stdout, stderr, channel] =
        [sys::duplicate_high(stdout)?, sys::duplicate_high(stderr)?, sys::duplicate_high(channel)?];
    let ruleset = match ruleset {
        Some(ruleset) => Some(sys::duplicate_high(ruleset)?),
        None => None,
    };
    // Opened anew, since workers could leave messages for each other in the flags of a shared open file.
    sys::duplicate(sys::open_null()?, 0)?;
    sys::duplicate(stdout, 1)?;
    sys::duplicate(stderr, 2)?;
    sys::duplicate(channel, CHANNEL)?;
    if let Some(ruleset) = ruleset {
        sys::duplicate(ruleset, RULESET)?;
        sys::close_from(RULESET + 1);
    } else {
        sys::close_from(CHANNEL + 1);
    }
    Ok(())
}

fn mount(path: &CStr, options: Option<&CStr>) -> Result<(), Errno> {
    sys::unshare(CLONE_NEWNS)?;
    sys::mount_tmpfs(path, options.unwrap_or_default())
}

/// Sets a limit. Where the service was started with a lower limit, that one stays in force.
fn set(limit: EncodedLimit) -> Result<(), Errno> {
    let Limit { resource, soft, hard } = Limit::decode(limit);
    let most = sys::hard_limit(resource)?;
    sys::set_limit(resource, soft.min(most), hard.min(most))
}

/// Asks the kernel to kill this process when the zygote ends.
fn die_with(zygote: i32) -> Result<(), Errno> {
    sys::die_with_parent()?;
    // The zygote may have ended before the call.
    if sys::parent_id() == zygote { Ok(()) } else { Err(ESRCH) }
}

/// Writes the process id of this worker into the filter.
fn name_own_process(policy: &mut Policy<'_>, pid: i32) {
    for [_, _, _, _, operand @ ..] in policy.filter.iter_mut() {
        if *operand == policy.own_process.to_ne_bytes() {
            *operand = pid.to_ne_bytes();
        }
    }
}

#[cfg(test)]
mod tests;
