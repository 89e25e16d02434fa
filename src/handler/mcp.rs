//! The endpoint `/mcp`: answers messages of the Model Context Protocol, each by itself and without a session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use serde::Serialize;

use super::body::Body;
use super::events::Format;
use super::execute::{Attached, counts, was_refused_as_busy};
use super::inputs::Item;
use super::live::Encoding;
use super::request_body::{Media, media_type, read};
use super::response::{JSON, Responses, add_hints, document, held};
use super::{Deadline, Handler};
use crate::api::catalogue::{Failure, Kind};
use crate::api::request::ExecuteRequest;
use crate::callers::rate_limit::Caller;
use crate::executor::live_output::Stream;
use crate::executor::outcome::Execution;
use crate::executor::protocol::ZygoteInfo;
use crate::mcp::message::{Id, Message, Reply, RpcError};
use crate::mcp::method::{Asked, Discovered, Empty, Initialized, Tools};
use crate::mcp::progress::{Progress, token};
use crate::mcp::revision::{Era, check_headers};
use crate::mcp::tool::{self, Tool};
use crate::mcp::tool_result::ToolResult;
use crate::telemetry::execution_record::ExecutionRecord;

/// The largest message that does not count against the rate of its caller unless it is a call, bytes.
const SMALL_BYTES: u64 = 64 << 10;

/// The shortest time between two notifications of the output of one stream. Each may go through a model's client.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Marks a message that came over stdio, which has no headers to agree with it. The command line attaches it to a request
/// as an extension.
#[derive(Clone, Copy, Debug)]
pub struct OverStdio;

/// The call that a response answers. It is attached to the response as an extension, so that a front which cannot send the
/// response can replace it.
#[derive(Clone, Debug)]
pub(super) struct AnsweredCall {
    id: Id,
    era: Era,
}

/// A message that was read. It no longer refers to the body, so that the body can be dropped before a script runs.
enum Read {
    /// A notification, which gets no answer.
    Notification,
    /// A request for something that the service knows.
    Question(AnsweredCall, Question),
    /// A call of the tool, with the token for notifications of its progress, or why its arguments are not accepted.
    Call(AnsweredCall, Option<Id>, Result<ExecuteRequest, Failure>),
}

enum Question {
    Discover,
    Initialize(&'static str),
    Ping,
    ListTools,
}

/// Why a message was not read: its id if known, the error, and the HTTP status.
type Unread = (Option<Id>, RpcError, StatusCode);

impl Handler {
    /// Answers a message. Calls of the tool count against the rate of the caller. So do large messages, before they are
    /// read, since reading them takes time.
    pub(super) async fn mcp<B>(&self, request: Request<B>, caller: Option<Caller>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let is_small = request.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BYTES);
        if is_small {
            return self.answer(request, caller, caller).await;
        }
        let answer = self.answer(request, caller, None);
        let answered = self.within_rate(caller, answer, |response| !was_refused_as_busy(response));
        answered.await.unwrap_or_else(|failure| self.responses.rpc_refusal(None, &failure))
    }

    /// Answers a message of `caller`. If it is a call, it counts for `counted`.
    async fn answer<B>(
        &self,
        request: Request<B>,
        caller: Option<Caller>,
        counted: Option<Caller>,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let over_stdio = request.extensions().get::<OverStdio>().is_some();
        let (parts, body) = request.into_parts();
        let expects_continue = parts.headers.contains_key(EXPECT);
        let mut reservation = self.requests.reservation(caller);
        let body = match is_json(&parts.headers) {
            Ok(()) => read(body, expects_continue, &mut reservation).await,
            Err(failure) => Err(failure),
        };
        let body = match body {
            Ok(body) => body,
            Err(failure) => return self.responses.rpc_refusal(None, &failure),
        };
        let headers = (!over_stdio).then_some(&parts.headers);
        let read = self.read_message(&body, headers);
        drop(body);
        match read {
            Err((id, error, status)) => self.responses.rpc_error(id.as_ref(), &error, status),
            Ok(Read::Notification) => {
                let mut response = Response::new(Body::default());
                *response.status_mut() = StatusCode::ACCEPTED;
                response
            }
            Ok(Read::Question(call, question)) => {
                let deadline = parts.extensions.get::<Deadline>().copied();
                self.answer_question(&call, &question, deadline).await
            }
            Ok(Read::Call(call, token, arguments)) => {
                let mut attached = Attached::to(&parts.extensions);
                let format = match over_stdio {
                    true => Some(Format::Lines),
                    false => Format::event_stream(&parts.headers),
                };
                let (Some(format), Some(token)) = (format, token) else {
                    return self.answer_call(&call, arguments, attached, caller, counted).await;
                };
                let live = attached.live(PROGRESS_INTERVAL, caller, false);
                let messages = Messages { format, progress: Progress::new(token) };
                let handler = self.clone();
                let answer = async move {
                    let answer = handler.answer_call(&call, arguments, attached, caller, counted);
                    let response = answer.await;
                    drop(reservation);
                    response
                };
                self.answer_live(format, messages, live, answer).await
            }
        }
    }

    /// Runs the script of a call of `caller`, which counts for `counted`.
    async fn answer_call(
        &self,
        call: &AnsweredCall,
        arguments: Result<ExecuteRequest, Failure>,
        attached: Attached,
        caller: Option<Caller>,
        counted: Option<Caller>,
    ) -> Response<Body> {
        let run = async { self.run(&self.job(arguments?, attached)?).await };
        match self.within_rate(counted, run, counts).await {
            Ok(Ok(execution)) => self.responses.tool_result(call, &execution, caller),
            Ok(Err(failure)) => self.responses.tool_refusal(call, &failure),
            Err(failure) => self.responses.rpc_refusal(Some(&call.id), &failure),
        }
    }

    fn read_message(&self, body: &[u8], headers: Option<&HeaderMap>) -> Result<Read, Unread> {
        let bad_request = StatusCode::BAD_REQUEST;
        let message = Message::read(body).map_err(|(id, error)| (id, error, bad_request))?;
        let Some(id) = message.id.clone() else {
            let params = message.params().unwrap_or_default();
            check_headers(&message, &params, headers, false)
                .map_err(|error| (None, error, bad_request))?;
            return Ok(Read::Notification);
        };
        let failed = |era: Era| {
            let id = id.clone();
            move |error: RpcError| {
                let status = error.status(era);
                (Some(id), error, status)
            }
        };
        let params = message.params().map_err(failed(Era::Modern))?;
        let era = Era::of(&message, &params, headers).map_err(failed(Era::Modern))?;
        let asked = Asked::of(&message, &params, era).map_err(failed(era))?;
        let call = AnsweredCall { id, era };
        Ok(match asked {
            Asked::Discover => Read::Question(call, Question::Discover),
            Asked::Initialize(revision) => Read::Question(call, Question::Initialize(revision)),
            Asked::Ping => Read::Question(call, Question::Ping),
            Asked::ListTools => Read::Question(call, Question::ListTools),
            Asked::CallTool(arguments) => {
                let request = tool::request(arguments.get(), self.config().request_limits());
                Read::Call(call, token(&params), request)
            }
        })
    }

    async fn answer_question(
        &self,
        call: &AnsweredCall,
        question: &Question,
        deadline: Option<Deadline>,
    ) -> Response<Body> {
        let is_private = self.config().api_keys.is_some();
        let responses = &self.responses;
        match question {
            Question::Discover => responses.rpc_result(&call.id, Discovered::new(is_private)),
            Question::Initialize(revision) => {
                responses.rpc_result(&call.id, Initialized::new(revision))
            }
            Question::Ping => responses.rpc_result(&call.id, Empty {}),
            // The description names the packages, which are known once Python has started.
            Question::ListTools => match self.started_zygote(deadline).await {
                Ok(zygote) => {
                    let tool = Tool::new(self.config(), &zygote.installed);
                    responses.rpc_result(&call.id, Tools::new(tool, call.era, is_private))
                }
                Err(failure) => {
                    let status = failure.kind.status();
                    responses.rpc_error(Some(&call.id), &RpcError::Refused(failure), status)
                }
            },
        }
    }
}

impl Handler {
    /// Waits until scripts can run, for as long as a request may wait for a worker, and returns what the zygote reported.
    async fn started_zygote(&self, deadline: Option<Deadline>) -> Result<Arc<ZygoteInfo>, Failure> {
        let left = deadline.map(|Deadline(end)| end.saturating_duration_since(Instant::now()));
        let most = left.unwrap_or(Duration::MAX).min(self.config().queue_timeout);
        let ready = tokio::time::timeout(most, self.executor.ready_zygote());
        ready
            .await
            .unwrap_or_else(|_| Err(Failure::new(Kind::Busy, "Python is still being started")))
    }
}

/// Checks that the body is JSON and not compressed.
fn is_json(headers: &HeaderMap) -> Result<(), Failure> {
    match media_type(headers)? {
        Media::Json => Ok(()),
        Media::Python => {
            let error = "Content-Type must be application/json";
            Err(Failure::new(Kind::UnsupportedMediaType, error))
        }
    }
}

impl Responses {
    fn rpc_result(&self, id: &Id, result: impl Serialize) -> Response<Body> {
        match self.budgeted(&Reply::result(id, result), 0, None) {
            Ok((body, reservation)) => held(StatusCode::OK, body, reservation),
            Err(failure) => {
                let status = failure.kind.status();
                self.rpc_error(Some(id), &RpcError::Refused(failure), status)
            }
        }
    }

    fn rpc_error(&self, id: Option<&Id>, error: &RpcError, status: StatusCode) -> Response<Body> {
        // A few hundred bytes, so it needs no memory of the budget, and there is an answer when that is used up.
        let body = serde_json::to_vec(&Reply::error(id, error));
        let mut response = document(JSON, body.expect("BUG: an error is plain data"));
        *response.status_mut() = status;
        if let RpcError::Refused(failure) = error {
            add_hints(&mut response, failure);
        }
        response
    }

    /// The response to a message that is refused, before it is read or for the rate of its caller.
    pub(super) fn rpc_refusal(&self, id: Option<&Id>, failure: &Failure) -> Response<Body> {
        let error = RpcError::Refused(failure.clone());
        let response = self.rpc_error(id, &error, failure.kind.status());
        self.recorded(response, ExecutionRecord::refused(failure.kind))
    }

    fn tool_result(
        &self,
        call: &AnsweredCall,
        execution: &Execution,
        caller: Option<Caller>,
    ) -> Response<Body> {
        let result = ToolResult::of(execution, self.warning(), call.era);
        // The result of main comes twice.
        let expected = execution.bytes() + execution.result_bytes();
        match self.budgeted(&Reply::result(&call.id, result), expected, caller) {
            Ok((body, reservation)) => {
                let record = execution.record();
                let response = self.measured(held(StatusCode::OK, body, reservation), &record);
                call.attach(self.recorded(response, record))
            }
            Err(failure) => {
                let kind = Some(failure.kind);
                let record = ExecutionRecord { kind, ..execution.record() };
                self.recorded(self.failed_call(call, &failure), record)
            }
        }
    }

    fn tool_refusal(&self, call: &AnsweredCall, failure: &Failure) -> Response<Body> {
        let response = self.failed_call(call, failure);
        self.recorded(response, ExecutionRecord::refused(failure.kind))
    }

    /// The response to a call that has no result, in the form from which a model can go on.
    pub(super) fn failed_call(&self, call: &AnsweredCall, failure: &Failure) -> Response<Body> {
        self.rpc_result(&call.id, ToolResult::refused(failure, call.era))
    }
}

impl AnsweredCall {
    fn attach(&self, mut response: Response<Body>) -> Response<Body> {
        response.extensions_mut().insert(self.clone());
        response
    }
}

/// The messages of a call whose client wants to hear of its progress: notifications, and last the response.
struct Messages {
    format: Format,
    progress: Progress,
}

impl Messages {
    fn notification(&mut self, message: Option<&str>) -> Bytes {
        let (before, after) = self.format.around_message();
        format!("{before}{}{after}", self.progress.next(message)).into()
    }
}

impl Encoding for Messages {
    fn output(&mut self, _: Stream, text: &str) -> Bytes {
        self.notification(Some(text))
    }

    fn silence(&mut self) -> Bytes {
        self.notification(None)
    }

    fn item(&mut self, _: Item) -> Vec<Bytes> {
        unreachable!("BUG: a call has one input")
    }

    fn last(&mut self, _: StatusCode, body: Vec<Bytes>, _: &ExecutionRecord) -> Vec<Bytes> {
        let (before, after) = self.format.around_message();
        let (before, after) = (Bytes::from_static(before.as_bytes()), after.as_bytes());
        [vec![before], body, vec![Bytes::from_static(after)]].concat()
    }
}
