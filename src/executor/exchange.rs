//! The exchange of one request with a worker: frames to the worker, frames back.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::job::Job;
use super::outcome::{self, Returned};
use super::protocol::{
    FrameError, NAME_LENGTH_BYTES, OutputLimits, RunOptions, from_worker, push_file_header,
    push_frame, push_header, receive, to_worker,
};
use crate::api::catalogue::Failure;
use crate::api::files::{Files, MAX_FILES, MAX_NAME_BYTES, MAX_NAME_PARTS};
use crate::api::json_depth;
use crate::config::Config;
use crate::sandbox::{policy, rlimits};

/// The largest failure that a worker may report, bytes. The harness cuts messages and tracebacks well below it.
pub(super) const MAX_FAILURE_BYTES: usize = 256 * 1024;

/// The largest input or file that is copied into the buffer of the other frames, bytes. Anything larger is written by a
/// call of its own.
const MAX_COPIED_BYTES: usize = 16 * 1024;

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum ExchangeEnd {
    /// The worker answered, or broke the protocol.
    Answered(Result<Returned, Failure>),
    /// The worker was gone before it had read the request, so nothing ran.
    NotStarted,
    /// The channel closed without an answer.
    Closed,
    /// The deadline passed.
    Timeout,
    /// The zygote died, and the worker with it.
    ZygoteGone,
}

/// Sends the request and receives the frames of the answer: files first, then the frame that ends the answer.
pub(super) async fn exchange(channel: &mut UnixStream, job: &Job, config: &Config) -> ExchangeEnd {
    if send(channel, job, config).await.is_err() {
        return ExchangeEnd::NotStarted;
    }
    let mut files = Files::default();
    let mut room = config.max_files_bytes;
    loop {
        let limit = |kind| match kind {
            from_worker::FILE => NAME_LENGTH_BYTES + MAX_NAME_BYTES + room,
            from_worker::FAILURE => MAX_FAILURE_BYTES,
            _ => config.max_result_bytes.max(MAX_FAILURE_BYTES),
        };
        let frame = match receive(channel, limit).await {
            Ok(frame) => frame,
            Err(FrameError::TooLong(_)) => {
                return ExchangeEnd::Answered(Err(outcome::protocol_violation()));
            }
            Err(FrameError::Unread) if files.is_empty() => return ExchangeEnd::NotStarted,
            Err(_) => return ExchangeEnd::Closed,
        };
        if frame.kind == from_worker::FILE {
            let Some(rest) = outcome::keep_file(frame, &mut files, room) else {
                return ExchangeEnd::Answered(Err(outcome::protocol_violation()));
            };
            room = rest;
        } else if frame.kind == from_worker::VALUE && frame.payload.len() > config.max_result_bytes
        {
            let failure = outcome::result_too_large(config.max_result_bytes);
            return ExchangeEnd::Answered(Err(failure));
        } else {
            let outcome = outcome::of_frame(frame, job.memory_bytes >> 20);
            return ExchangeEnd::Answered(outcome.map(|result| Returned { result, files }));
        }
    }
}

/// Sends the request with one system call, unless it has parts that are too large to copy.
async fn send(channel: &mut UnixStream, job: &Job, config: &Config) -> io::Result<()> {
    let mut frames = Vec::with_capacity(job.script.len() + 1024);
    push_frame(&mut frames, to_worker::SCRIPT, job.script.as_bytes());
    if let Some(input) = &job.input {
        let input = input.get().as_bytes();
        push_header(&mut frames, to_worker::INPUT, input.len());
        append(channel, &mut frames, input).await?;
    }
    for (name, content) in job.files.iter() {
        push_file_header(&mut frames, name, content.len());
        append(channel, &mut frames, content).await?;
    }
    let options = RunOptions {
        refused: &policy::refused(job.policy),
        max_result_bytes: config.max_result_bytes,
        max_depth: json_depth::MAX_DEPTH,
        outputs: OutputLimits {
            max_bytes: config.max_files_bytes,
            max_files: MAX_FILES,
            max_name_bytes: MAX_NAME_BYTES,
            max_parts: MAX_NAME_PARTS,
        },
        lower: &rlimits::differences(config, job.timeout, job.memory_bytes),
    };
    let options = serde_json::to_vec(&options).expect("BUG: the run options are plain data");
    push_frame(&mut frames, to_worker::RUN, &options);
    channel.write_all(&frames).await
}

/// Appends a payload to `frames`, or if it is large, sends both.
async fn append(channel: &mut UnixStream, frames: &mut Vec<u8>, payload: &[u8]) -> io::Result<()> {
    if payload.len() <= MAX_COPIED_BYTES {
        frames.extend_from_slice(payload);
        return Ok(());
    }
    channel.write_all(frames).await?;
    frames.clear();
    channel.write_all(payload).await
}
