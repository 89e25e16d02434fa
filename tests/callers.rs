//! Callers: API keys, rate limits, web pages of other origins, and request ids.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;

use common::{Server, read_to_end};
use serde_json::{Value, json};

const FIRST_KEY: &str = "0123456789abcdef";
const SECOND_KEY: &str = "fedcba9876543210";
const ANSWER: &str = r#"{"result":1,"stdout":""}"#;

/// Runs a script with additional `headers`. Returns the head and the body of the response.
fn run(server: &Server, headers: &str) -> (String, String) {
    let headers = format!("{headers}connection: close\r\n");
    let response = read_to_end(server.begin(&headers, &json!({"script": "def main(): return 1"})));
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[track_caller]
fn is_served(server: &Server, headers: &str) {
    assert_eq!(run(server, headers).1, ANSWER);
}

/// Expects a refusal whose `Retry-After` is `seconds`, less the time since the bucket was emptied, at most a minute.
#[track_caller]
fn is_rate_limited(server: &Server, headers: &str, seconds: u64) {
    let (head, body) = run(server, headers);
    assert!(head.starts_with("http/1.1 429 too many requests\r\n"), "{head}");
    let wait = head.split("\r\nretry-after: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let wait: u64 = wait.parse().unwrap();
    assert!((seconds - 60..=seconds).contains(&wait), "{wait}");
    let error = format!("Too many requests; retry in {wait} seconds");
    let expected = json!({"error": error, "kind": "rate_limited", "stdout": ""});
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
}

#[test]
fn each_address_has_its_own_rate_and_cannot_use_another_one() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_RATE", "2/h"),
        ("MAINBOX_PROXIES", "1"),
    ]);
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        let headers = format!("x-forwarded-for: {address}\r\n");
        is_served(&server, &headers);
        is_served(&server, &headers);
        is_rate_limited(&server, &headers, 1800);
    }
    // The proxy appends to what the client claims. A /64 network of IPv6 is one client.
    is_rate_limited(&server, "x-forwarded-for: 192.0.2.77, 192.0.2.1\r\n", 1800);
    is_rate_limited(&server, "x-forwarded-for: 192.0.2.77\r\nx-forwarded-for: 192.0.2.1\r\n", 1800);
    is_rate_limited(&server, "x-forwarded-for: 2001:db8::2\r\n", 1800);
    is_served(&server, "x-forwarded-for: 2001:db8:0:1::2\r\n");
    for path in ["/health", "/about", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn forwarded_addresses_are_ignored_without_a_proxy() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_RATE", "1/h")]);
    is_served(&server, "x-forwarded-for: 192.0.2.1\r\n");
    is_rate_limited(&server, "x-forwarded-for: 192.0.2.2\r\n", 3600);
}

#[test]
fn each_key_has_its_own_rate_and_invalid_keys_use_none_of_it() {
    let keys = format!("{FIRST_KEY},{SECOND_KEY}");
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_RATE", "1/h"),
        ("MAINBOX_API_KEYS", &keys),
    ]);
    for _ in 0..3 {
        let (head, _) = run(&server, "authorization: Bearer 0123456789abcdeX\r\n");
        assert!(head.starts_with("http/1.1 401 unauthorized\r\n"), "{head}");
    }
    for key in [FIRST_KEY, SECOND_KEY] {
        let headers = format!("authorization: Bearer {key}\r\n");
        is_served(&server, &headers);
        is_rate_limited(&server, &headers, 3600);
    }
}

#[test]
fn a_rate_limited_request_is_refused_before_its_body_is_read() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_RATE", "1/h")]);
    is_served(&server, "");
    let mut stream = server.connect();
    let head = [
        "POST /execute HTTP/1.1",
        "host: x",
        "content-type: text/x-python",
        "content-length: 20",
        "connection: close",
    ];
    write!(stream, "{}\r\n\r\n", head.join("\r\n")).unwrap();
    assert!(read_to_end(stream).starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
}

#[test]
fn a_request_that_is_refused_as_busy_does_not_count() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_RATE", "2/h"),
        ("MAINBOX_CONCURRENCY", "1"),
        ("MAINBOX_QUEUE", "0"),
    ]);
    let long = server.begin(
        "connection: close\r\n",
        &json!({"script": "import time\ndef main(): time.sleep(3)"}),
    );
    server.wait_until_running(1);
    for _ in 0..3 {
        let refused = server.run("def main(): return 1");
        assert_eq!((refused.status, &refused.json()["kind"]), (503, &json!("busy")));
    }
    assert!(read_to_end(long).ends_with(r#"{"result":null,"stdout":""}"#));
    is_served(&server, "");
    is_rate_limited(&server, "", 1800);
}

/// Sends the preflight request of a browser. Returns the head of the response.
fn preflight(server: &Server, origin: &str) -> String {
    let mut stream = server.connect();
    let head = [
        "OPTIONS /execute HTTP/1.1",
        "host: x",
        &format!("origin: {origin}"),
        "access-control-request-method: POST",
        "access-control-request-headers: authorization,content-type",
        "connection: close",
    ];
    write!(stream, "{}\r\n\r\n", head.join("\r\n")).unwrap();
    read_to_end(stream).to_ascii_lowercase()
}

#[test]
fn only_pages_of_configured_origins_can_call() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_API_KEYS", FIRST_KEY),
        ("MAINBOX_CORS", "https://a.example, http://localhost:3000"),
    ]);
    let key = format!("authorization: Bearer {FIRST_KEY}\r\n");
    for origin in ["https://a.example", "http://localhost:3000"] {
        let head = preflight(&server, origin);
        assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
        for line in [
            &format!("access-control-allow-origin: {origin}"),
            "access-control-allow-methods: get,head,post",
            "access-control-allow-headers: authorization,content-type,x-request-id,mcp-protocol-version,mcp-method,mcp-name",
            "access-control-max-age: 3600",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
        }
        let (head, body) = run(&server, &format!("{key}origin: {origin}\r\n"));
        assert_eq!(body, ANSWER);
        let allowed = format!("\r\naccess-control-allow-origin: {origin}\r\n");
        assert!(head.contains(&allowed), "{head}");
        let exposed = "\r\naccess-control-expose-headers: server-timing,mainbox-peak-memory,mainbox-isolation,x-request-id,retry-after\r\n";
        assert!(head.contains(exposed), "{head}");
        // A page can read why it was refused.
        let (head, body) = run(&server, &format!("origin: {origin}\r\n"));
        assert!(head.contains(&allowed) && body.contains("unauthorized"), "{head}{body}");
    }
    for origin in ["https://b.example", "https://a.example.evil", "null", "http://a.example"] {
        assert!(!preflight(&server, origin).contains("access-control-allow-origin"), "{origin}");
        let (head, _) = run(&server, &format!("{key}origin: {origin}\r\n"));
        assert!(!head.contains("access-control-allow-origin"), "{origin}: {head}");
    }
    let all = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_CORS", "*")]);
    assert!(
        preflight(&all, "https://b.example").contains("\r\naccess-control-allow-origin: *\r\n")
    );
}

#[test]
fn without_configured_origins_no_page_can_call() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    let head = preflight(&server, "https://a.example");
    assert!(head.starts_with("http/1.1 403 forbidden\r\n"), "{head}");
    let (head, body) = run(&server, "origin: https://a.example\r\n");
    assert!(head.to_ascii_lowercase().starts_with("http/1.1 403 forbidden\r\n"), "{head}");
    assert!(!head.contains("access-control"), "{head}");
    let error = "Pages of https://a.example may not call this service; MAINBOX_CORS can allow it";
    let expected = json!({"error": error, "kind": "forbidden_origin", "stdout": ""});
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    let (_, body) = run(&server, "origin: null\r\n");
    assert!(body.contains("forbidden_origin"), "{body}");
    // `run` sends the host `x`.
    assert_eq!(run(&server, "origin: http://x\r\n").1, ANSWER);
}

#[test]
fn a_service_on_loopback_answers_under_its_own_names_only() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_HOST", "127.0.0.1"),
        ("MAINBOX_HOSTS", "box.example"),
    ]);
    let status = |host: &str| {
        let mut stream = server.connect();
        write!(stream, "GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
            .unwrap();
        read_to_end(stream)
    };
    for host in ["localhost", "127.0.0.1:8080", "[::1]", "Box.Example:80"] {
        assert!(status(host).starts_with("HTTP/1.1 200 OK\r\n"), "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "10.0.0.1", "localhost.evil.example"] {
        let answer = status(host);
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{host}: {answer}");
        assert!(answer.contains("is not a name of this service"), "{answer}");
    }
}

// Request ids.

/// Sends a request with these header lines. Returns the request id of the response and that of the access log line.
#[track_caller]
fn request_ids(server: &Server, headers: &str, count: usize) -> (String, Value) {
    let (head, body) = run(server, headers);
    assert_eq!(body, ANSWER);
    let id = head.split("\r\nx-request-id: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let line: Value = serde_json::from_str(&server.log_line("POST /execute ok", count)).unwrap();
    assert_eq!(line["httpRequest"]["requestUrl"], "/execute", "{line}");
    (id.to_owned(), line["request_id"].clone())
}

#[test]
fn a_plain_request_id_is_echoed_and_logged() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    let longest = "x".repeat(64);
    for (number, sent) in ["a", "root-1.67_ab", &longest].into_iter().enumerate() {
        let ids = request_ids(&server, &format!("x-request-id: {sent}\r\n"), number + 1);
        assert_eq!(ids, (sent.to_owned(), json!(sent)));
    }
}

#[test]
fn a_request_id_that_is_missing_or_not_plain_is_replaced() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    let mut seen = BTreeSet::new();
    let sent = ["a b", "a\"b", "{}", "a,b", "\u{e9}", &"x".repeat(65)];
    let headers = sent.map(|sent| format!("x-request-id: {sent}\r\n"));
    for (number, headers) in headers.iter().map(String::as_str).chain([""]).enumerate() {
        let (id, logged) = request_ids(&server, headers, number + 1);
        assert_eq!(logged, json!(id), "{headers}");
        assert!(!headers.contains(&id), "{headers}");
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{id}");
        assert!(seen.insert(id), "{seen:?}");
    }
}
