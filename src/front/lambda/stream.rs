//! Streamed responses of AWS Lambda: <https://docs.aws.amazon.com/lambda/latest/dg/configuration-response-streaming.html>.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::Response;
use lambda_http::lambda_runtime::{MetadataPrelude, StreamResponse};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::log::InvocationLog;
use crate::handler::body::Body;

/// The pieces of a streamed response. They never fail: the runtime crate has no way to end a stream with an error that a
/// client would see.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>>;

/// Tells when the last streamed response has been sent. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Sending(Arc<Mutex<()>>);

impl Sending {
    /// Waits until the last piece has been handed to the connection. The runtime API of AWS accepts a response when it
    /// has all of it, so this makes a difference only for an API that accepts one earlier.
    pub(super) async fn ended(&self) {
        drop(self.0.lock().await);
    }

    /// The response as a stream. The invocation is logged at its end.
    pub(super) async fn streamed(
        &self,
        response: Response<Body>,
        log: InvocationLog,
    ) -> StreamResponse<Pieces> {
        let (parts, body) = response.into_parts();
        let metadata_prelude =
            MetadataPrelude { status_code: parts.status, headers: parts.headers, cookies: vec![] };
        let sent = Sent { body, _log: log, _sending: Arc::clone(&self.0).lock_owned().await };
        let pieces = stream::unfold(sent, async |mut sent: Sent| {
            let piece = sent.body.next().await?;
            Some((Ok(piece), sent))
        });
        StreamResponse { metadata_prelude, stream: Box::pin(pieces) }
    }
}

/// A response that is being sent, and what happens at its end.
struct Sent {
    body: Body,
    _log: InvocationLog,
    _sending: OwnedMutexGuard<()>,
}
