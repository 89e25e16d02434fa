//! The body of a request: its media type, and reading it with a limit on size, time and memory.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::memory_budget::Reservation;
use super::pace;
use crate::api::catalogue::{Failure, Kind};

/// The largest request body, bytes.
pub(super) const MAX_BODY_BYTES: usize = 8 << 20;
/// How much of a body that is too large is read and discarded, bytes, so that a client that sends everything before it
/// reads gets its response.
const MAX_DISCARDED_BYTES: usize = 2 * MAX_BODY_BYTES;

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
/// `unsupported_media_type`, also for a compressed body.
pub(super) fn media_type(headers: &HeaderMap) -> Result<Media, Failure> {
    let is_identity =
        |coding: &http::HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(is_identity) {
        return Err(Failure::new(
            Kind::UnsupportedMediaType,
            "Content-Encoding must be identity: the body must not be compressed",
        ));
    }
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
/// `payload_too_large`; `busy` when the memory budget is full; `invalid_request` when the body is incomplete;
/// `request_timeout` when it arrives more slowly than [`pace::CLIENT`] allows.
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
    let mut body = std::pin::pin!(body);
    let (mut kept, mut length) = (Vec::new(), 0);
    let (began, mut due) = (Instant::now(), pace::CLIENT.begin());
    loop {
        let frame = match timeout_at(due, body.frame()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) => {
                let seconds = began.elapsed().as_secs();
                let unit = if length == 1 { "byte" } else { "bytes" };
                let error =
                    format!("The body arrived too slowly: {length} {unit} in {seconds} seconds");
                return Err(Failure::new(Kind::RequestTimeout, error));
            }
        };
        let frame = frame.map_err(|error| {
            Failure::invalid_request(format!("The body could not be read: {}", error.into()))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        due = pace::CLIENT.after(due, data.len() as u64);
        if length <= MAX_BODY_BYTES {
            if !reservation.grow(data.len()) {
                let error =
                    "The service holds too many requests in memory, or too many of this caller";
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
}
