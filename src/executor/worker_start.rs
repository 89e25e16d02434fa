//! The start of a worker: its descriptors, its first frame, and why it may fail.

use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use mainbox_zygote::messages::{Failure, Step};
use nix::fcntl::OFlag;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use nix::unistd::{Pid, pipe2};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::exchange::MAX_FAILURE_BYTES;
use super::protocol::{NotReady, from_worker};
use crate::sandbox::SandboxError;

/// How much of what a worker printed before it was ready is discarded, bytes.
const EARLY_OUTPUT_BYTES: usize = 16 * 1024;

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum StartError {
    /// Its scratch directory, uid or ruleset could not be made.
    #[error(transparent)]
    Jail(#[from] SandboxError),
    /// Its descriptors could not be made.
    #[error("descriptors of a worker: {0}")]
    Descriptors(io::Error),
    /// The zygote could not fork it.
    #[error("fork of a worker: {0}")]
    Fork(io::Error),
    /// A path or option holds a NUL.
    #[error("start of a worker: {0}")]
    Text(io::Error),
    /// A step of its lockdown failed.
    #[error("step {step} of its start failed: {1}", step = .0.name())]
    Lockdown(Step, io::Error),
    /// A step after its lockdown failed.
    #[error("step {step} of its start failed: {error}", step = .0.step, error = .0.error)]
    NotReady(NotReady),
    /// It died before it was ready.
    #[error("a worker died before it was ready")]
    Died,
    /// It was not ready in time, so its zygote counts as stuck.
    #[error("a worker was not ready in time")]
    Stuck,
    /// Its zygote died.
    #[error("the zygote died")]
    ZygoteGone,
}

pub(super) fn fork_error(errno: i32) -> StartError {
    StartError::Fork(io::Error::from_raw_os_error(errno))
}

/// Receives the first frame. The kernel attaches the sender's credentials to it, which is how the supervisor learns the
/// worker's process id in its own pid namespace. No script has run by then, so the sender is the worker.
pub(super) async fn greeting(channel: &UnixStream) -> Result<Pid, StartError> {
    let mut header = [0u8; 5];
    let (length, pid) = channel
        .async_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!(UnixCredentials);
            let mut buffer = [IoSliceMut::new(&mut header)];
            let message = recvmsg::<()>(
                channel.as_raw_fd(),
                &mut buffer,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let sender = message.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
                _ => None,
            });
            Ok((message.bytes, sender))
        })
        .await
        .map_err(|error| match error.kind() {
            // It died before it had read its first frame.
            io::ErrorKind::ConnectionReset => StartError::Died,
            _ => StartError::Descriptors(error),
        })?;
    match (length, header[0], pid) {
        (5, from_worker::READY, Some(pid)) if pid.as_raw() > 0 => Ok(pid),
        (5, kind @ (from_worker::LOCKDOWN | from_worker::NOT_READY), _) => {
            Err(failure(channel, kind, header).await.unwrap_or(StartError::Died))
        }
        _ => Err(StartError::Died),
    }
}

/// Receives the rest of a frame about a failed step; `None` if the worker dies before, or the frame is malformed.
async fn failure(channel: &UnixStream, kind: u8, header: [u8; 5]) -> Option<StartError> {
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let mut payload = vec![0; length.min(MAX_FAILURE_BYTES)];
    let mut filled = 0;
    while filled < payload.len() {
        channel.readable().await.ok()?;
        match channel.try_read(&mut payload[filled..]) {
            Ok(0) => return None,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    if kind == from_worker::NOT_READY {
        return serde_json::from_slice(&payload).map(StartError::NotReady).ok();
    }
    let Failure { step, errno } = Failure::decode(payload.as_slice().try_into().ok()?)?;
    Some(StartError::Lockdown(step, io::Error::from_raw_os_error(errno)))
}

/// Discards what a worker printed before it was ready, such as the traceback of a harness that failed or the output of a
/// preloaded module: it must not become the output of a script. What it wrote to stderr is logged at the level DEBUG.
pub(super) fn discard_early_output(worker: u64, stdout: &pipe::Receiver, stderr: &pipe::Receiver) {
    let mut text = vec![0; EARLY_OUTPUT_BYTES];
    // More than that is left to the script's own output, which is bounded too.
    let _ = stdout.try_read(&mut text);
    if let Ok(length @ 1..) = stderr.try_read(&mut text) {
        let text = String::from_utf8_lossy(&text[..length]);
        tracing::debug!(worker, stderr = %text, "a worker wrote to stderr before it was ready");
    }
}

/// A channel, and the worker's end of it, in which `first` waits. `first` must fit into the buffer of a socket.
pub(super) fn channel(first: &[u8]) -> io::Result<(UnixStream, OwnedFd)> {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.write_all(first)?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

pub(super) fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}
