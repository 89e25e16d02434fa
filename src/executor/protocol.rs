//! The messages between supervisor, zygote and worker.
//!
//! Supervisor and zygote exchange JSON messages over a SOCK_SEQPACKET pair, one message per packet. The descriptors of a
//! worker are attached to the order to fork it. Supervisor and worker exchange frames over a stream socket: one byte for
//! the type, four bytes for the length (little-endian), and the payload. The supervisor trusts the zygote. It trusts no
//! frame of a worker that has read its request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;

use bytes::BufMut;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::sandbox::Lockdown;
use crate::sandbox::policy::Refused;
use crate::sandbox::rlimits::Limit;

/// The first message to a zygote.
#[derive(Serialize)]
pub struct Boot<'a> {
    /// The modules of the harness: name and source.
    pub harness: &'a [(&'static str, &'static str)],
    /// The modules to import.
    pub preload: &'a [String],
    /// The bytecode archive to import them from.
    pub archive: Option<&'a Path>,
    /// How workers lock themselves down.
    pub lockdown: &'a Lockdown,
}

/// An order to a zygote.
#[derive(Serialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order<'a> {
    /// Fork a worker. Attached are its channel, stdout, stderr, and its Landlock ruleset, if any.
    Fork {
        /// The number of the worker, never used twice.
        worker: u64,
        /// The uid to change to, if the worker gets its own.
        uid: Option<u32>,
        /// Its working directory.
        scratch: &'a str,
        /// The options of the tmpfs to mount there first, if any.
        mount: Option<String>,
        /// The resource limits to set.
        limits: &'a [Limit],
        /// Whether to run the warm-up scripts first, so that the request finds caches filled and pages copied.
        warm_up: bool,
    },
    /// Wait for a worker that was killed, and report its end.
    Reap {
        /// The worker.
        worker: u64,
    },
}

/// A report of a zygote.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The imports are done; the zygote accepts orders.
    Ready(ZygoteInfo),
    /// A fork failed.
    ForkFailed {
        /// The worker that was not forked.
        worker: u64,
        /// The errno.
        errno: i32,
    },
    /// A worker has ended.
    Reaped {
        /// The worker.
        worker: u64,
        /// The status, as from wait4(2).
        status: i32,
        /// CPU time, microseconds.
        cpu_us: u64,
        /// Peak resident set, bytes.
        peak_bytes: u64,
    },
}

/// What a zygote reports when it is ready.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ZygoteInfo {
    /// The version of Python.
    pub python: String,
    /// The preloaded packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// The preload modules that could not be imported, and why.
    pub missing: BTreeMap<String, String>,
    /// The preload modules that left threads running.
    pub threaded: Vec<String>,
    /// The modules of the standard library.
    pub standard: BTreeSet<String>,
    /// The installed distributions and their versions.
    pub installed: BTreeMap<String, String>,
}

/// The last frame of a request: how to run the script.
#[derive(Serialize)]
pub struct RunOptions<'a> {
    /// What to refuse before the script runs.
    pub refused: &'a Refused,
    /// Largest result as JSON, bytes.
    pub max_result_bytes: usize,
    /// Deepest nesting of the result.
    pub max_depth: usize,
    /// Limits on the files in `outputs/`.
    pub outputs: OutputLimits,
    /// By how much to lower resource limits before the script runs.
    pub lower: &'a [Limit],
}

/// Limits on the files in `outputs/`.
#[derive(Serialize)]
pub struct OutputLimits {
    /// Total size, bytes.
    pub max_bytes: usize,
    /// Number of files.
    pub max_files: usize,
    /// Length of a name, bytes.
    pub max_name_bytes: usize,
    /// Path parts in a name.
    pub max_parts: usize,
}

/// Types of frames to a worker.
pub mod to_worker {
    /// The script, UTF-8.
    pub const SCRIPT: u8 = b'S';
    /// The argument of `main`, JSON.
    pub const INPUT: u8 = b'I';
    /// A file: two bytes for the length of the name (little-endian), the name in UTF-8, the content.
    pub const FILE: u8 = b'D';
    /// [`super::RunOptions`], JSON. It completes the request.
    pub const RUN: u8 = b'R';
}

/// Types of frames from a worker.
pub mod from_worker {
    /// The worker is locked down and waits for a request. Empty.
    pub const READY: u8 = b'R';
    /// [`super::LockdownFailure`], JSON. The worker ends.
    pub const LOCKDOWN: u8 = b'L';
    /// A file in `outputs/`, in the form of [`super::to_worker::FILE`]. The result follows.
    pub const FILE: u8 = b'D';
    /// What `main` returned, JSON.
    pub const VALUE: u8 = b'V';
    /// [`super::ScriptFailure`], JSON.
    pub const FAILURE: u8 = b'F';
}

/// A step of a worker's start, in the order in which the harness takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LockdownStep {
    /// Giving the descriptors their numbers.
    Descriptors,
    /// setsid(2).
    Session,
    /// The tmpfs of the scratch directory.
    Mount,
    /// A user namespace of its own.
    UserNamespace,
    /// Resource limits.
    Limits,
    /// A uid of its own.
    Uid,
    /// The working directory.
    Scratch,
    /// Giving up every capability.
    Capabilities,
    /// Asking the kernel to end the worker with its zygote.
    ParentDeathSignal,
    /// Becoming non-dumpable.
    NonDumpable,
    /// no_new_privs.
    NoNewPrivs,
    /// The Landlock ruleset.
    Landlock,
    /// The system call filters.
    Seccomp,
    /// Streams, environment and random numbers for the script.
    ProcessState,
    /// The directory `outputs/`.
    WorkDir,
    /// The warm-up scripts.
    WarmUp,
    /// The audit hook.
    AuditHook,
}

impl fmt::Display for LockdownStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            LockdownStep::Descriptors => "descriptors",
            LockdownStep::Session => "session",
            LockdownStep::Mount => "mount",
            LockdownStep::UserNamespace => "user_namespace",
            LockdownStep::Limits => "limits",
            LockdownStep::Uid => "uid",
            LockdownStep::Scratch => "scratch",
            LockdownStep::Capabilities => "capabilities",
            LockdownStep::ParentDeathSignal => "parent_death_signal",
            LockdownStep::NonDumpable => "non_dumpable",
            LockdownStep::NoNewPrivs => "no_new_privs",
            LockdownStep::Landlock => "landlock",
            LockdownStep::Seccomp => "seccomp",
            LockdownStep::ProcessState => "process_state",
            LockdownStep::WorkDir => "work_dir",
            LockdownStep::WarmUp => "warm_up",
            LockdownStep::AuditHook => "audit_hook",
        })
    }
}

/// A step of the lockdown failed.
#[derive(Clone, Debug, Deserialize)]
pub struct LockdownFailure {
    /// The step.
    pub step: LockdownStep,
    /// The error.
    pub error: String,
}

/// A worker's report of why there is no result.
#[derive(Debug, Deserialize)]
pub struct ScriptFailure {
    /// The kind. Only kinds that a script can cause are accepted.
    pub kind: crate::api::catalogue::Kind,
    /// One sentence for the caller.
    pub error: String,
    /// The traceback.
    pub traceback: Option<String>,
    /// The line of the script that failed.
    pub line: Option<u32>,
}

/// Appends a frame to `buffer`.
pub fn push_frame(buffer: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    push_header(buffer, kind, payload.len());
    buffer.extend_from_slice(payload);
}

/// Size of the length of a name, bytes.
pub const NAME_LENGTH_BYTES: usize = 2;

/// Appends the frame of a file up to its content, which has `content` bytes and follows.
pub fn push_file_header(buffer: &mut Vec<u8>, name: &str, content: usize) {
    push_header(buffer, to_worker::FILE, NAME_LENGTH_BYTES + name.len() + content);
    buffer.extend_from_slice(&(name.len() as u16).to_le_bytes());
    buffer.extend_from_slice(name.as_bytes());
}

/// Splits the payload of a file frame into name and content. Returns `None` if it is malformed.
pub fn file_of(mut payload: Vec<u8>) -> Option<(String, Vec<u8>)> {
    let (length, rest) = payload.split_first_chunk::<NAME_LENGTH_BYTES>()?;
    let length = usize::from(u16::from_le_bytes(*length));
    let name = String::from_utf8(rest.get(..length)?.to_vec()).ok()?;
    payload.drain(..NAME_LENGTH_BYTES + length);
    Some((name, payload))
}

/// Appends the header of a frame whose payload of `length` bytes follows.
pub fn push_header(buffer: &mut Vec<u8>, kind: u8, length: usize) {
    buffer.push(kind);
    buffer.extend_from_slice(&(length as u32).to_le_bytes());
}

/// A frame from a worker.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of [`from_worker`], if the worker is honest.
    pub kind: u8,
    /// At most as long as the reader's limit.
    pub payload: Vec<u8>,
}

/// Why no frame was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The worker closed the channel or died.
    #[error("the channel is closed")]
    Closed,
    /// The worker closed the channel or died before it had read everything that it was sent.
    #[error("the channel is closed, and the worker did not read the request")]
    Unread,
    /// The frame claims to be longer than frames of its type may be.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// The socket failed.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

const HEADER_BYTES: usize = 5;
/// Room for a payload grows in steps of this size, bytes.
const READ_BYTES: usize = 64 * 1024;

/// Receives a frame. `limit` returns the longest payload of a frame type, bytes. Memory grows with what has arrived and not
/// with what a frame claims, and nothing beyond the frame is read.
///
/// # Errors
/// See [`FrameError`].
pub async fn receive(
    channel: &UnixStream,
    limit: impl FnOnce(u8) -> usize,
) -> Result<Frame, FrameError> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    read_up_to(channel, &mut header, HEADER_BYTES).await?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > limit(header[0]) {
        return Err(FrameError::TooLong(length));
    }
    let mut payload = Vec::new();
    read_up_to(channel, &mut payload, length).await?;
    Ok(Frame { kind: header[0], payload })
}

async fn read_up_to(
    channel: &UnixStream,
    buffer: &mut Vec<u8>,
    length: usize,
) -> Result<(), FrameError> {
    while buffer.len() < length {
        let missing = length - buffer.len();
        buffer.reserve(missing.min(READ_BYTES));
        match channel.try_read_buf(&mut buffer.limit(missing)) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => channel.readable().await?,
            // The kernel's answer when the other end is closed with unread data in its queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(FrameError::Unread);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn received(bytes: &[u8], limit: usize) -> Result<Frame, FrameError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        drop(theirs);
        receive(&ours, |_| limit).await
    }

    #[tokio::test]
    async fn a_frame_is_received_unchanged_and_the_next_one_stays_in_the_socket() {
        let mut bytes = Vec::new();
        push_frame(&mut bytes, b'V', b"[1]");
        push_frame(&mut bytes, b'F', b"");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&bytes).await.unwrap();
        for (kind, payload) in [(b'V', b"[1]".to_vec()), (b'F', vec![])] {
            assert_eq!(receive(&ours, |_| 3).await.unwrap(), Frame { kind, payload });
        }
    }

    #[tokio::test]
    async fn a_worker_that_ends_without_reading_is_distinguished_from_one_that_ends() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"request").await.unwrap();
        drop(theirs);
        assert!(matches!(receive(&ours, |_| 3).await, Err(FrameError::Unread)));
    }

    #[tokio::test]
    async fn half_a_frame_is_an_error_and_a_long_one_is_refused_by_its_header() {
        for half in [&b"V\x03\0\0\0[1"[..], b"V\x03\0\0", b""] {
            assert_eq!(received(half, 3).await.unwrap_err().to_string(), "the channel is closed");
        }
        let refused = received(b"V\xff\xff\xff\xff", 3).await.unwrap_err();
        assert_eq!(refused.to_string(), "a frame of 4294967295 bytes");
    }
}
