//! The handler: takes a request and returns a response. It knows neither sockets nor AWS Lambda; a front
//! ([`crate::front`]) or the command line ([`crate::cli`]) calls it.

mod cors;
pub mod memory_budget;
pub mod pace;
mod playground;
mod request_body;
pub mod response;
mod routes;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, EXPECT, VARY};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

use self::memory_budget::MemoryBudget;
use self::request_body::{MAX_BODY_BYTES, Media, media_type, read};
use self::response::{Responses, document};
use self::routes::{ENDPOINTS, Endpoint, Route};
use crate::api::catalogue::{Failure, Kind};
use crate::api::files::{Files, MAX_FILES};
use crate::api::request::ExecuteRequest;
use crate::api::text::quoted;
use crate::callers::client_ip::ClientIp;
use crate::callers::rate_limit::{Caller, RateLimit};
use crate::config::Config;
use crate::executor::outcome::Execution;
use crate::executor::output_capture::OutputSink;
use crate::executor::{Executor, Health, Job};
use crate::telemetry::progress::Progress;
use crate::telemetry::prometheus::{self, Metrics};

/// The limit on the size of all requests in memory together, bytes. Further requests get `busy`.
const MAX_HELD_BYTES: usize = 64 << 20;

/// The API as an OpenAPI document.
const OPENAPI: &str = include_str!("../../openapi.yaml");
/// Its media type: <https://www.rfc-editor.org/rfc/rfc9512>.
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");

/// When the platform ends the request. A front attaches it to a request as an extension.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// Marks a request that needs no API key, since it comes from the command line or was authenticated by AWS IAM. A front
/// attaches it to a request as an extension.
#[derive(Clone, Copy, Debug)]
pub struct Trusted;

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    executor: Arc<Executor>,
    cors: Option<CorsLayer>,
    rate_limit: Option<Arc<RateLimit>>,
    /// The memory budget of requests, each from its first byte until its script ends.
    requests: MemoryBudget,
    responses: Responses,
}

impl Handler {
    /// A handler that runs scripts with `executor`.
    pub fn new(executor: Arc<Executor>) -> Handler {
        let config = executor.config();
        Handler {
            cors: config.cors.as_ref().map(cors::layer),
            rate_limit: config.rate.map(|rate| Arc::new(RateLimit::new(rate))),
            requests: MemoryBudget::new(MAX_HELD_BYTES),
            responses: Responses::new(Arc::clone(&executor)),
            executor,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.executor.config()
    }

    /// Builds the responses of this handler, for a front that refuses a request by itself.
    pub fn responses(&self) -> &Responses {
        &self.responses
    }

    /// Answers one request. It never fails: a failure is a response too.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(cors) = &self.cors else { return self.route(request).await };
        let route = service_fn(|request| async { Ok(self.route(request).await) });
        let response: Result<_, Infallible> = cors.layer(route).oneshot(request).await;
        response.unwrap_or_else(|never| match never {})
    }

    async fn route<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        let Some(endpoint) = Endpoint::at(path) else {
            let error = format!("The endpoint {} does not exist", quoted(path));
            let failure = Failure::new(Kind::NotFound, error);
            return self.responses.failure(&failure);
        };
        let caller = match self.identify(&request, endpoint) {
            Ok(caller) => caller,
            Err(failure) if endpoint.route == Route::Execute => {
                return self.responses.refusal(&failure);
            }
            Err(failure) => return self.responses.failure(&failure),
        };
        if !endpoint.accepts(request.method()) {
            return self.responses.method_not_allowed(endpoint.allowed());
        }
        match endpoint.route {
            Route::Execute => match self.execute(request, caller).await {
                Ok(execution) => self.responses.execution(&execution, caller),
                Err(failure) => self.responses.refusal(&failure),
            },
            Route::Root => self.root(request.headers()),
            Route::Health | Route::Ready => self.health(),
            Route::Live => self.liveness(),
            Route::About => self.about(),
            Route::Metrics => self.metrics(),
            Route::OpenApi => document(YAML, OPENAPI),
        }
    }

    /// Checks the web page and the API key, and returns the caller to count the request for; `None` for a trusted request.
    fn identify<B>(
        &self,
        request: &Request<B>,
        endpoint: &Endpoint,
    ) -> Result<Option<Caller>, Failure> {
        if request.extensions().get::<Trusted>().is_some() {
            return Ok(None);
        }
        cors::check_page(request, self.config())?;
        let keys = self.config().api_keys.as_ref().filter(|_| endpoint.needs_key);
        if let Some(keys) = keys {
            let authorization = request.headers().get(AUTHORIZATION);
            let key = keys.find(authorization).ok_or_else(|| {
                let error = match authorization {
                    Some(_) => "Unknown API key",
                    None => "This endpoint requires an API key",
                };
                Failure::new(Kind::Unauthorized, error)
            })?;
            return Ok(Some(Caller::Key(key)));
        }
        let client = request.extensions().get::<ClientIp>();
        Ok(Some(client.map_or(Caller::Shared(0), |client| Caller::Address(client.network()))))
    }

    /// Runs a script within the rate of its caller. The rate is checked before the body is read, so a caller over its
    /// rate cannot fill the memory. A request that is refused as `busy` does not count.
    async fn execute<B>(
        &self,
        request: Request<B>,
        caller: Option<Caller>,
    ) -> Result<Execution, Failure>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (Some(rate_limit), Some(caller)) = (&self.rate_limit, caller) else {
            return self.execute_now(request, caller).await;
        };
        let token = rate_limit.take(caller).map_err(rate_limited)?;
        let execution = self.execute_now(request, Some(caller)).await;
        if execution.as_ref().is_err_and(|failure| failure.kind == Kind::Busy) {
            rate_limit.give_back(token);
        }
        execution
    }

    /// Runs a script.
    async fn execute_now<B>(
        &self,
        request: Request<B>,
        caller: Option<Caller>,
    ) -> Result<Execution, Failure>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let config = self.executor.config();
        let media = media_type(request.headers())?;
        let expects_continue = request.headers().contains_key(EXPECT);
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let output_sink = request.extensions().get::<OutputSink>().cloned();
        let progress = request.extensions().get::<Progress>().cloned().unwrap_or_default();
        let mut reservation = self.requests.reservation(caller);
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = read(request.into_body(), expects_continue, &mut reservation).await?;
        let request = match media {
            Media::Json => ExecuteRequest::from_json(&body, config.max_script_bytes),
            Media::Python => ExecuteRequest::from_python(&body, config.max_script_bytes),
        };
        let request = request?.with_query(&query, config.max_script_bytes)?;
        drop(body);
        check_scratch_room(&request.files, config)?;
        let job = Job { deadline, output_sink, progress, ..Job::new(request, config) };
        let cancelled = CancelGuard(Some(self.executor.metrics()));
        let execution = self.executor.execute(job).await;
        cancelled.disarm();
        execution
    }

    fn root(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let is_browser = self.config().playground && playground::is_wanted(headers);
        let mut response = if is_browser { playground::page() } else { self.index() };
        response.headers_mut().insert(VARY, HeaderValue::from_name(ACCEPT));
        response
    }

    fn index(&self) -> Response<Full<Bytes>> {
        let listed = ENDPOINTS.iter().filter(|endpoint| !endpoint.purpose.is_empty());
        let endpoints: serde_json::Map<_, _> = listed
            .map(|endpoint| {
                (format!("{} {}", endpoint.method, endpoint.path), json!(endpoint.purpose))
            })
            .collect();
        let body = json!({"name": "mainbox", "version": env!("CARGO_PKG_VERSION"), "endpoints": endpoints});
        self.responses.json(StatusCode::OK, &body)
    }

    fn health(&self) -> Response<Full<Bytes>> {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match self.executor.health() {
            Health::Healthy => self.responses.json(StatusCode::OK, &json!({"status": "healthy"})),
            Health::Starting => self.responses.json(unavailable, &json!({"status": "starting"})),
            Health::Unhealthy(reason) => {
                let body = json!({"status": "unhealthy", "error": reason});
                self.responses.json(unavailable, &body)
            }
        }
    }

    /// A process that answers is alive, unless only a restart can help it.
    fn liveness(&self) -> Response<Full<Bytes>> {
        match self.executor.needs_restart() {
            None => self.responses.json(StatusCode::OK, &json!({"status": "alive"})),
            Some(reason) => self.responses.json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"status": "unhealthy", "error": reason}),
            ),
        }
    }

    fn about(&self) -> Response<Full<Bytes>> {
        let config = self.executor.config();
        let zygote = self.executor.zygote();
        let sandbox = self.executor.sandbox();
        self.responses.json(
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
                    "queue_seconds": config.queue_timeout.as_secs(),
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
        match self.executor.updated_metrics().text() {
            Ok(text) => self.responses.text(HeaderValue::from_static(prometheus::MEDIA_TYPE), text),
            Err(error) => {
                tracing::error!(%error, "cannot encode the metrics");
                let failure = Failure::new(Kind::Internal, "The metrics could not be encoded");
                self.responses.failure(&failure)
            }
        }
    }
}

/// Counts the request as cancelled if the guard is dropped before [`CancelGuard::disarm`], which happens when the
/// client disconnects.
struct CancelGuard<'a>(Option<&'a Metrics>);

impl CancelGuard<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            metrics.count_cancelled();
        }
    }
}

fn rate_limited(wait: Duration) -> Failure {
    let seconds = (wait.as_secs_f64().ceil() as u64).max(1);
    let unit = if seconds == 1 { "second" } else { "seconds" };
    let error = format!("Too many requests; retry in {seconds} {unit}");
    Failure { retry_after: Some(seconds), ..Failure::new(Kind::RateLimited, error) }
}

/// Refuses files that do not fit in the scratch directory, before a worker is taken for them.
fn check_scratch_room(files: &Files, config: &Config) -> Result<(), Failure> {
    let (needed, room) = (files.bytes_on_disk(), config.scratch_bytes);
    if needed <= room {
        return Ok(());
    }
    let error = format!("The files need {needed} bytes; the scratch directory has {room}");
    Err(Failure::new(Kind::PayloadTooLarge, error))
}
