//! The id of a request, which joins its log lines and its response.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

/// The longest id that is accepted from a caller, characters.
const MAX_LENGTH: usize = 64;

/// An id: letters, digits, `-`, `_` and `.` only, so it is safe in a header and in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The id that the caller sent in the header `name`, or a new one if the header is missing, too long or contains
    /// other characters.
    pub fn of(headers: &HeaderMap, name: &HeaderName) -> RequestId {
        let sent = headers.get(name).and_then(|value| value.to_str().ok());
        sent.and_then(RequestId::accept).unwrap_or_else(RequestId::new)
    }

    /// `text` as an id, if it is short enough and has no other characters.
    pub fn accept(text: &str) -> Option<RequestId> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        ((1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_plain))
            .then(|| RequestId(text.to_owned()))
    }

    /// An id that no other request has: a random number of the process and a counter. It is not a secret.
    fn new() -> RequestId {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let process = PROCESS.get_or_init(|| RandomState::new().build_hasher().finish());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        RequestId(format!("{process:016x}-{count}"))
    }

    /// A span that adds the id to every log line within it.
    pub fn span(&self) -> Span {
        // Of the highest level, so that no log level disables it.
        tracing::error_span!("request", request_id = self.0)
    }

    /// The id as a header value.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("BUG: an id has plain characters only")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-request-id");

    fn id_of(sent: &str) -> String {
        let headers = HeaderMap::from_iter([(NAME, HeaderValue::from_str(sent).unwrap())]);
        RequestId::of(&headers, &NAME).to_string()
    }

    #[test]
    fn a_plain_id_is_kept_and_any_other_is_replaced() {
        let longest = "x".repeat(MAX_LENGTH);
        for sent in ["a", "Root-1.67_ab", &longest] {
            assert_eq!(id_of(sent), sent);
        }
        let longer = "x".repeat(MAX_LENGTH + 1);
        for sent in ["", "a b", "a\"b", "a,b", "a=b", &longer] {
            assert_ne!(id_of(sent), sent);
        }
    }

    #[test]
    fn new_ids_differ_and_are_acceptable() {
        let none = HeaderMap::new();
        let (first, second) = (RequestId::of(&none, &NAME), RequestId::of(&none, &NAME));
        assert_ne!(first, second);
        assert_eq!(RequestId::accept(&first.to_string()), Some(first));
    }
}
