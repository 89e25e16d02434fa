//! What supervisor, zygote and worker say to each other.
//!
//! Supervisor and zygote exchange JSON messages over a SOCK_SEQPACKET pair, one message a packet, an order to fork with
//! the worker's descriptors attached. Supervisor and worker exchange frames over a stream: one byte of type, four bytes
//! of length (little-endian), the payload. The supervisor trusts the zygote and nothing that comes in a frame once a
//! worker has read its request.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The modules of the harness: name and source, in the order of their execution.
    pub harness: &'a [&'a (&'static str, &'static str)],
    /// What to import.
    pub preload: &'a [String],
    /// Where their bytecode is, if it is in one file.
    pub archive: Option<&'a Path>,
    /// How workers lock themselves down.
    pub lockdown: &'a Lockdown,
}

/// What the supervisor orders a zygote to do.
#[derive(Serialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order<'a> {
    /// Fork a worker. Attached: its channel, stdout, stderr, and its Landlock ruleset if it has one.
    Fork {
        /// The worker's number, never used twice.
        worker: u64,
        /// The uid to change to.
        uid: Option<u32>,
        /// Its working directory.
        scratch: &'a str,
        /// The options of the tmpfs that it mounts there first, if it does.
        mount: Option<String>,
        /// The limits to set.
        limits: &'a [Limit],
        /// Whether to make a run of its own first, so that the request finds caches warm and memory its own.
        rehearse: bool,
    },
    /// Wait for a worker that was killed, and report.
    Reap {
        /// The worker.
        worker: u64,
    },
}

/// What a zygote reports.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// It has imported everything and forks from now on.
    Ready(ZygoteInfo),
    /// A fork failed.
    ForkFailed {
        /// The worker that is not.
        worker: u64,
        /// What the kernel answered.
        errno: i32,
    },
    /// A worker is gone.
    Reaped {
        /// The worker.
        worker: u64,
        /// As wait4 gives it.
        status: i32,
        /// CPU time, microseconds.
        cpu_us: u64,
        /// Largest resident size, bytes.
        peak_bytes: u64,
    },
}

/// What a zygote says of itself when it is ready.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ZygoteInfo {
    /// Python's version.
    pub python: String,
    /// Preloaded packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// Preload modules that could not be imported, and why.
    pub missing: BTreeMap<String, String>,
    /// The modules that every interpreter of this version has.
    pub standard: BTreeSet<String>,
    /// Distributions that scripts can import from, and their versions.
    pub installed: BTreeMap<String, String>,
}

/// The last frame of a request: how to run the script.
#[derive(Serialize)]
pub struct Go<'a> {
    /// What is refused before the script runs.
    pub refused: &'a Refused,
    /// Bytes of the result as JSON.
    pub max_result_bytes: usize,
    /// Nesting of the result.
    pub max_depth: usize,
    /// How much may be left in `outputs/`.
    pub outputs: Outputs,
    /// By how much to lower limits before the script runs.
    pub lower: &'a [Limit],
}

/// What may be left in `outputs/`, so that it can be sent.
#[derive(Serialize)]
pub struct Outputs {
    /// Bytes of all files together.
    pub max_bytes: usize,
    /// Their number.
    pub max_files: usize,
    /// Bytes of a name.
    pub max_name_bytes: usize,
    /// Directories in a name, and the file itself.
    pub max_parts: usize,
}

/// Types of frames to a worker.
pub mod request {
    /// The script, UTF-8.
    pub const SCRIPT: u8 = b'S';
    /// The argument of `main`, JSON.
    pub const INPUT: u8 = b'I';
    /// A file of the request: two bytes of length (little-endian), the name, UTF-8, the content.
    pub const FILE: u8 = b'D';
    /// [`super::Go`], JSON: the request is complete.
    pub const GO: u8 = b'G';
}

/// Types of frames from a worker.
pub mod answer {
    /// Locked down, rehearsed, waiting. Empty.
    pub const READY: u8 = b'R';
    /// [`super::LockdownFailure`], JSON; the worker is gone.
    pub const LOCKDOWN: u8 = b'L';
    /// A file that was left in `outputs/`, in the form of [`super::request::FILE`]; the result follows.
    pub const FILE: u8 = b'D';
    /// What `main` returned, JSON.
    pub const VALUE: u8 = b'V';
    /// [`super::ScriptFailure`], JSON.
    pub const FAILURE: u8 = b'F';
}

/// A worker could not lock itself down.
#[derive(Clone, Debug, Deserialize)]
pub struct LockdownFailure {
    /// Which step.
    pub step: String,
    /// What it answered.
    pub error: String,
}

/// A worker's word on why there is no result.
#[derive(Debug, Deserialize)]
pub struct ScriptFailure {
    /// The kind; only those that a script can cause are believed.
    pub kind: crate::api::Kind,
    /// One sentence.
    pub error: String,
    /// The script's own frames.
    pub traceback: Option<String>,
    /// The line to blame.
    pub line: Option<u32>,
}

/// Appends a frame to `buffer`.
pub fn push_frame(buffer: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    push_header(buffer, kind, payload.len());
    buffer.extend_from_slice(payload);
}

/// Bytes of the length of a name.
pub const NAME_LENGTH_BYTES: usize = 2;

/// Appends the frame of a file but for its `content`, which follows.
pub fn push_file_header(buffer: &mut Vec<u8>, name: &str, content: usize) {
    push_header(buffer, request::FILE, NAME_LENGTH_BYTES + name.len() + content);
    buffer.extend_from_slice(&(name.len() as u16).to_le_bytes());
    buffer.extend_from_slice(name.as_bytes());
}

/// Name and content of the file in the payload of a frame, if there is one.
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
    /// One of [`answer`], if the worker is honest.
    pub kind: u8,
    /// As long as the reader's limit at the most.
    pub payload: Vec<u8>,
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The worker closed its end, or died.
    #[error("the channel is closed")]
    Closed,
    /// The same, before it had read all that it was sent.
    #[error("the channel is closed and what was sent is not read")]
    Unread,
    /// The frame claims to be longer than its kind may be.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// The socket failed.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

const HEADER_BYTES: usize = 5;
/// How much more is made room for at a time.
const READ_BYTES: usize = 64 * 1024;

/// Waits for a frame with a payload of at most as many bytes as `limit` has for its kind. Memory grows with what has arrived,
/// never with what a frame claims, and nothing beyond the frame is read.
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
            // So says the kernel when the other end goes with something in its queue.
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
    async fn a_frame_comes_out_as_it_went_in_and_what_follows_stays_where_it_is() {
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
    async fn who_goes_without_having_read_is_told_from_who_goes() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"request").await.unwrap();
        drop(theirs);
        assert!(matches!(receive(&ours, |_| 3).await, Err(FrameError::Unread)));
    }

    #[tokio::test]
    async fn half_a_frame_is_none_and_a_long_one_is_refused_by_its_header() {
        for half in [&b"V\x03\0\0\0[1"[..], b"V\x03\0\0", b""] {
            assert_eq!(received(half, 3).await.unwrap_err().to_string(), "the channel is closed");
        }
        let refused = received(b"V\xff\xff\xff\xff", 3).await.unwrap_err();
        assert_eq!(refused.to_string(), "a frame of 4294967295 bytes");
    }
}
