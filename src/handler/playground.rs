//! The playground: a page for browsers that open `/`. It is one file and loads nothing from anywhere else.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response};
use sha2::{Digest, Sha256};

use super::body::Body;
use super::response::document;

const TEMPLATE: &str = include_str!("playground/page.html");
const STYLE: &str = include_str!("playground/page.css");
const SCRIPT: &str = concat!(
    include_str!("playground/page.js"),
    include_str!("playground/editor.js"),
    include_str!("playground/examples.js"),
    include_str!("playground/agents.js"),
    include_str!("playground/main.js")
);

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Headers that keep the browser from running or loading anything that is not part of the page.
const HEADERS: [(HeaderName, &str); 3] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-cache"),
];

struct Page {
    html: Bytes,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let html = TEMPLATE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    Page {
        html: html.into(),
        policy: HeaderValue::from_str(&policy).expect("BUG: the policy is ASCII"),
    }
});

/// The name of an inline script or style in a content security policy.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// Returns whether a browser asks, which accepts HTML.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter();
    accepted.any(|value| value.to_str().is_ok_and(|value| value.contains("text/html")))
}

/// The page as a response.
pub(super) fn page() -> Response<Body> {
    let mut response = document(HTML, PAGE.html.clone());
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, PAGE.policy.clone());
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_complete_and_loads_nothing_else() {
        let html = std::str::from_utf8(&PAGE.html).unwrap();
        for part in [STYLE, SCRIPT] {
            assert!(html.contains(part));
        }
        let elsewhere = html.replace("http://www.w3.org/2000/svg", "");
        for name in
            ["http://", "https://", "//cdn", "@import", "url(", " src=", "innerHTML", "eval("]
        {
            assert!(!elsewhere.contains(name), "{name}");
        }
        let policy = PAGE.policy.to_str().unwrap();
        assert!(policy.contains(&hash(SCRIPT)) && policy.contains(&hash(STYLE)));
    }

    #[test]
    fn browsers_get_the_page_and_programs_do_not() {
        let wanted = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            is_wanted(&headers)
        };
        assert!(wanted("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(!wanted("*/*") && !wanted("application/json") && !is_wanted(&HeaderMap::new()));
    }
}
