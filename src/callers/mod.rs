//! Callers: who sends a request, how often, and from which web page.

pub mod api_keys;
pub mod client_ip;
pub mod rate_limit;
pub mod web_page;
