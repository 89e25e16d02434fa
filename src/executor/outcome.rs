//! The outcome of a run: a result or a failure, what was printed, and what it cost.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::value::RawValue;

use super::frames::{Frame, file_of};
use super::output_capture::Captured;
use super::protocol::{ScriptFailure, from_worker};
use super::watch::Breach;
use crate::api::catalogue::{Failure, Kind};
use crate::api::files::Files;
use crate::api::json_text;
use crate::sandbox::policy::{MAX_SCRATCH_DEPTH, MAX_SCRATCH_FILES, MAX_THREADS};
use crate::sandbox::usage::Excess;
use crate::telemetry::execution_record::ExecutionRecord;

/// Everything that is known about a run.
#[derive(Debug)]
pub struct Execution {
    /// What the script returned, or why it did not.
    pub outcome: Result<Returned, Failure>,
    /// What the script printed.
    pub stdout: Captured,
    /// What it wrote to stderr.
    pub stderr: Captured,
    /// Time between the arrival of the request and the start of the run.
    pub queue: Duration,
    /// Wall time of the run.
    pub run: Duration,
    /// CPU time of the run.
    pub cpu: Duration,
    /// Peak memory on top of the preloaded interpreter, bytes.
    pub peak_memory: u64,
}

/// What a script returned.
#[derive(Debug)]
pub struct Returned {
    /// What `main` returned, as JSON.
    pub result: Box<RawValue>,
    /// The files in `outputs/`.
    pub files: Files,
}

impl Execution {
    /// The size of a response with this execution, without the growth of escaping, bytes.
    pub fn bytes(&self) -> usize {
        let outcome = match &self.outcome {
            Ok(returned) => returned.result.get().len() + returned.files.bytes_as_json(),
            Err(failure) => failure.error.len() + failure.traceback.as_ref().map_or(0, String::len),
        };
        outcome + self.stdout.bytes.len() + self.stderr.bytes.len()
    }

    /// The size of the result of `main` as JSON, bytes; 0 if there is none.
    pub fn result_bytes(&self) -> usize {
        self.outcome.as_ref().map_or(0, |returned| returned.result.get().len())
    }

    /// The record for logs and metrics.
    pub fn record(&self) -> ExecutionRecord {
        ExecutionRecord {
            ran: true,
            kind: self.outcome.as_ref().err().map(|failure| failure.kind),
            queue: self.queue,
            run: self.run,
            cpu: self.cpu,
            peak_memory: self.peak_memory,
        }
    }
}

/// Reads the frame that ends an answer. Nothing in it is trusted, since the script can write to the channel: a result must
/// be JSON of bounded depth, and a failure must be of a kind that a script can cause. `memory_mb` is the limit of the run.
///
/// # Errors
/// The failure that the frame reports, or `crashed` or `not_json` for a malformed frame.
pub fn of_frame(frame: Frame, memory_mb: u64) -> Result<Box<RawValue>, Failure> {
    match frame.kind {
        from_worker::VALUE => value(frame.payload),
        from_worker::FAILURE => {
            let mut failure = failure(&frame.payload);
            if failure.kind == Kind::MemoryLimit {
                failure.error = memory_limit(memory_mb).error;
            }
            Err(failure)
        }
        _ => Err(protocol_violation()),
    }
}

/// Adds a file that a worker sent. Returns the remaining room in bytes, or `None` if the name is invalid or taken or the
/// content does not fit in `room`.
pub fn keep_file(frame: Frame, files: &mut Files, room: usize) -> Option<usize> {
    let (name, content) = file_of(frame.payload)?;
    let rest = room.checked_sub(content.len())?;
    files.insert(name, content).ok()?;
    Some(rest)
}

fn value(payload: Vec<u8>) -> Result<Box<RawValue>, Failure> {
    if !json_text::is_shallow(&payload) {
        let error = format!("The result is nested deeper than {} levels", json_text::MAX_DEPTH);
        return Err(Failure::new(Kind::NotJson, error));
    }
    String::from_utf8(payload)
        .ok()
        .filter(|text| json_text::pairs_surrogates(text.as_bytes()))
        .and_then(|text| RawValue::from_string(text).ok())
        .ok_or_else(|| Failure::new(Kind::NotJson, "The result is not valid JSON"))
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
        _ => protocol_violation(),
    }
}

/// The worker broke the protocol: the script wrote to the channel, closed it, or broke the harness.
pub fn protocol_violation() -> Failure {
    Failure::new(
        Kind::Crashed,
        "The script broke the worker process before it could send the result",
    )
}

/// The script passed a limit that the supervisor watches. `memory_mb` and `scratch_bytes` are the limits of the run.
pub(super) fn of_breach(breach: Breach, memory_mb: u64, scratch_bytes: u64) -> Failure {
    let error = match breach {
        Breach::Memory => return memory_limit(memory_mb),
        Breach::Threads => {
            let error =
                format!("The script was stopped because it had more than {MAX_THREADS} threads");
            return Failure::new(Kind::Crashed, error);
        }
        Breach::Scratch(Excess::Bytes) => {
            let limit = scratch_bytes >> 20;
            format!("The script wrote more than its limit of {limit} MB to its scratch directory")
        }
        Breach::Scratch(Excess::Files) => format!(
            "The script created more than {MAX_SCRATCH_FILES} files, or directories more than {MAX_SCRATCH_DEPTH} levels deep"
        ),
    };
    Failure::new(Kind::ScratchLimit, error)
}

/// The wall time limit was reached.
pub fn timed_out(limit: Duration) -> Failure {
    Failure::new(
        Kind::Timeout,
        format!("The script ran longer than its limit of {} seconds", limit.as_secs_f64()),
    )
}

/// The deadline of the platform came before the limit of the script.
pub fn deadline_passed(limit: Duration) -> Failure {
    let limit = limit.as_secs_f64();
    Failure::new(
        Kind::Timeout,
        format!("The platform's deadline came before the script's limit of {limit} seconds"),
    )
}

/// The result exceeds its limit.
pub fn result_too_large(limit: usize) -> Failure {
    Failure::new(
        Kind::ResultTooLarge,
        format!("The result is larger than its limit of {limit} bytes"),
    )
}

/// Explains the end of a worker that did not answer. `status` is as from wait4(2); the other arguments are the limits of
/// the run.
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
        // The supervisor did not send it, so the kernel's OOM killer did.
        Ok(Signal::SIGKILL) => memory_limit(memory_mb),
        Ok(Signal::SIGSEGV) => Failure::new(
            Kind::Crashed,
            "The script crashed: SIGSEGV; recursion was deeper than the stack, or memory was used wrongly",
        ),
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
        assert_eq!(frame(from_worker::VALUE, text), Ok(text.to_owned()));
    }

    #[test]
    fn a_forged_result_is_not_json() {
        for text in ["", "NaN", "{", "[1,]", "1 2", "\u{1}", r#"{"\ud8e4": 1}"#] {
            assert_eq!(frame(from_worker::VALUE, text), Err(Kind::NotJson), "{text}");
        }
        assert_eq!(frame(from_worker::VALUE, &"[".repeat(100_000)), Err(Kind::NotJson));
        let invalid = Frame { kind: from_worker::VALUE, payload: b"\"\xff\"".to_vec() };
        assert_eq!(of_frame(invalid, 64).unwrap_err().kind, Kind::NotJson);
    }

    #[test]
    fn a_file_with_an_invalid_name_or_too_much_content_is_not_kept() {
        let mut files = Files::default();
        let mut keep = |name: &[u8], content: &[u8], room| {
            let mut payload = (name.len() as u16).to_le_bytes().to_vec();
            payload.extend_from_slice(name);
            payload.extend_from_slice(content);
            keep_file(Frame { kind: from_worker::FILE, payload }, &mut files, room)
        };
        assert_eq!(keep(b"a", b"1234", 5), Some(1));
        assert_eq!(keep(b"b", b"1234", 3), None);
        for name in [&b"a"[..], b"", b"../b", b"/b", b"a/b", b"\xff"] {
            assert_eq!(keep(name, b"", 5), None, "{name:?}");
        }
        for payload in [&b""[..], b"\x01", b"\x02\0a", b"\xff\xffa"] {
            let frame = Frame { kind: from_worker::FILE, payload: payload.to_vec() };
            assert_eq!(keep_file(frame, &mut Files::default(), 5), None, "{payload:?}");
        }
    }

    #[test]
    fn a_worker_cannot_report_a_kind_that_only_the_service_may() {
        for kind in ["internal", "busy", "unauthorized", "timeout", "crashed", "nonsense"] {
            let text = format!(r#"{{"kind":"{kind}","error":"x"}}"#);
            assert_eq!(frame(from_worker::FAILURE, &text), Err(Kind::Crashed), "{kind}");
        }
        assert_eq!(frame(from_worker::FAILURE, "not json"), Err(Kind::Crashed));
        assert_eq!(frame(from_worker::READY, ""), Err(Kind::Crashed));
        assert_eq!(frame(0, ""), Err(Kind::Crashed));
    }
}
