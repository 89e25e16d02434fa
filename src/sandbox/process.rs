//! A handle to a process, for killing exactly that process.

use std::os::fd::OwnedFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::sys;

/// A handle to a process. It never reaches another process, even if the kernel gives the process id to one.
#[derive(Debug)]
pub struct ProcessHandle {
    /// The process id.
    pub pid: Pid,
    /// A pidfd; `None` on a kernel without them, such as gVisor's. There the process is known by its id only.
    descriptor: Option<OwnedFd>,
}

impl ProcessHandle {
    /// The process that has this id now.
    pub fn of(pid: Pid) -> ProcessHandle {
        ProcessHandle { pid, descriptor: sys::pidfd_open(pid).ok() }
    }

    /// Sends SIGKILL. Does nothing if the process is gone.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Stops the process with all its threads. Does nothing if it is gone.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Continues the process after [`ProcessHandle::stop`].
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        // Fails only if the process is gone.
        let _ = match &self.descriptor {
            Some(descriptor) => sys::pidfd_signal(descriptor, signal),
            None => kill(self.pid, signal).map_err(Into::into),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_killed_and_one_that_is_gone_is_no_error() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessHandle::of(Pid::from_raw(child.id() as i32));
        process.kill();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        process.kill();
    }
}
