//! Live responses: events with what a script prints, while it runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Server, one_at_a_time, read_to_end, server, status_kib};
use indoc::indoc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";
/// Without packages a server starts at once.
const QUICK: &[(&str, &str)] = &[("MAINBOX_PRELOAD", "")];

/// The response to a request, which can still be coming.
struct Live {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: BufReader<Box<dyn Read + Send + Sync>>,
}

/// An event: its name, its data, and when it came.
type Event = (String, Value, Instant);

impl Live {
    fn begin(server: &Server, accept: &str, body: &Value) -> Live {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let response = ureq::Agent::from(config)
            .post(format!("{}/execute", server.url))
            .header("accept", accept)
            .header("content-type", "application/json")
            .send(body.to_string())
            .unwrap();
        let (parts, body) = response.into_parts();
        let body: Box<dyn Read + Send + Sync> = Box::new(body.into_reader());
        Live { status: parts.status.as_u16(), headers: parts.headers, body: BufReader::new(body) }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.body.read_line(&mut line).unwrap();
        (!line.is_empty()).then_some(line)
    }

    /// The next event of an event stream, without comments; `None` at the end.
    fn event(&mut self) -> Option<Event> {
        let name = loop {
            let line = self.line()?;
            if line.starts_with(':') {
                assert_eq!((line.as_str(), self.line()?.as_str()), (": still running\n", "\n"));
                continue;
            }
            break line.strip_prefix("event: ").unwrap().trim_end().to_owned();
        };
        let now = Instant::now();
        let data = self.line().unwrap();
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(self.line().as_deref(), Some("\n"));
        Some((name, data, now))
    }

    fn events(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event()).collect()
    }
}

/// The texts of a stream, together.
fn text(events: &[Event], stream: &str) -> String {
    let texts = events.iter().filter(|(name, ..)| name == stream);
    texts.map(|(_, data, _)| data["text"].as_str().unwrap()).collect()
}

/// The data of the last event without the figures, which it checks.
fn body_of(events: &[Event], name: &str, status: u16) -> Value {
    let (found, data, _) = events.last().unwrap();
    assert_eq!((found.as_str(), data["status"].as_u64()), (name, Some(u64::from(status))));
    without_figures(data.clone())
}

fn without_figures(mut data: Value) -> Value {
    let object = data.as_object_mut().unwrap();
    let timings = object.remove("timings").unwrap();
    for figure in ["queue_ms", "run_ms", "cpu_ms"] {
        assert!(timings[figure].as_f64().unwrap() >= 0.0, "{timings}");
    }
    assert!(object.remove("peak_memory_bytes").unwrap().is_u64());
    assert_eq!(object.remove("isolation").unwrap(), json!(common::declared_tier()));
    assert!(object.remove("status").unwrap().is_u64());
    data
}

#[test]
fn output_comes_while_the_script_runs_and_the_last_event_is_the_buffered_answer() {
    let script = indoc! {r#"
        import sys, time
        def main(x):
            sys.stdout.write("first\n")  # print() would write the line break by itself
            time.sleep(1)
            sys.stderr.write("second\n")
            time.sleep(0.2)
            return x
    "#};
    let request = json!({"script": script, "input": [1, "é"]});
    let live = Live::begin(server(), EVENTS, &request);
    assert_eq!(live.status, 200);
    assert_eq!(live.header("content-type"), Some(EVENTS));
    assert_eq!(live.header("cache-control"), Some("no-store"));
    assert_eq!(live.header("x-accel-buffering"), Some("no"));
    assert_eq!(live.header("transfer-encoding"), Some("chunked"));
    assert!(live.header("x-request-id").is_some() && live.header("server-timing").is_none());
    let events = live.events();
    let names: Vec<&str> = events.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["stdout", "stderr", "result"]);
    assert_eq!(events[0].1, json!({"text": "first\n"}));
    assert_eq!(events[1].1, json!({"text": "second\n"}));
    let between = events[1].2 - events[0].2;
    assert!(between > Duration::from_millis(700), "{between:?}");
    assert_eq!(body_of(&events, "result", 200), server().execute(&request).json());
}

#[test]
fn a_failure_is_the_last_event() {
    for (script, status, kind) in [
        ("def main():\n    print('a')\n    return 1 / 0", 400, "exception"),
        ("def main(:", 400, "syntax_error"),
        ("import os\ndef main(): os.abort()", 400, "crashed"),
    ] {
        let request = json!({"script": script});
        let events = Live::begin(server(), EVENTS, &request).events();
        let body = body_of(&events, "error", status);
        assert_eq!(body["kind"], json!(kind));
        assert_eq!(body, server().execute(&request).json());
    }
}

#[test]
fn lines_of_json_say_the_same_as_events() {
    let script = indoc! {r#"
        import sys
        def main():
            sys.stdout.write("out\n")
            sys.stderr.write("err\n")
            return {"a": [1, 2]}
    "#};
    let request = json!({"script": script});
    let mut live = Live::begin(server(), LINES, &request);
    assert_eq!(live.header("content-type"), Some(LINES));
    let lines: Vec<Value> = std::iter::from_fn(|| live.line())
        .map(|line| serde_json::from_str(line.strip_suffix('\n').unwrap()).unwrap())
        .collect();
    assert_eq!(lines[0], json!({"event": "stdout", "text": "out\n"}));
    assert_eq!(lines[1], json!({"event": "stderr", "text": "err\n"}));
    let mut last = lines[2].clone();
    assert_eq!((last["event"].take(), lines.len()), (json!("result"), 3));
    last.as_object_mut().unwrap().remove("event");
    assert_eq!(without_figures(last), server().execute(&request).json());
}

#[test]
fn a_request_that_runs_nothing_gets_a_plain_answer() {
    let settings = &[("MAINBOX_RATE", "3/h"), ("MAINBOX_MAX_SCRIPT_BYTES", "100"), QUICK[0]];
    let server = Server::start(settings);
    for (body, status, kind) in [
        (json!({"script": 1}), 400, "invalid_request"),
        (json!({"script": "x".repeat(101)}), 413, "payload_too_large"),
        (json!({}), 400, "invalid_request"),
        (json!({"script": "def main(): pass"}), 429, "rate_limited"),
    ] {
        let mut live = Live::begin(&server, EVENTS, &body);
        assert_eq!(live.status, status);
        assert_eq!(live.header("content-type"), Some("application/json"));
        let answer: Value = serde_json::from_str(&live.line().unwrap()).unwrap();
        assert_eq!(answer["kind"], json!(kind));
    }
    let settings = &[("MAINBOX_QUEUE", "0"), ("MAINBOX_CONCURRENCY", "1"), QUICK[0]];
    let server = Server::start(settings);
    let sleep = json!({"script": "import time\ndef main(): time.sleep(3)"});
    let running = server.begin("", &sleep);
    server.wait_until_running(1);
    let refused = Live::begin(&server, EVENTS, &sleep);
    assert_eq!((refused.status, refused.header("content-type")), (503, Some("application/json")));
    drop(running);
}

#[test]
fn characters_are_never_split_and_what_is_not_text_is_replaced() {
    let script = indoc! {r#"
        import os, time
        def main():
            for byte in "é€🦀".encode() + b"\xff\xe2\x82":
                os.write(1, bytes([byte]))
                time.sleep(0.03)
    "#};
    let events = Live::begin(server(), EVENTS, &json!({"script": script})).events();
    assert_eq!(text(&events, "stdout"), "é€🦀\u{fffd}\u{fffd}");
    let pieces = events.iter().filter(|(name, ..)| name == "stdout").count();
    assert!(pieces >= 4, "{events:?}");
    assert_eq!(body_of(&events, "result", 200)["stdout"], json!("é€🦀\u{fffd}\u{fffd}"));
}

#[test]
fn a_stream_gets_one_event_in_20_ms_and_each_has_all_that_was_printed() {
    let script = indoc! {r#"
        import time
        def main():
            for number in range(400):
                print(number, flush=True)
                time.sleep(0.001)
    "#};
    let events = Live::begin(server(), EVENTS, &json!({"script": script})).events();
    let whole: String = (0..400).map(|number| format!("{number}\n")).collect();
    assert_eq!(text(&events, "stdout"), whole);
    let body = events.last().unwrap();
    let run = body.1["timings"]["run_ms"].as_f64().unwrap();
    // One at once, and one at the end.
    assert!((events.len() as f64) < run / 20.0 + 4.0, "{} events in {run} ms", events.len());
}

#[test]
fn silence_is_broken_after_ten_seconds() {
    let settings = &[QUICK[0], ("MAINBOX_TIMEOUT_SECONDS", "30")];
    let server = Server::start(settings);
    let request = json!({"script": "import time\ndef main(): time.sleep(11)"});
    std::thread::scope(|scope| {
        let lines = scope.spawn(|| {
            let mut live = Live::begin(&server, LINES, &request);
            assert_eq!(live.line().as_deref(), Some("{\"event\":\"keepalive\"}\n"));
            assert!(live.line().unwrap().starts_with("{\"event\":\"result\",\"result\":null,"));
        });
        let began = Instant::now();
        let mut live = Live::begin(&server, EVENTS, &request);
        assert_eq!(live.line().as_deref(), Some(": still running\n"));
        let waited = began.elapsed();
        assert!((9..11).contains(&waited.as_secs()), "{waited:?}");
        assert_eq!(live.line().as_deref(), Some("\n"));
        assert_eq!(live.event().unwrap().0, "result");
        lines.join().unwrap();
    });
}

/// Waits until no script runs and every worker is replaced.
#[track_caller]
fn wait_until_nothing_runs(server: &Server) {
    server.wait_for_metric("mainbox_running 0");
    server.wait_for_metric("mainbox_streams 0");
}

#[test]
fn a_client_that_leaves_ends_its_script_although_that_prints_nothing() {
    let server = Server::start(QUICK);
    let sleep = json!({"script": "import time\ndef main():\n    print(1)\n    time.sleep(9)"});
    let began = Instant::now();
    let mut client = server.begin("accept: text/event-stream\r\n", &sleep);
    let mut answer = [0; 400];
    while !String::from_utf8_lossy(&answer).contains("event: stdout") {
        assert!(client.read(&mut answer).unwrap() > 0);
    }
    server.wait_for_metric("mainbox_streams 1");
    drop(client);
    wait_until_nothing_runs(&server);
    server.wait_for_metric("mainbox_executions_total{kind=\"left\"} 1");
    assert!(began.elapsed() < Duration::from_secs(5));
    let line: Value = serde_json::from_str(&server.log_line("POST /execute", 1)).unwrap();
    assert_eq!((&line["kind"], &line["httpRequest"]["status"]), (&json!("left"), &json!(499)));
    assert!(line["request_id"].is_string(), "{line}");
}

#[test]
fn a_client_that_reads_slowly_holds_up_neither_its_script_nor_others() {
    let server = Server::start(QUICK);
    let script = indoc! {r#"
        import sys
        def main():
            for stream in (sys.stdout, sys.stderr):
                for _ in range(30_000):
                    stream.write("x" * 1023 + "\n")
            return "done"
    "#};
    let headers = "accept: text/event-stream\r\nconnection: close\r\n";
    let before = status_kib(server.pid(), "VmRSS");
    let slow: Vec<TcpStream> =
        (0..4).map(|_| server.begin(headers, &json!({"script": script}))).collect();
    // Each script ends, although nothing of its response was read.
    server.wait_for_metric("mainbox_running 0");
    assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    server.wait_for_metric("mainbox_streams 4");
    // Of 60 MB, two streams of a megabyte each are kept: live, as captured, and in the last event.
    let grown = status_kib(server.pid(), "VmRSS").saturating_sub(before);
    assert!(grown < 4 * 8 * 1024, "{grown} KiB");
    for client in slow {
        let answer = read_to_end(client);
        let (_, last) = answer.rsplit_once("event: result\ndata: ").unwrap();
        assert!(last.contains(r#""truncated":["stdout","stderr"]"#), "{}", last.len());
        let events = answer.matches("event: stdout").count();
        assert!((32..36).contains(&events), "{events}");
    }
    wait_until_nothing_runs(&server);
}

#[test]
fn requests_may_follow_a_live_one_on_its_connection() {
    let sleep = json!({"script": "import time\ndef main(): time.sleep(0.3)"});
    let mut client = server().begin("accept: text/event-stream\r\n", &sleep);
    client.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let answer = read_to_end(client);
    let (live, plain) = answer.split_once("0\r\n\r\nHTTP/1.1 200 OK\r\n").unwrap();
    assert!(live.contains("event: result\ndata: {\"result\":null,"), "{live}");
    assert!(plain.ends_with("{\"status\":\"alive\"}"), "{plain}");
}

#[test]
fn a_client_that_expects_100_is_told_to_continue() {
    let body = json!({"script": "def main(): return 1"}).to_string();
    let mut client = server().connect();
    write!(
        client,
        "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: text/event-stream\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    let mut head = [0; 25];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(body.as_bytes()).unwrap();
    let answer = read_to_end(client);
    assert!(answer.contains("event: result\ndata: {\"result\":1,"), "{answer}");
}

#[test]
fn head_and_get_are_refused_as_ever() {
    for method in ["HEAD", "GET"] {
        let mut client = server().connect();
        write!(
            client,
            "{method} /execute HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let answer = read_to_end(client);
        assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: application/json\r\n"), "{answer}");
    }
}

#[test]
fn a_client_of_http_1_0_reads_until_the_end() {
    let mut client = server().connect();
    let body = "import sys\ndef main():\n    sys.stdout.write('a\\n')\n    return 1";
    write!(
        client,
        "POST /execute HTTP/1.0\r\ncontent-type: text/x-python\r\naccept: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let answer = read_to_end(client);
    let (head, events) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert!(events.starts_with("event: stdout\ndata: {\"text\":\"a\\n\"}\n\n"), "{events}");
}

#[test]
fn a_shutdown_waits_for_a_live_response() {
    let mut server = Server::start(QUICK);
    let script = "import sys, time\ndef main():\n    time.sleep(2)\n    sys.stdout.write('end\\n')\n    return 1";
    let mut live = Live::begin(&server, EVENTS, &json!({"script": script}));
    kill(Pid::from_raw(server.pid()), Signal::SIGTERM).unwrap();
    assert_eq!(live.event().unwrap().1, json!({"text": "end\n"}));
    assert_eq!(live.event().unwrap().1["result"], json!(1));
    assert!(live.event().is_none());
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_live_request_is_logged_once_at_its_end() {
    let server = Server::start(QUICK);
    let script = "import time\ndef main():\n    time.sleep(0.5)\n    return 'x' * 1000";
    let live = Live::begin(&server, EVENTS, &json!({"script": script}));
    let id = live.header("x-request-id").unwrap().to_owned();
    assert!(!server.log().contains("POST /execute"), "{}", server.log());
    assert_eq!(live.events().len(), 1);
    let line: Value = serde_json::from_str(&server.log_line("POST /execute ok", 1)).unwrap();
    assert_eq!(line["request_id"], json!(id));
    assert!(line["run_ms"].as_f64().unwrap() >= 500.0, "{line}");
    let size = line["httpRequest"]["responseSize"].as_u64().unwrap();
    assert!((1100..1300).contains(&size), "{line}");
    server.wait_for_metric("mainbox_executions_total{kind=\"ok\"} 1");
    assert_eq!(server.log().matches("POST /execute").count(), 1);
}

#[test]
fn live_responses_run_beside_each_other() {
    if one_at_a_time() {
        return common::not_run("one script runs at a time here");
    }
    let server = Server::start(&[QUICK[0], ("MAINBOX_CONCURRENCY", "4")]);
    let script = "import time\ndef main(x):\n    print(x)\n    time.sleep(1)\n    return x";
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let request = json!({"script": script, "input": number});
                let server = &server;
                scope.spawn(move || Live::begin(server, EVENTS, &request).events())
            })
            .collect();
        server.wait_for_metric("mainbox_streams 4");
        for (number, client) in clients.into_iter().enumerate() {
            let events = client.join().unwrap();
            assert_eq!(text(&events, "stdout"), format!("{number}\n"));
            assert_eq!(body_of(&events, "result", 200)["result"], json!(number));
        }
    });
}
