//! THE handler: a request in, a response out. It knows nothing of Lambda or of sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, EXPECT, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};

use crate::api::{
    Error, ExecuteRequest, Failure, ISOLATION, Kind, PEAK_MEMORY, SERVER_TIMING, Success, invalid,
};
use crate::budget::{Budget, Held};
use crate::client::Client;
use crate::config::Config;
use crate::executor::outcome::{Captured, Execution};
use crate::executor::{Executor, Health, Job};
use crate::files::{Files, MAX_FILES};
use crate::rate::{Caller, RateLimit};
use crate::record::{Record, milliseconds};

/// Bytes of a request body, whatever is in it.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Bytes of a body that is too large which are read all the same.
const MAX_DISCARDED_BYTES: usize = 2 * MAX_BODY_BYTES;
/// Bytes of all requests together, and of all answers together, that are held at a time; what comes on top is `busy`.
const MAX_HELD_BYTES: usize = 64 << 20;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// When a platform ends the request, whatever it does by then. A front sets it as an extension of its request.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// A request of whoever may start this process anyway, or whom the platform has let in: it needs no API key. A front sets
/// it as an extension of its request.
#[derive(Clone, Copy, Debug)]
pub struct Trusted;

/// Answers requests; cheap to clone. The response of an execution carries its [`Record`] as an extension.
#[derive(Clone)]
pub struct Handler {
    executor: Arc<Executor>,
    rate: Option<Arc<RateLimit>>,
    /// For requests, while they come, wait and run.
    requests: Budget,
    /// For answers, until clients have taken them.
    answers: Budget,
}

/// The endpoints, as `GET /` lists them.
const ENDPOINTS: &[(&str, &str)] = &[
    (
        "POST /execute",
        "runs main() of a Python script and answers with its JSON and what it printed",
    ),
    ("GET /health", "whether scripts can be run"),
    ("GET /about", "versions, limits and the isolation in force"),
    ("GET /openapi.yaml", "this contract for programs"),
];

/// Those that take an API key, where there are some.
const GUARDED: [&str; 2] = ["/execute", "/about"];

/// The contract as OpenAPI has it.
const OPENAPI: &str = include_str!("../openapi.yaml");
/// Its media type: <https://www.rfc-editor.org/rfc/rfc9512>.
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");

impl Handler {
    /// A handler that runs scripts with `executor`.
    pub fn new(executor: Arc<Executor>) -> Handler {
        let rate = executor.config().rate;
        Handler {
            rate: rate.map(|rate| Arc::new(RateLimit::new(rate))),
            executor,
            requests: Budget::new(MAX_HELD_BYTES),
            answers: Budget::new(MAX_HELD_BYTES),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.executor.config()
    }

    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(cors) = &self.config().cors else { return self.answer(request).await };
        let answer = service_fn(|request| async { Ok(self.answer(request).await) });
        let answered: Result<_, Infallible> = cors.layer(answer).oneshot(request).await;
        answered.unwrap_or_else(|never| match never {})
    }

    async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path().to_owned();
        if let Err(failure) = self.admit(&request, &path) {
            return recorded(refusal(&failure), Record::refused(&failure));
        }
        match (request.method(), path.as_str()) {
            (&Method::POST, "/execute") => match self.execute(request).await {
                Ok(execution) => self.executed(&execution),
                Err(failure) => recorded(refusal(&failure), Record::refused(&failure)),
            },
            (&Method::GET | &Method::HEAD, "/") => index(),
            (&Method::GET | &Method::HEAD, "/health") => self.health(),
            (&Method::GET | &Method::HEAD, "/about") => self.about(),
            (&Method::GET | &Method::HEAD, "/openapi.yaml") => openapi(),
            (_, "/execute") => method_not_allowed("POST"),
            (_, "/" | "/health" | "/about" | "/openapi.yaml") => method_not_allowed("GET, HEAD"),
            _ => refusal(&Failure::new(Kind::NotFound, format!("There is no {path} here"))),
        }
    }

    /// Refuses who has no key, or comes too often. Before anything of a body is read: strangers must not fill the memory.
    fn admit<B>(&self, request: &Request<B>, path: &str) -> Result<(), Failure> {
        if !GUARDED.contains(&path) || request.extensions().get::<Trusted>().is_some() {
            return Ok(());
        }
        let client = request.extensions().get::<Client>();
        let mut caller = client.map_or(Caller::Others, |client| Caller::Address(client.network()));
        if let Some(keys) = &self.config().keys {
            let key = keys.admit(request.headers().get(AUTHORIZATION)).ok_or_else(|| {
                Failure::new(Kind::Unauthorized, "This endpoint takes an API key")
            })?;
            caller = Caller::Key(key);
        }
        match &self.rate {
            Some(rate) if path == "/execute" => rate.count(caller).map_err(rate_limited),
            _ => Ok(()),
        }
    }

    async fn execute<B>(&self, request: Request<B>) -> Result<Execution, Failure>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let config = self.executor.config();
        let media = media_type(request.headers())?;
        let asked_first = request.headers().contains_key(EXPECT);
        let deadline = request.extensions().get::<Deadline>().copied();
        let mut held = self.requests.nothing();
        let body = read(request.into_body(), asked_first, &mut held).await?;
        let request = match media {
            Media::Json => ExecuteRequest::from_json(&body, config.max_script_bytes)?,
            Media::Python => ExecuteRequest::from_python(&body, config.max_script_bytes)?,
        };
        drop(body);
        check_room(&request.files, config)?;
        let job =
            Job { deadline: deadline.map(|deadline| deadline.0), ..Job::new(request, config) };
        self.executor.execute(job).await
    }

    fn executed(&self, execution: &Execution) -> Response<Full<Bytes>> {
        let truncated = [("stdout", &execution.stdout), ("stderr", &execution.stderr)]
            .into_iter()
            .filter(|(_, captured)| captured.truncated)
            .map(|(name, _)| name)
            .collect();
        let mut held = self.answers.nothing();
        if !held.grow(execution.bytes()) {
            let error = "Too many answers wait for their clients to take them";
            let failure = Failure::new(Kind::Busy, error);
            return recorded(refusal(&failure), Record::refused(&failure));
        }
        let mut response = match &execution.outcome {
            Ok(returned) => respond_sized(
                StatusCode::OK,
                &Success {
                    result: &returned.result,
                    stdout: text(&execution.stdout),
                    stderr: text(&execution.stderr),
                    files: &returned.files,
                    truncated,
                },
                execution.bytes(),
            ),
            Err(failure) => respond(
                failure.kind.status(),
                &Error {
                    error: &failure.error,
                    kind: failure.kind,
                    stdout: text(&execution.stdout),
                    traceback: failure.traceback.as_deref(),
                    line: failure.line,
                    stderr: text(&execution.stderr),
                    truncated,
                },
            ),
        };
        let timing = format!(
            "queue;dur={:.3}, run;dur={:.3}, cpu;dur={:.3}",
            milliseconds(execution.queue),
            milliseconds(execution.run),
            milliseconds(execution.cpu),
        );
        let headers = response.headers_mut();
        if let Ok(timing) = HeaderValue::from_str(&timing) {
            headers.insert(SERVER_TIMING, timing);
        }
        headers.insert(PEAK_MEMORY, HeaderValue::from(execution.peak_memory));
        headers.insert(ISOLATION, HeaderValue::from_static(self.executor.sandbox().tier_name()));
        recorded(response.map(|body| held.until_gone(body)), Record::of(execution))
    }

    fn health(&self) -> Response<Full<Bytes>> {
        match self.executor.health() {
            Health::Healthy => respond(StatusCode::OK, &json!({"status": "healthy"})),
            Health::Starting => {
                respond(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "starting"}))
            }
            Health::Unhealthy(why) => respond(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"status": "unhealthy", "error": why}),
            ),
        }
    }

    fn about(&self) -> Response<Full<Bytes>> {
        let config = self.executor.config();
        let zygote = self.executor.zygote();
        let sandbox = self.executor.sandbox();
        respond(
            StatusCode::OK,
            &json!({
                "version": env!("CARGO_PKG_VERSION"),
                "python": zygote.as_ref().map(|zygote| &zygote.python),
                "packages": zygote.as_ref().map(|zygote| &zygote.packages),
                "isolation": {"tier": sandbox.tier_name(), "layers": sandbox.layers},
                "limits": {
                    "timeout_seconds": config.timeout.as_secs_f64(),
                    "memory_mb": config.memory_bytes >> 20,
                    "concurrency": config.concurrency,
                    "queue": config.queue,
                    "max_body_bytes": MAX_BODY_BYTES,
                    "max_script_bytes": config.max_script_bytes,
                    "max_stdout_bytes": config.max_stdout_bytes,
                    "max_result_bytes": config.max_result_bytes,
                    "max_files": MAX_FILES,
                    "max_files_bytes": config.max_files_bytes,
                    "scratch_mb": config.scratch_bytes >> 20,
                },
                "policy": config.policy.name(),
            }),
        )
    }
}

fn recorded(mut response: Response<Full<Bytes>>, record: Record) -> Response<Full<Bytes>> {
    response.extensions_mut().insert(record);
    response
}

enum Media {
    Json,
    Python,
}

fn rate_limited(wait: Duration) -> Failure {
    let seconds = wait.as_secs_f64().ceil() as u64;
    let error = format!("Too many requests; the next may come in {seconds} seconds");
    Failure { retry_after: Some(seconds), ..Failure::new(Kind::RateLimited, error) }
}

fn media_type(headers: &HeaderMap) -> Result<Media, Failure> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(Media::Json)
    } else if essence.eq_ignore_ascii_case("text/x-python") {
        Ok(Media::Python)
    } else {
        Err(Failure::new(
            Kind::UnsupportedMediaType,
            "Content-Type must be application/json, or text/x-python for a bare script",
        ))
    }
}

/// Reads a body. One that is too large is read on for a while and thrown away, so that a client that sends before it
/// listens gets its answer; one that asked whether to send gets it at once.
async fn read<B>(body: B, asked_first: bool, held: &mut Held) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let error = format!("The body is larger than its limit of {MAX_BODY_BYTES} bytes");
        Failure::new(Kind::PayloadTooLarge, error)
    };
    if asked_first && body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let collect = async {
        let mut body = std::pin::pin!(body);
        let (mut kept, mut length) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                invalid(format!("The body could not be read: {}", error.into()))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length <= MAX_BODY_BYTES {
                if !held.grow(data.len()) {
                    return Err(Failure::new(Kind::Busy, "Too many requests are held in memory"));
                }
                kept.extend_from_slice(&data);
            } else if length <= MAX_DISCARDED_BYTES {
                kept = Vec::new();
            } else {
                break;
            }
        }
        if length <= MAX_BODY_BYTES { Ok(Bytes::from(kept)) } else { Err(too_large()) }
    };
    tokio::time::timeout(BODY_TIMEOUT, collect).await.unwrap_or_else(|_| {
        let seconds = BODY_TIMEOUT.as_secs();
        Err(invalid(format!("The body did not arrive within {seconds} seconds")))
    })
}

/// Before a worker is used up for files that it could not lay.
fn check_room(files: &Files, config: &Config) -> Result<(), Failure> {
    let (wanted, room) = (files.bytes_on_disk(), config.scratch_bytes);
    if wanted <= room {
        return Ok(());
    }
    let error = format!("The files take {wanted} bytes; the scratch directory has {room}");
    Err(Failure::new(Kind::PayloadTooLarge, error))
}

fn text(captured: &Captured) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&captured.bytes)
}

fn index() -> Response<Full<Bytes>> {
    let endpoints: serde_json::Map<_, _> =
        ENDPOINTS.iter().map(|(name, what)| (String::from(*name), json!(what))).collect();
    respond(
        StatusCode::OK,
        &json!({"name": "mainbox", "version": env!("CARGO_PKG_VERSION"), "endpoints": endpoints}),
    )
}

fn openapi() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(OPENAPI.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, YAML);
    response
}

fn method_not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let error = format!("This endpoint takes {allowed}");
    let mut response = refusal(&Failure::new(Kind::MethodNotAllowed, error));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// An answer to a request that was not run.
pub(crate) fn refusal(failure: &Failure) -> Response<Full<Bytes>> {
    let mut response = respond(
        failure.kind.status(),
        &Error {
            error: &failure.error,
            kind: failure.kind,
            stdout: "".into(),
            traceback: None,
            line: None,
            stderr: "".into(),
            truncated: vec![],
        },
    );
    if let Some(seconds) = failure.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if failure.kind == Kind::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn respond(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    respond_sized(status, body, 0)
}

/// A response that has about `expected` bytes: a large one is not to be moved while it grows.
fn respond_sized(
    status: StatusCode,
    body: &impl serde::Serialize,
    expected: usize,
) -> Response<Full<Bytes>> {
    let mut text = Vec::with_capacity(expected + 256);
    serde_json::to_writer(&mut text, body).expect("BUG: answers are plain data");
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}
