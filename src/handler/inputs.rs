//! Runs a script once for each input of a request, each time in a fresh process. One input of a request waits at a time,
//! however many it has, so other requests get their turns in between.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Response, StatusCode};
use serde_json::value::RawValue;
use tokio::sync::Mutex as Gate;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::timeout_at;

use super::Handler;
use super::body::Body;
use super::execute::{CancelGuard, counts};
use crate::api::catalogue::{Failure, Kind};
use crate::callers::rate_limit::Caller;
use crate::executor::outcome::Execution;
use crate::executor::output_capture::Captured;
use crate::executor::{Executor, Job, Turn, Waiting};
use crate::telemetry::execution_record::ExecutionRecord;

/// How long the inputs of a request may take together until the last has its turn: as long as the longest script. It bounds
/// how long a request holds its memory. A request of the command line has no such limit.
const ALL_INPUTS: Duration = Duration::from_secs(300);

/// The answer to one input.
#[derive(Debug)]
pub(super) struct Item {
    /// Its place among the inputs, counted from 0.
    pub(super) index: usize,
    /// The status that a request with this input would have got.
    pub(super) status: StatusCode,
    pub(super) record: ExecutionRecord,
    /// The body that it would have got.
    pub(super) body: Vec<Bytes>,
}

/// Where the inputs of a request wait for their turns.
struct Line {
    /// One input after the other waits for its turn.
    gate: Gate<()>,
    /// When the last input must have had its turn.
    end: Option<Instant>,
}

impl Line {
    async fn turn(&self, executor: &Executor, job: &Job) -> Result<Turn, Failure> {
        let end = self.end.into_iter().chain(job.deadline).min();
        let turn = async {
            let _next = self.gate.lock().await;
            executor.turn(job, Waiting::ForNextInput).await
        };
        let Some(end) = end else { return turn.await };
        let too_late = || {
            let error = "The time for all inputs was over before the turn of this one";
            Failure::new(Kind::Timeout, error)
        };
        timeout_at(end.into(), turn).await.unwrap_or_else(|_| Err(too_late()))
    }
}

/// The answers so far.
struct Answers {
    /// The pieces of each body, by the place of its input.
    bodies: Vec<Vec<Bytes>>,
    bytes: usize,
    /// What all runs took together.
    record: ExecutionRecord,
}

impl Handler {
    /// Runs `job` once for each of `inputs`, and answers with all results. If the first one is refused before it runs, so
    /// is the request. `items` receives each answer when it is there.
    pub(super) async fn run_inputs(
        &self,
        job: Job,
        inputs: Vec<Box<RawValue>>,
        caller: Option<Caller>,
        items: Option<UnboundedSender<Item>>,
    ) -> Response<Body> {
        let bodies = vec![Vec::new(); inputs.len()];
        let mut answers = Answers { bodies, bytes: 0, record: ExecutionRecord::blank() };
        let mut jobs = inputs.into_iter().map(|input| Job { input: Some(input), ..job.clone() });
        let Some(first) = jobs.next() else {
            job.progress.begin_run(Duration::ZERO);
            return self.responses.results(answers.bodies, answers.record);
        };
        let cancelled = CancelGuard::new(self.executor.metrics());
        let begun = async {
            let unfinished = self.executor.begin_inputs()?;
            Ok((unfinished, self.executor.turn(&first, Waiting::InQueue).await?))
        };
        let (unfinished, turn) = match begun.await {
            Ok(begun) => begun,
            Err(failure) => {
                cancelled.disarm();
                return self.responses.refusal(&failure);
            }
        };
        let began = Instant::now();
        answers.record.queue = turn.waited();
        let line = Line { gate: Gate::new(()), end: caller.map(|_| began + ALL_INPUTS) };
        let mut runs = FuturesUnordered::new();
        // The request itself counts for the first input.
        runs.push(self.run_input(0, first, Some(turn), None, &line));
        let mut others = jobs.enumerate();
        let mut unfinished = Some(unfinished);
        loop {
            // One more than can run waits for its turn.
            while runs.len() <= self.executor.slots()
                && let Some((index, job)) = others.next()
            {
                runs.push(self.run_input(index + 1, job, None, caller, &line));
            }
            if others.len() == 0 {
                unfinished.take();
            }
            let Some((index, ended)) = runs.next().await else { break };
            let item = self.item(index, ended, &mut answers, caller);
            answers.bodies[index].clone_from(&item.body);
            if let Some(items) = &items {
                // Fails if the client has left, and then this future is dropped.
                let _ = items.send(item);
            }
        }
        cancelled.disarm();
        let record = ExecutionRecord { run: began.elapsed(), ..answers.record };
        self.responses.results(answers.bodies, record)
    }

    /// Runs the job of one input, which counts for `counted`. Without a `turn`, it waits for one, and one after the other
    /// does that.
    async fn run_input(
        &self,
        index: usize,
        job: Job,
        turn: Option<Turn>,
        counted: Option<Caller>,
        line: &Line,
    ) -> (usize, Result<Execution, Failure>) {
        let run = self.run_in_turn(&job, turn, line);
        let ended = self.within_rate(counted, run, counts).await;
        (index, ended.unwrap_or_else(Err))
    }

    async fn run_in_turn(
        &self,
        job: &Job,
        turn: Option<Turn>,
        line: &Line,
    ) -> Result<Execution, Failure> {
        let turn = match turn {
            Some(turn) => turn,
            None => line.turn(&self.executor, job).await?,
        };
        self.executor.run(turn, job).await
    }

    /// The answer to one input, within the limit of all together.
    fn item(
        &self,
        index: usize,
        ended: Result<Execution, Failure>,
        answers: &mut Answers,
        caller: Option<Caller>,
    ) -> Item {
        let response = match ended {
            Ok(mut execution) => {
                let limit = self.config().response_bytes();
                if answers.bytes + execution.bytes() > limit {
                    let error = format!(
                        "The result does not fit: those of all inputs may have {limit} bytes together"
                    );
                    execution.outcome = Err(Failure::new(Kind::ResultTooLarge, error));
                    execution.stdout = Captured::default();
                    execution.stderr = Captured::default();
                }
                self.responses.execution(&execution, caller)
            }
            Err(failure) => self.responses.refusal(&failure),
        };
        let (parts, body) = response.into_parts();
        let record = parts.extensions.get::<ExecutionRecord>();
        let record = *record.expect("BUG: the response to a run has its record");
        self.executor.metrics().count_item();
        let body: Vec<Bytes> = body.known().into();
        answers.bytes += body.iter().map(Bytes::len).sum::<usize>();
        answers.record.add(&record);
        Item { index, status: parts.status, record, body }
    }
}
