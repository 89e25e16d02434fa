//! Which pages may call from a browser: `MAINBOX_CORS`.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Method, Uri};
use tower_http::cors::{Any, CorsLayer};

use crate::api::{ISOLATION, PEAK_MEMORY, SERVER_TIMING};

/// What a page may read of an answer besides its body.
const EXPOSED: [HeaderName; 4] = [SERVER_TIMING, PEAK_MEMORY, ISOLATION, RETRY_AFTER];
/// How long a browser may remember what it may do.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The rules for pages of `origins`: `*`, or such as `https://example.com`, separated by commas. `None` when one is no
/// origin.
pub fn read(origins: &str) -> Option<CorsLayer> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE])
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    if origins == "*" {
        return Some(layer.allow_origin(Any));
    }
    let origins: Option<Vec<HeaderValue>> = origins.split(',').map(str::trim).map(origin).collect();
    Some(layer.allow_origin(origins?))
}

fn origin(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.parse().ok()?;
    let whole = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    // Browsers send them in lower case, without a path.
    (is_web && whole == text && text == text.to_ascii_lowercase())
        .then(|| HeaderValue::from_str(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_send_them() {
        for origins in ["*", "https://example.com", "http://localhost:3000, https://a.example"] {
            assert!(read(origins).is_some(), "{origins}");
        }
        for origins in [
            "",
            "example.com",
            "https://example.com/",
            "https://Example.com",
            "ftp://example.com",
            "https://a.example,",
            "*, *",
            "null",
            "https://a b",
        ] {
            assert!(read(origins).is_none(), "{origins}");
        }
    }
}
