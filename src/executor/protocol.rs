//! What supervisor, zygote and worker say to each other.
//!
//! Supervisor and zygote exchange JSON messages over a SOCK_SEQPACKET pair, one message a packet, an order to fork with
//! the worker's descriptors attached. Supervisor and worker exchange frames over a stream: one byte of type, four bytes
//! of length (little-endian), the payload. The supervisor trusts the zygote and nothing that comes in a frame once a
//! worker has read its request.

use std::collections::{BTreeMap, BTreeSet};

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
    /// By how much to lower limits before the script runs.
    pub lower: &'a [Limit],
}

/// Types of frames to a worker.
pub mod request {
    /// The script, UTF-8.
    pub const SCRIPT: u8 = b'S';
    /// The argument of `main`, JSON.
    pub const INPUT: u8 = b'I';
    /// [`super::Go`], JSON: the request is complete.
    pub const GO: u8 = b'G';
}

/// Types of frames from a worker.
pub mod answer {
    /// Locked down, rehearsed, waiting. Empty.
    pub const READY: u8 = b'R';
    /// [`super::LockdownFailure`], JSON; the worker is gone.
    pub const LOCKDOWN: u8 = b'L';
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
    buffer.push(kind);
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(payload);
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
    /// The frame claims to be longer than its kind may be.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// The socket failed.
    #[error("the channel failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads frames. Memory grows with what has arrived, never with what a frame claims.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    limit: usize,
}

const HEADER_BYTES: usize = 5;
const READ_BYTES: usize = 64 * 1024;

impl FrameReader {
    /// A reader of frames with payloads of at most `limit` bytes.
    pub fn new(limit: usize) -> FrameReader {
        FrameReader { buffer: Vec::new(), limit }
    }

    /// The next frame. May be dropped and called again; nothing is lost.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub async fn next(&mut self, channel: &UnixStream) -> Result<Frame, FrameError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            channel.readable().await?;
            self.buffer.reserve(READ_BYTES);
            match channel.try_read_buf(&mut self.buffer) {
                Ok(0) => return Err(FrameError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Err(FrameError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let after = self.buffer.split_off(HEADER_BYTES + length);
        let mut payload = std::mem::replace(&mut self.buffer, after);
        payload.drain(..HEADER_BYTES);
        Ok(Some(Frame { kind, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8], limit: usize) -> FrameReader {
        FrameReader { buffer: bytes.to_vec(), limit }
    }

    #[test]
    fn frames_come_out_one_by_one() {
        let mut bytes = Vec::new();
        push_frame(&mut bytes, b'V', b"[1]");
        push_frame(&mut bytes, b'F', b"");
        let mut reader = reader(&bytes, 3);
        assert_eq!(reader.take().unwrap(), Some(Frame { kind: b'V', payload: b"[1]".to_vec() }));
        assert_eq!(reader.take().unwrap(), Some(Frame { kind: b'F', payload: vec![] }));
        assert_eq!(reader.take().unwrap(), None);
    }

    #[test]
    fn half_a_frame_waits_and_a_long_one_is_refused_by_its_header() {
        assert_eq!(reader(b"V\x03\0\0\0[1", 3).take().unwrap(), None);
        assert_eq!(reader(b"V\x03\0\0", 3).take().unwrap(), None);
        let refused = reader(b"V\xff\xff\xff\xff", 3).take().unwrap_err();
        assert_eq!(refused.to_string(), "a frame of 4294967295 bytes");
    }
}
