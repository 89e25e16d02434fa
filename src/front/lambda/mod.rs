//! The AWS Lambda front: a custom runtime around the handler, without an HTTP server in between.
//!
//! An environment gets one request at a time and is frozen as soon as the runtime asks for the next one. All work that
//! follows a request is therefore done after its response is sent and before the next request is fetched.

pub mod event;
mod log;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::Response;
use lambda_http::lambda_runtime::{FunctionResponse, Runtime};
use lambda_http::tower::util::ThenLayer;
use lambda_http::{BoxFuture, Context, Error, LambdaEvent, SnapStartResource, service_fn};
use serde_json::value::RawValue;
use tracing::Instrument;

use self::event::Form;
use self::log::InvocationLog;
use self::stream::{Pieces, Sending};
use crate::api::catalogue::{Failure, Kind};
use crate::api::response::REQUEST_ID;
use crate::api::text::quoted;
use crate::callers::client_ip::ClientIp;
use crate::config::LAMBDA_RESPONSE_BYTES;
use crate::config::choices::InvokeMode;
use crate::executor::Executor;
use crate::handler::body::Body;
use crate::handler::{Deadline, Handler};
use crate::telemetry::execution_record::milliseconds;
use crate::telemetry::log as service_log;
use crate::telemetry::lossy_writer::LossyWriter;
use crate::telemetry::request_id::RequestId;

/// How long the initialization waits for everything to be ready. Lambda allows 10 seconds and then starts again:
/// <https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html>.
const INIT_TIMEOUT: Duration = Duration::from_millis(7500);
/// How much of an invocation's time is reserved for sending the response.
const RESPONSE_TIME: Duration = Duration::from_millis(500);
/// How long the end of an invocation waits for metrics to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// The initialization type before a snapshot. It has no limit of 10 seconds.
const SNAP_START: &str = "snap-start";

/// Why the runtime ends: the runtime API failed, or the environment must not serve another request. Lambda then starts
/// a new environment.
#[derive(Debug, thiserror::Error)]
#[error("this environment ends: {0}")]
pub struct LambdaError(Error);

/// Serves invocations until [`Executor::settle`] fails after one, or until the runtime API fails.
///
/// # Errors
/// See [`LambdaError`]. It does not return otherwise.
pub async fn serve(executor: Arc<Executor>, handler: Handler) -> Result<(), LambdaError> {
    initialize(&executor).await;
    let settled = Arc::clone(&executor);
    let panicked = Arc::new(AtomicBool::new(false));
    let guard = PanicGuard(Arc::clone(&panicked));
    let metrics = LossyWriter::start(std::io::stdout(), |lost| {
        tracing::warn!(lost, "metrics were lost, since stdout was not read in time");
    });
    let metrics = Arc::new(metrics.map_err(|error| LambdaError(error.into()))?);
    let front = Front { handler, metrics, sending: Sending::default() };
    let sent = front.clone();
    let runtime =
        Runtime::new(service_fn(move |event| invoke(front.clone(), guard.clone(), event)))
            .layer(ThenLayer::new(move |outcome| {
                settle(
                    Arc::clone(&settled),
                    sent.clone(),
                    panicked.load(Ordering::Relaxed),
                    outcome,
                )
            }))
            .register_snapstart_resource(Arc::new(Spares(executor)));
    runtime.run().await.map_err(LambdaError)
}

/// Waits until everything is ready, for at most [`INIT_TIMEOUT`]. The first request waits for the rest.
async fn initialize(executor: &Executor) {
    let began = Instant::now();
    let ready = async {
        executor.self_test_results().await;
        executor.settle().await
    };
    if std::env::var("AWS_LAMBDA_INITIALIZATION_TYPE").is_ok_and(|kind| kind == SNAP_START) {
        if let Err(error) = ready.await {
            tracing::error!(%error, "not ready for the snapshot");
        }
        return;
    }
    match tokio::time::timeout(INIT_TIMEOUT, ready).await {
        Ok(Ok(())) => tracing::info!(took_ms = milliseconds(began.elapsed()), "ready"),
        Ok(Err(error)) => tracing::error!(%error, "not ready"),
        Err(_) => tracing::warn!("not ready yet; the first request waits"),
    }
}

/// Records that an invocation panicked. The runtime turns a panic into an error of the invocation and would go on.
#[derive(Clone)]
struct PanicGuard(Arc<AtomicBool>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// What every invocation needs.
#[derive(Clone)]
struct Front {
    handler: Handler,
    metrics: Arc<LossyWriter>,
    sending: Sending,
}

async fn invoke(
    front: Front,
    _guard: PanicGuard,
    event: LambdaEvent<Box<RawValue>>,
) -> Result<FunctionResponse<Box<RawValue>, Pieces>, Error> {
    let (event, context) = event.into_parts();
    // The name that AWS's own log lines use.
    let span = tracing::error_span!("request", requestId = context.request_id);
    Ok(front.respond(event, context).instrument(span).await)
}

impl Front {
    async fn respond(
        &self,
        event: Box<RawValue>,
        context: Context,
    ) -> FunctionResponse<Box<RawValue>, Pieces> {
        let form = event::form(&event);
        let mut response = self.handle(form, &event, &context).await;
        drop(event);
        if let Some(id) = RequestId::accept(&context.request_id) {
            response.headers_mut().insert(REQUEST_ID, id.header());
        }
        let config = self.handler.config();
        let extensions = response.extensions().clone();
        let status = response.status();
        let mut log =
            InvocationLog::new(context, &self.metrics, config.metrics, status, &extensions);
        // A bare event comes from no URL, and its caller wants the body alone.
        if config.invoke_mode == InvokeMode::ResponseStream && form == Form::Http {
            let streamed = self.sending.streamed(response, log).await;
            return FunctionResponse::StreamingResponse(streamed);
        }
        let mut wrapped = event::response(form, buffered(response).await);
        let length = wrapped.get().len();
        if length > LAMBDA_RESPONSE_BYTES {
            let error = format!(
                "The response has {length} bytes as wrapped for AWS Lambda; the limit is {LAMBDA_RESPONSE_BYTES}"
            );
            let failure = Failure::new(Kind::ResultTooLarge, error);
            let response = self.handler.responses().instead_of(&extensions, &failure);
            log.replace(response.status(), failure.kind);
            wrapped = event::response(form, buffered(response).await);
        }
        FunctionResponse::BufferedResponse(wrapped)
    }

    async fn handle(&self, form: Form, event: &RawValue, context: &Context) -> Response<Body> {
        let mut request = match event::request(form, event) {
            Ok(request) => request,
            Err(error) => {
                let failure = Failure::invalid_request(quoted(&error.to_string()));
                return self.handler.responses().refusal(&failure);
            }
        };
        request.extensions_mut().insert(deadline(context));
        let caller = request.extensions().get().map(|ClientIp(address)| *address);
        let client = ClientIp::of(request.headers(), caller, self.handler.config().proxies);
        if let Some(client) = client {
            request.extensions_mut().insert(client);
        }
        self.handler.handle(request).await
    }
}

async fn buffered(response: Response<Body>) -> Response<Vec<u8>> {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, body.collected().await)
}

/// When Lambda ends the invocation, less the time to send the response.
fn deadline(context: &Context) -> Deadline {
    let left = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    Deadline(Instant::now() + left.saturating_sub(RESPONSE_TIME))
}

/// Runs after each response has been sent.
async fn settle(
    executor: Arc<Executor>,
    front: Front,
    panicked: bool,
    sent: Result<(), Error>,
) -> Result<(), Error> {
    sent?;
    front.sending.ended().await;
    // The environment may be frozen next. On another thread, since this waits for the reader of the log.
    let flush = move || {
        service_log::flush();
        front.metrics.flush(FLUSH_TIMEOUT);
    };
    let _ = tokio::task::spawn_blocking(flush).await;
    if panicked {
        return Err("the supervisor panicked".into());
    }
    Ok(executor.settle().await?)
}

/// Ends the spares before a snapshot: environments restored from it must not share a worker and its random state.
struct Spares(Arc<Executor>);

impl SnapStartResource for Spares {
    fn before_snapshot(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            self.0.retire_spares().await;
            Ok(())
        })
    }

    fn after_restore(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(self.0.renew_spares().await?) })
    }
}
