//! The Model Context Protocol: over HTTP and over stdio, from well-meaning and hostile clients.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use common::{Server, mainbox, output, read_to_end, server};
use indoc::indoc;
use serde_json::{Value, json};

const QUICK: &[(&str, &str)] = &[("MAINBOX_PRELOAD", "")];
const KEY: &str = "0123456789abcdef";
const VERSION: &str = "2026-07-28";

/// A request of the modern era.
fn modern(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// A request of the legacy era.
fn legacy(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// The headers that a modern client sends with a message.
fn headers(message: &Value) -> String {
    let name = message["params"]["name"].as_str();
    let name = name.map_or_else(String::new, |name| format!("mcp-name: {name}\r\n"));
    let method = message["method"].as_str().unwrap();
    format!("mcp-protocol-version: {VERSION}\r\nmcp-method: {method}\r\n{name}")
}

/// Sends bytes to /mcp. Returns the status, the head in lower case and the body.
fn send(server: &Server, headers: &str, body: &[u8]) -> (u16, String, Value) {
    let mut stream = server.connect();
    write!(
        stream,
        "POST /mcp HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let response = read_to_end(stream);
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn ask(server: &Server, message: &Value) -> (u16, Value) {
    let headers = match message["params"]["_meta"].is_object() {
        true => headers(message),
        false => String::new(),
    };
    let (status, _, body) = send(server, &headers, message.to_string().as_bytes());
    (status, body)
}

/// Calls the tool. Returns its result.
#[track_caller]
fn call(server: &Server, arguments: &Value) -> Value {
    let params = json!({"name": "run_python", "arguments": arguments});
    let (status, mut body) = ask(server, &modern("tools/call", params));
    assert_eq!(status, 200, "{body}");
    body["result"].take()
}

/// The texts of a result.
fn texts(result: &Value) -> Vec<&str> {
    let content = result["content"].as_array().unwrap().iter();
    content.filter_map(|block| block["text"].as_str()).collect()
}

/// The status and the code of an error.
fn refused(server: &Server, headers: &str, body: &str) -> (u16, i64) {
    let (status, _, answer) = send(server, headers, body.as_bytes());
    assert_eq!(answer["jsonrpc"], "2.0", "{answer}");
    (status, answer["error"]["code"].as_i64().unwrap())
}

#[test]
fn a_modern_client_discovers_lists_and_calls_without_a_handshake() {
    let server = server();
    let (status, body) = ask(server, &modern("server/discover", json!({})));
    assert_eq!(status, 200);
    let result = &body["result"];
    assert_eq!(result["supportedVersions"], json!([VERSION]));
    assert_eq!(result["capabilities"], json!({"tools": {}}));
    assert_eq!(result["resultType"], "complete");
    assert_eq!((&result["ttlMs"], &result["cacheScope"]), (&json!(300_000), &json!("public")));
    let server_info = &result["_meta"]["io.modelcontextprotocol/serverInfo"];
    assert_eq!(server_info["name"], "mainbox");
    assert!(result["instructions"].as_str().unwrap().starts_with("run_python runs Python code"));

    let (_, body) = ask(server, &modern("tools/list", json!({})));
    let tool = &body["result"]["tools"][0];
    assert_eq!(tool["name"], "run_python");
    assert_eq!(tool["inputSchema"]["required"], json!(["script"]));
    assert_eq!(
        tool["annotations"],
        json!({"readOnlyHint": true, "destructiveHint": false, "openWorldHint": false})
    );
    let description = tool["description"].as_str().unwrap();
    for part in ["def main(input)", "pandas ", "network", "plt.show()", "10 seconds, 256 MB"] {
        assert!(description.contains(part), "{part}: {description}");
    }

    let script = "import pandas as pd\ndef main(input):\n    print('sum')\n    return pd.Series(input).sum()";
    let result = call(server, &json!({"script": script, "input": [1, 2, 4]}));
    assert_eq!(texts(&result), ["sum\n", "7"]);
    assert_eq!((&result["structuredContent"], &result["isError"]), (&json!(7), &json!(false)));
}

#[test]
fn a_legacy_client_initializes_and_gets_no_session() {
    let server = server();
    let initialize = legacy("initialize", &json!({"protocolVersion": "2025-06-18"}));
    let (status, head, body) = send(server, "", initialize.to_string().as_bytes());
    assert_eq!((status, head.contains("mcp-session-id")), (200, false));
    assert_eq!(body["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(body["result"]["serverInfo"]["name"], "mainbox");
    let initialized = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let (status, head, body) = send(server, "mcp-protocol-version: 2025-06-18\r\n", initialized);
    assert_eq!((status, body), (202, Value::Null));
    assert!(head.contains("content-length: 0"), "{head}");
    assert_eq!(ask(server, &legacy("ping", &json!({}))).1["result"], json!({}));
    let (_, body) = ask(server, &legacy("tools/list", &json!({})));
    let result = body["result"].as_object().unwrap();
    assert_eq!(result.keys().collect::<Vec<_>>(), ["tools"]);
    let params = json!({"name": "run_python", "arguments": {"script": "def main(): return [1]"}});
    let (_, body) = ask(server, &legacy("tools/call", &params));
    let text = json!([{"type": "text", "text": "[1]"}]);
    assert_eq!(
        body["result"],
        json!({"content": text, "structuredContent": {"result": [1]}, "isError": false})
    );
    let (status, body) = ask(server, &legacy("resources/list", &json!({})));
    assert_eq!((status, &body["error"]["code"]), (200, &json!(-32601)));
}

#[test]
fn a_script_of_a_model_runs_as_it_was_meant() {
    let server = server();
    for (script, expected) in [
        ("print(6 * 7)", vec!["42\n"]),
        ("```python\nprint(6 * 7)\n```", vec!["42\n"]),
        ("def main():\n    return 42", vec!["42"]),
        ("def main():\n    return 42\nif __name__ == '__main__':\n    print(main())", vec!["42"]),
        ("def main():\n    print(42)\nmain()", vec!["42\n"]),
        (
            "import sys\ndef main():\n    print(42)\n    return 0\nsys.stdout.flush()\nx = main()",
            vec!["42\n"],
        ),
        ("def main():\n    return None", vec!["null"]),
        ("x = 1", vec!["null"]),
        ("import sys\nprint('a', file=sys.stderr)", vec!["stderr:\na\n"]),
    ] {
        let result = call(server, &json!({"script": script}));
        assert_eq!((texts(&result), &result["isError"]), (expected, &json!(false)), "{script}");
    }
    let script = "def main(x=0):\n    return x\nmain()";
    assert_eq!(call(server, &json!({"script": script, "input": 7}))["structuredContent"], 7);
}

#[test]
fn files_go_in_and_pictures_and_files_come_back() {
    let server = server();
    let script = indoc! {r#"
        import base64, pathlib
        def main():
            text = pathlib.Path("a.txt").read_text()
            pathlib.Path("outputs/b.csv").write_text(text.upper())
            pathlib.Path("dot.png").write_bytes(base64.b64decode("iVBORw0KGgo="))
    "#};
    let result = call(server, &json!({"script": script, "files": {"a.txt": "x,y"}}));
    assert_eq!(
        result["content"],
        json!([
            {"type": "text", "text": "Files: dot.png, b.csv"},
            {"type": "image", "data": "iVBORw0KGgo=", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "mainbox:///b.csv", "mimeType": "text/csv", "text": "X,Y"}},
        ])
    );
}

#[test]
fn what_the_script_did_wrong_is_a_result_that_says_how() {
    let server = &Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_TIMEOUT_SECONDS", "1")]);
    for (arguments, kind, text) in [
        (
            json!({"script": "def main():\n    print('a')\n    return 1 / 0"}),
            "exception",
            "ZeroDivisionError: division by zero (line 3)\n\nTraceback",
        ),
        (
            json!({"script": "def main(:"}),
            "syntax_error",
            "Syntax error on line 1: invalid syntax: def main(: (line 1)",
        ),
        (
            json!({"script": "while True: pass"}),
            "timeout",
            "The script ran longer than its limit of 1 seconds",
        ),
        (json!({"script": ""}), "invalid_request", "The script is empty"),
        (json!({"script": "```\n```"}), "syntax_error", "The script is in a code fence"),
        (
            json!({"script": "```python\n1 / 0\n```"}),
            "exception",
            "ZeroDivisionError: division by zero (line 2)",
        ),
        (
            json!({"script": "print(1)", "input": 1}),
            "missing_main",
            "Script must contain a main() function",
        ),
        (json!({}), "invalid_request", "The request is not valid: missing field `script`"),
        (json!({"script": 7}), "invalid_request", "script must be a string"),
        (
            json!({"script": "1", "language": "python"}),
            "invalid_request",
            "The request is not valid: unknown field `language`",
        ),
        (
            json!({"script": "1", "files": {"../a": ""}}),
            "invalid_request",
            "files: invalid file name `../a`",
        ),
    ] {
        let result = call(server, &arguments);
        assert_eq!(
            (&result["isError"], &result["structuredContent"]["kind"]),
            (&json!(true), &json!(kind)),
            "{result}"
        );
        let found = *texts(&result).last().unwrap();
        assert!(found.starts_with(text), "{found}");
    }
}

#[test]
fn malformed_messages_get_the_protocols_own_error_and_the_next_call_is_served() {
    let server = server();
    let list = modern("tools/list", json!({})).to_string();
    let good = headers(&modern("tools/list", json!({})));
    let long = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{}"}}"#, "x".repeat(7 << 20));
    let deep =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{}"#, "[".repeat(100_000));
    let large = "x".repeat((8 << 20) + 1);
    let future = list.replace(VERSION, "2099-01-01");
    let future_headers = good.replace(VERSION, "2099-01-01");
    let call = |params: Value| modern("tools/call", params).to_string();
    let call_headers = format!("mcp-protocol-version: {VERSION}\r\nmcp-method: tools/call\r\n");
    for (name, headers, body, expected) in [
        ("no JSON", "", "{", (400, -32700)),
        ("empty", "", "", (400, -32700)),
        ("batch", "", "[]", (400, -32600)),
        ("deep", "", &*deep, (400, -32600)),
        ("null id", "", r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, (400, -32600)),
        ("duplicate", "", r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"ping"}"#, (400, -32600)),
        ("response", "", r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, (400, -32600)),
        (
            "array of parameters",
            "",
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
            (400, -32600),
        ),
        ("too large", "", &large, (413, 413)),
        ("long method", "", &long, (200, -32601)),
        ("unknown method", "", r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#, (200, -32601)),
        ("modern without headers", "", &list, (400, -32020)),
        ("other method", &good.replace("list", "call"), &list, (400, -32020)),
        ("twice", &format!("{good}mcp-method: tools/list\r\n"), &list, (400, -32020)),
        ("other version", &good.replace(VERSION, "2025-11-25"), &list, (400, -32020)),
        (
            "other method, legacy",
            "mcp-method: tools/list\r\n",
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
            (400, -32020),
        ),
        (
            "other method, notification",
            "mcp-method: tools/list\r\n",
            r#"{"jsonrpc":"2.0","method":"x"}"#,
            (400, -32020),
        ),
        ("future", &future_headers, &future, (400, -32022)),
        (
            "future without _meta",
            &future_headers,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            (400, -32022),
        ),
        (
            "without _meta",
            &good,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            (400, -32602),
        ),
        (
            "removed",
            &good.replace("tools/list", "ping"),
            &modern("ping", json!({})).to_string(),
            (404, -32601),
        ),
        ("no tool", &call_headers, &call(json!({})), (400, -32602)),
        (
            "other tool",
            &format!("{call_headers}mcp-name: x\r\n"),
            &call(json!({"name": "x"})),
            (400, -32602),
        ),
        (
            "no arguments",
            &format!("{call_headers}mcp-name: run_python\r\n"),
            &call(json!({"name": "run_python"})),
            (400, -32602),
        ),
    ] {
        assert_eq!(refused(server, headers, body), expected, "{name}");
    }
    let (_, answer) = ask(server, &modern("tools/list", json!({})));
    assert_eq!(answer["result"]["tools"][0]["name"], "run_python");
    let (_, _, answer) = send(server, &future_headers, future.as_bytes());
    assert_eq!(answer["error"]["data"], json!({"supported": [VERSION], "requested": "2099-01-01"}));
}

#[test]
fn only_post_with_json_is_answered_and_only_if_it_is_on() {
    let server = server();
    for method in ["GET", "DELETE", "PUT"] {
        let answer = server.request(method, "/mcp", None, b"");
        assert_eq!((answer.status, answer.header("allow")), (405, "POST"), "{method}");
    }
    let answer = server.request("POST", "/mcp", Some("text/x-python"), b"print(1)");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (415, &json!(415)));
    let endpoints = |server: &Server| server.get("/").json()["endpoints"].clone();
    assert!(endpoints(server).as_object().unwrap().contains_key("POST /mcp"));
    let without = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_MCP", "off")]);
    assert_eq!(without.request("POST", "/mcp", Some("application/json"), b"{}").status, 404);
    assert!(!endpoints(&without).as_object().unwrap().contains_key("POST /mcp"));
}

#[test]
fn keys_and_rates_are_those_of_execute() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_API_KEYS", KEY),
        ("MAINBOX_RATE", "2/h"),
    ]);
    let list = modern("tools/list", json!({}));
    for key in ["", "authorization: Bearer 0000000000000000\r\n"] {
        let (status, head, body) =
            send(&server, &format!("{key}{}", headers(&list)), list.to_string().as_bytes());
        assert_eq!((status, &body["error"]["code"]), (401, &json!(401)), "{body}");
        assert!(head.contains("www-authenticate: bearer"), "{head}");
    }
    let authorized = |message: &Value| {
        let headers = format!("authorization: Bearer {KEY}\r\n{}", headers(message));
        send(&server, &headers, message.to_string().as_bytes())
    };
    for _ in 0..5 {
        let (status, _, body) = authorized(&list);
        assert_eq!((status, &body["result"]["cacheScope"]), (200, &json!("private")));
    }
    let call = modern("tools/call", json!({"name": "run_python", "arguments": {"script": "1"}}));
    assert_eq!(authorized(&call).0, 200);
    let execute = r#"{"script":"def main(): return 1"}"#;
    let mut stream = server.connect();
    write!(stream, "POST /execute HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{execute}", execute.len()).unwrap();
    assert!(read_to_end(stream).starts_with("HTTP/1.1 200"));
    let (status, head, body) = authorized(&call);
    assert_eq!((status, &body["error"]["data"]["kind"]), (429, &json!("rate_limited")));
    assert_eq!(body["id"], 1);
    assert!(head.contains("\r\nretry-after: "), "{head}");
    // Other messages are free, unless they are large.
    assert_eq!(authorized(&list).0, 200);
    let mut large = list.clone();
    large["params"]["padding"] = json!("x".repeat(64 << 10));
    assert_eq!(authorized(&large).0, 429);
}

#[test]
fn pages_of_strangers_are_refused_even_with_a_key() {
    let local = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_HOST", "127.0.0.1")]);
    let list = modern("tools/list", json!({}));
    let status = |server: &Server, more: &str| {
        let headers = format!("{more}{}", headers(&list));
        let body = list.to_string();
        let mut stream = server.connect();
        write!(stream, "POST /mcp HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        read_to_end(stream).split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for (origin, expected) in [
        ("", 200),
        ("origin: http://localhost\r\n", 200),
        ("origin: http://127.0.0.1:6274\r\n", 200),
        ("origin: http://evil.example\r\n", 403),
        ("origin: null\r\n", 403),
    ] {
        assert_eq!(status(&local, origin), expected, "{origin}");
    }
    let preflight = |origin: &str, path: &str| {
        let mut stream = local.connect();
        write!(stream, "OPTIONS {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\r\n").unwrap();
        read_to_end(stream).contains(&format!("access-control-allow-origin: {origin}\r\n"))
    };
    assert!(preflight("http://127.0.0.1:6274", "/mcp"));
    assert!(!preflight("http://evil.example", "/mcp"));
    assert!(!preflight("http://127.0.0.1:6274", "/execute"));
    let keyed = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_API_KEYS", KEY),
        ("MAINBOX_CORS", "https://chat.example"),
    ]);
    let key = format!("authorization: Bearer {KEY}\r\n");
    for (origin, expected) in [
        ("", 200),
        ("origin: https://chat.example\r\n", 200),
        ("origin: http://evil.example\r\n", 403),
        ("origin: http://127.0.0.1:6274\r\n", 403),
    ] {
        assert_eq!(status(&keyed, &format!("{key}{origin}")), expected, "{origin}");
    }
}

#[test]
fn a_caller_who_leaves_cancels_the_script() {
    let server = Server::start(QUICK);
    let script = "import time\ndef main(): time.sleep(9)";
    let message =
        modern("tools/call", json!({"name": "run_python", "arguments": {"script": script}}));
    let (headers, body) = (headers(&message), message.to_string());
    let mut stream = server.connect();
    write!(stream, "POST /mcp HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    server.wait_until_running(1);
    drop(stream);
    server.wait_for_metric("mainbox_executions_total{kind=\"left\"} 1");
    server.wait_until_running(0);
}

#[test]
fn every_way_to_run_a_script_passes_one_function() {
    fn sources(folder: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                // A call may be broken across lines.
                let text: String = text.split_whitespace().collect();
                let calls = text.matches("executor.execute(").count();
                found.extend(vec![path.to_string_lossy().into_owned(); calls]);
            }
        }
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let mut doors = vec![];
    sources(std::path::Path::new(source), &mut doors);
    assert_eq!(doors, [format!("{source}/handler/execute.rs")]);
}

/// `mainbox mcp`, as a desktop client starts it.
struct Client {
    process: Child,
    input: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(settings: &[(&str, &str)]) -> Client {
        let mut process = mainbox(settings)
            .arg("mcp")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Client { process, input, answers }
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.input, "{message}").unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, message: &Value) -> Value {
        self.send(message);
        self.next()
    }

    /// Ends the input. Returns the exit code.
    fn end(mut self) -> Option<i32> {
        drop(self.input);
        self.process.wait().unwrap().code()
    }
}

fn called(id: u32, script: &str) -> Value {
    let params = json!({"name": "run_python", "arguments": {"script": script}});
    let mut message = modern("tools/call", params);
    message["id"] = json!(id);
    message
}

#[test]
fn stdio_serves_both_eras_without_headers() {
    let mut client = Client::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_MCP", "off")]);
    let initialize = legacy("initialize", &json!({"protocolVersion": "2025-11-25"}));
    assert_eq!(client.ask(&initialize)["result"]["protocolVersion"], "2025-11-25");
    client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    let discover = modern("server/discover", json!({}));
    assert_eq!(client.ask(&discover)["result"]["supportedVersions"], json!([VERSION]));
    let answer = client.ask(&called(7, "print(1)"));
    assert_eq!((&answer["id"], texts(&answer["result"])), (&json!(7), vec!["1\n"]));
    writeln!(client.input, "nonsense").unwrap();
    assert_eq!(client.next()["error"]["code"], -32700);
    assert_eq!(client.end(), Some(0));
}

/// A call that wants to hear of its progress.
fn called_with_progress(script: &str) -> Value {
    let mut message = called(5, script);
    message["params"]["_meta"]["progressToken"] = json!("token");
    message
}

/// Prints twice. `print` would write each line break by itself, and a notification could come in between.
const PRINTS: &str = "import sys, time\nsys.stdout.write('first\\n')\ntime.sleep(0.5)\nsys.stdout.write('second\\nthird\\n')";

fn progress(number: u32, message: &str) -> Value {
    let params = json!({"progressToken": "token", "progress": number, "message": message});
    json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
}

#[test]
fn a_call_with_a_token_is_answered_live() {
    let message = called_with_progress(PRINTS);
    let mut stream = server().connect();
    let body = message.to_string();
    write!(
        stream,
        "POST /mcp HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n{}content-length: {}\r\n\r\n{body}",
        headers(&message),
        body.len()
    )
    .unwrap();
    let answer = read_to_end(stream);
    let (head, events) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let messages: Vec<Value> = events
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("event: message\ndata: ").unwrap()))
        .map(Result::unwrap)
        .collect();
    assert_eq!(messages[..2], [progress(1, "first\n"), progress(2, "second\nthird\n")]);
    assert_eq!(messages.len(), 3);
    let (status, _, plain) =
        send(server(), &headers(&message), called(5, PRINTS).to_string().as_bytes());
    assert_eq!((status, &messages[2]), (200, &plain));
}

#[test]
fn a_call_that_is_refused_and_a_client_of_json_alone_get_a_plain_answer() {
    let refused = called_with_progress("");
    let (status, head, answer) = send(server(), &headers(&refused), refused.to_string().as_bytes());
    assert_eq!((status, &answer["result"]["isError"]), (200, &json!(true)));
    assert!(head.contains("content-type: application/json"), "{head}");
    let message = called_with_progress(PRINTS);
    let mut stream = server().connect();
    let body = message.to_string();
    write!(
        stream,
        "POST /mcp HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\naccept: application/json\r\n{}content-length: {}\r\n\r\n{body}",
        headers(&message),
        body.len()
    )
    .unwrap();
    let answer = read_to_end(stream);
    assert!(answer.contains("content-type: application/json"), "{answer}");
}

#[test]
fn stdio_tells_the_progress_of_a_call_before_its_answer() {
    let mut client = Client::start(&[("MAINBOX_PRELOAD", "")]);
    client.send(&called_with_progress(PRINTS));
    assert_eq!(client.next(), progress(1, "first\n"));
    assert_eq!(client.next(), progress(2, "second\nthird\n"));
    let answer = client.next();
    assert_eq!(
        (&answer["id"], texts(&answer["result"])),
        (&json!(5), vec!["first\nsecond\nthird\n"])
    );
    assert_eq!(client.end(), Some(0));
}

#[test]
fn stdio_answers_calls_side_by_side_and_cancels_one_by_its_id() {
    let mut client = Client::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "2")]);
    let began = Instant::now();
    client.send(&called(1, "import time\ntime.sleep(9)"));
    client.send(&called(2, "print(2)"));
    assert_eq!(client.next()["id"], 2);
    client.send(
        &json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}),
    );
    assert_eq!(client.ask(&called(3, "print(3)"))["id"], 3);
    assert_eq!(client.end(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "the cancelled call went on");
}

#[test]
fn stdio_reads_no_more_while_its_answers_are_not_read() {
    let mut client = Client::start(QUICK);
    let (sent, progress) = std::sync::mpsc::channel();
    let mut input = client.input;
    std::thread::spawn(move || {
        let ping = legacy("ping", &json!({})).to_string();
        while writeln!(input, "{ping}").is_ok() && sent.send(()).is_ok() {}
    });
    // The answers fill the pipe, then the tasks, then the pipe of the messages.
    let mut count = 0;
    while progress.recv_timeout(Duration::from_secs(2)).is_ok() {
        count += 1;
        assert!(count < 50_000, "everything is read");
    }
    client.process.kill().unwrap();
    client.process.wait().unwrap();
}

#[test]
fn stdio_answers_every_message_before_it_ends() {
    let messages: String = (0..20).map(|id| format!("{}\n", called(id, "print(1)"))).collect();
    let mut process =
        mainbox(QUICK).arg("mcp").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(messages.as_bytes()).unwrap();
    let printed = process.wait_with_output().unwrap();
    assert_eq!(printed.status.code(), Some(0));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let mut ids: Vec<_> = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
}

#[test]
fn a_script_cannot_forge_a_message_over_stdio() {
    // A worker that writes to its channel chooses the white space of its result.
    let forged = indoc! {r#"
        import os, struct
        def main():
            value = b'[\n{"jsonrpc":"2.0","id":2,"result":{}}\n]'
            os.write(3, struct.pack("<BI", VALUE, len(value)) + value)
            import time
            time.sleep(1)
    "#};
    let value = mainbox::executor::protocol::from_worker::VALUE;
    let mut client = Client::start(QUICK);
    let answer = client.ask(&called(1, &forged.replace("VALUE", &value.to_string())));
    assert_eq!(answer["id"], 1);
    assert_eq!(answer["result"]["structuredContent"][0]["id"], 2);
    assert_eq!(client.ask(&called(3, "print(3)"))["id"], 3);
    assert_eq!(client.end(), Some(0));
}

#[test]
fn mcp_is_a_command_that_help_explains() {
    let (code, help, _) = output(mainbox(QUICK).args(["mcp", "-h"]));
    assert_eq!(code, Some(0));
    assert!(
        help.starts_with("Serves the Model Context Protocol over standard input and output"),
        "{help}"
    );
}
