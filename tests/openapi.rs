//! `openapi.yaml` compared with the service: its examples, its lists, and real responses validated by its schemas.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;

use common::{Answer, Server, mainbox, output, read_to_end, server};
use indoc::indoc;
use mainbox::api::catalogue::Kind;
use serde_json::{Value, json};

fn document() -> Value {
    serde_yaml_ng::from_str(&std::fs::read_to_string("openapi.yaml").unwrap()).unwrap()
}

/// Validates `value` with a schema of the document.
#[track_caller]
fn fits(document: &Value, schema: &Value, value: &Value) {
    // References point to the components of the document.
    let whole = json!({"allOf": [schema], "components": document["components"]});
    let validator = jsonschema::draft202012::new(&whole).unwrap();
    let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{value}: {errors:?}");
}

/// Returns the target of a reference, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    value["$ref"]
        .as_str()
        .map_or(value, |reference| document.pointer(reference.trim_start_matches('#')).unwrap())
}

/// Validates a response, including its headers, with what the document declares for its path, method and status.
#[track_caller]
fn matches(document: &Value, method: &str, path: &str, response: &Answer) {
    let status = response.status.to_string();
    let declared = resolved(document, &document["paths"][path][method]["responses"][&status]);
    assert!(declared.is_object(), "{method} {path} {status} is not described");
    let media = response.header("content-type").split(';').next().unwrap();
    let content = &declared["content"][media];
    assert!(content.is_object(), "{method} {path} {status} as {media} is not described");
    // The YAML parser reads JSON too.
    let body = if media.starts_with("text/") {
        json!(response.body)
    } else {
        serde_yaml_ng::from_str(&response.body).unwrap()
    };
    fits(document, &content["schema"], &body);
    for (name, header) in declared["headers"].as_object().into_iter().flatten() {
        let header = resolved(document, header);
        let text = response.header(name);
        assert!(!text.is_empty(), "{name} is missing");
        let value = text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number));
        fits(document, &header["schema"], &value);
    }
}

#[test]
fn every_example_fits_its_schema() {
    let document = document();
    let mut seen = 0;
    for operations in document["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            let request = &operation["requestBody"];
            let responses = operation["responses"].as_object().unwrap().values();
            let bodies = responses.map(|response| resolved(&document, response)).chain([request]);
            for content in bodies.filter_map(|body| body["content"].as_object()) {
                for media in content.values() {
                    let examples = media["examples"].as_object().into_iter().flatten();
                    let examples = examples.map(|(_, example)| &example["value"]);
                    for example in examples.chain(media.get("example")) {
                        fits(&document, &media["schema"], example);
                        seen += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen, 38);
}

#[test]
fn the_document_lists_every_kind_and_every_endpoint() {
    let document = document();
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(document["components"]["schemas"]["Kind"]["enum"], json!(kinds));
    let mut paths: Vec<String> = server().get("/").json()["endpoints"]
        .as_object()
        .unwrap()
        .keys()
        .map(|endpoint| endpoint.split_once(' ').unwrap().1.to_owned())
        // Messages of MCP have schemas of their own, and tools made from this document would only repeat /execute.
        .filter(|path| path != "/mcp")
        .chain([String::from("/")])
        .collect();
    paths.sort();
    let listed: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    let mut listed: Vec<String> = listed.into_iter().cloned().collect();
    listed.sort();
    assert_eq!(listed, paths);
    let version = document["info"]["version"].as_str().unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_document_is_served() {
    let response = server().get("/openapi.yaml");
    assert_eq!((response.status, response.header("content-type")), (200, "application/yaml"));
    assert_eq!(response.body, std::fs::read_to_string("openapi.yaml").unwrap());
    let response = server().get("/openapi.json");
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    assert_eq!(response.json(), document());
}

#[test]
fn responses_match_the_document() {
    let document = document();
    for path in [
        "/",
        "/health",
        "/livez",
        "/readyz",
        "/about",
        "/metrics",
        "/openapi.yaml",
        "/openapi.json",
    ] {
        matches(&document, "get", path, &server().get(path));
    }
    let mut kinds = vec![];
    for (script, limits) in [
        ("def main(): return {'a': [1, 2.5, None]}", json!({})),
        (
            indoc! {r#"
                def main():
                    open('outputs/a.txt', 'w').write('text')
                    open('outputs/raw', 'wb').write(b'\xff')
            "#},
            json!({}),
        ),
        (
            indoc! {r#"
                import sys
                def main(): print('y' * 2_000_000); sys.stderr.write('x')
            "#},
            json!({}),
        ),
        ("def main() return 1", json!({})),
        ("x = 1", json!({})),
        (
            indoc! {r#"
                import subprocess
                def main(): pass
            "#},
            json!({}),
        ),
        ("def main(): print('before'); raise ValueError('no')", json!({})),
        (
            indoc! {r#"
                import sys
                def main(): sys.exit(3)
            "#},
            json!({}),
        ),
        ("def main(): return main", json!({})),
        ("def main(): return 'x' * 5_000_000", json!({})),
        (
            indoc! {r#"
                def main():
                    while True:
                        pass
            "#},
            json!({"timeout_seconds": 0.2}),
        ),
        ("def main(): return len(bytes(1 << 30))", json!({})),
        (
            indoc! {r#"
                import os
                def main(): os.abort()
            "#},
            json!({}),
        ),
        ("def main(): pass", json!({"timeout_seconds": 0})),
        (&"#".repeat(200_000), json!({})),
    ] {
        let response = server().execute(&json!({"script": script, "limits": limits}));
        matches(&document, "post", "/execute", &response);
        kinds.push(response.json()["kind"].as_str().unwrap_or("none").to_owned());
    }
    let response = server().post("text/plain", b"def main(): pass");
    matches(&document, "post", "/execute", &response);
    assert_eq!(
        kinds,
        [
            "none",
            "none",
            "none",
            "syntax_error",
            "missing_main",
            "forbidden",
            "exception",
            "exit",
            "not_json",
            "result_too_large",
            "timeout",
            "memory_limit",
            "crashed",
            "invalid_request",
            "payload_too_large"
        ]
    );
}

#[test]
fn requests_without_a_valid_key_are_refused_before_their_body_is_read() {
    const KEY: &str = "0123456789abcdef";
    let document = document();
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_API_KEYS", KEY)]);
    let refused = server.run("def main(): return 1");
    assert_eq!(refused.status, 401);
    matches(&document, "post", "/execute", &refused);
    matches(&document, "get", "/about", &server.get("/about"));
    for path in ["/", "/health", "/livez", "/readyz", "/openapi.yaml"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let ask = |key: &str, body: &str| {
        let mut stream = server.connect();
        let head = [
            "POST /execute HTTP/1.1",
            "host: x",
            &format!("authorization: Bearer {key}"),
            "content-type: text/x-python",
            "content-length: 20",
            "connection: close",
        ];
        write!(stream, "{}\r\n\r\n{body}", head.join("\r\n")).unwrap();
        read_to_end(stream)
    };
    assert!(ask(KEY, "def main(): return 1").ends_with(r#"{"result":1,"stdout":""}"#));
    // The refusal arrives although no byte of the body was sent.
    let refused = ask("0123456789abcdeX", "");
    assert!(refused.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{refused}");
    assert!(refused.contains("www-authenticate: Bearer\r\n"), "{refused}");
    let script = std::env::temp_dir().join(format!("mainbox-key-{}.py", std::process::id()));
    std::fs::write(&script, "def main(): return 'mine'").unwrap();
    let mut run = mainbox(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_API_KEYS", KEY)]);
    let ran = output(run.arg("run").arg(&script));
    std::fs::remove_file(script).unwrap();
    assert_eq!(ran.1, "{\"result\":\"mine\",\"stdout\":\"\"}\n");
}

#[test]
fn rate_limited_responses_match_the_document() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_RATE", "1/h")]);
    assert_eq!(server.run("def main(): return 1").status, 200);
    let refused = server.run("def main(): return 1");
    assert_eq!(refused.status, 429);
    matches(&document(), "post", "/execute", &refused);
}

#[test]
fn starting_and_busy_responses_match_the_document() {
    let document = document();
    let starting = Server::start_unready(&[("MAINBOX_QUEUE", "0"), ("MAINBOX_CONCURRENCY", "1")]);
    matches(&document, "get", "/health", &starting.get("/health"));
    matches(&document, "get", "/readyz", &starting.get("/readyz"));
    assert_eq!(starting.get("/livez").body, r#"{"status":"alive"}"#);
    let sleep = indoc! {r#"
        import time
        def main(): time.sleep(2)
    "#};
    std::thread::scope(|scope| {
        let first = scope.spawn(|| starting.run(sleep));
        starting.wait_for_metric("mainbox_running 1");
        let second = starting.run(sleep);
        assert_eq!(second.status, 503);
        matches(&document, "post", "/execute", &second);
        assert_eq!(first.join().unwrap().status, 200);
    });
}
