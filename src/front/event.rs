//! Lambda's events: HTTP requests that function URLs and API Gateway (payload format 2.0) wrap in JSON, and bare bodies
//! of the contract.
//!
//! lambda_http has conversions too, but they panic on a path that is no URI and on a body that is not base64, and a
//! client chooses both: <https://docs.rs/lambda_http/1.3.2/lambda_http/request/index.html>.

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

use crate::client::Client;
use crate::handler::Trusted;

/// The stage of an API whose name is not in its paths.
const DEFAULT_STAGE: &str = "$default";

/// How an event was wrapped, and so its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As an HTTP request.
    Http,
    /// Not at all: the event is the body of a request to `/execute`.
    Bare,
}

/// Why an event is no request: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// It comes from another trigger, or in another format.
    #[error(
        "The event is neither a request to a function URL, nor one to API Gateway in payload format 2.0, nor a bare request: {0}"
    )]
    Unknown(serde_json::Error),
    /// Its path is no path of a URI.
    #[error("The path of the request is not valid: {0}")]
    Path(#[from] http::uri::InvalidUri),
    /// It says that its body is base64.
    #[error("The body of the request is not valid base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

/// Tells events of the two forms apart: nothing else is in every event of the one, and never in the other.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "requestContext")]
    _request_context: serde::de::IgnoredAny,
}

/// The form of `event`.
pub fn form(event: &RawValue) -> Form {
    match serde_json::from_str::<Envelope>(event.get()) {
        Ok(_) => Form::Http,
        Err(_) => Form::Bare,
    }
}

/// The request that `event` of this form stands for.
///
/// # Errors
/// When it stands for none.
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
            // No client of a URL can make such an event: who invokes a function directly has been let in by AWS.
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
        request.extensions_mut().insert(Client(client));
    }
    Ok(request)
}

/// API Gateway puts the name of a stage before the paths of its requests.
fn without_stage<'a>(path: &'a str, stage: Option<&str>) -> &'a str {
    stage
        .filter(|stage| *stage != DEFAULT_STAGE)
        .and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage))
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(path)
}

/// The answer to an event of this form, as Lambda takes it.
pub fn answer(form: Form, response: Response<Vec<u8>>) -> Box<RawValue> {
    let (parts, body) = response.into_parts();
    match (form, String::from_utf8(body)) {
        (Form::Bare, Ok(body)) => RawValue::from_string(body).expect("BUG: answers are JSON"),
        (Form::Bare, Err(_)) => unreachable!("BUG: answers are JSON"),
        (Form::Http, body) => wrap(parts.status.as_u16(), parts.headers, body),
    }
}

fn wrap(
    status: u16,
    headers: HeaderMap,
    body: Result<String, std::string::FromUtf8Error>,
) -> Box<RawValue> {
    let mut answer = ApiGatewayV2httpResponse::default();
    answer.status_code = status.into();
    answer.headers = headers;
    answer.is_base64_encoded = body.is_err();
    answer.body = Some(match body {
        Ok(text) => Body::Text(text),
        Err(error) => Body::Binary(error.into_bytes()),
    });
    to_raw_value(&answer).expect("BUG: answers are plain data")
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
    async fn a_wrapped_request_comes_out_whole() {
        let request = http(&event("/execute", "$default")).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "/execute");
        assert_eq!(request.headers()[CONTENT_TYPE], "text/x-python");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "def main(): return 1");
    }

    #[test]
    fn a_stage_is_no_part_of_the_path() {
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
    fn what_no_request_is_made_of_is_an_error_and_no_panic() {
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
        let unknown = "The event is neither a request to a function URL, nor one to API Gateway in payload format 2.0, nor a bare request: ";
        for change in [
            |event: &mut Value| event["requestContext"] = json!({"elb": {}}),
            |event: &mut Value| event["headers"] = json!({"a b": "c"}),
            |event: &mut Value| event["requestContext"]["http"]["method"] = json!("GE T"),
        ] {
            assert!(refused(change).starts_with(unknown));
        }
    }

    #[test]
    fn whatever_is_not_wrapped_is_a_bare_request() {
        for event in [json!({"script": ""}), json!([]), json!(null), json!("text"), json!(1)] {
            assert_eq!(form(&raw(&event)), Form::Bare);
        }
    }

    #[test]
    fn a_bare_answer_passes_untouched_and_a_binary_one_is_base64() {
        let body = br#"{"result":123456789012345678901234567890.0}"#.to_vec();
        let bare = answer(Form::Bare, Response::new(body.clone()));
        assert_eq!(bare.get().as_bytes(), body);
        let answer = answer(Form::Http, Response::new(vec![0xff, 0xfe]));
        let answer: Value = serde_json::from_str(answer.get()).unwrap();
        assert_eq!(answer["isBase64Encoded"], true);
        assert_eq!(answer["body"], "//4=");
    }
}
