//! The body of a request: its media type, and reading it with a limit on size, time and memory.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::Body;
use http_body_util::BodyExt;

use super::memory_budget::Reservation;
use crate::api::catalogue::{Failure, Kind};

/// The largest request body, bytes.
pub(super) const MAX_BODY_BYTES: usize = 8 << 20;
/// How much of a body that is too large is read and discarded, bytes, so that a client that sends everything before it
/// reads gets its response.
const MAX_DISCARDED_BYTES: usize = 2 * MAX_BODY_BYTES;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The media type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// A JSON object with the fields of [`ExecuteRequest`](crate::api::request::ExecuteRequest).
    Json,
    /// A bare script.
    Python,
}

/// The media type that the headers name.
///
/// # Errors
/// `unsupported_media_type`.
pub(super) fn media_type(headers: &HeaderMap) -> Result<Media, Failure> {
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

/// Reads a body. Every byte that is kept grows `reservation`. A client that sent `Expect: 100-continue`
/// (`expects_continue`) is refused before it sends a body that is too large.
///
/// # Errors
/// `payload_too_large`; `busy` when the memory budget is full; `invalid_request` when the body is incomplete or late.
pub(super) async fn read<B>(
    body: B,
    expects_continue: bool,
    reservation: &mut Reservation,
) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let error = format!("The body is larger than its limit of {MAX_BODY_BYTES} bytes");
        Failure::new(Kind::PayloadTooLarge, error)
    };
    if expects_continue && body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let collect = async {
        let mut body = std::pin::pin!(body);
        let (mut kept, mut length) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Failure::invalid_request(format!("The body could not be read: {}", error.into()))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length <= MAX_BODY_BYTES {
                if !reservation.grow(data.len()) {
                    let error = "The service holds too many requests in memory";
                    return Err(Failure::new(Kind::Busy, error));
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
        let error = format!("The body did not arrive within {seconds} seconds");
        Err(Failure::invalid_request(error))
    })
}
