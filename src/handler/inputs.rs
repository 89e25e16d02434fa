//! Runs a script once for each input of a request, each time in a fresh process. A request has one place among those that
//! wait, however many inputs it has, so others get their turns in between.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Response, StatusCode};
use serde_json::value::RawValue;
use tokio::sync::{Mutex as Gate, Notify};

use super::Handler;
use super::body::Body;
use super::execute::{CancelGuard, counts};
use crate::api::catalogue::{Failure, Kind};
use crate::callers::rate_limit::Caller;
use crate::executor::outcome::Execution;
use crate::executor::output_capture::Captured;
use crate::executor::{Job, Turn, Waiting};
use crate::telemetry::execution_record::ExecutionRecord;

/// The answer to one input.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Its place among the inputs, counted from 0.
    pub(super) index: usize,
    /// The status that a request with this input would have got.
    pub(super) status: StatusCode,
    pub(super) record: ExecutionRecord,
    /// The body that it would have got.
    pub(super) body: Vec<Bytes>,
}

/// Answers that a live response has not taken yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Items(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<VecDeque<Item>>,
    changed: Notify,
}

impl Items {
    fn push(&self, item: Item) {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        self.0.changed.notify_one();
    }

    /// Takes the answer that has waited for the longest.
    pub(super) fn take(&self) -> Option<Item> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Waits until an answer was added since the last call.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
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
        items: Option<Items>,
    ) -> Response<Body> {
        let began = Instant::now();
        let bodies = vec![Vec::new(); inputs.len()];
        let record = ExecutionRecord::blank();
        let mut answers = Answers { bodies, bytes: 0, record };
        let mut jobs = inputs.into_iter().map(|input| Job { input: Some(input), ..job.clone() });
        let Some(first) = jobs.next() else {
            return self.responses.results(answers.bodies, answers.record);
        };
        let cancelled = CancelGuard::new(self.executor.metrics());
        let turn = match self.executor.turn(&first, Waiting::InQueue).await {
            Ok(turn) => turn,
            Err(failure) => {
                cancelled.disarm();
                return self.responses.refusal(&failure);
            }
        };
        let gate = Gate::new(());
        let mut runs = FuturesUnordered::new();
        // The request itself counts for the first input.
        runs.push(self.run_input(0, first, Some(turn), None, &gate));
        let mut others = jobs.enumerate().map(|(index, job)| (index + 1, job));
        let mut unfinished = Some(self.executor.unfinished());
        let mut run_next = |runs: &mut FuturesUnordered<_>| match others.next() {
            Some((index, job)) => runs.push(self.run_input(index, job, None, caller, &gate)),
            None => unfinished = None,
        };
        // One more than can run waits for its turn.
        (0..self.executor.slots()).for_each(|_| run_next(&mut runs));
        while let Some((index, ended)) = runs.next().await {
            run_next(&mut runs);
            let item = self.item(index, ended, &mut answers, caller);
            answers.bodies[index].clone_from(&item.body);
            if let Some(items) = &items {
                items.push(item);
            }
        }
        cancelled.disarm();
        let record = ExecutionRecord { run: began.elapsed(), ..answers.record };
        self.responses.results(answers.bodies, record)
    }

    /// Runs the job of one input, which counts for `counted`. Without a `turn`, it waits for one, and one after the other
    /// does that, behind `gate`.
    async fn run_input(
        &self,
        index: usize,
        job: Job,
        turn: Option<Turn>,
        counted: Option<Caller>,
        gate: &Gate<()>,
    ) -> (usize, Result<Execution, Failure>) {
        let run = self.run_in_turn(&job, turn, gate);
        let ended = self.within_rate(counted, run, counts).await;
        (index, ended.unwrap_or_else(Err))
    }

    async fn run_in_turn(
        &self,
        job: &Job,
        turn: Option<Turn>,
        gate: &Gate<()>,
    ) -> Result<Execution, Failure> {
        let turn = match turn {
            Some(turn) => turn,
            None => {
                let _next = gate.lock().await;
                if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    let error = "The platform's deadline came before the turn of this input";
                    return Err(Failure::new(Kind::Timeout, error));
                }
                self.executor.turn(job, Waiting::Again).await?
            }
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
                        "The answers to all inputs together are larger than their limit of {limit} bytes"
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
