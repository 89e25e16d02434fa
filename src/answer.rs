//! Answers: what came of a request, as an HTTP response.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde::Serialize;

use crate::api::{Error, Failure, ISOLATION, Kind, PEAK_MEMORY, SERVER_TIMING, Success};
use crate::budget::{Budget, until_gone};
use crate::executor::Executor;
use crate::executor::outcome::{Captured, Execution};
use crate::record::{Record, milliseconds};

/// Bytes of all answers together that are held until clients have taken them; what comes on top is `busy`.
const MAX_HELD_BYTES: usize = 64 << 20;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What every answer carries where nothing forbids to run scripts without a sandbox.
const UNSANDBOXED: &str = "No sandbox is in force: the script had the rights of the service. MAINBOX_FLOOR=none is for development";
/// The same where there is a sandbox all the same.
const NO_FLOOR: &str = "MAINBOX_FLOOR=none is for development: scripts would run without a sandbox too. One is in force now";

/// Makes answers; cheap to clone. Those to requests that scripts be run carry their [`Record`] as an extension.
#[derive(Clone)]
pub struct Answers {
    executor: Arc<Executor>,
    warning: Option<&'static str>,
    held: Budget,
}

impl Answers {
    /// For the executions of `executor`.
    pub fn new(executor: Arc<Executor>) -> Answers {
        let warning = match (executor.config().floor, executor.sandbox().tier) {
            (Some(_), _) => None,
            (None, None) => Some(UNSANDBOXED),
            (None, Some(_)) => Some(NO_FLOOR),
        };
        Answers { executor, warning, held: Budget::new(MAX_HELD_BYTES) }
    }

    /// To a request whose script was run.
    pub fn executed(&self, execution: &Execution) -> Response<Full<Bytes>> {
        let truncated = [("stdout", &execution.stdout), ("stderr", &execution.stderr)]
            .into_iter()
            .filter(|(_, captured)| captured.truncated)
            .map(|(name, _)| name)
            .collect();
        let mut response = match &execution.outcome {
            Ok(returned) => sized_json(
                StatusCode::OK,
                &Success {
                    result: &returned.result,
                    stdout: text(&execution.stdout),
                    stderr: text(&execution.stderr),
                    files: &returned.files,
                    truncated,
                    warning: self.warning,
                },
                execution.bytes(),
            ),
            Err(failure) => json(
                failure.kind.status(),
                &Error {
                    stdout: text(&execution.stdout),
                    stderr: text(&execution.stderr),
                    truncated,
                    ..self.error(failure)
                },
            ),
        };
        // What it has really become: escaped, a byte can be six.
        let mut held = self.held.nothing();
        if !held.grow(response.body().size_hint().exact().unwrap_or_default() as usize) {
            let error = "Too many answers wait for their clients to take them";
            let failure = Failure::new(Kind::Busy, error);
            let record = Record { kind: Some(Kind::Busy), ..Record::of(execution) };
            return self.recorded(self.failed(&failure), record);
        }
        let timing = format!(
            "queue;dur={:.3}, run;dur={:.3}, cpu;dur={:.3}",
            milliseconds(execution.queue),
            milliseconds(execution.run),
            milliseconds(execution.cpu),
        );
        let headers = response.headers_mut();
        if let Ok(timing) = HeaderValue::from_str(&timing) {
            headers.insert(SERVER_TIMING, timing);
        }
        headers.insert(PEAK_MEMORY, HeaderValue::from(execution.peak_memory));
        headers.insert(ISOLATION, HeaderValue::from_static(self.executor.sandbox().tier_name()));
        self.recorded(response.map(|body| until_gone(body, held)), Record::of(execution))
    }

    /// To a request whose script was not run.
    pub fn refused(&self, failure: &Failure) -> Response<Full<Bytes>> {
        self.recorded(self.failed(failure), Record::refused(failure))
    }

    /// To a request that was none for a script to be run.
    pub fn failed(&self, failure: &Failure) -> Response<Full<Bytes>> {
        let mut response = json(failure.kind.status(), &self.error(failure));
        if let Some(seconds) = failure.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if failure.kind == Kind::Unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// To a request by another method than those that the endpoint takes.
    pub fn method_not_allowed(&self, allowed: &'static str) -> Response<Full<Bytes>> {
        let error = format!("This endpoint takes {allowed}");
        let mut response = self.failed(&Failure::new(Kind::MethodNotAllowed, error));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        response
    }

    fn error<'a>(&self, failure: &'a Failure) -> Error<'a> {
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

    fn recorded(
        &self,
        mut response: Response<Full<Bytes>>,
        record: Record,
    ) -> Response<Full<Bytes>> {
        self.executor.metrics().count(&record);
        response.extensions_mut().insert(record);
        response
    }
}

fn text(captured: &Captured) -> Cow<'_, str> {
    String::from_utf8_lossy(&captured.bytes)
}

/// A response with JSON.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    sized_json(status, body, 0)
}

/// A response that has about `expected` bytes: a large one is not to be moved while it grows.
fn sized_json(status: StatusCode, body: &impl Serialize, expected: usize) -> Response<Full<Bytes>> {
    let mut text = Vec::with_capacity(expected + 256);
    serde_json::to_writer(&mut text, body).expect("BUG: answers are plain data");
    let mut response = document(JSON, text);
    *response.status_mut() = status;
    response
}

/// A response with a document of this media type.
pub fn document(media_type: HeaderValue, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}
