//! The Lambda front: a custom runtime around the same handler, without an HTTP hop.
//!
//! An environment gets one request at a time and is frozen as soon as it asks for the next. So whatever has to be done
//! after a request is done after its answer has been sent and before the next is asked for.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use lambda_http::lambda_runtime::Runtime;
use lambda_http::tower::util::ThenLayer;
use lambda_http::{BoxFuture, Context, Error, LambdaEvent, SnapStartResource, service_fn};
use serde_json::value::RawValue;

use super::event;
use crate::api::{Failure, Kind, invalid};
use crate::client::Client;
use crate::config::{LAMBDA_ANSWER_BYTES, Metrics};
use crate::emf;
use crate::executor::Executor;
use crate::handler::{Deadline, Handler};
use crate::record::{Record, milliseconds};

/// How long the first request may be kept waiting for everything to be ready. Lambda allows 10 seconds for an
/// initialisation and then begins again: <https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html>.
const INIT_PATIENCE: Duration = Duration::from_millis(7500);
/// Kept of the time that Lambda gives, to answer in.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// The kind of initialisation that has none of its 10 seconds: a snapshot is taken at its end.
const SNAP_START: &str = "snap-start";

/// Why the runtime ends: Lambda's interface failed, or this environment must not serve another request. Lambda makes a
/// new one then.
#[derive(Debug, thiserror::Error)]
#[error("this environment ends: {0}")]
pub struct LambdaError(Error);

/// Serves invocations until one leaves something behind, or Lambda's interface fails.
///
/// # Errors
/// Always in the end.
pub async fn serve(executor: Arc<Executor>, handler: Handler) -> Result<(), LambdaError> {
    initialise(&executor).await;
    let settled = Arc::clone(&executor);
    let runtime = Runtime::new(service_fn(move |event| invoke(handler.clone(), event)))
        .layer(ThenLayer::new(move |sent| settle(Arc::clone(&settled), sent)))
        .register_snapstart_resource(Arc::new(Spares(executor)));
    runtime.run().await.map_err(LambdaError)
}

/// Waits until everything is ready, or for as long as Lambda lets us; requests wait for the rest.
async fn initialise(executor: &Executor) {
    let began = Instant::now();
    let ready = async {
        executor.findings().await;
        executor.settle().await
    };
    if std::env::var("AWS_LAMBDA_INITIALIZATION_TYPE").is_ok_and(|kind| kind == SNAP_START) {
        if let Err(error) = ready.await {
            tracing::error!(%error, "not ready for the snapshot");
        }
        return;
    }
    match tokio::time::timeout(INIT_PATIENCE, ready).await {
        Ok(Ok(())) => tracing::info!(took_ms = milliseconds(began.elapsed()), "ready"),
        Ok(Err(error)) => tracing::error!(%error, "not ready"),
        Err(_) => tracing::warn!("not ready yet; requests wait"),
    }
}

async fn invoke(
    handler: Handler,
    event: LambdaEvent<Box<RawValue>>,
) -> Result<Box<RawValue>, Error> {
    let (event, context) = event.into_parts();
    let form = event::form(&event);
    let response = match event::request(form, &event) {
        Ok(mut request) => {
            request.extensions_mut().insert(deadline(&context));
            let caller = request.extensions().get().map(|Client(address)| *address);
            let client = Client::of(request.headers(), caller, handler.config().proxies);
            if let Some(client) = client {
                request.extensions_mut().insert(client);
            }
            handler.handle(request).await
        }
        Err(error) => handler.answers().refused(&invalid(error.to_string())),
    };
    log(&handler, &context, &response);
    let answer = event::answer(form, buffered(response).await);
    if answer.get().len() <= LAMBDA_ANSWER_BYTES {
        return Ok(answer);
    }
    let length = answer.get().len();
    let error = format!(
        "The answer has {length} bytes as AWS Lambda wraps it, which takes {LAMBDA_ANSWER_BYTES}"
    );
    let failure = Failure::new(Kind::ResultTooLarge, error);
    Ok(event::answer(form, buffered(handler.answers().failed(&failure)).await))
}

async fn buffered(response: Response<Full<Bytes>>) -> Response<Vec<u8>> {
    let (parts, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes().into(),
        Err(never) => match never {},
    };
    Response::from_parts(parts, body)
}

/// When Lambda ends the invocation, less the time to answer.
fn deadline(context: &Context) -> Deadline {
    let left = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    Deadline(Instant::now() + left.saturating_sub(ANSWER_TIME))
}

fn log(handler: &Handler, context: &Context, response: &Response<Full<Bytes>>) {
    let record = response.extensions().get::<Record>();
    tracing::info!(
        requestId = context.request_id,
        status = response.status().as_u16(),
        kind = record.map(Record::outcome),
        queue_ms = record.map(|record| milliseconds(record.queue)),
        run_ms = record.map(|record| milliseconds(record.run)),
        cpu_ms = record.map(|record| milliseconds(record.cpu)),
        peak_memory_bytes = record.map(|record| record.peak_memory),
        "request"
    );
    if let (Some(record), Metrics::Emf) = (record, handler.config().metrics) {
        let line = emf::line(record, &context.env_config.function_name, SystemTime::now());
        if let Err(error) = writeln!(std::io::stdout(), "{line}") {
            tracing::warn!(%error, "metrics could not be written");
        }
    }
}

/// Runs after the answer has been sent.
async fn settle(executor: Arc<Executor>, sent: Result<(), Error>) -> Result<(), Error> {
    sent?;
    Ok(executor.settle().await?)
}

/// Environments that are restored from one snapshot must not share a worker and its random state.
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
