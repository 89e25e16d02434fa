//! Which web pages may call from a browser: CORS, and the check for those that send requests without it.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Request};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use super::routes::Route;
use crate::api::catalogue::{Failure, Kind};
use crate::api::response::{ISOLATION, PEAK_MEMORY, REQUEST_ID, SERVER_TIMING};
use crate::api::text::quoted;
use crate::callers::web_page;
use crate::config::Config;
use crate::config::choices::Origins;
use crate::mcp::revision::{METHOD, NAME, VERSION};

/// The headers of a response that a page may read.
const EXPOSED: [HeaderName; 5] = [SERVER_TIMING, PEAK_MEMORY, ISOLATION, REQUEST_ID, RETRY_AFTER];
/// How long a browser may cache the answer to a preflight request.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Checks that a request does not come from a web page of a stranger. Only browsers send `Origin`, and only a page can make
/// one send a request that its user does not know of. A service with API keys needs no check: a page does not know them.
/// MCP asks for one all the same, and its clients may be pages of this machine:
/// <https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http#security-endpoint>.
///
/// # Errors
/// `forbidden_origin`.
pub(super) fn check_page<B>(
    request: &Request<B>,
    config: &Config,
    route: Route,
) -> Result<(), Failure> {
    let headers = request.headers();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    // HTTP/2 has the host in the URI.
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| headers.get(HOST).map(text));
    let is_local = listens_on_loopback(config);
    if let (Some(host), true) = (&host, is_local) {
        let name = web_page::without_port(host).to_ascii_lowercase();
        if !web_page::is_loopback(host) && !config.hosts.contains(&name) {
            let name = quoted(&name);
            let error =
                format!("`{name}` is not a name of this service; MAINBOX_HOSTS can allow it");
            return Err(Failure::new(Kind::ForbiddenOrigin, error));
        }
    }
    let is_mcp = route == Route::Mcp;
    let is_checked = is_mcp || config.api_keys.is_none();
    let Some(origin) = headers.get(ORIGIN).filter(|_| is_checked) else {
        return Ok(());
    };
    let is_listed = match &config.cors {
        Some(Origins::Any) => true,
        Some(Origins::Only(origins)) => origins.contains(origin),
        None => false,
    };
    let origin = text(origin);
    let is_neighbor = is_mcp && is_local && web_page::is_loopback_origin(&origin);
    if is_listed || is_neighbor || host.is_some_and(|host| web_page::is_same_origin(&origin, &host))
    {
        return Ok(());
    }
    let error = format!(
        "Pages of {} may not call this service; MAINBOX_CORS can allow it",
        quoted(&origin)
    );
    Err(Failure::new(Kind::ForbiddenOrigin, error))
}

/// The layer that adds CORS headers for the pages that may call; `None` if none may.
pub(super) fn layer(config: &Config) -> Option<CorsLayer> {
    Some(match config.cors.as_ref()? {
        Origins::Any => common().allow_origin(Any),
        Origins::Only(origins) => common().allow_origin(origins.clone()),
    })
}

/// The same for `/mcp`. If the service listens on loopback, pages of this machine may call it too.
pub(super) fn mcp_layer(config: &Config) -> Option<CorsLayer> {
    if !listens_on_loopback(config) || config.cors == Some(Origins::Any) {
        return layer(config);
    }
    let listed = match &config.cors {
        Some(Origins::Only(origins)) => origins.clone(),
        _ => vec![],
    };
    let may_call = move |origin: &HeaderValue, _: &Parts| {
        let is_local = origin.to_str().is_ok_and(web_page::is_loopback_origin);
        is_local || listed.contains(origin)
    };
    Some(common().allow_origin(AllowOrigin::predicate(may_call)))
}

fn listens_on_loopback(config: &Config) -> bool {
    config.host.is_some_and(|host| host.is_loopback())
}

fn common() -> CorsLayer {
    CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, REQUEST_ID, VERSION, METHOD, NAME])
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE)
}
