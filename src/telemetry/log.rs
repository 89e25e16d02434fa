//! The log, on stderr: lines for people on a terminal, JSON objects elsewhere.

use std::backtrace::Backtrace;
use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::lossy_writer::LossyWriter;
use crate::api::text::{controls_terminal, escaped_json};

/// AWS Lambda sets this to the log level of the function:
/// <https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html>.
const LAMBDA_LEVEL: &str = "AWS_LAMBDA_LOG_LEVEL";
/// How long the end of the process waits for the log to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// The fields `httpRequest.*` become one JSON object, as Google's Cloud Logging expects.
const NESTED: &str = "httpRequest";
/// Fields with these prefixes are for programs and are not shown on a terminal.
const FOR_PROGRAMS: [&str; 2] = ["httpRequest.", "logging.googleapis.com/"];

/// Starts the log of a command: warnings and errors, as lines for people. `level` overrides the level.
pub fn for_command(level: Option<Level>) {
    for_people(level.unwrap_or(Level::WARN));
}

/// Starts the log of a service: lines for people on a terminal, else JSON for Google's Cloud Logging. `level` overrides
/// the level INFO.
pub fn for_service(level: Option<Level>) {
    let level = level.unwrap_or(Level::INFO);
    if io::stderr().is_terminal() {
        for_people(level);
    } else {
        for_programs("severity", own_level(level));
    }
}

/// Starts the log of an AWS Lambda function: JSON as Lambda expects it. `level` overrides the level of the function,
/// which is INFO by default.
pub fn for_lambda(level: Option<Level>) {
    let configured = std::env::var(LAMBDA_LEVEL).unwrap_or_default().to_ascii_lowercase();
    let filter = match (level, configured.as_str()) {
        (Some(level), _) => own_level(level),
        (None, "trace" | "debug") => own_level(Level::DEBUG),
        (None, "warn") => own_level(Level::WARN),
        (None, "error" | "fatal") => own_level(Level::ERROR),
        (None, _) => own_level(Level::INFO),
    };
    for_programs("level", filter);
}

/// Events of mainbox from `level` on, and warnings of the libraries. Below that, the libraries of the Lambda runtime log
/// whole events, and these contain scripts.
fn own_level(level: Level) -> Targets {
    let libraries = LevelFilter::from_level(level).min(LevelFilter::WARN);
    Targets::new().with_default(libraries).with_target("mainbox", level)
}

fn for_people(level: Level) {
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{}", shown(&format!("{value:?}"))),
        // The only field of a span, in braces.
        "request_id" => write!(writer, "{value:?}"),
        name if FOR_PROGRAMS.iter().any(|prefix| name.starts_with(prefix)) => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    });
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(fields)
        .with_target(false)
        .with_writer(|| LossyStderr);
    tracing_subscriber::registry().with(own_level(level)).with(lines).init();
    log_panics();
}

/// A message without characters that control the terminal. A path of a request can contain some; the values of fields are
/// escaped anyway.
fn shown(message: &str) -> String {
    let shown = |character| match controls_terminal(character) {
        true => character.escape_unicode().to_string(),
        false => String::from(character),
    };
    message.chars().map(shown).collect()
}

fn for_programs(level_name: &'static str, filter: Targets) {
    tracing_subscriber::registry().with(filter).with(JsonLines { level_name }).init();
    log_panics();
}

/// Writes panics to the log, in its format, instead of as plain text between its lines.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::force_capture();
        tracing::error!(%panic, %backtrace, "a panic in the supervisor");
    }));
}

/// Writes the log in the background from now on: a reader of stderr that is slow or stops then costs lines instead of
/// requests. Called once the process may have more than one thread.
///
/// # Errors
/// When no thread can be created.
pub fn write_in_background() -> io::Result<()> {
    let writer = LossyWriter::start(io::stderr(), |lost| {
        tracing::warn!(lost, "log lines were lost, since stderr was not read in time");
    })?;
    let _ = BACKGROUND.set(writer);
    Ok(())
}

/// The number of log lines that were lost so far.
pub fn lost_lines() -> u64 {
    BACKGROUND.get().map_or(0, LossyWriter::lost)
}

/// Writes `text` to stderr behind the log, and waits for both for at most half a second. For the last words of the
/// process.
pub fn write_last(text: &str) {
    let _ = LossyStderr.write_all(text.as_bytes());
    flush();
}

/// Waits until the log is written, for at most half a second. Called before the process exits or may be frozen.
pub fn flush() {
    if let Some(writer) = BACKGROUND.get() {
        writer.flush(FLUSH_TIMEOUT);
    }
}

static BACKGROUND: OnceLock<LossyWriter> = OnceLock::new();

/// Standard error. Lines are lost if the reader is gone: reporting the error would write to the same closed stream and
/// end the process.
struct LossyStderr;

impl io::Write for LossyStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match BACKGROUND.get() {
            Some(writer) => writer.write(line.to_vec()),
            None => {
                let _ = io::stderr().write_all(line);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one JSON object per event: `timestamp`, the level, `message`, the fields of the surrounding spans and those of
/// the event.
struct JsonLines {
    /// The name of the level field: `severity` for Google, `level` for AWS.
    level_name: &'static str,
}

/// The fields of a span, kept for the events within it.
struct SpanFields(Map<String, Value>);

impl<S> Layer<S> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Map::new();
        attributes.record(&mut Fields(&mut fields));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut timestamp = String::new();
        // Fails only if the string cannot be written.
        let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
        let mut line = Map::new();
        line.insert(String::from("timestamp"), timestamp.into());
        line.insert(self.level_name.to_owned(), self.severity(*event.metadata().level()).into());
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                line.extend(fields.clone());
            }
        }
        event.record(&mut Fields(&mut line));
        // One write per line, so that lines of several processes do not mix.
        let text = format!("{}\n", escaped_json(&Value::Object(line).to_string()));
        let _ = LossyStderr.write_all(text.as_bytes());
    }
}

impl JsonLines {
    /// Google's names differ from tracing's:
    /// <https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry#LogSeverity>.
    fn severity(&self, level: Level) -> &'static str {
        match level {
            Level::WARN if self.level_name == "severity" => "WARNING",
            Level::TRACE if self.level_name == "severity" => "DEBUG",
            level => level.as_str(),
        }
    }
}

/// Collects fields into a JSON object.
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
