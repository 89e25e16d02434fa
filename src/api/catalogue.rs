//! The error catalogue: every kind of failure, its name on the wire and its HTTP status.

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// The kind of failure that a response reports. Clients match on these names, so they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The request is malformed.
    InvalidRequest,
    /// The script is not valid Python.
    SyntaxError,
    /// The script does not define a function `main`.
    MissingMain,
    /// The policy refuses the script before it runs.
    Forbidden,
    /// The script raised an exception.
    Exception,
    /// The script ended its process before `main` returned.
    Exit,
    /// `main` returned a value that has no JSON form.
    NotJson,
    /// The result, or the files in `outputs/`, exceed their limit.
    ResultTooLarge,
    /// The wall time or CPU time limit was reached.
    Timeout,
    /// The memory limit was reached.
    MemoryLimit,
    /// The scratch directory exceeds its limit.
    ScratchLimit,
    /// A signal killed the worker, or the script broke the worker's protocol.
    Crashed,
    /// The API key is missing or unknown.
    Unauthorized,
    /// The request comes from a web page that may not call the service.
    ForbiddenOrigin,
    /// The endpoint does not exist.
    NotFound,
    /// The endpoint does not accept this HTTP method.
    MethodNotAllowed,
    /// The body arrived too slowly.
    RequestTimeout,
    /// The body, the script or the files exceed their limit.
    PayloadTooLarge,
    /// The content type is not supported.
    UnsupportedMediaType,
    /// The caller has used up its rate.
    RateLimited,
    /// The admission queue or a memory budget is full.
    Busy,
    /// The service failed. A script cannot cause this.
    Internal,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Kind; 22] = [
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
        Kind::ScratchLimit,
        Kind::Crashed,
        Kind::Unauthorized,
        Kind::ForbiddenOrigin,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::RequestTimeout,
        Kind::PayloadTooLarge,
        Kind::UnsupportedMediaType,
        Kind::RateLimited,
        Kind::Busy,
        Kind::Internal,
    ];

    /// The name of this kind on the wire, in logs and in metrics.
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
            Kind::ScratchLimit => "scratch_limit",
            Kind::Crashed => "crashed",
            Kind::Unauthorized => "unauthorized",
            Kind::ForbiddenOrigin => "forbidden_origin",
            Kind::NotFound => "not_found",
            Kind::MethodNotAllowed => "method_not_allowed",
            Kind::RequestTimeout => "request_timeout",
            Kind::PayloadTooLarge => "payload_too_large",
            Kind::UnsupportedMediaType => "unsupported_media_type",
            Kind::RateLimited => "rate_limited",
            Kind::Busy => "busy",
            Kind::Internal => "internal",
        }
    }

    /// The HTTP status of a response that reports this kind.
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
            | Kind::ScratchLimit
            | Kind::Crashed => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::ForbiddenOrigin => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Kind::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// `Retry-After` of a response that reports [`Kind::Busy`], seconds.
const BUSY_RETRY_SECONDS: u64 = 1;

/// Why a request has no result: a kind for programs and one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong, from the catalogue.
    pub kind: Kind,
    /// One sentence for the caller.
    pub error: String,
    /// The traceback, reduced to the frames of the script itself.
    pub traceback: Option<String>,
    /// The line of the script that failed, counted from 1.
    pub line: Option<u32>,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
}

impl Failure {
    /// A failure that has no place in the script. [`Kind::Busy`] asks the caller to retry after a second.
    pub fn new(kind: Kind, error: impl Into<String>) -> Failure {
        let retry_after = (kind == Kind::Busy).then_some(BUSY_RETRY_SECONDS);
        Failure { kind, error: error.into(), traceback: None, line: None, retry_after }
    }

    /// A failure of kind [`Kind::InvalidRequest`].
    pub fn invalid_request(error: impl Into<String>) -> Failure {
        Failure::new(Kind::InvalidRequest, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_and_name_agree_on_every_kind() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn names_and_statuses_never_change() {
        let rows =
            Kind::ALL.map(|kind| format!("{} {}", kind.name(), kind.status().as_u16())).to_vec();
        assert_eq!(
            rows,
            [
                "invalid_request 400",
                "syntax_error 400",
                "missing_main 400",
                "forbidden 400",
                "exception 400",
                "exit 400",
                "not_json 400",
                "result_too_large 400",
                "timeout 400",
                "memory_limit 400",
                "scratch_limit 400",
                "crashed 400",
                "unauthorized 401",
                "forbidden_origin 403",
                "not_found 404",
                "method_not_allowed 405",
                "request_timeout 408",
                "payload_too_large 413",
                "unsupported_media_type 415",
                "rate_limited 429",
                "busy 503",
                "internal 500",
            ]
        );
    }
}
