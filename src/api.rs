//! The wire: what a request may say, what an answer looks like, and the error catalogue.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::config::timeout_from_seconds;
use crate::files::{Files, OUTPUTS};
use crate::json;

/// Header of an execution: milliseconds in the queue, of the run, and of CPU.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Header of an execution: bytes on top of the preloaded interpreter.
pub const PEAK_MEMORY: HeaderName = HeaderName::from_static("mainbox-peak-memory");
/// Header of an execution: the tier in force.
pub const ISOLATION: HeaderName = HeaderName::from_static("mainbox-isolation");

/// What kind of failure an answer reports. The names are contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The request itself is not understood.
    InvalidRequest,
    /// The script is not Python.
    SyntaxError,
    /// The script defines no function `main`.
    MissingMain,
    /// The policy refuses the script.
    Forbidden,
    /// The script raised.
    Exception,
    /// The script ended its process before `main` returned.
    Exit,
    /// `main` returned what has no JSON form.
    NotJson,
    /// The result is over its limit.
    ResultTooLarge,
    /// Wall or CPU time ran out.
    Timeout,
    /// Memory ran out.
    MemoryLimit,
    /// The worker died of a signal, or spoke nonsense.
    Crashed,
    /// A key is missing or wrong.
    Unauthorized,
    /// No such endpoint.
    NotFound,
    /// The endpoint does not take this method.
    MethodNotAllowed,
    /// Body or script over its limit.
    PayloadTooLarge,
    /// A content type that is not taken.
    UnsupportedMediaType,
    /// More requests than the caller's rate allows.
    RateLimited,
    /// The admission queue is full.
    Busy,
    /// Our fault, never a script's.
    Internal,
}

impl Kind {
    /// Every kind, in the order of the contract.
    pub const ALL: [Kind; 19] = [
        Kind::InvalidRequest,
        Kind::SyntaxError,
        Kind::MissingMain,
        Kind::Forbidden,
        Kind::Exception,
        Kind::Exit,
        Kind::NotJson,
        Kind::ResultTooLarge,
        Kind::Timeout,
        Kind::MemoryLimit,
        Kind::Crashed,
        Kind::Unauthorized,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::PayloadTooLarge,
        Kind::UnsupportedMediaType,
        Kind::RateLimited,
        Kind::Busy,
        Kind::Internal,
    ];

    /// The name of this kind on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Kind::InvalidRequest => "invalid_request",
            Kind::SyntaxError => "syntax_error",
            Kind::MissingMain => "missing_main",
            Kind::Forbidden => "forbidden",
            Kind::Exception => "exception",
            Kind::Exit => "exit",
            Kind::NotJson => "not_json",
            Kind::ResultTooLarge => "result_too_large",
            Kind::Timeout => "timeout",
            Kind::MemoryLimit => "memory_limit",
            Kind::Crashed => "crashed",
            Kind::Unauthorized => "unauthorized",
            Kind::NotFound => "not_found",
            Kind::MethodNotAllowed => "method_not_allowed",
            Kind::PayloadTooLarge => "payload_too_large",
            Kind::UnsupportedMediaType => "unsupported_media_type",
            Kind::RateLimited => "rate_limited",
            Kind::Busy => "busy",
            Kind::Internal => "internal",
        }
    }

    /// The HTTP status that carries this kind.
    pub fn status(self) -> StatusCode {
        match self {
            Kind::InvalidRequest
            | Kind::SyntaxError
            | Kind::MissingMain
            | Kind::Forbidden
            | Kind::Exception
            | Kind::Exit
            | Kind::NotJson
            | Kind::ResultTooLarge
            | Kind::Timeout
            | Kind::MemoryLimit
            | Kind::Crashed => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// One sentence for the user, and the kind that programs look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub kind: Kind,
    /// One clear sentence.
    pub error: String,
    /// The script's own frames.
    pub traceback: Option<String>,
    /// The line of the script that is to blame, counted from 1.
    pub line: Option<u32>,
    /// In how many seconds to come again.
    pub retry_after: Option<u64>,
}

/// What a client that met a full queue is told to wait, seconds.
const BUSY_SECONDS: u64 = 1;

impl Failure {
    /// A failure without a place in the script.
    pub fn new(kind: Kind, error: impl Into<String>) -> Failure {
        let retry_after = (kind == Kind::Busy).then_some(BUSY_SECONDS);
        Failure { kind, error: error.into(), traceback: None, line: None, retry_after }
    }
}

/// A request to run a script, checked.
#[derive(Debug)]
pub struct ExecuteRequest {
    /// Python source.
    pub script: String,
    /// The argument of `main`, as raw JSON.
    pub input: Option<Box<RawValue>>,
    /// What is laid in the working directory.
    pub files: Files,
    /// Wall time asked for, not yet held against the server's own.
    pub timeout: Option<Duration>,
    /// Memory asked for in MB, not yet held against the server's own.
    pub memory_mb: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    script: String,
    #[serde(default, deserialize_with = "present")]
    input: Option<Box<RawValue>>,
    #[serde(default)]
    files: Files,
    #[serde(default, deserialize_with = "object")]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default)]
    timeout_seconds: Option<f64>,
    #[serde(default)]
    memory_mb: Option<u64>,
}

/// serde would take an array as the fields in their order.
fn object<'de, D: Deserializer<'de>>(value: D) -> Result<Limits, D::Error> {
    let value: &RawValue = Deserialize::deserialize(value)?;
    if !value.get().starts_with('{') {
        return Err(D::Error::custom("limits must be an object"));
    }
    serde_json::from_str(value.get()).map_err(|error| {
        // The place is one in the limits, not in the body.
        let text = error.to_string();
        D::Error::custom(text.split(" at line ").next().unwrap_or(&text))
    })
}

/// `"input": null` is an input like any other; only an absent field is none.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(value).map(Some)
}

impl ExecuteRequest {
    /// Reads an `application/json` body.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the fault.
    pub fn from_json(body: &[u8], max_script_bytes: usize) -> Result<ExecuteRequest, Failure> {
        if !json::is_shallow(body) {
            return Err(invalid(format!(
                "The body is nested deeper than {} levels",
                json::MAX_DEPTH
            )));
        }
        // serde would take an array as the fields in their order.
        if body.trim_ascii_start().starts_with(b"[") {
            return Err(invalid("The body must be a JSON object, not an array"));
        }
        let body: Body = serde_json::from_slice(body).map_err(|error| {
            use serde_json::error::Category;
            match error.classify() {
                Category::Data => invalid(format!("The request is not valid: {error}")),
                _ => invalid(format!("The body is not valid JSON: {error}")),
            }
        })?;
        let timeout = body
            .limits
            .timeout_seconds
            .map(|seconds| {
                timeout_from_seconds(seconds).ok_or_else(|| {
                    invalid("limits.timeout_seconds must be above 0 and at most 300")
                })
            })
            .transpose()?;
        if body.limits.memory_mb == Some(0) {
            return Err(invalid("limits.memory_mb must be at least 1"));
        }
        if body.files.contains(OUTPUTS) {
            return Err(invalid(format!(
                "files: `{OUTPUTS}` is the directory for what comes back"
            )));
        }
        let script = check_script(body.script, max_script_bytes)?;
        Ok(ExecuteRequest {
            script,
            input: body.input,
            files: body.files,
            timeout,
            memory_mb: body.limits.memory_mb,
        })
    }

    /// Reads a `text/x-python` body: the script itself.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the fault.
    pub fn from_python(body: &[u8], max_script_bytes: usize) -> Result<ExecuteRequest, Failure> {
        let script = std::str::from_utf8(body)
            .map_err(|error| invalid(format!("The script is not valid UTF-8: {error}")))?;
        let script = check_script(script.to_owned(), max_script_bytes)?;
        Ok(ExecuteRequest {
            script,
            input: None,
            files: Files::default(),
            timeout: None,
            memory_mb: None,
        })
    }
}

fn check_script(script: String, max_bytes: usize) -> Result<String, Failure> {
    if script.trim_ascii().is_empty() {
        return Err(invalid("The script is empty"));
    }
    if script.contains('\0') {
        return Err(invalid("The script contains a NUL character"));
    }
    if script.len() > max_bytes {
        let error = format!("The script has {} bytes; the limit is {max_bytes}", script.len());
        return Err(Failure::new(Kind::PayloadTooLarge, error));
    }
    Ok(script)
}

/// An `invalid_request`.
pub fn invalid(error: impl Into<String>) -> Failure {
    Failure::new(Kind::InvalidRequest, error)
}

/// The body of a 200.
#[derive(Serialize)]
pub struct Success<'a> {
    /// What `main` returned, untouched.
    pub result: &'a RawValue,
    /// What the script printed.
    pub stdout: Cow<'a, str>,
    /// What it wrote to stderr, if anything.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub stderr: Cow<'a, str>,
    /// What it left in `outputs/`, if anything.
    #[serde(skip_serializing_if = "Files::is_empty")]
    pub files: &'a Files,
    /// The streams that were cut at their limit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<&'static str>,
    /// What is wrong with the service as it is set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}

/// The body of everything else.
#[derive(Serialize)]
pub struct Error<'a> {
    /// One clear sentence.
    pub error: &'a str,
    /// The kind, from the catalogue.
    pub kind: Kind,
    /// What the script had printed until then.
    pub stdout: Cow<'a, str>,
    /// The script's own frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceback: Option<&'a str>,
    /// The line of the script that is to blame, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// What it had written to stderr, if anything.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub stderr: Cow<'a, str>,
    /// The streams that were cut at their limit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<&'static str>,
    /// What is wrong with the service as it is set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_name() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn the_catalogue_is_contract() {
        let rows: Vec<String> = Kind::ALL
            .into_iter()
            .map(|kind| {
                format!("{} {}", serde_json::to_string(&kind).unwrap(), kind.status().as_u16())
            })
            .collect();
        assert_eq!(
            rows,
            [
                "\"invalid_request\" 400",
                "\"syntax_error\" 400",
                "\"missing_main\" 400",
                "\"forbidden\" 400",
                "\"exception\" 400",
                "\"exit\" 400",
                "\"not_json\" 400",
                "\"result_too_large\" 400",
                "\"timeout\" 400",
                "\"memory_limit\" 400",
                "\"crashed\" 400",
                "\"unauthorized\" 401",
                "\"not_found\" 404",
                "\"method_not_allowed\" 405",
                "\"payload_too_large\" 413",
                "\"unsupported_media_type\" 415",
                "\"rate_limited\" 429",
                "\"busy\" 503",
                "\"internal\" 500",
            ]
        );
    }

    #[test]
    fn null_is_an_input_and_absence_is_none() {
        let with = ExecuteRequest::from_json(br#"{"script":"x","input":null}"#, 9).unwrap();
        assert_eq!(with.input.unwrap().get(), "null");
        assert!(ExecuteRequest::from_json(br#"{"script":"x"}"#, 9).unwrap().input.is_none());
    }
}
