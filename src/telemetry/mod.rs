//! Telemetry: the log, metrics and the record of each execution. None of it contains what a caller sent or got.

pub mod emf;
pub mod execution_record;
pub mod log;
pub mod lossy_writer;
pub mod progress;
pub mod prometheus;
pub mod request_id;
