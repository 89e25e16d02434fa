//! Callers: who sends a request, and how often.

pub mod api_keys;
pub mod client_ip;
pub mod rate_limit;
