//! The log line and the metrics of an invocation.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Extensions, StatusCode};
use lambda_http::Context;
use tracing::Span;

use crate::api::catalogue::Kind;
use crate::config::choices::Metrics;
use crate::telemetry::emf;
use crate::telemetry::execution_record::{EventualRecord, ExecutionRecord, LEFT, milliseconds};
use crate::telemetry::lossy_writer::LossyWriter;

/// What is known about an invocation. It is logged when this value is dropped, at the end of its response.
pub(super) struct InvocationLog {
    context: Context,
    /// Where metrics are written, if they are.
    metrics: Option<Arc<LossyWriter>>,
    span: Span,
    status: StatusCode,
    record: Record,
}

/// What is known about the execution.
enum Record {
    /// Nothing ran.
    None,
    Known(ExecutionRecord),
    /// The script still runs when the response begins.
    Eventual(EventualRecord),
}

impl InvocationLog {
    /// The log of the invocation that `context` describes. `metrics` are written if `format` says so.
    pub(super) fn new(
        context: Context,
        metrics: &Arc<LossyWriter>,
        format: Metrics,
        status: StatusCode,
        extensions: &Extensions,
    ) -> InvocationLog {
        let metrics = (format == Metrics::Emf).then(|| Arc::clone(metrics));
        let record = match (extensions.get(), extensions.get::<EventualRecord>()) {
            (Some(record), _) => Record::Known(*record),
            (None, Some(record)) => Record::Eventual(record.clone()),
            (None, None) => Record::None,
        };
        InvocationLog { context, metrics, span: Span::current(), status, record }
    }

    /// Records that a failure of this kind was sent instead, with this status.
    pub(super) fn replace(&mut self, status: StatusCode, kind: Kind) {
        self.status = status;
        if let Some(record) = self.record() {
            self.record = Record::Known(ExecutionRecord { kind: Some(kind), ..record });
        }
    }

    fn record(&self) -> Option<ExecutionRecord> {
        match &self.record {
            Record::None => None,
            Record::Known(record) => Some(*record),
            Record::Eventual(record) => record.get().copied(),
        }
    }
}

impl Drop for InvocationLog {
    fn drop(&mut self) {
        // A panic has a line of its own.
        if std::thread::panicking() {
            return;
        }
        let _entered = self.span.enter();
        let record = self.record();
        let is_unfinished = record.is_none() && matches!(self.record, Record::Eventual(_));
        let kind = record.as_ref().map(ExecutionRecord::outcome);
        tracing::info!(
            status = self.status.as_u16(),
            kind = kind.or(is_unfinished.then_some(LEFT)),
            queue_ms = record.map(|record| milliseconds(record.queue)),
            run_ms = record.map(|record| milliseconds(record.run)),
            cpu_ms = record.map(|record| milliseconds(record.cpu)),
            peak_memory_bytes = record.map(|record| record.peak_memory),
            "request"
        );
        if let (Some(record), Some(metrics)) = (record, &self.metrics) {
            let name = &self.context.env_config.function_name;
            let line = emf::line(&record, name, SystemTime::now());
            metrics.write(format!("{line}\n").into_bytes());
        }
    }
}
