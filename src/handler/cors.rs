//! CORS: which pages may call from a browser.

use std::time::Duration;

use http::Method;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use tower_http::cors::{Any, CorsLayer};

use crate::api::response::{ISOLATION, PEAK_MEMORY, REQUEST_ID, SERVER_TIMING};
use crate::config::choices::Origins;

/// The headers of a response that a page may read.
const EXPOSED: [HeaderName; 5] = [SERVER_TIMING, PEAK_MEMORY, ISOLATION, REQUEST_ID, RETRY_AFTER];
/// How long a browser may cache the answer to a preflight request.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The layer that adds CORS headers for pages of `origins`.
pub(super) fn layer(origins: &Origins) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, REQUEST_ID])
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    match origins {
        Origins::Any => layer.allow_origin(Any),
        Origins::Only(origins) => layer.allow_origin(origins.clone()),
    }
}
