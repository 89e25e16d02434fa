//! The log: lines for people on a terminal, JSON elsewhere. It goes to stderr.

use std::fmt;
use std::io::{self, IsTerminal};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;

/// The level that AWS Lambda was told to keep: <https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html>.
const LAMBDA_LEVEL: &str = "AWS_LAMBDA_LOG_LEVEL";
/// Fields of this name are one object, as Cloud Logging wants it.
const NESTED: &str = "httpRequest";
/// Fields of these names are for programs.
const FOR_PROGRAMS: [&str; 2] = ["httpRequest.", "logging.googleapis.com/"];

/// Logs for somebody who runs a command: warnings and errors.
pub fn for_shell() {
    for_people("warn");
}

/// Logs for a service: lines for people on a terminal, else JSON as Google's Cloud Logging reads it.
pub fn for_service() {
    if std::io::stderr().is_terminal() {
        for_people("info");
    } else {
        for_programs(
            "severity",
            asked_for().unwrap_or_else(|| EnvFilter::new("warn,mainbox=info")),
        );
    }
}

/// Logs JSON as AWS Lambda reads it, at the level that Lambda was told to keep, else INFO.
pub fn for_lambda() {
    let level = std::env::var(LAMBDA_LEVEL).unwrap_or_default().to_ascii_lowercase();
    // What we build on would log whole events at its lowest level, and scripts are in them.
    let filter = match level.as_str() {
        "trace" | "debug" | "warn" => format!("warn,mainbox={level}"),
        "error" | "fatal" => String::from("error"),
        _ => String::from("warn,mainbox=info"),
    };
    for_programs("level", EnvFilter::new(filter));
}

fn asked_for() -> Option<EnvFilter> {
    EnvFilter::try_from_env("RUST_LOG").ok()
}

fn for_people(level: &str) {
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        name if FOR_PROGRAMS.iter().any(|prefix| name.starts_with(prefix)) => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    });
    tracing_subscriber::fmt()
        .fmt_fields(fields)
        .with_env_filter(asked_for().unwrap_or_else(|| EnvFilter::new(level)))
        .with_target(false)
        .with_writer(|| Lossy)
        .init();
}

fn for_programs(level: &'static str, filter: EnvFilter) {
    tracing_subscriber::fmt()
        .fmt_fields(DefaultFields::new())
        .event_format(Json { level })
        .with_env_filter(filter)
        .with_writer(|| Lossy)
        .init();
}

/// Standard error, whose reader may be gone: then lines are lost. That a line was not written would be told on the same
/// stream, and be the end of us.
struct Lossy;

impl io::Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = io::Write::write_all(&mut io::stderr(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One object a line: `timestamp`, the level under a name of the reader's, `message`, and the fields of the event.
struct Json {
    level: &'static str,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> tracing_subscriber::fmt::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Map::new();
        line.insert(String::from("timestamp"), timestamp.into());
        line.insert(self.level.to_owned(), self.severity(*event.metadata().level()).into());
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

impl Json {
    fn severity(&self, level: Level) -> &'static str {
        match level {
            Level::WARN if self.level == "severity" => "WARNING",
            Level::TRACE if self.level == "severity" => "DEBUG",
            level => level.as_str(),
        }
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: Value) {
        match field.name().split_once('.') {
            Some((NESTED, name)) => {
                let object = self.0.entry(NESTED).or_insert_with(|| Map::new().into());
                object[name] = value;
            }
            _ => {
                self.0.insert(field.name().to_owned(), value);
            }
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }
}
