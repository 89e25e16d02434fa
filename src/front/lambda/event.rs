//! Lambda's events: HTTP requests that function URLs and API Gateway (payload format 2.0) wrap in JSON, and bare bodies
//! of `/execute`.
//!
//! lambda_http has conversions too, but they panic on an invalid path and on invalid base64, and a client chooses both:
//! <https://docs.rs/lambda_http/1.3.2/lambda_http/request/index.html>.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use lambda_http::aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use lambda_http::aws_lambda_events::encodings::Body;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::callers::client_ip::ClientIp;
use crate::handler::Trusted;

/// The stage whose name is not part of the paths.
const DEFAULT_STAGE: &str = "$default";

/// How an event is wrapped, and so how its response must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An HTTP request in a JSON envelope.
    Http,
    /// No envelope: the event is the body of a request to `/execute`.
    Bare,
}

/// Why an event is not a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// It comes from another trigger or has another format.
    #[error(
        "The event must be a request to a function URL, a request to API Gateway in payload format 2.0, or a bare request: {0}"
    )]
    Unknown(serde_json::Error),
    /// Its path is not valid in a URI.
    #[error("The path of the request is not valid: {0}")]
    Path(#[from] http::uri::InvalidUri),
    /// Its body claims to be base64 but is not.
    #[error("The body of the request is not valid base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

/// The field that every wrapped event has and no bare event can have.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "requestContext")]
    _request_context: serde::de::IgnoredAny,
}

/// Returns the form of `event`.
pub fn form(event: &RawValue) -> Form {
    match serde_json::from_str::<Envelope>(event.get()) {
        Ok(_) => Form::Http,
        Err(_) => Form::Bare,
    }
}

/// Returns the request in `event`.
///
/// # Errors
/// See [`EventError`].
pub fn request(form: Form, event: &RawValue) -> Result<Request<Full<Bytes>>, EventError> {
    match form {
        Form::Http => unwrap(serde_json::from_str(event.get()).map_err(EventError::Unknown)?),
        Form::Bare => {
            let body = Bytes::copy_from_slice(event.get().as_bytes());
            let mut request = Request::new(Full::new(body));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = Uri::from_static("/execute");
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
            // Only a direct invocation makes such an event, and AWS IAM has authenticated it. A client of a URL cannot.
            request.extensions_mut().insert(Trusted);
            Ok(request)
        }
    }
}

fn unwrap(event: ApiGatewayV2httpRequest) -> Result<Request<Full<Bytes>>, EventError> {
    let path = event.raw_path.as_deref().unwrap_or("/");
    let path = without_stage(path, event.request_context.stage.as_deref());
    let client = event.request_context.http.source_ip.as_ref().and_then(|ip| ip.parse().ok());
    let body = event.body.unwrap_or_default();
    let body =
        if event.is_base64_encoded { BASE64_STANDARD.decode(body)? } else { body.into_bytes() };
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = event.request_context.http.method;
    *request.uri_mut() = path.parse()?;
    *request.headers_mut() = event.headers;
    if let Some(client) = client {
        request.extensions_mut().insert(ClientIp(client));
    }
    Ok(request)
}

/// API Gateway puts the name of a stage in front of the paths of its requests.
fn without_stage<'a>(path: &'a str, stage: Option<&str>) -> &'a str {
    stage
        .filter(|stage| *stage != DEFAULT_STAGE)
        .and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage))
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(path)
}

/// Wraps the response to an event of this form as Lambda expects it.
pub fn response(form: Form, response: Response<Vec<u8>>) -> Box<RawValue> {
    let (parts, body) = response.into_parts();
    match (form, String::from_utf8(body)) {
        (Form::Bare, Ok(body)) => RawValue::from_string(body).expect("BUG: bodies are JSON"),
        (Form::Bare, Err(_)) => unreachable!("BUG: bodies are JSON"),
        (Form::Http, body) => wrap(parts.status.as_u16(), parts.headers, body),
    }
}

fn wrap(
    status: u16,
    headers: HeaderMap,
    body: Result<String, std::string::FromUtf8Error>,
) -> Box<RawValue> {
    let mut wrapped = ApiGatewayV2httpResponse::default();
    wrapped.status_code = status.into();
    wrapped.headers = headers;
    wrapped.is_base64_encoded = body.is_err();
    wrapped.body = Some(match body {
        Ok(text) => Body::Text(text),
        Err(error) => Body::Binary(error.into_bytes()),
    });
    to_raw_value(&wrapped).expect("BUG: responses are plain data")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    fn raw(event: &Value) -> Box<RawValue> {
        to_raw_value(event).unwrap()
    }

    fn http(event: &Value) -> Result<Request<Full<Bytes>>, EventError> {
        let event = raw(event);
        assert_eq!(form(&event), Form::Http);
        request(Form::Http, &event)
    }

    fn event(path: &str, stage: &str) -> Value {
        json!({
            "version": "2.0", "rawPath": path, "headers": {"content-type": "text/x-python"},
            "requestContext": {"stage": stage, "http": {"method": "POST", "path": path}},
            "body": "ZGVmIG1haW4oKTogcmV0dXJuIDE=", "isBase64Encoded": true,
        })
    }

    #[tokio::test]
    async fn a_wrapped_request_is_unwrapped_unchanged() {
        let request = http(&event("/execute", "$default")).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "/execute");
        assert_eq!(request.headers()[CONTENT_TYPE], "text/x-python");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "def main(): return 1");
    }

    #[test]
    fn the_stage_is_removed_from_the_path() {
        for (path, stage, seen) in [
            ("/v1/execute", "v1", "/execute"),
            ("/v1/execute", "$default", "/v1/execute"),
            ("/execute", "v1", "/execute"),
            ("/v10/execute", "v1", "/v10/execute"),
        ] {
            assert_eq!(http(&event(path, stage)).unwrap().uri(), seen);
        }
    }

    #[test]
    fn a_malformed_event_is_an_error_and_not_a_panic() {
        let refused = |change: fn(&mut Value)| {
            let mut event = event("/execute", "$default");
            change(&mut event);
            http(&event).unwrap_err().to_string()
        };
        assert_eq!(
            refused(|event| event["body"] = json!("not base64!")),
            "The body of the request is not valid base64: Invalid symbol 32, offset 3."
        );
        assert_eq!(
            refused(|event| event["rawPath"] = json!("/a b\u{0}")),
            "The path of the request is not valid: invalid uri character"
        );
        let unknown = "The event must be a request to a function URL, a request to API Gateway in payload format 2.0, or a bare request: ";
        for change in [
            |event: &mut Value| event["requestContext"] = json!({"elb": {}}),
            |event: &mut Value| event["headers"] = json!({"a b": "c"}),
            |event: &mut Value| event["requestContext"]["http"]["method"] = json!("GE T"),
        ] {
            assert!(refused(change).starts_with(unknown));
        }
    }

    #[test]
    fn an_event_without_an_envelope_is_a_bare_request() {
        for event in [json!({"script": ""}), json!([]), json!(null), json!("text"), json!(1)] {
            assert_eq!(form(&raw(&event)), Form::Bare);
        }
    }

    #[test]
    fn a_bare_response_is_unchanged_and_a_binary_one_becomes_base64() {
        let body = br#"{"result":123456789012345678901234567890.0}"#.to_vec();
        let bare = response(Form::Bare, Response::new(body.clone()));
        assert_eq!(bare.get().as_bytes(), body);
        let wrapped = response(Form::Http, Response::new(vec![0xff, 0xfe]));
        let wrapped: Value = serde_json::from_str(wrapped.get()).unwrap();
        assert_eq!(wrapped["isBase64Encoded"], true);
        assert_eq!(wrapped["body"], "//4=");
    }
}
