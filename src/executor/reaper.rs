//! Reaps every process that the supervisor inherits: zygotes, and the orphans they leave.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::essential::spawn_essential;
use crate::sandbox::{procfs, sys};

/// How long a zygote may stay stopped. When the whole container is frozen and continued, the zygote stops for less.
const STOPPED_TIMEOUT: Duration = Duration::from_millis(250);

/// Reaps for as long as the process lives. As process 1 of a container, or as the subreaper of its children, the
/// supervisor is the only process that can reap orphans.
pub(super) async fn reap_children() {
    if let Err(error) = sys::set_child_subreaper() {
        tracing::debug!(%error, "cannot become the subreaper; init reaps orphans");
    }
    let mut children = match signal(SignalKind::child()) {
        Ok(children) => children,
        Err(error) => {
            tracing::error!(%error, "cannot receive SIGCHLD; zombies will stay");
            return;
        }
    };
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            match status {
                WaitStatus::StillAlive => break,
                WaitStatus::Stopped(child, _) => {
                    spawn_essential(kill_if_still_stopped(child));
                }
                _ => tracing::debug!(?status, "reaped a child"),
            }
        }
        children.recv().await;
    }
}

/// Kills a zygote that was stopped and not continued. A script that shares its uid may have stopped it, and a stopped
/// zygote starts no workers.
async fn kill_if_still_stopped(child: Pid) {
    tokio::time::sleep(STOPPED_TIMEOUT).await;
    if procfs::is_stopped_child(child) {
        tracing::error!(%child, "a zygote was stopped and not continued; killing it");
        // The id is still the zygote's: it was alive a moment ago, and only this task's owner reaps it.
        let _ = kill(child, Signal::SIGKILL);
    }
}
