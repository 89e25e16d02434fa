//! Runs scripts for the endpoints that take them: within the rate of the caller, and as jobs that one function makes,
//! [`Handler::job`].

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::EXPECT;
use http::{Extensions, Request, Response};
use http_body::Body as HttpBody;
use tokio::sync::mpsc::{self, UnboundedSender};

use super::body::Body;
use super::events::{Events, Format};
use super::inputs::Item;
use super::live::Live;
use super::memory_budget::Reservation;
use super::request_body::{Media, media_type, read};
use super::{Deadline, Handler};
use crate::api::catalogue::{Failure, Kind};
use crate::api::files::Files;
use crate::api::request::ExecuteRequest;
use crate::callers::rate_limit::Caller;
use crate::config::Config;
use crate::executor::Job;
use crate::executor::live_output::LiveOutput;
use crate::executor::outcome::Execution;
use crate::telemetry::execution_record::ExecutionRecord;
use crate::telemetry::progress::Progress;
use crate::telemetry::prometheus::Metrics;

/// The shortest time between two events with output of one stream. A screen shows no more than that.
const OUTPUT_INTERVAL: Duration = Duration::from_millis(20);

/// What a front attached to a request for the run of its script.
pub(super) struct Attached {
    deadline: Option<Instant>,
    live: Option<LiveOutput>,
    /// Receives the answers to several inputs, if a live response shows them.
    items: Option<UnboundedSender<Item>>,
    progress: Progress,
}

impl Attached {
    /// What is attached as these extensions.
    pub(super) fn to(extensions: &Extensions) -> Attached {
        Attached {
            deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
            live: extensions.get::<LiveOutput>().cloned(),
            items: None,
            progress: extensions.get::<Progress>().cloned().unwrap_or_default(),
        }
    }

    /// Has the run show its output while the script runs, each stream once in `interval`. With several inputs
    /// (`has_inputs`), it shows the answer to each instead.
    pub(super) fn live(
        &mut self,
        interval: Duration,
        caller: Option<Caller>,
        has_inputs: bool,
    ) -> Live {
        let output = LiveOutput::default();
        let items = if has_inputs {
            let (sender, items) = mpsc::unbounded_channel();
            self.items = Some(sender);
            Some(items)
        } else {
            self.live = Some(output.clone());
            None
        };
        Live { progress: self.progress.clone(), output, items, interval, caller }
    }
}

impl Handler {
    /// Answers a request to `/execute`. One that is refused as `busy` does not count against the rate.
    pub(super) async fn execute<B>(
        &self,
        request: Request<B>,
        caller: Option<Caller>,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let format = Format::preferred(request.headers());
        let mut attached = Attached::to(request.extensions());
        let answer = async {
            let (request, held) = match self.read_request(request, caller).await {
                Ok(read) => read,
                Err(failure) => return self.responses.refusal(&failure),
            };
            let Some(format) = format else {
                return self.run_and_respond(request, held, attached, caller).await;
            };
            let live = attached.live(OUTPUT_INTERVAL, caller, request.inputs.is_some());
            let events = Events { format, isolation: self.responses.isolation() };
            let handler = self.clone();
            let answer =
                async move { handler.run_and_respond(request, held, attached, caller).await };
            Box::pin(self.answer_live(format, events, live, answer)).await
        };
        let answered = self.within_rate(caller, answer, |response| !was_refused_as_busy(response));
        answered.await.unwrap_or_else(|failure| self.responses.refusal(&failure))
    }

    /// Runs a script and makes the buffered response. The memory of the request is held until the script has ended.
    async fn run_and_respond(
        &self,
        mut request: ExecuteRequest,
        _held: Reservation,
        mut attached: Attached,
        caller: Option<Caller>,
    ) -> Response<Body> {
        let inputs = request.inputs.take();
        let items = attached.items.take();
        let job = match self.job(request, attached) {
            Ok(job) => job,
            Err(failure) => return self.responses.refusal(&failure),
        };
        match inputs {
            Some(inputs) => Box::pin(self.run_inputs(job, inputs, caller, items)).await,
            None => match self.run(&job).await {
                Ok(execution) => self.responses.execution(&execution, caller),
                Err(failure) => self.responses.refusal(&failure),
            },
        }
    }

    /// Does `work` within the rate of its caller. The rate is checked first, so a caller over its rate cannot fill the
    /// memory. The work is not counted if it turns out that it does not count.
    pub(super) async fn within_rate<T>(
        &self,
        caller: Option<Caller>,
        work: impl Future<Output = T>,
        counts: impl FnOnce(&T) -> bool,
    ) -> Result<T, Failure> {
        let (Some(rate_limit), Some(caller)) = (&self.rate_limit, caller) else {
            return Ok(work.await);
        };
        let token = rate_limit.take(caller).map_err(rate_limited)?;
        let done = work.await;
        if !counts(&done) {
            rate_limit.give_back(token);
        }
        Ok(done)
    }

    async fn read_request<B>(
        &self,
        request: Request<B>,
        caller: Option<Caller>,
    ) -> Result<(ExecuteRequest, Reservation), Failure>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let max_script_bytes = self.config().max_script_bytes;
        let media = media_type(request.headers())?;
        let expects_continue = request.headers().contains_key(EXPECT);
        let mut reservation = self.requests.reservation(caller);
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = read(request.into_body(), expects_continue, &mut reservation).await?;
        let request = match media {
            Media::Json => ExecuteRequest::from_json(&body, self.config().request_limits()),
            Media::Python => ExecuteRequest::from_python(&body, max_script_bytes),
        };
        Ok((request?.with_query(&query, max_script_bytes)?, reservation))
    }

    /// The job of a request. Every script of a caller passes here, whatever the endpoint.
    pub(super) fn job(&self, request: ExecuteRequest, attached: Attached) -> Result<Job, Failure> {
        let config = self.executor.config();
        check_scratch_room(&request.files, config)?;
        let Attached { deadline, live, progress, .. } = attached;
        Ok(Job { deadline, live, progress, ..Job::new(request, config) })
    }

    /// Runs a job once.
    pub(super) async fn run(&self, job: &Job) -> Result<Execution, Failure> {
        let cancelled = CancelGuard::new(self.executor.metrics());
        let execution = self.executor.execute(job).await;
        cancelled.disarm();
        execution
    }
}

/// Whether a response says that its script did not run because the service has too much to do. A live response does not:
/// it begins with the script.
pub(super) fn was_refused_as_busy(response: &Response<Body>) -> bool {
    let record = response.extensions().get::<ExecutionRecord>();
    record.is_some_and(|record| !record.ran && record.kind == Some(Kind::Busy))
}

/// Whether a run counts against the rate: not if it was refused as `busy`.
pub(super) fn counts(execution: &Result<Execution, Failure>) -> bool {
    !execution.as_ref().is_err_and(|failure| failure.kind == Kind::Busy)
}

/// Counts the request as cancelled if the guard is dropped before [`CancelGuard::disarm`], which happens when the
/// client disconnects.
pub(super) struct CancelGuard<'a>(Option<&'a Metrics>);

impl<'a> CancelGuard<'a> {
    pub(super) fn new(metrics: &'a Metrics) -> CancelGuard<'a> {
        CancelGuard(Some(metrics))
    }

    pub(super) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            metrics.count_cancelled();
        }
    }
}

fn rate_limited(wait: Duration) -> Failure {
    let seconds = (wait.as_secs_f64().ceil() as u64).max(1);
    let unit = if seconds == 1 { "second" } else { "seconds" };
    let error = format!("Too many requests; retry in {seconds} {unit}");
    Failure { retry_after: Some(seconds), ..Failure::new(Kind::RateLimited, error) }
}

/// Refuses files that do not fit in the scratch directory, before a worker is taken for them.
fn check_scratch_room(files: &Files, config: &Config) -> Result<(), Failure> {
    let (needed, room) = (files.bytes_on_disk(), config.scratch_bytes);
    if needed <= room {
        return Ok(());
    }
    let error = format!("The files need {needed} bytes; the scratch directory has {room}");
    Err(Failure::new(Kind::PayloadTooLarge, error))
}
