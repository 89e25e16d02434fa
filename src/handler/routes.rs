//! The endpoints of the service.

use http::Method;

/// What answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Execute,
    Mcp,
    Root,
    Health,
    Live,
    Ready,
    About,
    Metrics,
    OpenApi,
    OpenApiJson,
}

/// An endpoint.
pub(super) struct Endpoint {
    pub(super) route: Route,
    pub(super) path: &'static str,
    /// The accepted method. `GET` includes `HEAD`.
    pub(super) method: &'static str,
    /// Whether it requires an API key, if keys are configured.
    pub(super) needs_key: bool,
    /// What it does, for the index; empty for the index itself.
    pub(super) purpose: &'static str,
}

/// The path of the Model Context Protocol.
pub(super) const MCP: &str = "/mcp";

pub(super) const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        route: Route::Execute,
        path: "/execute",
        method: "POST",
        needs_key: true,
        purpose: "runs main() of a Python script and returns its result as JSON and what it printed",
    },
    Endpoint {
        route: Route::Mcp,
        path: MCP,
        method: "POST",
        needs_key: true,
        purpose: "the same as a tool of the Model Context Protocol, for agents",
    },
    Endpoint { route: Route::Root, path: "/", method: "GET", needs_key: false, purpose: "" },
    Endpoint {
        route: Route::Health,
        path: "/health",
        method: "GET",
        needs_key: false,
        purpose: "whether scripts can run",
    },
    Endpoint {
        route: Route::Live,
        path: "/livez",
        method: "GET",
        needs_key: false,
        purpose: "whether the process works, for liveness probes",
    },
    Endpoint {
        route: Route::Ready,
        path: "/readyz",
        method: "GET",
        needs_key: false,
        purpose: "whether scripts can run, for readiness probes",
    },
    Endpoint {
        route: Route::About,
        path: "/about",
        method: "GET",
        needs_key: true,
        purpose: "versions, limits and the isolation in force",
    },
    Endpoint {
        route: Route::Metrics,
        path: "/metrics",
        method: "GET",
        needs_key: true,
        purpose: "metrics for Prometheus",
    },
    Endpoint {
        route: Route::OpenApi,
        path: "/openapi.yaml",
        method: "GET",
        needs_key: false,
        purpose: "the API as an OpenAPI document",
    },
    Endpoint {
        route: Route::OpenApiJson,
        path: "/openapi.json",
        method: "GET",
        needs_key: false,
        purpose: "the same document as JSON",
    },
];

impl Endpoint {
    /// The endpoint at `path`.
    pub(super) fn at(path: &str) -> Option<&'static Endpoint> {
        ENDPOINTS.iter().find(|endpoint| endpoint.path == path)
    }

    /// The accepted methods, as the `Allow` header lists them.
    pub(super) fn allowed(&self) -> &'static str {
        if self.method == "GET" { "GET, HEAD" } else { self.method }
    }

    /// Returns whether the endpoint accepts `method`.
    pub(super) fn accepts(&self, method: &Method) -> bool {
        method == self.method || (self.method == "GET" && method == Method::HEAD)
    }
}
