//! The metrics of `GET /metrics`, in the text format of Prometheus.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::execution_record::{ExecutionRecord, LEFT};

/// The media type of the text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Histogram buckets, seconds: from the time of a trivial script to the longest timeout.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// The first of eleven histogram buckets, bytes. Each is twice the one before; the last is one gigabyte.
const FIRST_MEMORY_BUCKET: f64 = (1 << 20) as f64;

/// The outcome of a request to run a script.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// `ok`, the kind of the failure, or `left` if the client disconnected.
    kind: &'static str,
}

/// One of the two zygotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Zygote {
    /// `bare` or `preloaded`.
    pub zygote: &'static str,
}

/// A live response that is open.
pub struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of this process.
pub struct Metrics {
    registry: Registry,
    executions: Family<Outcome, Counter>,
    queue_seconds: Histogram,
    run_seconds: Histogram,
    cpu_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    peak_memory_bytes: Histogram,
    /// Scripts that are running.
    pub running: Gauge,
    /// Requests that are waiting to run.
    pub waiting: Gauge,
    /// Responses that show output while their scripts run.
    streams: Gauge,
    /// Inputs of requests that have several.
    items: Counter,
    /// Workers that are ready for a request.
    pub spares: Family<Zygote, Gauge>,
    /// Zygotes started in place of one that died or did not start.
    pub zygote_restarts: Family<Zygote, Counter>,
    /// Workers whose lockdown failed. They got no request.
    pub lockdown_failures: Counter,
    /// Log lines that were lost, since stderr was not read in time.
    pub log_lines_lost: Counter,
}

impl Metrics {
    /// Metrics at zero. `isolation` is the name of the tier in force.
    pub fn new(isolation: &'static str) -> Metrics {
        let seconds = || Histogram::new(SECONDS);
        let mut registry = Registry::with_prefix("mainbox");
        let build = [("version", env!("CARGO_PKG_VERSION")), ("isolation", isolation)];
        registry.register(
            "build",
            "Version and isolation tier in force",
            Info::new(build.to_vec()),
        );
        let metrics = Metrics {
            executions: Family::default(),
            queue_seconds: seconds(),
            run_seconds: seconds(),
            cpu_seconds: Counter::default(),
            peak_memory_bytes: Histogram::new(exponential_buckets(FIRST_MEMORY_BUCKET, 2.0, 11)),
            running: Gauge::default(),
            waiting: Gauge::default(),
            streams: Gauge::default(),
            items: Counter::default(),
            spares: Family::default(),
            zygote_restarts: Family::default(),
            lockdown_failures: Counter::default(),
            log_lines_lost: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "executions",
            "Requests to run a script, by outcome",
            metrics.executions.clone(),
        );
        let (seconds, bytes) = (Unit::Seconds, Unit::Bytes);
        registry.register_with_unit(
            "queue",
            "Time that requests waited to run",
            seconds.clone(),
            metrics.queue_seconds.clone(),
        );
        registry.register_with_unit(
            "run",
            "Wall time of scripts",
            seconds.clone(),
            metrics.run_seconds.clone(),
        );
        registry.register_with_unit(
            "cpu",
            "CPU time of scripts",
            seconds,
            metrics.cpu_seconds.clone(),
        );
        registry.register_with_unit(
            "peak_memory",
            "Peak memory of scripts on top of the preloaded interpreter",
            bytes,
            metrics.peak_memory_bytes.clone(),
        );
        registry.register("running", "Scripts that are running", metrics.running.clone());
        registry.register("waiting", "Requests that are waiting to run", metrics.waiting.clone());
        registry.register(
            "streams",
            "Responses that show output while their scripts run",
            metrics.streams.clone(),
        );
        registry.register(
            "items",
            "Scripts that ran, or were refused, for one of several inputs of a request",
            metrics.items.clone(),
        );
        registry.register("spares", "Workers that are ready for a request", metrics.spares.clone());
        registry.register(
            "zygote_restarts",
            "Zygotes started in place of one that died or did not start",
            metrics.zygote_restarts.clone(),
        );
        registry.register(
            "lockdown_failures",
            "Workers whose lockdown failed",
            metrics.lockdown_failures.clone(),
        );
        registry.register(
            "log_lines_lost",
            "Log lines that were lost, since stderr was not read in time",
            metrics.log_lines_lost.clone(),
        );
        Metrics { registry, ..metrics }
    }

    /// Counts a request to run a script.
    pub fn count(&self, record: &ExecutionRecord) {
        self.executions.get_or_create(&Outcome { kind: record.outcome() }).inc();
        if record.ran {
            self.queue_seconds.observe(record.queue.as_secs_f64());
            self.run_seconds.observe(record.run.as_secs_f64());
            self.cpu_seconds.inc_by(record.cpu.as_secs_f64());
            self.peak_memory_bytes.observe(record.peak_memory as f64);
        }
    }

    /// Counts a request whose client disconnected while the request was waiting or running.
    pub fn count_cancelled(&self) {
        self.executions.get_or_create(&Outcome { kind: LEFT }).inc();
    }

    /// Counts the answer to one of several inputs, which is counted as an execution too.
    pub fn count_item(&self) {
        self.items.inc();
    }

    /// Counts a live response as open until the value is dropped.
    pub fn open_stream(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// Only if the encoder cannot write to a string, which does not happen.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
