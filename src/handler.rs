//! THE handler: a request in, a response out. It knows nothing of Lambda or of sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, EXPECT, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};

use crate::answer::{Answers, document, json};
use crate::api::{ExecuteRequest, Failure, Kind};
use crate::body::{MAX_BODY_BYTES, Media, media_type, read};
use crate::budget::Budget;
use crate::client::Client;
use crate::config::Config;
use crate::executor::outcome::{Execution, Live};
use crate::executor::{Executor, Health, Job};
use crate::files::{Files, MAX_FILES};
use crate::metrics::{self, Metrics};
use crate::page;
use crate::rate::{Caller, RateLimit};

/// Bytes of all requests together that are held at a time; what comes on top is `busy`.
const MAX_HELD_BYTES: usize = 64 << 20;

/// The contract as OpenAPI has it.
const OPENAPI: &str = include_str!("../openapi.yaml");
/// Its media type: <https://www.rfc-editor.org/rfc/rfc9512>.
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");

/// When a platform ends the request, whatever it does by then. A front sets it as an extension of its request.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// A request of whoever may start this process anyway, or whom the platform has let in: it needs no API key. A front sets
/// it as an extension of its request.
#[derive(Clone, Copy, Debug)]
pub struct Trusted;

/// Answers requests; cheap to clone.
#[derive(Clone)]
pub struct Handler {
    executor: Arc<Executor>,
    rate: Option<Arc<RateLimit>>,
    /// For requests, while they come, wait and run.
    requests: Budget,
    answers: Answers,
}

/// What answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Execute,
    Root,
    Health,
    About,
    Metrics,
    OpenApi,
}

/// What can be asked.
struct Endpoint {
    route: Route,
    path: &'static str,
    /// `GET` stands for `HEAD` too.
    method: &'static str,
    /// Whether it takes an API key, where there are some.
    guarded: bool,
    /// What it does, as the index tells it; nothing for the index itself.
    purpose: &'static str,
}

const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        route: Route::Execute,
        path: "/execute",
        method: "POST",
        guarded: true,
        purpose: "runs main() of a Python script and answers with its JSON and what it printed",
    },
    Endpoint { route: Route::Root, path: "/", method: "GET", guarded: false, purpose: "" },
    Endpoint {
        route: Route::Health,
        path: "/health",
        method: "GET",
        guarded: false,
        purpose: "whether scripts can be run",
    },
    Endpoint {
        route: Route::About,
        path: "/about",
        method: "GET",
        guarded: true,
        purpose: "versions, limits and the isolation in force",
    },
    Endpoint {
        route: Route::Metrics,
        path: "/metrics",
        method: "GET",
        guarded: true,
        purpose: "what is counted, for Prometheus",
    },
    Endpoint {
        route: Route::OpenApi,
        path: "/openapi.yaml",
        method: "GET",
        guarded: false,
        purpose: "this contract for programs",
    },
];

impl Endpoint {
    /// The methods that it takes, as `Allow` has them.
    fn allowed(&self) -> &'static str {
        if self.method == "GET" { "GET, HEAD" } else { self.method }
    }

    fn takes(&self, method: &Method) -> bool {
        method == self.method || (self.method == "GET" && method == Method::HEAD)
    }
}

impl Handler {
    /// A handler that runs scripts with `executor`.
    pub fn new(executor: Arc<Executor>) -> Handler {
        let rate = executor.config().rate;
        Handler {
            rate: rate.map(|rate| Arc::new(RateLimit::new(rate))),
            requests: Budget::new(MAX_HELD_BYTES),
            answers: Answers::new(Arc::clone(&executor)),
            executor,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.executor.config()
    }

    /// What it answers with.
    pub fn answers(&self) -> &Answers {
        &self.answers
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
        let path = request.uri().path();
        let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == path) else {
            let failure = Failure::new(Kind::NotFound, format!("There is no {path} here"));
            return self.answers.failed(&failure);
        };
        let caller = match self.admit(&request, endpoint) {
            Ok(caller) => caller,
            Err(failure) if endpoint.route == Route::Execute => {
                return self.answers.refused(&failure);
            }
            Err(failure) => return self.answers.failed(&failure),
        };
        if !endpoint.takes(request.method()) {
            return self.answers.method_not_allowed(endpoint.allowed());
        }
        match endpoint.route {
            Route::Execute => match self.execute(request, caller).await {
                Ok(execution) => self.answers.executed(&execution),
                Err(failure) => self.answers.refused(&failure),
            },
            Route::Root => self.root(request.headers()),
            Route::Health => self.health(),
            Route::About => self.about(),
            Route::Metrics => self.metrics(),
            Route::OpenApi => document(YAML, OPENAPI),
        }
    }

    /// Says who it is that asks, where somebody is to be counted.
    fn admit<B>(
        &self,
        request: &Request<B>,
        endpoint: &Endpoint,
    ) -> Result<Option<Caller>, Failure> {
        if request.extensions().get::<Trusted>().is_some() {
            return Ok(None);
        }
        let keys = self.config().keys.as_ref().filter(|_| endpoint.guarded);
        if let Some(keys) = keys {
            let brought = request.headers().get(AUTHORIZATION);
            let key = keys.admit(brought).ok_or_else(|| {
                let error = match brought {
                    Some(_) => "The API key is none of this service's",
                    None => "This endpoint takes an API key",
                };
                Failure::new(Kind::Unauthorized, error)
            })?;
            return Ok(Some(Caller::Key(key)));
        }
        let client = request.extensions().get::<Client>();
        Ok(Some(client.map_or(Caller::Others(0), |client| Caller::Address(client.network()))))
    }

    /// Before anything of the body is read: who comes too often must not fill the memory.
    async fn execute<B>(
        &self,
        request: Request<B>,
        caller: Option<Caller>,
    ) -> Result<Execution, Failure>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let (Some(rate), Some(caller)) = (&self.rate, caller) {
            rate.count(caller).map_err(rate_limited)?;
        }
        let config = self.executor.config();
        let media = media_type(request.headers())?;
        let asked_first = request.headers().contains_key(EXPECT);
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let live = request.extensions().get::<Live>().cloned();
        let mut held = self.requests.nothing();
        let body = read(request.into_body(), asked_first, &mut held).await?;
        let request = match media {
            Media::Json => ExecuteRequest::from_json(&body, config.max_script_bytes)?,
            Media::Python => ExecuteRequest::from_python(&body, config.max_script_bytes)?,
        };
        drop(body);
        check_room(&request.files, config)?;
        let job = Job { deadline, live, ..Job::new(request, config) };
        let left = Left(Some(self.executor.metrics()));
        let execution = self.executor.execute(job).await;
        left.stayed();
        execution
    }

    fn root(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let wanted = self.config().page && page::is_wanted(headers);
        let mut response = if wanted { page::page() } else { index() };
        response.headers_mut().insert(VARY, HeaderValue::from_name(ACCEPT));
        response
    }

    fn health(&self) -> Response<Full<Bytes>> {
        match self.executor.health() {
            Health::Healthy => json(StatusCode::OK, &json!({"status": "healthy"})),
            Health::Starting => {
                json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "starting"}))
            }
            Health::Unhealthy(why) => {
                json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "unhealthy", "error": why}))
            }
        }
    }

    fn about(&self) -> Response<Full<Bytes>> {
        let config = self.executor.config();
        let zygote = self.executor.zygote();
        let sandbox = self.executor.sandbox();
        json(
            StatusCode::OK,
            &json!({
                "version": env!("CARGO_PKG_VERSION"),
                "python": zygote.as_ref().map(|zygote| &zygote.python),
                "packages": zygote.as_ref().map(|zygote| &zygote.packages),
                "installed": zygote.as_ref().map(|zygote| &zygote.installed),
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

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.executor.measured().text() {
            Ok(text) => document(HeaderValue::from_static(metrics::MEDIA_TYPE), text),
            Err(error) => {
                tracing::error!(%error, "metrics cannot be written");
                let failure = Failure::new(Kind::Internal, "Metrics cannot be written");
                self.answers.failed(&failure)
            }
        }
    }
}

/// Counts a request as left by its client, if it is dropped as it is.
struct Left<'a>(Option<&'a Metrics>);

impl Left<'_> {
    fn stayed(mut self) {
        self.0 = None;
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            metrics.count_left();
        }
    }
}

fn rate_limited(wait: Duration) -> Failure {
    let seconds = (wait.as_secs_f64().ceil() as u64).max(1);
    let error = format!("Too many requests; the next may come in {seconds} seconds");
    Failure { retry_after: Some(seconds), ..Failure::new(Kind::RateLimited, error) }
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

fn index() -> Response<Full<Bytes>> {
    let listed = ENDPOINTS.iter().filter(|endpoint| !endpoint.purpose.is_empty());
    let endpoints: serde_json::Map<_, _> = listed
        .map(|endpoint| (format!("{} {}", endpoint.method, endpoint.path), json!(endpoint.purpose)))
        .collect();
    json(
        StatusCode::OK,
        &json!({"name": "mainbox", "version": env!("CARGO_PKG_VERSION"), "endpoints": endpoints}),
    )
}
