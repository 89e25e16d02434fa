//! The revisions of the protocol. A request of the modern era says in its `_meta` which revision it is written in; one of
//! the legacy era does not, since a handshake settled that:
//! <https://modelcontextprotocol.io/specification/2026-07-28/basic/versioning>. Both are served without sessions.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::message::{Message, Params, RpcError, object, string};
use crate::api::text::quoted;

/// The modern revisions, the newest first.
pub const MODERN: &[&str] = &["2026-07-28"];
/// The legacy revisions, the newest first.
pub const LEGACY: &[&str] = &["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// Header: the revision of the request.
pub const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// Header: the method of the request.
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// Header: the tool that the request calls.
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// The era of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// Each request carries its revision.
    Modern,
    /// `initialize` has settled the revision.
    Legacy,
}

/// The part of `_meta` that is read.
#[derive(Default, Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion")]
    version: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Option<&'a RawValue>,
}

impl Era {
    /// The era of a request, once its headers agree with it. `headers` are those of an HTTP request; over stdio there are
    /// none.
    ///
    /// # Errors
    /// [`RpcError::InvalidParams`], [`RpcError::HeaderMismatch`] or [`RpcError::UnsupportedVersion`].
    pub fn of(
        message: &Message<'_>,
        params: &Params<'_>,
        headers: Option<&HeaderMap>,
    ) -> Result<Era, RpcError> {
        let meta: Meta<'_> = match params.meta {
            Some(meta) if meta.get().starts_with('{') => object(meta)?,
            Some(_) => {
                return Err(RpcError::InvalidParams(String::from("_meta must be an object")));
            }
            None => Meta::default(),
        };
        let header = headers.map(|headers| single(headers, &VERSION)).transpose()?.flatten();
        let Some(version) = meta.version else {
            check_headers(message, params, headers, false)?;
            return match header {
                None => Ok(Era::Legacy),
                Some(header) if LEGACY.contains(&header) => Ok(Era::Legacy),
                Some(header) if MODERN.contains(&header) => Err(missing("protocolVersion")),
                Some(header) => Err(unsupported(header, &[MODERN, LEGACY].concat())),
            };
        };
        let capabilities = meta.capabilities.filter(|value| value.get().starts_with('{'));
        capabilities.ok_or_else(|| missing("clientCapabilities"))?;
        let version = string(version).ok_or_else(|| missing("protocolVersion"))?;
        check_headers(message, params, headers, true)?;
        if headers.is_some() {
            agrees(header, Some(&version), &VERSION, true)?;
        }
        match MODERN.contains(&&*version) {
            true => Ok(Era::Modern),
            false => Err(unsupported(&version, MODERN)),
        }
    }
}

/// Checks that `Mcp-Method` and `Mcp-Name` say what the body says, since a proxy may have decided by them. Without
/// `required`, as in the legacy era and for notifications, they may be absent.
///
/// # Errors
/// [`RpcError::HeaderMismatch`].
pub fn check_headers(
    message: &Message<'_>,
    params: &Params<'_>,
    headers: Option<&HeaderMap>,
    required: bool,
) -> Result<(), RpcError> {
    let Some(headers) = headers else { return Ok(()) };
    agrees(single(headers, &METHOD)?, Some(&message.method), &METHOD, required)?;
    let name = single(headers, &NAME)?.map(decoded).transpose()?;
    agrees(name.as_deref(), params.name.and_then(string).as_deref(), &NAME, required)
}

fn missing(key: &str) -> RpcError {
    RpcError::InvalidParams(format!("_meta must contain io.modelcontextprotocol/{key}"))
}

fn unsupported(requested: &str, supported: &[&'static str]) -> RpcError {
    let requested = quoted(requested).into_owned();
    RpcError::UnsupportedVersion { requested, supported: supported.to_vec() }
}

/// The value of a header; `None` if it is absent. Of two values, a proxy may have read the other one.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, RpcError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let text = first.map(|value| value.to_str().map(str::trim)).transpose();
    match (text, second) {
        (Ok(text), None) => Ok(text),
        _ => Err(RpcError::HeaderMismatch(format!("{name} must occur once, in plain ASCII"))),
    }
}

/// The value of a header that may be encoded as `=?base64?...?=`.
fn decoded(value: &str) -> Result<Cow<'_, str>, RpcError> {
    let encoded = value.strip_prefix("=?base64?").and_then(|value| value.strip_suffix("?="));
    let Some(encoded) = encoded else { return Ok(Cow::Borrowed(value)) };
    let bytes = BASE64_STANDARD.decode(encoded).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.map(Cow::Owned)
        .ok_or_else(|| RpcError::HeaderMismatch(format!("{NAME} is not valid base64")))
}

fn agrees(
    header: Option<&str>,
    body: Option<&str>,
    name: &HeaderName,
    required: bool,
) -> Result<(), RpcError> {
    match (header, body) {
        (Some(header), Some(body)) if header == body => Ok(()),
        (Some(header), body) => Err(RpcError::HeaderMismatch(format!(
            "{name} is `{}`, but the body says `{}`",
            quoted(header),
            quoted(body.unwrap_or_default())
        ))),
        (None, Some(_)) if required => Err(RpcError::HeaderMismatch(format!("{name} is missing"))),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    fn era(
        method: &str,
        params: &str,
        headers: &[(&HeaderName, &'static str)],
    ) -> Result<Era, String> {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let message = Message::read(text.as_bytes()).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let params = message.params().unwrap();
        Era::of(&message, &params, Some(&map)).map_err(|error| error.to_string())
    }

    fn call(name: &str) -> String {
        format!(r#"{{"name":"{name}","_meta":{META}}}"#)
    }

    #[test]
    fn a_modern_request_is_served_if_its_headers_agree() {
        let version = (&VERSION, "2026-07-28");
        let listed = format!(r#"{{"_meta":{META}}}"#);
        let list = (&METHOD, "tools/list");
        assert_eq!(era("tools/list", &listed, &[version, list]), Ok(Era::Modern));
        let called = (&METHOD, "tools/call");
        for name in ["run_python", "=?base64?cnVuX3B5dGhvbg==?=", "  run_python "] {
            let headers = [version, called, (&NAME, name)];
            assert_eq!(era("tools/call", &call("run_python"), &headers), Ok(Era::Modern), "{name}");
        }
        for (headers, error) in [
            (vec![called, (&NAME, "run_python")], "mcp-protocol-version is missing"),
            (vec![version, (&NAME, "run_python")], "mcp-method is missing"),
            (vec![version, called], "mcp-name is missing"),
            (
                vec![(&VERSION, "2025-11-25"), called, (&NAME, "run_python")],
                "mcp-protocol-version is `2025-11-25`, but the body says `2026-07-28`",
            ),
            (
                vec![version, (&METHOD, "TOOLS/CALL"), (&NAME, "run_python")],
                "mcp-method is `TOOLS/CALL`, but the body says `tools/call`",
            ),
            (
                vec![version, called, (&NAME, "other")],
                "mcp-name is `other`, but the body says `run_python`",
            ),
            (vec![version, called, (&NAME, "=?base64?!?=")], "mcp-name is not valid base64"),
            (
                vec![version, called, called, (&NAME, "run_python")],
                "mcp-method must occur once, in plain ASCII",
            ),
        ] {
            let expected = Err(format!("Header mismatch: {error}"));
            assert_eq!(era("tools/call", &call("run_python"), &headers), expected);
        }
    }

    #[test]
    fn a_request_without_a_version_is_of_the_legacy_era() {
        for headers in [
            &[][..],
            &[(&VERSION, "2025-06-18")],
            &[(&VERSION, "2024-11-05"), (&METHOD, "tools/list")],
        ] {
            let list = era("tools/list", "{}", headers);
            assert_eq!(list, Ok(Era::Legacy));
        }
        for headers in [&[][..], &[(&VERSION, "2025-06-18")]] {
            assert_eq!(era("tools/list", "{}", headers), Ok(Era::Legacy));
            let progress = r#"{"_meta":{"progressToken":1}}"#;
            assert_eq!(era("tools/call", progress, headers), Ok(Era::Legacy));
        }
    }

    #[test]
    fn headers_that_disagree_are_refused_in_the_legacy_era_too() {
        let call = r#"{"name":"run_python"}"#;
        for (params, headers, says) in [
            (
                call,
                [(&METHOD, "tools/list")],
                "mcp-method is `tools/list`, but the body says `tools/call`",
            ),
            (call, [(&NAME, "other")], "mcp-name is `other`, but the body says `run_python`"),
            ("{}", [(&NAME, "run_python")], "mcp-name is `run_python`, but the body says ``"),
        ] {
            let error = Err(format!("Header mismatch: {says}"));
            assert_eq!(era("tools/call", params, &headers), error);
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let modern = [(&VERSION, "2026-07-28")];
        let version = "_meta must contain io.modelcontextprotocol/protocolVersion";
        let capabilities = "_meta must contain io.modelcontextprotocol/clientCapabilities";
        for (params, error) in [
            ("{}", version),
            (r#"{"_meta":{}}"#, version),
            (r#"{"_meta":1}"#, "_meta must be an object"),
            (r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#, capabilities),
            (
                r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":7,"io.modelcontextprotocol/clientCapabilities":{}}}"#,
                version,
            ),
        ] {
            assert_eq!(era("tools/list", params, &modern), Err(String::from(error)), "{params}");
        }
        let future = META.replace("2026-07-28", "2099-01-01");
        let headers = [(&VERSION, "2099-01-01"), (&METHOD, "tools/list")];
        let error = Err(String::from("Unsupported protocol version: 2099-01-01"));
        assert_eq!(era("tools/list", &format!(r#"{{"_meta":{future}}}"#), &headers), error);
        assert_eq!(era("tools/list", "{}", &headers), error);
    }
}
