//! The body of a request: what it is, and reading it with a limit on everything.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::Body;
use http_body_util::BodyExt;

use crate::api::{Failure, Kind, invalid};
use crate::budget::Held;

/// Bytes of a request body, whatever is in it.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Bytes of a body that is too large which are read all the same.
const MAX_DISCARDED_BYTES: usize = 2 * MAX_BODY_BYTES;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// A request of the contract.
    Json,
    /// A bare script.
    Python,
}

/// What the body of a request with these headers is.
///
/// # Errors
/// `unsupported_media_type`.
pub fn media_type(headers: &HeaderMap) -> Result<Media, Failure> {
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
///
/// # Errors
/// `payload_too_large`, `busy`, or `invalid_request` when it does not come whole and in time.
pub async fn read<B>(body: B, asked_first: bool, held: &mut Held) -> Result<Bytes, Failure>
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
