//! JSON-RPC 2.0 messages as MCP uses them: reading one, and the errors that answer one.
//!
//! Everything here comes from strangers. The body was bounded before; here are bounds for what an answer repeats.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::revision::Era;
use crate::api::catalogue::Failure;
use crate::api::json_text;
use crate::api::text::quoted;

/// The longest id of a message, bytes, since every answer repeats it.
const MAX_ID_BYTES: usize = 256;

/// Why a message was not carried out. The codes are those of JSON-RPC and of
/// <https://modelcontextprotocol.io/specification/2026-07-28/basic#error-codes>.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// The text is not JSON.
    #[error("The message is not valid JSON: {0}")]
    NotJson(String),
    /// It is JSON, but neither a request nor a notification.
    #[error("{0}")]
    InvalidRequest(String),
    /// There is no such method.
    #[error("Unknown method: {0}")]
    UnknownMethod(String),
    /// The parameters do not fit the method.
    #[error("{0}")]
    InvalidParams(String),
    /// A header disagrees with the body, or is missing.
    #[error("Header mismatch: {0}")]
    HeaderMismatch(String),
    /// The revision of the protocol is unknown.
    #[error("Unsupported protocol version: {requested}")]
    UnsupportedVersion {
        /// The revision that was asked for.
        requested: String,
        /// Those that can be asked for in this way.
        supported: Vec<&'static str>,
    },
    /// The request was refused before it was read, or the service failed.
    #[error("{}", .0.error)]
    Refused(Failure),
}

impl RpcError {
    /// The code of the error. A refusal has its HTTP status as code, since MCP wants new codes outside the range that
    /// JSON-RPC reserves.
    fn code(&self) -> i32 {
        match self {
            RpcError::NotJson(_) => -32700,
            RpcError::InvalidRequest(_) => -32600,
            RpcError::UnknownMethod(_) => -32601,
            RpcError::InvalidParams(_) => -32602,
            RpcError::HeaderMismatch(_) => -32020,
            RpcError::UnsupportedVersion { .. } => -32022,
            RpcError::Refused(failure) => failure.kind.status().as_u16().into(),
        }
    }

    /// The HTTP status of the answer. Clients of the legacy era give up a connection at a status that is not 200, so they
    /// get that for errors that concern one call only.
    pub fn status(&self, era: Era) -> http::StatusCode {
        match (self, era) {
            (RpcError::Refused(failure), _) => failure.kind.status(),
            (RpcError::UnknownMethod(_) | RpcError::InvalidParams(_), Era::Legacy) => {
                http::StatusCode::OK
            }
            (RpcError::UnknownMethod(_), Era::Modern) => http::StatusCode::NOT_FOUND,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }

    /// What a program needs to know besides the code.
    fn data(&self) -> Option<Value> {
        match self {
            RpcError::UnsupportedVersion { requested, supported } => {
                Some(json!({"supported": supported, "requested": requested}))
            }
            RpcError::Refused(failure) => Some(json!({"kind": failure.kind})),
            _ => None,
        }
    }
}

/// The id of a request: a string or a whole number, as the text that was sent.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Id(Box<RawValue>);

impl Id {
    fn read(value: &RawValue) -> Option<Id> {
        let text = value.get();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_string = text.starts_with('"') && json_text::pairs_surrogates(text.as_bytes());
        let is_id = text.len() <= MAX_ID_BYTES && (is_integer || is_string);
        is_id.then(|| Id(value.to_owned()))
    }

    /// Reads the id that a notification names in its parameters.
    pub fn named_by(value: &RawValue) -> Option<Id> {
        Id::read(value)
    }

    /// The id as JSON text.
    pub fn text(&self) -> &str {
        self.0.get()
    }
}

/// A request or a notification.
#[derive(Debug)]
pub struct Message<'a> {
    /// The id of a request; `None` for a notification, which gets no answer.
    pub id: Option<Id>,
    /// The name of the method.
    pub method: Cow<'a, str>,
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// Tells `"id": null`, which is an error, from an absent `id`, which makes a notification.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

/// The parameters of any method, as far as they are read. Reading each by itself lets an error name it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Params<'a> {
    /// What every request of the modern era says of itself.
    #[serde(borrow, default, rename = "_meta")]
    pub meta: Option<&'a RawValue>,
    /// The name of a tool.
    #[serde(borrow, default)]
    pub name: Option<&'a RawValue>,
    /// The arguments of a tool.
    #[serde(borrow, default)]
    pub arguments: Option<&'a RawValue>,
    /// A place in a list.
    #[serde(borrow, default)]
    pub cursor: Option<&'a RawValue>,
    /// The revision that `initialize` asks for.
    #[serde(borrow, default)]
    pub protocol_version: Option<&'a RawValue>,
    /// The request that `notifications/cancelled` names.
    #[serde(borrow, default)]
    pub request_id: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    /// Reads a message. An error comes with the id of the message if that could be read.
    ///
    /// # Errors
    /// [`RpcError::NotJson`] or [`RpcError::InvalidRequest`].
    pub fn read(text: &'a [u8]) -> Result<Message<'a>, (Option<Id>, RpcError)> {
        let invalid = |error: &str| (None, RpcError::InvalidRequest(String::from(error)));
        if !json_text::is_shallow(text) {
            let error =
                format!("The message is nested deeper than {} levels", json_text::MAX_DEPTH);
            return Err(invalid(&error));
        }
        let not_json = |error: &serde_json::Error| (None, RpcError::NotJson(error.to_string()));
        match text.trim_ascii_start().first() {
            Some(b'{') => {}
            _ => {
                serde_json::from_slice::<serde::de::IgnoredAny>(text)
                    .map_err(|error| not_json(&error))?;
                return Err(invalid(
                    "The body must be one JSON-RPC message; batches are not supported",
                ));
            }
        }
        let envelope: Envelope<'a> =
            serde_json::from_slice(text).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => invalid(&quoted(&error.to_string())),
                _ => not_json(&error),
            })?;
        let id = match envelope.id {
            None => None,
            Some(id) => Some(Id::read(id).ok_or_else(|| {
                invalid("id must be a string or a whole number of at most 256 bytes")
            })?),
        };
        let refuse = |error: &str| Err((id.clone(), RpcError::InvalidRequest(String::from(error))));
        if envelope.jsonrpc.map(RawValue::get) != Some(r#""2.0""#) {
            return refuse("jsonrpc must be \"2.0\"");
        }
        let Some(method) = envelope.method.and_then(string) else {
            return refuse("method must be a string; responses are not accepted");
        };
        if envelope.params.is_some_and(|params| !params.get().starts_with('{')) {
            return refuse("params must be an object");
        }
        Ok(Message { id, method, params: envelope.params })
    }

    /// The parameters.
    ///
    /// # Errors
    /// [`RpcError::InvalidParams`], for example when a name occurs twice.
    pub fn params(&self) -> Result<Params<'a>, RpcError> {
        self.params.map_or_else(|| Ok(Params::default()), object)
    }
}

/// Reads an object whose values are not read yet.
///
/// # Errors
/// [`RpcError::InvalidParams`].
pub(super) fn object<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Result<T, RpcError> {
    serde_json::from_str(value.get()).map_err(|error| {
        let text = error.to_string();
        // The position counts from the start of the object, which would mislead.
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        RpcError::InvalidParams(format!("Invalid parameters: {}", quoted(text)))
    })
}

/// The string that a value is; `None` if it is anything else, or has a lone surrogate.
pub(super) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(text).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// What answers a request.
#[derive(Debug, Serialize)]
pub struct Reply<'a, T: Serialize> {
    jsonrpc: &'static str,
    id: Option<&'a Id>,
    #[serde(flatten)]
    body: Body<T>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Body<T: Serialize> {
    Result(T),
    Error(ErrorBody),
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    code: i32,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl<'a, T: Serialize> Reply<'a, T> {
    /// The answer to the request with this id.
    pub fn result(id: &'a Id, result: T) -> Reply<'a, T> {
        Reply { jsonrpc: "2.0", id: Some(id), body: Body::Result(result) }
    }
}

impl<'a> Reply<'a, ()> {
    /// The answer to a request that was not carried out. Its id is `null` if it could not be read, as JSON-RPC wants it; MCP
    /// also allows leaving it out, but then its SDK for Python does not show the error.
    pub fn error(id: Option<&'a Id>, error: &RpcError) -> Reply<'a, ()> {
        let body = ErrorBody { code: error.code(), message: error.to_string(), data: error.data() };
        Reply { jsonrpc: "2.0", id, body: Body::Error(body) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Refused = (Option<String>, i32, String);

    fn read(text: &str) -> Result<(Option<String>, String), Refused> {
        let id = |id: Option<Id>| id.map(|id| id.text().to_owned());
        match Message::read(text.as_bytes()) {
            Ok(message) => Ok((id(message.id), message.method.into_owned())),
            Err((known, error)) => Err((id(known), error.code(), error.to_string())),
        }
    }

    #[test]
    fn ids_are_strings_or_whole_numbers_and_are_repeated_as_sent() {
        for id in ["1", "-7", "123456789012345678901234567890", r#""a\u00e9""#, r#""""#] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
            assert_eq!(read(&text), Ok((Some(String::from(id)), String::from("ping"))));
        }
        let long = format!("\"{}\"", "x".repeat(255));
        for id in ["null", "1.5", "1e3", "true", "[1]", "{}", r#""\ud800""#, &long] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
            let error = "id must be a string or a whole number of at most 256 bytes";
            assert_eq!(read(&text), Err((None, -32600, String::from(error))), "{id}");
        }
    }

    #[test]
    fn a_message_without_id_is_a_notification() {
        let text = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(read(text), Ok((None, String::from("notifications/initialized"))));
    }

    #[test]
    fn anything_else_is_the_protocols_own_error() {
        let deep = "[".repeat(100_000);
        for (text, id, code) in [
            ("", None, -32700),
            ("{", None, -32700),
            ("{} x", None, -32700),
            ("[]", None, -32600),
            ("7", None, -32600),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, None, -32600),
            (&deep, None, -32600),
            ("{}", None, -32600),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, Some("1"), -32600),
            (r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#, Some("1"), -32600),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, None, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":1}"#, Some("1"), -32600),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, Some("1"), -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a\ud800"}"#, Some("1"), -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#, Some("1"), -32600),
        ] {
            let (known, found, _) = read(text).unwrap_err();
            assert_eq!((known.as_deref(), found), (id, code), "{:.80}", text);
        }
    }

    #[test]
    fn a_parameter_that_occurs_twice_is_refused() {
        let text = br#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"name":"a","name":"b"}}"#;
        let error = Message::read(text).unwrap().params().unwrap_err();
        let expected = "Invalid parameters: duplicate field `name`";
        assert_eq!(error, RpcError::InvalidParams(String::from(expected)));
    }
}
