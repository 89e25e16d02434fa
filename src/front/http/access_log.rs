//! The access log of the HTTP front: one line per request, with the fields of Google's Cloud Logging
//! (<https://cloud.google.com/logging/docs/structured-logging>) and those of the execution. It never contains what a
//! caller sent or got.

use std::time::{Duration, Instant};

use http::header::USER_AGENT;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tracing::Span;

use crate::api::catalogue::Kind;
use crate::callers::client_ip::ClientIp;
use crate::handler::body::Body;
use crate::telemetry::execution_record::{EventualRecord, ExecutionRecord, LEFT, milliseconds};
use crate::telemetry::progress::Progress;

/// How much of a text that the client chose is logged, characters.
const MAX_TEXT_LENGTH: usize = 200;
/// The environment variable with the Google Cloud project that traces belong to.
const PROJECT: &str = "GOOGLE_CLOUD_PROJECT";
/// The status that nginx gives a request whose client has left, and that log tools know.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What is known about a request when it arrives.
pub(super) struct AccessLogEntry {
    began: Instant,
    method: Method,
    path: String,
    agent: Option<String>,
    client: Option<String>,
    trace: Option<Trace>,
    progress: Progress,
    logged: bool,
}

impl AccessLogEntry {
    /// The entry of a request. `progress` says how far it has come if it ends without a response.
    pub(super) fn new<B>(
        request: &Request<B>,
        client: Option<ClientIp>,
        progress: Progress,
    ) -> AccessLogEntry {
        let headers = request.headers();
        AccessLogEntry {
            began: Instant::now(),
            method: request.method().clone(),
            path: cut(request.uri().path()),
            agent: text(headers, USER_AGENT.as_str()),
            client: client.map(|client| client.0.to_string()),
            trace: Trace::of(headers),
            progress,
            logged: false,
        }
    }

    /// Writes the line once the response is known.
    pub(super) fn log(mut self, response: &Response<Body>) {
        let record = response.extensions().get::<ExecutionRecord>();
        self.finish(response.status().as_u16(), response.body().size_hint().exact(), record);
    }

    fn finish(&mut self, status: u16, size: Option<u64>, record: Option<&ExecutionRecord>) {
        self.logged = true;
        self.write(Line {
            status,
            size,
            kind: record.map(ExecutionRecord::outcome),
            times: record.map(|record| (record.queue, record.run)),
            cpu: record.map(|record| record.cpu),
            peak_memory: record.map(|record| record.peak_memory),
        });
    }

    fn write(&self, line: Line) {
        let latency = self.began.elapsed();
        let trace = self.trace.as_ref();
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    httpRequest.requestMethod = self.method.as_str(),
                    httpRequest.requestUrl = self.path,
                    httpRequest.status = line.status,
                    httpRequest.responseSize = line.size,
                    httpRequest.userAgent = self.agent,
                    httpRequest.remoteIp = self.client,
                    httpRequest.latency = format!("{:.6}s", latency.as_secs_f64()),
                    "logging.googleapis.com/trace" = trace.map(|trace| trace.name.as_str()),
                    "logging.googleapis.com/spanId" = trace.and_then(|trace| trace.span.as_deref()),
                    kind = line.kind,
                    queue_ms = line.times.map(|(queue, _)| milliseconds(queue)),
                    run_ms = line.times.map(|(_, run)| milliseconds(run)),
                    cpu_ms = line.cpu.map(milliseconds),
                    peak_memory_bytes = line.peak_memory,
                    "{} {} {}",
                    self.method,
                    self.path,
                    line.kind.map_or_else(|| line.status.to_string(), String::from),
                )
            };
        }
        // A 503 `busy` is not an error of the service; a 500 `internal` is, also at the end of a live response.
        let is_internal = line.status == StatusCode::INTERNAL_SERVER_ERROR.as_u16()
            || line.kind == Some(Kind::Internal.name());
        if is_internal {
            line!(error);
        } else {
            line!(info);
        }
    }
}

/// The entry of a request whose response is live. It is written when that ends.
pub(super) struct LiveEntry {
    entry: Option<AccessLogEntry>,
    /// The span of the request, which is over when the body is sent.
    span: Span,
    status: u16,
    record: EventualRecord,
    /// The bytes of the body so far.
    pub(super) size: u64,
}

impl LiveEntry {
    /// The entry of a response with this status, whose execution `record` will describe.
    pub(super) fn new(
        entry: AccessLogEntry,
        status: StatusCode,
        record: EventualRecord,
    ) -> LiveEntry {
        LiveEntry {
            entry: Some(entry),
            span: Span::current(),
            status: status.as_u16(),
            record,
            size: 0,
        }
    }
}

impl Drop for LiveEntry {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        let Some(mut entry) = self.entry.take() else { return };
        // Without a record the client has left, and the entry says so when it is dropped.
        if let Some(record) = self.record.get() {
            entry.finish(self.status, Some(self.size), Some(record));
        }
    }
}

/// What is known about a request when it ends.
struct Line {
    status: u16,
    size: Option<u64>,
    kind: Option<&'static str>,
    /// In the queue and of the run.
    times: Option<(Duration, Duration)>,
    cpu: Option<Duration>,
    peak_memory: Option<u64>,
}

impl Drop for AccessLogEntry {
    /// Writes the line of a request that ends without a response, since its client has left.
    fn drop(&mut self) {
        // A panic has a line of its own.
        if self.logged || std::thread::panicking() {
            return;
        }
        self.write(Line {
            status: CLIENT_CLOSED_REQUEST,
            size: None,
            kind: Some(LEFT),
            times: self.progress.times(),
            cpu: None,
            peak_memory: None,
        });
    }
}

/// The place of a request in a distributed trace.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    name: String,
    span: Option<String>,
}

impl Trace {
    /// Reads `traceparent` (W3C) or `X-Cloud-Trace-Context` (Google's older form, with the span in decimal).
    fn of(headers: &HeaderMap) -> Option<Trace> {
        let (id, span) =
            text(headers, "traceparent").and_then(|value| from_w3c(&value)).or_else(|| {
                text(headers, "x-cloud-trace-context").and_then(|value| from_google(&value))
            })?;
        let name = match std::env::var(PROJECT) {
            Ok(project) => format!("projects/{project}/traces/{id}"),
            Err(_) => id,
        };
        Some(Trace { name, span })
    }
}

/// `00-TRACE-SPAN-FLAGS`: <https://www.w3.org/TR/trace-context/#traceparent-header>.
fn from_w3c(value: &str) -> Option<(String, Option<String>)> {
    let mut parts = value.split('-').skip(1);
    let id = hexadecimal(parts.next()?, 32)?;
    Some((id, parts.next().and_then(|span| hexadecimal(span, 16))))
}

/// `TRACE/SPAN;o=OPTIONS`: <https://cloud.google.com/trace/docs/trace-context#legacy-http-header>.
fn from_google(value: &str) -> Option<(String, Option<String>)> {
    let (id, rest) = value.split_once('/').unwrap_or((value, ""));
    let span = rest.split(';').next().and_then(|span| span.parse::<u64>().ok());
    Some((hexadecimal(id, 32)?, span.map(|span| format!("{span:016x}"))))
}

fn hexadecimal(text: &str, length: usize) -> Option<String> {
    (text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| text.to_ascii_lowercase())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(cut)
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn both_trace_headers_are_read_and_malformed_ones_are_ignored() {
        let trace = |span: &str| Some((String::from(ID), Some(String::from(span))));
        assert_eq!(from_w3c(&format!("00-{ID}-b7ad6b7169203331-01")), trace("b7ad6b7169203331"));
        assert_eq!(from_google(&format!("{ID}/74;o=1")), trace("000000000000004a"));
        assert_eq!(from_google(ID), Some((String::from(ID), None)));
        for malformed in
            ["", "00", "00-xyz-1-01", "/", "a/b", &format!("00-{ID}0-b7ad6b7169203331-01")]
        {
            assert_eq!((from_w3c(malformed), from_google(malformed)), (None, None), "{malformed}");
        }
    }
}
