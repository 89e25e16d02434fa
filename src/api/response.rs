//! The bodies and headers of responses.

use std::borrow::Cow;

use http::HeaderName;
use serde::Serialize;
use serde_json::value::RawValue;

use super::catalogue::Kind;
use super::files::Files;

/// Header of an execution: `queue`, `run` and `cpu` time, milliseconds.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Header of an execution: peak memory on top of the preloaded interpreter, bytes.
pub const PEAK_MEMORY: HeaderName = HeaderName::from_static("mainbox-peak-memory");
/// Header of an execution: the isolation tier in force.
pub const ISOLATION: HeaderName = HeaderName::from_static("mainbox-isolation");
/// Header of a request and of its response: the id that joins both to the log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The body of a 200.
#[derive(Serialize)]
pub struct Success<'a> {
    /// What `main` returned, as the worker encoded it.
    pub result: &'a RawValue,
    /// What the script printed.
    pub stdout: Cow<'a, str>,
    /// What the script wrote to stderr; omitted when empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub stderr: Cow<'a, str>,
    /// The files in `outputs/`; omitted when there are none.
    #[serde(skip_serializing_if = "Files::is_empty")]
    pub files: &'a Files,
    /// The names of the streams that were cut at their limit; omitted when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<&'static str>,
    /// A warning about the configuration of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}

/// The body of every other response.
#[derive(Serialize)]
pub struct Error<'a> {
    /// One sentence for people.
    pub error: &'a str,
    /// The kind, for programs.
    pub kind: Kind,
    /// What the script printed before it failed.
    pub stdout: Cow<'a, str>,
    /// The traceback, reduced to the frames of the script itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceback: Option<&'a str>,
    /// The line of the script that failed, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// What the script wrote to stderr before it failed; omitted when empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub stderr: Cow<'a, str>,
    /// The names of the streams that were cut at their limit; omitted when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<&'static str>,
    /// A warning about the configuration of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}
