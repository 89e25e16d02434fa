//! What `GET /metrics` tells, in Prometheus' text format.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::record::Record;

/// The media type of the text: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From what a trivial script takes to the longest that is allowed, seconds.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// The smallest of eleven steps that double: up to a gigabyte.
const LEAST_MEMORY_BYTES: f64 = (1 << 20) as f64;

/// The word for a request whose client did not wait for its answer.
const LEFT: &str = "left";

/// What became of a request to have a script run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// `ok`, the kind of the failure, or `left`.
    kind: &'static str,
}

/// Which of the zygotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Zygote {
    /// `bare` or `preloaded`.
    pub zygote: &'static str,
}

/// All that is counted in this process.
pub struct Metrics {
    registry: Registry,
    executions: Family<Outcome, Counter>,
    queue_seconds: Histogram,
    run_seconds: Histogram,
    cpu_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    peak_memory_bytes: Histogram,
    /// Scripts that run now.
    pub running: Gauge,
    /// Requests that wait for their turn now.
    pub waiting: Gauge,
    /// Workers that wait for a request now.
    pub spares: Family<Zygote, Gauge>,
    /// Zygotes that took the place of one that had died, or could not be started.
    pub zygote_restarts: Family<Zygote, Counter>,
    /// Workers that did not lock themselves down, and were given no request.
    pub lockdown_failures: Counter,
}

impl Metrics {
    /// Nothing counted yet, in a process with this tier in force.
    pub fn new(isolation: &'static str) -> Metrics {
        let seconds = || Histogram::new(SECONDS);
        let mut registry = Registry::with_prefix("mainbox");
        let build = [("version", env!("CARGO_PKG_VERSION")), ("isolation", isolation)];
        registry.register(
            "build",
            "Version, and the isolation in force",
            Info::new(build.to_vec()),
        );
        let metrics = Metrics {
            executions: Family::default(),
            queue_seconds: seconds(),
            run_seconds: seconds(),
            cpu_seconds: Counter::default(),
            peak_memory_bytes: Histogram::new(exponential_buckets(LEAST_MEMORY_BYTES, 2.0, 11)),
            running: Gauge::default(),
            waiting: Gauge::default(),
            spares: Family::default(),
            zygote_restarts: Family::default(),
            lockdown_failures: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "executions",
            "Requests to run a script, by what became of them",
            metrics.executions.clone(),
        );
        let (seconds, bytes) = (Unit::Seconds, Unit::Bytes);
        registry.register_with_unit(
            "queue",
            "Wait for a turn and a worker",
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
            "Largest size of scripts on top of the preloaded interpreter",
            bytes,
            metrics.peak_memory_bytes.clone(),
        );
        registry.register("running", "Scripts that run now", metrics.running.clone());
        registry.register(
            "waiting",
            "Requests that wait for their turn now",
            metrics.waiting.clone(),
        );
        registry.register("spares", "Workers that wait for a request now", metrics.spares.clone());
        registry.register(
            "zygote_restarts",
            "Zygotes that took another's place",
            metrics.zygote_restarts.clone(),
        );
        registry.register(
            "lockdown_failures",
            "Workers that did not lock themselves down, and were given no request",
            metrics.lockdown_failures.clone(),
        );
        Metrics { registry, ..metrics }
    }

    /// Counts a request to have a script run.
    pub fn count(&self, record: &Record) {
        self.executions.get_or_create(&Outcome { kind: record.outcome() }).inc();
        if record.ran {
            self.queue_seconds.observe(record.queue.as_secs_f64());
            self.run_seconds.observe(record.run.as_secs_f64());
            self.cpu_seconds.inc_by(record.cpu.as_secs_f64());
            self.peak_memory_bytes.observe(record.peak_memory as f64);
        }
    }

    /// Counts a request whose client has left while its script was waiting or running, which ended it.
    pub fn count_left(&self) {
        self.executions.get_or_create(&Outcome { kind: LEFT }).inc();
    }

    /// All of it as text.
    ///
    /// # Errors
    /// Never, as long as numbers can be written.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
