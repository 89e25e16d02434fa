//! Exchanges one request with a worker: sends the request as frames and receives the answer as frames.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::frames::{
    FrameError, NAME_LENGTH_BYTES, push_file_header, push_frame, push_header, receive,
};
use super::job::Job;
use super::outcome::{self, Returned};
use super::protocol::{OutputLimits, RunOptions, from_worker, to_worker};
use super::watch::Breach;
use crate::api::catalogue::Failure;
use crate::api::files::{Files, MAX_FILES, MAX_NAME_BYTES, MAX_NAME_PARTS};
use crate::api::json_text;
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
    /// The script passed a limit that the kernel does not enforce.
    Breached(Breach),
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
    if let Some(stdin) = &job.stdin {
        push_header(&mut frames, to_worker::STDIN, stdin.len());
        append(channel, &mut frames, stdin.as_bytes()).await?;
    }
    for (name, content) in job.files.iter() {
        push_file_header(&mut frames, name, content.len());
        append(channel, &mut frames, content).await?;
    }
    push_frame(&mut frames, to_worker::RUN, run_options(job, config).as_bytes());
    channel.write_all(&frames).await
}

/// The options of a run, as JSON.
pub(super) fn run_options(job: &Job, config: &Config) -> String {
    let options = RunOptions {
        entry: job.entry,
        refused: &policy::refused(job.policy),
        max_result_bytes: config.max_result_bytes,
        max_depth: json_text::MAX_DEPTH,
        collect: &job.collect,
        outputs: OutputLimits {
            max_bytes: config.max_files_bytes,
            max_files: MAX_FILES,
            max_name_bytes: MAX_NAME_BYTES,
            max_parts: MAX_NAME_PARTS,
        },
        lower: &rlimits::differences(config, job.timeout, job.memory_bytes),
        live: job.live.is_some(),
    };
    serde_json::to_string(&options).expect("BUG: the run options are plain data")
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::catalogue::Kind;
    use crate::api::request::ExecuteRequest;
    use crate::config::choices::Platform;

    /// The end of an exchange with a worker that reads its request and then sends `answer`.
    async fn answered(answer: &[u8]) -> ExchangeEnd {
        let variables = [("MAINBOX_MAX_FILES_BYTES", "4"), ("MAINBOX_MAX_RESULT_BYTES", "8")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::from_variables(&BTreeMap::from(variables), Platform::Elsewhere);
        let config = config.unwrap();
        let body = br#"{"script":"x","input":[1],"files":{"a":"b"}}"#;
        let job =
            Job::new(ExecuteRequest::from_json(body, config.request_limits()).unwrap(), &config);
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let worker = async {
            for (kind, payload) in [
                (to_worker::SCRIPT, Some(&b"x"[..])),
                (to_worker::INPUT, Some(b"[1]")),
                (to_worker::FILE, Some(b"\x01\x00ab")),
                (to_worker::RUN, None),
            ] {
                let frame = receive(&theirs, |_| 10_000).await.unwrap();
                assert_eq!(frame.kind, kind);
                assert!(payload.is_none_or(|payload| frame.payload == payload));
            }
            theirs.write_all(answer).await.unwrap();
            drop(theirs);
        };
        tokio::join!(exchange(&mut ours, &job, &config), worker).0
    }

    async fn failure(answer: &[u8]) -> Failure {
        match answered(answer).await {
            ExchangeEnd::Answered(Err(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn files_and_a_value_are_the_answer() {
        let end = answered(b"D\x05\0\0\0\x01\0fhiV\x02\0\0\x0042").await;
        let ExchangeEnd::Answered(Ok(returned)) = end else { panic!("{end:?}") };
        assert_eq!(returned.result.get(), "42");
        assert_eq!(returned.files.iter().collect::<Vec<_>>(), [("f", &b"hi"[..])]);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_the_protocol_is_reported_as_crashed() {
        for answer in [
            &b"?\0\0\0\0"[..],
            b"R\0\0\0\0",
            b"V\xff\xff\xff\xff",
            b"D\x09\0\0\0\x01\0ftoolong",
            b"D\x04\0\0\0\x02\0..V\x02\0\0\x0042",
        ] {
            assert_eq!(failure(answer).await.kind, Kind::Crashed, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_result_over_its_limit_is_refused_by_the_supervisor() {
        let failure = failure(b"V\x09\0\0\x00123456789").await;
        assert_eq!(failure.kind, Kind::ResultTooLarge);
        assert_eq!(failure.error, "The result is larger than its limit of 8 bytes");
    }

    #[tokio::test]
    async fn a_channel_that_ends_without_an_answer_is_closed() {
        for answer in [&b""[..], b"V\x02\0", b"V\x02\0\0\x004"] {
            assert!(matches!(answered(answer).await, ExchangeEnd::Closed), "{answer:?}");
        }
    }
}
