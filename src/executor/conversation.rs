//! What supervisor and worker say to each other about one request: frames there, frames back.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::Job;
use super::outcome::{self, Returned};
use super::protocol::{
    FrameError, Go, NAME_LENGTH_BYTES, Outputs, answer, push_file_header, push_frame, push_header,
    receive, request,
};
use crate::api::Failure;
use crate::config::Config;
use crate::files::{Files, MAX_FILES, MAX_NAME_BYTES, MAX_NAME_PARTS};
use crate::sandbox::policy;
use crate::sandbox::rlimits::{self, Limit};

/// Longest failure that a worker may report: message and traceback are cut by the harness well below it.
pub(super) const MAX_FAILURE_BYTES: usize = 256 * 1024;

/// Longest input or file that is copied beside the script.
const COPIED_BYTES: usize = 16 * 1024;

/// How a run ended.
pub(super) enum Ending {
    Answered(Result<Returned, Failure>),
    NotStarted,
    Closed,
    Timeout,
    ZygoteGone,
}

/// Sends the request and waits for the frames that answer it: files, and one that ends it.
pub(super) async fn converse(channel: &mut UnixStream, job: &Job, config: &Config) -> Ending {
    if send(channel, job, config).await.is_err() {
        return Ending::NotStarted;
    }
    let mut files = Files::default();
    let mut room = config.max_files_bytes;
    loop {
        let limit = |kind| match kind {
            answer::FILE => NAME_LENGTH_BYTES + MAX_NAME_BYTES + room,
            answer::FAILURE => MAX_FAILURE_BYTES,
            _ => config.max_result_bytes.max(MAX_FAILURE_BYTES),
        };
        let frame = match receive(channel, limit).await {
            Ok(frame) => frame,
            Err(FrameError::TooLong(_)) => return Ending::Answered(Err(outcome::nonsense())),
            Err(FrameError::Unread) if files.is_empty() => return Ending::NotStarted,
            Err(_) => return Ending::Closed,
        };
        if frame.kind == answer::FILE {
            let Some(rest) = outcome::keep_file(frame, &mut files, room) else {
                return Ending::Answered(Err(outcome::nonsense()));
            };
            room = rest;
        } else if frame.kind == answer::VALUE && frame.payload.len() > config.max_result_bytes {
            let failure = outcome::result_too_large(config.max_result_bytes);
            return Ending::Answered(Err(failure));
        } else {
            let outcome = outcome::of_frame(frame, job.memory_bytes >> 20);
            return Ending::Answered(outcome.map(|result| Returned { result, files }));
        }
    }
}

/// Sends the request: with one call, unless something large is better not copied for that.
async fn send(channel: &mut UnixStream, job: &Job, config: &Config) -> io::Result<()> {
    let mut frames = Vec::with_capacity(job.script.len() + 1024);
    push_frame(&mut frames, request::SCRIPT, job.script.as_bytes());
    if let Some(input) = &job.input {
        let input = input.get().as_bytes();
        push_header(&mut frames, request::INPUT, input.len());
        append(channel, &mut frames, input).await?;
    }
    for (name, content) in job.files.iter() {
        push_file_header(&mut frames, name, content.len());
        append(channel, &mut frames, content).await?;
    }
    let go = Go {
        refused: &policy::refused(job.policy),
        max_result_bytes: config.max_result_bytes,
        max_depth: crate::json::MAX_DEPTH,
        outputs: Outputs {
            max_bytes: config.max_files_bytes,
            max_files: MAX_FILES,
            max_name_bytes: MAX_NAME_BYTES,
            max_parts: MAX_NAME_PARTS,
        },
        lower: &lower_limits(job, config),
    };
    let go = serde_json::to_vec(&go).expect("BUG: the go frame is plain data");
    push_frame(&mut frames, request::GO, &go);
    channel.write_all(&frames).await
}

/// Appends a payload to `frames`, or sends both if it is large.
async fn append(channel: &mut UnixStream, frames: &mut Vec<u8>, payload: &[u8]) -> io::Result<()> {
    if payload.len() <= COPIED_BYTES {
        frames.extend_from_slice(payload);
        return Ok(());
    }
    channel.write_all(frames).await?;
    frames.clear();
    channel.write_all(payload).await
}

/// By how much this request asks for less than the server's own limits, under which the worker runs already. Relative,
/// since those count what its zygote has mapped.
fn lower_limits(job: &Job, config: &Config) -> Vec<Limit> {
    let server = rlimits::limits(config, config.timeout, config.memory_bytes);
    let asked = rlimits::limits(config, job.timeout, job.memory_bytes);
    server
        .into_iter()
        .zip(asked)
        .filter(|(server, asked)| asked.soft < server.soft)
        .map(|(server, asked)| Limit {
            resource: asked.resource,
            soft: server.soft - asked.soft,
            hard: server.hard - asked.hard,
        })
        .collect()
}
