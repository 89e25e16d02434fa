//! Web pages of strangers. A page that somebody opens in a browser can send requests to any address that the browser
//! reaches, also to loopback. The browser names the page in `Origin` and the address in `Host`.

use std::net::IpAddr;

/// Returns whether a page with this `Origin` comes from `host`, the host and port that the request was sent to. The
/// scheme is not compared: a proxy may have removed TLS.
pub fn is_same_origin(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
}

/// Returns whether a page with this `Origin` comes from this machine itself.
pub fn is_loopback_origin(origin: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority))
}

/// Returns whether `host`, with or without a port, names this machine itself. Any other name can be one that a stranger
/// has pointed at this machine: that is DNS rebinding.
pub fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    let is_address = |address: IpAddr| address.to_canonical().is_loopback();
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.trim_matches(['[', ']']).parse().is_ok_and(is_address)
}

/// The name or address in `host`, without its port.
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_of_the_same_origin_if_host_and_port_are_the_same() {
        for (origin, host) in [
            ("http://localhost:8080", "localhost:8080"),
            ("https://Box.example", "box.example"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(is_same_origin(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://localhost:8081", "localhost:8080"),
            ("https://evil.example", "box.example"),
            ("https://box.example.evil", "box.example"),
            ("null", "null"),
            ("", ""),
        ] {
            assert!(!is_same_origin(origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn names_and_addresses_of_this_machine_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "box.localhost:1",
            "127.0.0.1",
            "127.1.2.3:8080",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil",
            "127.0.0.1.evil:80",
            "10.0.0.1:80",
            "[::2]:80",
            "[::]",
            "1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
