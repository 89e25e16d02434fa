//! The handler: takes a request and returns a response. It knows neither sockets nor AWS Lambda; a front
//! ([`crate::front`]) or the command line ([`crate::cli`]) calls it.

pub mod body;
mod cors;
mod events;
mod execute;
mod inputs;
mod live;
pub mod mcp;
pub mod memory_budget;
pub mod pace;
mod playground;
mod request_body;
pub mod response;
mod routes;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, VARY};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

use self::body::Body;
use self::mcp::OverStdio;
use self::memory_budget::MemoryBudget;
use self::request_body::MAX_BODY_BYTES;
use self::response::{JSON, Responses, document};
use self::routes::{ENDPOINTS, Endpoint, MCP, Route};
use crate::api::catalogue::{Failure, Kind};
use crate::api::files::MAX_FILES;
use crate::api::text::quoted;
use crate::callers::client_ip::ClientIp;
use crate::callers::rate_limit::{Caller, RateLimit};
use crate::config::Config;
use crate::executor::{Executor, Health};
use crate::telemetry::prometheus;

/// The limit on the size of all requests in memory together, bytes. Further requests get `busy`.
const MAX_HELD_BYTES: usize = 64 << 20;

/// The API as an OpenAPI document.
const OPENAPI: &str = include_str!("../../openapi.yaml");
/// The same as JSON; build.rs converts it.
const OPENAPI_JSON: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));
/// The media type of YAML: <https://www.rfc-editor.org/rfc/rfc9512>.
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
    mcp_cors: Option<CorsLayer>,
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
            cors: cors::layer(config),
            mcp_cors: cors::mcp_layer(config),
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

    /// How many scripts can run at once.
    pub fn slots(&self) -> usize {
        self.executor.slots()
    }

    /// Builds the responses of this handler, for a front that refuses a request by itself.
    pub fn responses(&self) -> &Responses {
        &self.responses
    }

    /// Answers one request. It never fails: a failure is a response too.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let is_mcp = request.uri().path() == MCP;
        let cors = if is_mcp { &self.mcp_cors } else { &self.cors };
        let Some(cors) = cors else { return self.route(request).await };
        let route = service_fn(|request| async { Ok(self.route(request).await) });
        let response: Result<_, Infallible> = cors.layer(route).oneshot(request).await;
        response.unwrap_or_else(|never| match never {})
    }

    async fn route<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        let serves_mcp = self.config().mcp || request.extensions().get::<OverStdio>().is_some();
        let endpoint =
            Endpoint::at(path).filter(|endpoint| endpoint.route != Route::Mcp || serves_mcp);
        let Some(endpoint) = endpoint else {
            let error = format!("The endpoint {} does not exist", quoted(path));
            let failure = Failure::new(Kind::NotFound, error);
            return self.responses.failure(&failure);
        };
        let caller = match self.identify(&request, endpoint) {
            Ok(caller) => caller,
            Err(failure) => return self.refuse(endpoint, &failure),
        };
        if !endpoint.accepts(request.method()) {
            return self.responses.method_not_allowed(endpoint.allowed());
        }
        match endpoint.route {
            Route::Execute => self.execute(request, caller).await,
            // Boxed, since every connection has room for the largest answer in the making.
            Route::Mcp => Box::pin(self.mcp(request, caller)).await,
            Route::Root => self.root(request.headers()),
            Route::Health | Route::Ready => self.health(),
            Route::Live => self.liveness(),
            Route::About => self.about(),
            Route::Metrics => self.metrics(),
            Route::OpenApi => document(YAML, OPENAPI),
            Route::OpenApiJson => document(JSON, OPENAPI_JSON),
        }
    }

    /// The response to a request that is refused before it is read, in the form of its endpoint.
    fn refuse(&self, endpoint: &Endpoint, failure: &Failure) -> Response<Body> {
        match endpoint.route {
            Route::Execute => self.responses.refusal(failure),
            Route::Mcp => self.responses.rpc_refusal(None, failure),
            _ => self.responses.failure(failure),
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
        cors::check_page(request, self.config(), endpoint.route)?;
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

    fn root(&self, headers: &HeaderMap) -> Response<Body> {
        let is_browser = self.config().playground && playground::is_wanted(headers);
        let mut response = if is_browser { playground::page() } else { self.index() };
        response.headers_mut().insert(VARY, HeaderValue::from_name(ACCEPT));
        response
    }

    fn index(&self) -> Response<Body> {
        let is_served = |endpoint: &&Endpoint| endpoint.route != Route::Mcp || self.config().mcp;
        let listed = ENDPOINTS.iter().filter(|endpoint| !endpoint.purpose.is_empty());
        let listed = listed.filter(is_served);
        let endpoints: serde_json::Map<_, _> = listed
            .map(|endpoint| {
                (format!("{} {}", endpoint.method, endpoint.path), json!(endpoint.purpose))
            })
            .collect();
        let body = json!({"name": "mainbox", "version": env!("CARGO_PKG_VERSION"), "endpoints": endpoints});
        self.responses.json(StatusCode::OK, &body)
    }

    fn health(&self) -> Response<Body> {
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
    fn liveness(&self) -> Response<Body> {
        match self.executor.needs_restart() {
            None => self.responses.json(StatusCode::OK, &json!({"status": "alive"})),
            Some(reason) => self.responses.json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"status": "unhealthy", "error": reason}),
            ),
        }
    }

    fn about(&self) -> Response<Body> {
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
                    "max_inputs": config.max_inputs,
                    "max_stdout_bytes": config.max_stdout_bytes,
                    "max_result_bytes": config.max_result_bytes,
                    "max_files": MAX_FILES,
                    "max_files_bytes": config.max_files_bytes,
                    "scratch_mb": config.scratch_bytes >> 20,
                },
                "policy": config.policy.name(),
                "mcp": config.mcp,
            }),
        )
    }

    fn metrics(&self) -> Response<Body> {
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
