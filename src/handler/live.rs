//! Live responses: they begin when the script does, and contain what it prints while it runs.
//!
//! The script runs in a task of its own, so a client that reads slowly does not hold it up. What it prints waits in
//! [`LiveOutput`], which keeps no more than a buffered response would, and is encoded when the client takes it. Dropping
//! the body, because the client has left, ends the task and with it the script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Span};

use super::Handler;
use super::body::Body;
use super::events::Format;
use super::inputs::Item;
use super::memory_budget::{Reservation, release_when_sent};
use super::response::Responses;
use crate::callers::rate_limit::Caller;
use crate::executor::live_output::{LiveOutput, Stream};
use crate::telemetry::execution_record::{EventualRecord, ExecutionRecord};
use crate::telemetry::progress::Progress;
use crate::telemetry::prometheus::OpenStream;

/// The longest silence, after which something is sent. Load balancers close connections that are silent for a minute.
const SILENCE: Duration = Duration::from_secs(10);
/// How long output is gathered before an event. Python writes the text of a print and its line break one after the other.
const GATHER: Duration = Duration::from_millis(1);
/// The largest text of one event, bytes of the script's output.
const MAX_TEXT_BYTES: usize = 32 << 10;
/// The largest event that is copied into one piece, bytes.
const MAX_JOINED_BYTES: usize = 16 << 10;

/// How the events of a live response are written.
pub(super) trait Encoding: Send + 'static {
    /// An event with a text that the script has printed.
    fn output(&mut self, stream: Stream, text: &str) -> Bytes;

    /// What is sent after a long silence.
    fn silence(&mut self) -> Bytes;

    /// The pieces of an event with the answer to one of several inputs.
    fn item(&mut self, item: Item) -> Vec<Bytes>;

    /// The pieces of the last event. `body` is the body of the buffered response.
    fn last(
        &mut self,
        status: StatusCode,
        body: Vec<Bytes>,
        record: &ExecutionRecord,
    ) -> Vec<Bytes>;
}

/// What a run needs to answer live.
pub(super) struct Live {
    /// Tells when the script begins.
    pub(super) progress: Progress,
    /// Receives what it prints.
    pub(super) output: LiveOutput,
    /// Receives the answers to several inputs, if there are several.
    pub(super) items: Option<UnboundedReceiver<Item>>,
    /// The shortest time between two events with output of one stream.
    pub(super) interval: Duration,
    /// The caller that the memory counts for.
    pub(super) caller: Option<Caller>,
}

/// The end of a run: the buffered response, and the memory for output that the client has not taken yet.
struct Ended {
    response: Response<Body>,
    _unread: Option<Reservation>,
}

impl Handler {
    /// Answers with events while `answer` runs a script. `answer` makes the buffered response; if that comes before the
    /// script begins, it is the answer.
    pub(super) async fn answer_live(
        &self,
        format: Format,
        encoding: impl Encoding,
        live: Live,
        answer: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> Response<Body> {
        let Live { progress, output, items, interval, caller } = live;
        let responses = self.responses.clone();
        let ended = {
            let output = output.clone();
            async move {
                let response = answer.await;
                let _unread = responses.memory_for(output.unread_bytes(), caller);
                if _unread.is_none() {
                    // The last event has all of it.
                    output.clear();
                }
                Ended { response, _unread }
            }
        };
        let mut run = Run(tokio::spawn(ended.instrument(Span::current())));
        tokio::select! {
            biased;
            () = progress.begun() => {}
            ended = run.end() => return ended.response,
        }
        let record = EventualRecord::default();
        let now = Instant::now();
        let events = LiveEvents {
            responses: self.responses.clone(),
            caller,
            encoding,
            output,
            items,
            interval,
            next: [now; 2],
            began: [None; 2],
            sent: now,
            pieces: VecDeque::new(),
            run: Some(run),
            ended: None,
            record: record.clone(),
            _open: self.executor.metrics().open_stream(),
        };
        let pieces = stream::unfold(events, async |mut events: LiveEvents<_>| {
            let piece = events.next_piece().await?;
            Some((Ok::<_, Infallible>(Frame::data(piece)), events))
        });
        let mut response = format.response(Body::live(StreamBody::new(pieces)));
        response.extensions_mut().insert(record);
        response
    }
}

/// The task that runs a script. Dropping it ends the task.
struct Run(JoinHandle<Ended>);

impl Run {
    async fn end(&mut self) -> Ended {
        match (&mut self.0).await.map_err(JoinError::try_into_panic) {
            Ok(ended) => ended,
            // A panic ends the connection, as one in a buffered answer does, and with it the stream without a last event.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The process ends.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes the events of one response, each when the client takes it.
struct LiveEvents<E> {
    responses: Responses,
    /// The caller that the memory counts for.
    caller: Option<Caller>,
    encoding: E,
    output: LiveOutput,
    items: Option<UnboundedReceiver<Item>>,
    interval: Duration,
    /// When the next event with output of each stream may be sent.
    next: [Instant; 2],
    /// When the output that waits began.
    began: [Option<Instant>; 2],
    /// When something was last sent.
    sent: Instant,
    /// Pieces of events that are to be sent.
    pieces: VecDeque<Bytes>,
    /// `None` once it has ended.
    run: Option<Run>,
    ended: Option<Ended>,
    record: EventualRecord,
    _open: OpenStream,
}

impl<E: Encoding> LiveEvents<E> {
    /// The next piece of the response; `None` after the last one.
    async fn next_piece(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                self.sent = Instant::now();
                return Some(piece);
            }
            if let Some(item) = self.items.as_mut().and_then(|items| items.try_recv().ok()) {
                self.push_item(item);
                continue;
            }
            if self.ended.is_some() {
                if !self.encode_output(Instant::now(), true) {
                    self.encode_last();
                }
                continue;
            }
            let due = self.due();
            if due.is_some_and(|due| due <= Instant::now()) {
                self.encode_output(Instant::now(), false);
                continue;
            }
            let run = self.run.as_mut()?;
            tokio::select! {
                biased;
                ended = run.end() => {
                    self.run = None;
                    self.ended = Some(ended);
                }
                () = self.output.changed(), if due.is_none() => {}
                Some(item) = next_item(&mut self.items) => self.push_item(item),
                () = sleep_until(due.unwrap_or(self.sent + SILENCE)) => {
                    if due.is_none() {
                        self.sent = Instant::now();
                        self.pieces.push_back(self.encoding.silence());
                    }
                }
            }
        }
    }

    /// When an event with output may be sent; `None` if there is no output.
    fn due(&mut self) -> Option<Instant> {
        let waiting = Stream::ALL.into_iter().filter(|stream| self.output.has_text(*stream));
        let due = waiting.map(|stream| {
            let began = self.began[stream as usize].get_or_insert_with(Instant::now);
            self.next[stream as usize].max(*began + GATHER)
        });
        due.min()
    }

    /// Encodes output of a stream that may be sent now. Once the script has ended (`is_last`), this is every stream. Returns
    /// whether there is an event to send.
    fn encode_output(&mut self, now: Instant, is_last: bool) -> bool {
        for stream in Stream::ALL {
            if !is_last && self.next[stream as usize] > now {
                continue;
            }
            let (text, bytes) = self.output.first(stream, MAX_TEXT_BYTES, is_last);
            if text.is_empty() {
                continue;
            }
            self.next[stream as usize] = now + self.interval;
            let event = self.encoding.output(stream, &text);
            // Without memory the text waits, and if the script has ended, it is in the last event only.
            if let Some(memory) = self.responses.memory_for(event.len(), self.caller) {
                self.began[stream as usize] = None;
                self.output.forget(stream, bytes);
                self.pieces.push_back(release_when_sent(event, memory));
                return true;
            }
            if is_last {
                self.output.clear();
            }
        }
        false
    }

    fn encode_last(&mut self) {
        let Some(Ended { response, .. }) = self.ended.take() else { return };
        let (parts, body) = response.into_parts();
        let record = parts.extensions.get::<ExecutionRecord>();
        let record = *record.expect("BUG: the response to a run has its record");
        let pieces = self.encoding.last(parts.status, body.known().into(), &record);
        self.push(pieces);
        self.record.set(record);
    }

    fn push_item(&mut self, item: Item) {
        let pieces = self.encoding.item(item);
        self.push(pieces);
    }

    /// Sends an event next. A small one is sent as one piece.
    fn push(&mut self, pieces: Vec<Bytes>) {
        let bytes = pieces.iter().map(Bytes::len).sum();
        let memory = (bytes <= MAX_JOINED_BYTES)
            .then(|| self.responses.memory_for(bytes, self.caller))
            .flatten();
        match memory {
            Some(memory) => {
                let joined = Bytes::from(pieces.concat());
                self.pieces.push_back(release_when_sent(joined, memory));
            }
            None => self.pieces.extend(pieces),
        }
    }
}

async fn next_item(items: &mut Option<UnboundedReceiver<Item>>) -> Option<Item> {
    match items {
        Some(items) => items.recv().await,
        None => None,
    }
}
