//! What came of a run: a result or a failure, what was printed, and what it cost.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::value::RawValue;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::protocol::{Frame, ScriptFailure, answer, file_of};
use crate::api::{Failure, Kind};
use crate::files::Files;
use crate::json;

/// Everything that is known of a run.
#[derive(Debug)]
pub struct Execution {
    /// What came back, or why nothing did.
    pub outcome: Result<Returned, Failure>,
    /// What the script printed.
    pub stdout: Captured,
    /// What it wrote to stderr.
    pub stderr: Captured,
    /// Time between arrival and a worker.
    pub queue: Duration,
    /// Time with the worker.
    pub run: Duration,
    /// CPU time of the worker meanwhile.
    pub cpu: Duration,
    /// Bytes on top of the preloaded interpreter, at the most.
    pub peak_memory: u64,
}

/// What comes back of a script whose `main` returned.
#[derive(Debug)]
pub struct Returned {
    /// What it returned.
    pub result: Box<RawValue>,
    /// What was left in `outputs/`.
    pub files: Files,
}

impl Execution {
    /// Bytes that an answer with all this has, but for what escaping adds.
    pub fn bytes(&self) -> usize {
        let outcome = match &self.outcome {
            Ok(returned) => returned.result.get().len() + returned.files.bytes_as_json(),
            Err(failure) => failure.error.len() + failure.traceback.as_ref().map_or(0, String::len),
        };
        outcome + self.stdout.bytes.len() + self.stderr.bytes.len()
    }
}

/// Where what a script prints goes as it comes, as far as it is kept. A front sets it as an extension of its request.
#[derive(Clone, Debug)]
pub struct Live(pub mpsc::UnboundedSender<Vec<u8>>);

/// The beginning of a stream, and whether there was more.
#[derive(Debug, Default)]
pub struct Captured {
    /// At most the configured limit.
    pub bytes: Vec<u8>,
    /// Whether something was discarded.
    pub truncated: bool,
}

/// Reads a worker's pipe: keeps what fits and discards the rest, so that the script never blocks on us.
#[derive(Debug)]
pub struct Capture {
    pipe: pipe::Receiver,
    captured: Captured,
    limit: usize,
    live: Option<Live>,
    closed: bool,
}

/// What one read takes: the size of a pipe.
const READ_BYTES: usize = 64 * 1024;

impl Capture {
    /// Captures at most `limit` bytes of what comes through `pipe`, and tells `live`, if somebody looks on.
    pub fn new(pipe: pipe::Receiver, limit: usize, live: Option<Live>) -> Capture {
        Capture { pipe, captured: Captured::default(), limit, live, closed: false }
    }

    /// Waits for output and takes it; never returns once the stream has ended.
    pub async fn pump(&mut self) {
        while !self.closed {
            if self.pipe.readable().await.is_err() {
                break;
            }
            if self.read_once() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Takes what is in the pipe now, and at most as much as a pipe and the limit hold: a script may still be writing.
    pub fn finish(mut self) -> Captured {
        let mut reads = self.limit / READ_BYTES + 2;
        while reads > 0 && !self.closed && self.read_once() {
            reads -= 1;
        }
        self.captured
    }

    /// Whether something was read.
    fn read_once(&mut self) -> bool {
        let mut chunk = [0; READ_BYTES];
        match self.pipe.try_read(&mut chunk) {
            Ok(0) => {
                self.closed = true;
                false
            }
            Ok(length) => {
                let room = self.limit - self.captured.bytes.len();
                let kept = &chunk[..length.min(room)];
                self.captured.bytes.extend_from_slice(kept);
                if let (Some(Live(sender)), false) = (&self.live, kept.is_empty()) {
                    // Fails when nobody looks on any more.
                    let _ = sender.send(kept.to_vec());
                }
                self.captured.truncated |= length > room;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.closed = true;
                false
            }
        }
    }
}

/// What a frame means once the worker has its request. Nothing in it is believed: the result must be JSON of bounded
/// depth, a failure of a kind that a script can cause. `memory_mb` is the limit of the run.
///
/// # Errors
/// What the script's answer is: the failure that it reports, or the one that it is.
pub fn of_frame(frame: Frame, memory_mb: u64) -> Result<Box<RawValue>, Failure> {
    match frame.kind {
        answer::VALUE => value(frame.payload),
        answer::FAILURE => {
            let mut failure = failure(&frame.payload);
            if failure.kind == Kind::MemoryLimit {
                failure.error = memory_limit(memory_mb).error;
            }
            Err(failure)
        }
        _ => Err(nonsense()),
    }
}

/// Keeps a file that a worker sends, if its name is one, nobody else's, and there is `room` bytes for it. Returns the room
/// that is left.
pub fn keep_file(frame: Frame, files: &mut Files, room: usize) -> Option<usize> {
    let (name, content) = file_of(frame.payload)?;
    let rest = room.checked_sub(content.len())?;
    files.insert(name, content).ok()?;
    Some(rest)
}

fn value(payload: Vec<u8>) -> Result<Box<RawValue>, Failure> {
    if !json::is_shallow(&payload) {
        let error = format!("The result is nested deeper than {} levels", json::MAX_DEPTH);
        return Err(Failure::new(Kind::NotJson, error));
    }
    String::from_utf8(payload)
        .ok()
        .and_then(|text| RawValue::from_string(text).ok())
        .ok_or_else(|| Failure::new(Kind::NotJson, "The worker's result is not JSON"))
}

fn failure(payload: &[u8]) -> Failure {
    use Kind::{
        Exception, Exit, Forbidden, MemoryLimit, MissingMain, NotJson, ResultTooLarge, SyntaxError,
    };
    match serde_json::from_slice::<ScriptFailure>(payload) {
        Ok(failure)
            if matches!(
                failure.kind,
                SyntaxError
                    | MissingMain
                    | Forbidden
                    | Exception
                    | Exit
                    | NotJson
                    | ResultTooLarge
                    | MemoryLimit
            ) =>
        {
            Failure {
                traceback: failure.traceback,
                line: failure.line,
                ..Failure::new(failure.kind, failure.error)
            }
        }
        _ => nonsense(),
    }
}

/// The script spoke on the worker's channel, or closed it, or broke the harness around it.
pub fn nonsense() -> Failure {
    Failure::new(Kind::Crashed, "The script broke the process that was to send its answer")
}

/// Wall time ran out.
pub fn timed_out(limit: Duration) -> Failure {
    Failure::new(
        Kind::Timeout,
        format!("The script ran longer than its limit of {} seconds", limit.as_secs_f64()),
    )
}

/// The platform ends the request before the script's own limit.
pub fn deadline_passed(limit: Duration) -> Failure {
    let limit = limit.as_secs_f64();
    Failure::new(
        Kind::Timeout,
        format!("The platform's deadline came before the script's limit of {limit} seconds"),
    )
}

/// The result is over its limit.
pub fn result_too_large(limit: usize) -> Failure {
    Failure::new(
        Kind::ResultTooLarge,
        format!("The result is larger than its limit of {limit} bytes"),
    )
}

/// What the end of a process means that ended before it answered. `memory_mb` and `cpu_seconds` are its limits.
pub fn of_exit(status: i32, memory_mb: u64, cpu_seconds: u64) -> Failure {
    if libc::WIFEXITED(status) {
        let code = libc::WEXITSTATUS(status);
        let error = format!("The script ended its process with status {code} before main returned");
        return Failure::new(Kind::Exit, error);
    }
    match Signal::try_from(libc::WTERMSIG(status)) {
        Ok(Signal::SIGXCPU) => Failure::new(
            Kind::Timeout,
            format!("The script used more than its limit of {cpu_seconds} seconds of CPU time"),
        ),
        // Not by us: so the kernel did it, for want of memory.
        Ok(Signal::SIGKILL) => memory_limit(memory_mb),
        Ok(signal) => Failure::new(Kind::Crashed, format!("The script crashed: {signal}")),
        Err(_) => Failure::new(Kind::Crashed, "The script crashed"),
    }
}

fn memory_limit(memory_mb: u64) -> Failure {
    Failure::new(
        Kind::MemoryLimit,
        format!("The script needed more memory than its limit of {memory_mb} MB"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &str) -> Result<String, Kind> {
        of_frame(Frame { kind, payload: payload.into() }, 64)
            .map(|value| value.get().to_owned())
            .map_err(|failure| failure.kind)
    }

    #[test]
    fn a_result_passes_untouched() {
        let text = r#"{"n": 1267650600228229401496703205376, "x": 1e9999}"#;
        assert_eq!(frame(answer::VALUE, text), Ok(text.to_owned()));
    }

    #[test]
    fn a_forged_result_is_not_json() {
        for text in ["", "NaN", "{", "[1,]", "1 2", "\u{1}"] {
            assert_eq!(frame(answer::VALUE, text), Err(Kind::NotJson), "{text}");
        }
        assert_eq!(frame(answer::VALUE, &"[".repeat(100_000)), Err(Kind::NotJson));
        let invalid = Frame { kind: answer::VALUE, payload: b"\"\xff\"".to_vec() };
        assert_eq!(of_frame(invalid, 64).unwrap_err().kind, Kind::NotJson);
    }

    #[test]
    fn a_file_that_a_worker_could_not_have_sent_is_not_kept() {
        let mut files = Files::default();
        let mut keep = |name: &[u8], content: &[u8], room| {
            let mut payload = (name.len() as u16).to_le_bytes().to_vec();
            payload.extend_from_slice(name);
            payload.extend_from_slice(content);
            keep_file(Frame { kind: answer::FILE, payload }, &mut files, room)
        };
        assert_eq!(keep(b"a", b"1234", 5), Some(1));
        assert_eq!(keep(b"b", b"1234", 3), None);
        for name in [&b"a"[..], b"", b"../b", b"/b", b"a/b", b"\xff"] {
            assert_eq!(keep(name, b"", 5), None, "{name:?}");
        }
        for payload in [&b""[..], b"\x01", b"\x02\0a", b"\xff\xffa"] {
            let frame = Frame { kind: answer::FILE, payload: payload.to_vec() };
            assert_eq!(keep_file(frame, &mut Files::default(), 5), None, "{payload:?}");
        }
    }

    #[test]
    fn a_worker_cannot_claim_a_kind_that_is_ours() {
        for kind in ["internal", "busy", "unauthorized", "timeout", "crashed", "nonsense"] {
            let text = format!(r#"{{"kind":"{kind}","error":"x"}}"#);
            assert_eq!(frame(answer::FAILURE, &text), Err(Kind::Crashed), "{kind}");
        }
        assert_eq!(frame(answer::FAILURE, "not json"), Err(Kind::Crashed));
        assert_eq!(frame(answer::READY, ""), Err(Kind::Crashed));
        assert_eq!(frame(0, ""), Err(Kind::Crashed));
    }
}
