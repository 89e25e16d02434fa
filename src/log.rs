//! The log: lines for people, or JSON for AWS Lambda. It goes to stderr.

use tracing_subscriber::EnvFilter;

/// The level that AWS Lambda was told to keep: <https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html>.
const LAMBDA_LEVEL: &str = "AWS_LAMBDA_LOG_LEVEL";

/// Starts logging, for people: what `RUST_LOG` asks for, or `level` and above.
pub fn for_people(level: &str) {
    let filter = EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Starts logging as AWS Lambda reads it: a JSON object a line, with `timestamp`, `level` and `message` where Lambda
/// looks for them, at the level that Lambda was told to keep, else INFO.
pub fn for_lambda() {
    let level = std::env::var(LAMBDA_LEVEL).unwrap_or_default().to_ascii_lowercase();
    // What we build on would log whole events at its lowest level, and scripts are in them.
    let filter = match level.as_str() {
        "trace" | "debug" | "warn" => format!("warn,mainbox={level}"),
        "error" | "fatal" => String::from("error"),
        _ => String::from("warn,mainbox=info"),
    };
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_target(false)
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .init();
}
