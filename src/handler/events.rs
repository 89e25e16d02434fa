//! The events of a live response, as server-sent events or as lines of JSON. The last one contains the body that the
//! buffered response would have had.
//!
//! Server-sent events: <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>. Lines:
//! <https://github.com/ndjson/ndjson-spec>.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::body::Body;
use super::inputs::Item;
use super::live::Encoding;
use crate::executor::live_output::Stream;
use crate::telemetry::execution_record::{ExecutionRecord, milliseconds};

/// Tells nginx, and proxies that follow it, to pass each event on at once:
/// <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering>.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const EVENT_STREAM: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// As server-sent events.
    EventStream,
    /// As JSON objects, one a line.
    Lines,
}

impl Format {
    /// The format that a client prefers to a buffered response; `None` if it prefers that. Of formats that it accepts
    /// equally, the first one counts: <https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1>.
    pub(super) fn preferred(headers: &HeaderMap) -> Option<Format> {
        let mut best = (0.0, None);
        for (range, weight) in accepted(headers) {
            let format = match range.as_str() {
                EVENT_STREAM => Some(Format::EventStream),
                LINES => Some(Format::Lines),
                "application/json" | "application/*" | "*/*" => None,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, format);
            }
        }
        best.1
    }

    /// Server-sent events, if a client accepts them, among other formats or not.
    pub(super) fn event_stream(headers: &HeaderMap) -> Option<Format> {
        let is_accepted = |(range, weight): (String, f32)| range == EVENT_STREAM && weight > 0.0;
        accepted(headers).any(is_accepted).then_some(Format::EventStream)
    }

    /// What comes before and after a message of another protocol.
    pub(super) fn around_message(self) -> (&'static str, &'static str) {
        match self {
            Format::EventStream => ("event: message\ndata: ", "\n\n"),
            Format::Lines => ("", "\n"),
        }
    }

    /// A response in this format.
    pub(super) fn response(self, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        let media_type = match self {
            Format::EventStream => EVENT_STREAM,
            Format::Lines => LINES,
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
        response
    }

    /// What comes before and after the fields of the object that is the data of an event.
    fn around(self, event: &str) -> (String, &'static str) {
        match self {
            Format::EventStream => (format!("event: {event}\ndata: {{"), "}\n\n"),
            Format::Lines => (format!("{{\"event\":\"{event}\","), "}\n"),
        }
    }

    /// An event whose data is `object`.
    fn event(self, event: &str, object: &impl Serialize) -> Bytes {
        let text = serde_json::to_string(object).expect("BUG: an event is plain data");
        let (before, after) = self.around(event);
        format!("{before}{}{after}", fields(&text)).into()
    }
}

/// The media ranges of `Accept`, in lower case, each with its weight.
fn accepted(headers: &HeaderMap) -> impl Iterator<Item = (String, f32)> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| {
            let (name, weight) = part.split_once('=')?;
            name.eq_ignore_ascii_case("q").then(|| weight.parse().unwrap_or(0.0))
        });
        let weight = weight.unwrap_or(1.0);
        (name, if (0.0..=1.0).contains(&weight) { weight } else { 0.0 })
    })
}

/// The fields of a JSON object, as they stand between its braces.
fn fields(object: &str) -> &str {
    object.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(object)
}

/// The events of `/execute`.
pub(super) struct Events {
    /// How they are written.
    pub(super) format: Format,
    /// The name of the isolation tier in force.
    pub(super) isolation: &'static str,
}

impl Events {
    /// What a buffered response says outside of its body, as fields that follow those of the body.
    fn figures(&self, status: StatusCode, record: &ExecutionRecord) -> String {
        let [queue, run, cpu] = [record.queue, record.run, record.cpu].map(milliseconds);
        format!(
            r#","status":{},"timings":{{"queue_ms":{queue:.3},"run_ms":{run:.3},"cpu_ms":{cpu:.3}}},"peak_memory_bytes":{},"isolation":"{}""#,
            status.as_u16(),
            record.peak_memory,
            self.isolation,
        )
    }

    /// An event whose data is the object that `pieces` are, with the fields `first` before and the figures after its own.
    fn of_body(
        &self,
        event: &str,
        first: &str,
        pieces: Vec<Bytes>,
        status: StatusCode,
        record: &ExecutionRecord,
    ) -> Vec<Bytes> {
        let (before, after) = self.format.around(event);
        let mut event = vec![Bytes::from(format!("{before}{first}"))];
        event.extend(pieces);
        // The braces are those of the event.
        if let Some(piece) = event.get_mut(1) {
            *piece = piece.slice(1..);
        }
        if let Some(piece) = event.last_mut() {
            piece.truncate(piece.len() - 1);
        }
        event.push(format!("{}{after}", self.figures(status, record)).into());
        event
    }
}

impl Encoding for Events {
    fn output(&mut self, stream: Stream, text: &str) -> Bytes {
        self.format.event(stream.name(), &json!({ "text": text }))
    }

    fn silence(&mut self) -> Bytes {
        match self.format {
            Format::EventStream => Bytes::from_static(b": still running\n\n"),
            Format::Lines => Bytes::from_static(b"{\"event\":\"keepalive\"}\n"),
        }
    }

    fn item(&mut self, item: Item) -> Vec<Bytes> {
        let Item { index, status, record, body } = item;
        self.of_body("item", &format!("\"index\":{index},"), body, status, &record)
    }

    fn last(
        &mut self,
        status: StatusCode,
        body: Vec<Bytes>,
        record: &ExecutionRecord,
    ) -> Vec<Bytes> {
        let event = if status == StatusCode::OK { "result" } else { "error" };
        self.of_body(event, "", body, status, record)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn preferred(accept: &'static str) -> Option<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        Format::preferred(&headers)
    }

    #[test]
    fn a_client_gets_the_format_that_it_prefers() {
        for accept in [
            "",
            "*/*",
            "application/json",
            "text/html, */*;q=0.8",
            "text/event-stream;q=0",
            "text/event-stream;Q=0",
            "text/event-stream;q=inf",
            "text/event-stream;q=",
        ] {
            assert_eq!(preferred(accept), None, "{accept}");
        }
        assert_eq!(preferred("application/json, text/event-stream"), None);
        for accept in [
            "text/event-stream",
            "Text/Event-Stream; q=1",
            "text/event-stream, application/json",
            "application/json;q=0.5, text/event-stream",
            "text/html, text/event-stream, */*;q=0.1",
        ] {
            assert_eq!(preferred(accept), Some(Format::EventStream), "{accept}");
        }
        assert_eq!(preferred("application/x-ndjson"), Some(Format::Lines));
        assert_eq!(preferred("text/event-stream;q=0.2,application/x-ndjson"), Some(Format::Lines));
        assert_eq!(Format::preferred(&HeaderMap::new()), None);
    }

    #[test]
    fn the_last_event_is_the_body_and_the_figures() {
        let record = ExecutionRecord {
            ran: true,
            kind: None,
            queue: Duration::from_micros(7),
            run: Duration::from_millis(20),
            cpu: Duration::from_micros(1500),
            peak_memory: 4096,
        };
        let figures = r#""status":200,"timings":{"queue_ms":0.007,"run_ms":20.000,"cpu_ms":1.500},"peak_memory_bytes":4096,"isolation":"rlimits"}"#;
        for (format, begins, ends) in [
            (Format::EventStream, "event: result\ndata: {", "\n\n"),
            (Format::Lines, "{\"event\":\"result\",", "\n"),
        ] {
            for body in [&[&br#"{"result":[1]}"#[..]][..], &[b"{\"result\":", b"[1]", b"}"]] {
                let body = body.iter().map(|piece| Bytes::from_static(piece)).collect();
                let mut events = Events { format, isolation: "rlimits" };
                let pieces = events.last(StatusCode::OK, body, &record);
                let expected = format!("{begins}\"result\":[1],{figures}{ends}");
                assert_eq!(String::from_utf8(pieces.concat()).unwrap(), expected);
            }
        }
    }
}
