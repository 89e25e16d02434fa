//! Builds HTTP responses from the outcomes of requests.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::body::Body;
use super::mcp::AnsweredCall;
use super::memory_budget::{
    MemoryBudget, OverBudget, Reservation, SHARES, UNIT_BYTES, release_when_sent,
};
use crate::api::catalogue::{Failure, Kind};
use crate::api::json_text;
use crate::api::response::{Error, ISOLATION, PEAK_MEMORY, SERVER_TIMING, Success};
use crate::callers::rate_limit::Caller;
use crate::executor::Executor;
use crate::executor::outcome::Execution;
use crate::executor::output_capture::Captured;
use crate::telemetry::execution_record::{ExecutionRecord, milliseconds};

/// The limit on the size of all responses in memory together, bytes, unless the settings allow larger ones. Further
/// responses become `busy`.
const RESPONSES_BYTES: usize = 64 << 20;
/// The memory for small responses, bytes, beside that for all: an error must reach its caller although others read their
/// responses slowly.
const RESERVE_BYTES: usize = 4 << 20;
/// The largest response that takes it, bytes.
const SMALL_BYTES: usize = 64 << 10;
/// The error of a response for which there is no memory.
macro_rules! full {
    () => {
        "Too many responses are waiting to be read by their clients"
    };
}
/// The same as a body, for when there is no memory for that either.
const FULL: &str = concat!(r#"{"error":""#, full!(), r#"","kind":"busy","stdout":""}"#);
/// The names, quotation marks and braces of a response, bytes.
const FRAME_BYTES: usize = 256;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The warning of every response when no sandbox is in force.
const UNSANDBOXED: &str = "No sandbox is in force: the script had the rights of the service. MAINBOX_FLOOR=none is for development";
/// The warning of every response when a sandbox is in force, but none is required.
const NO_FLOOR: &str =
    "MAINBOX_FLOOR=none is for development: a sandbox is in force now, but none is required";

/// Builds responses. Cheap to clone. Every response to `/execute` carries its [`ExecutionRecord`] as an extension.
#[derive(Clone)]
pub struct Responses {
    executor: Arc<Executor>,
    warning: Option<&'static str>,
    held: MemoryBudget,
    /// For small responses, once `held` is full.
    reserve: MemoryBudget,
}

impl Responses {
    /// Builds responses for the executions of `executor`.
    pub fn new(executor: Arc<Executor>) -> Responses {
        let warning = match (executor.config().floor, executor.sandbox().tier) {
            (Some(_), _) => None,
            (None, None) => Some(UNSANDBOXED),
            (None, Some(_)) => Some(NO_FLOOR),
        };
        // Each caller gets a share, and the largest response must fit into it.
        let config = executor.config();
        // MCP sends a result twice, the second time as text in which quotation marks are escaped.
        let of_mcp = if config.mcp { 2 * config.max_result_bytes } else { 0 };
        // Each of many results is rounded up.
        let of_inputs = config.max_inputs * UNIT_BYTES;
        let largest = config.response_bytes() + of_mcp + of_inputs;
        let bytes = RESPONSES_BYTES.max(SHARES * largest);
        let (held, reserve) = (MemoryBudget::new(bytes), MemoryBudget::new(RESERVE_BYTES));
        Responses { executor, warning, held, reserve }
    }

    /// The response to a request of `caller` whose script ran.
    pub fn execution(&self, execution: &Execution, caller: Option<Caller>) -> Response<Body> {
        let truncated = [("stdout", &execution.stdout), ("stderr", &execution.stderr)]
            .into_iter()
            .filter(|(_, captured)| captured.truncated)
            .map(|(name, _)| name)
            .collect();
        let expected = execution.bytes();
        let built = match &execution.outcome {
            Ok(returned) => self.budgeted(
                &Success {
                    result: &returned.result,
                    stdout: text(&execution.stdout),
                    stderr: text(&execution.stderr),
                    files: &returned.files,
                    truncated,
                    warning: self.warning,
                },
                expected,
                caller,
            ),
            Err(failure) => self.budgeted(
                &Error {
                    stdout: text(&execution.stdout),
                    stderr: text(&execution.stderr),
                    truncated,
                    ..self.error_body(failure)
                },
                expected,
                caller,
            ),
        };
        let (body, reservation) = match built {
            Ok(built) => built,
            Err(failure) => {
                let kind = Some(failure.kind);
                let record = ExecutionRecord { kind, ..execution.record() };
                return self.recorded(self.failure(&failure), record);
            }
        };
        let failure = execution.outcome.as_ref().err();
        let status = failure.map_or(StatusCode::OK, |failure| failure.kind.status());
        let record = execution.record();
        let response = self.measured(held(status, body, reservation), &record);
        self.recorded(response, record)
    }

    /// The response to a request with several inputs: the bodies of the responses that each would have got, in order.
    /// `record` is what all runs took together.
    pub(super) fn results(
        &self,
        bodies: Vec<Vec<Bytes>>,
        record: ExecutionRecord,
    ) -> Response<Body> {
        let mut pieces = VecDeque::from([Bytes::from_static(b"{\"results\":[")]);
        for (index, body) in bodies.into_iter().enumerate() {
            if index > 0 {
                pieces.push_back(Bytes::from_static(b","));
            }
            pieces.extend(body);
        }
        pieces.push_back(Bytes::from_static(b"]}"));
        let mut response = Response::new(Body::Known(pieces));
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        let mut response = self.measured(response, &record);
        // Each run was counted by itself.
        response.extensions_mut().insert(record);
        response
    }

    /// The same response, which says in its headers what a run took and how it was isolated.
    pub(super) fn measured(
        &self,
        mut response: Response<Body>,
        record: &ExecutionRecord,
    ) -> Response<Body> {
        let timing = format!(
            "queue;dur={:.3}, run;dur={:.3}, cpu;dur={:.3}",
            milliseconds(record.queue),
            milliseconds(record.run),
            milliseconds(record.cpu),
        );
        let headers = response.headers_mut();
        if let Ok(timing) = HeaderValue::from_str(&timing) {
            headers.insert(SERVER_TIMING, timing);
        }
        headers.insert(PEAK_MEMORY, HeaderValue::from(record.peak_memory));
        headers.insert(ISOLATION, HeaderValue::from_static(self.isolation()));
        response
    }

    /// The response that replaces one that a front cannot send.
    pub fn instead_of(&self, replaced: &http::Extensions, failure: &Failure) -> Response<Body> {
        match replaced.get::<AnsweredCall>() {
            Some(call) => self.failed_call(call, failure),
            None => self.failure(failure),
        }
    }

    /// The warning about the configuration of the service, if there is one.
    pub(super) fn warning(&self) -> Option<&'static str> {
        self.warning
    }

    /// A response with a JSON body, within the memory for responses.
    pub(super) fn json(&self, status: StatusCode, body: &impl Serialize) -> Response<Body> {
        match self.budgeted(body, 0, None) {
            Ok((body, reservation)) => held(status, body, reservation),
            Err(_) => no_memory(),
        }
    }

    /// A response with status 200 and a text of this media type, within the memory for responses.
    pub(super) fn text(&self, media_type: HeaderValue, text: String) -> Response<Body> {
        let mut reservation = self.held.reservation(None);
        if !reservation.grow(text.len()) {
            return no_memory();
        }
        document(media_type, release_when_sent(text.into(), reservation))
    }

    /// A JSON body of about `expected` bytes, within the memory for responses. Escaping can turn one byte into six.
    pub(super) fn budgeted(
        &self,
        body: &impl Serialize,
        expected: usize,
        caller: Option<Caller>,
    ) -> Result<(Vec<u8>, Reservation), Failure> {
        let expected = expected + FRAME_BYTES;
        let written = match self.held.json(body, expected, caller) {
            Err(OverBudget::Now) if expected <= SMALL_BYTES => {
                self.reserve.json(body, expected, caller)
            }
            written => written,
        };
        let over = match written {
            Ok((mut text, reservation)) => {
                json_text::join_lines(&mut text);
                return Ok((text, reservation));
            }
            Err(over) => over,
        };
        Err(match over {
            OverBudget::Now => Failure::new(Kind::Busy, full!()),
            OverBudget::Ever(most) => {
                let error = format!("The response is larger than {most} bytes");
                Failure::new(Kind::ResultTooLarge, error)
            }
        })
    }

    /// Room for `bytes` that wait to be read by a client of `caller`; `None` if there is none.
    pub(super) fn memory_for(&self, bytes: usize, caller: Option<Caller>) -> Option<Reservation> {
        let mut reservation = self.held.reservation(caller);
        reservation.grow(bytes).then_some(reservation)
    }

    /// The name of the isolation tier in force.
    pub(super) fn isolation(&self) -> &'static str {
        self.executor.sandbox().tier_name()
    }

    /// The response to a request to `/execute` whose script did not run.
    pub fn refusal(&self, failure: &Failure) -> Response<Body> {
        self.recorded(self.failure(failure), ExecutionRecord::refused(failure.kind))
    }

    /// The response to a request to any other endpoint that failed.
    pub fn failure(&self, failure: &Failure) -> Response<Body> {
        let mut response = self.json(failure.kind.status(), &self.error_body(failure));
        add_hints(&mut response, failure);
        response
    }

    /// The response to a request with a method that the endpoint does not accept.
    pub fn method_not_allowed(&self, allowed: &'static str) -> Response<Body> {
        let error = format!("This endpoint accepts {allowed} only");
        let mut response = self.failure(&Failure::new(Kind::MethodNotAllowed, error));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        response
    }

    fn error_body<'a>(&self, failure: &'a Failure) -> Error<'a> {
        Error {
            error: &failure.error,
            kind: failure.kind,
            stdout: "".into(),
            traceback: failure.traceback.as_deref(),
            line: failure.line,
            stderr: "".into(),
            truncated: vec![],
            warning: self.warning,
        }
    }

    pub(super) fn recorded(
        &self,
        mut response: Response<Body>,
        record: ExecutionRecord,
    ) -> Response<Body> {
        self.executor.metrics().count(&record);
        response.extensions_mut().insert(record);
        response
    }
}

/// Adds the headers that say what a client can do about a failure.
pub(super) fn add_hints(response: &mut Response<Body>, failure: &Failure) {
    if let Some(seconds) = failure.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if failure.kind == Kind::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if failure.kind == Kind::UnsupportedMediaType {
        // What a body may be encoded with: <https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3>.
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

fn text(captured: &Captured) -> Cow<'_, str> {
    String::from_utf8_lossy(&captured.bytes)
}

/// The response when there is no memory for any other.
fn no_memory() -> Response<Body> {
    let mut response = document(JSON, FULL);
    *response.status_mut() = Kind::Busy.status();
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A response with a JSON body that gives its reservation back once it is sent.
pub(super) fn held(status: StatusCode, body: Vec<u8>, reservation: Reservation) -> Response<Body> {
    let mut response = document(JSON, release_when_sent(body.into(), reservation));
    *response.status_mut() = status;
    response
}

/// A response with status 200 and a document of this media type.
pub(super) fn document(media_type: HeaderValue, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}
