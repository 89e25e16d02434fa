//! Requests with several inputs: the script runs once for each, in a fresh process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Server, one_at_a_time, read_to_end, server};
use indoc::indoc;
use serde_json::{Value, json};

/// Without packages a server starts at once.
const QUICK: &[(&str, &str)] = &[("MAINBOX_PRELOAD", "")];

#[test]
fn each_result_is_what_a_request_with_that_input_would_have_got() {
    let script = indoc! {r#"
        import sys
        def main(x):
            print("got", x)
            if x == "exit":
                sys.exit(3)
            if x == "big":
                return "x" * 5_000_000
            open("outputs/x.txt", "w").write(str(x))
            return 10 / x
    "#};
    let inputs = [json!(4), json!(0), json!("exit"), json!("big"), json!(null), json!(5)];
    let answer = server().execute(&json!({"script": script, "inputs": inputs}));
    let alone: Vec<Value> = inputs
        .iter()
        .map(|input| server().execute(&json!({"script": script, "input": input})).json())
        .collect();
    assert_eq!((answer.status, answer.json()), (200, json!({"results": alone})));
    let kinds: Vec<&str> =
        alone.iter().map(|result| result["kind"].as_str().unwrap_or("ok")).collect();
    assert_eq!(kinds, ["ok", "exception", "exit", "result_too_large", "exception", "ok"]);
    assert_eq!(alone[0]["files"], json!({"x.txt": "4"}));
    for header in ["server-timing", "mainbox-peak-memory", "mainbox-isolation"] {
        assert!(!answer.header(header).is_empty(), "{header}");
    }
}

#[test]
fn every_input_gets_a_fresh_process_and_its_own_files() {
    let script = indoc! {r#"
        import os
        seen = []
        def main(x):
            seen.append(x)
            with open("data.txt", "a") as file:
                file.write(str(x))
            return [seen, open("data.txt").read(), sorted(os.listdir())]
    "#};
    let request = json!({"script": script, "inputs": [1, 2, 3], "files": {"data.txt": "a"}});
    let results = server().execute(&request).json()["results"].clone();
    let expected: Vec<Value> = (1..4)
        .map(|x| json!({"result": [[x], format!("a{x}"), ["data.txt", "outputs"]], "stdout": ""}))
        .collect();
    assert_eq!(results, json!(expected));
}

#[test]
fn results_are_in_order_although_some_take_longer() {
    let script = "import time\ndef main(x):\n    time.sleep(x)\n    return x";
    let inputs = json!([0.5, 0.01, 0.3, 0.02]);
    let results = server().execute(&json!({"script": script, "inputs": inputs})).json();
    let order: Vec<&Value> =
        results["results"].as_array().unwrap().iter().map(|result| &result["result"]).collect();
    assert_eq!(json!(order), inputs);
}

#[test]
fn a_script_without_inputs_runs_nothing() {
    let answer = server().execute(&json!({"script": "def main(", "inputs": []}));
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"results":[]}"#));
}

#[test]
fn inputs_are_refused_beside_an_input_and_beyond_their_limit() {
    let script = "def main(x): return x";
    let request = |inputs: usize| json!({"script": script, "inputs": vec![1; inputs]});
    assert_eq!(
        server().execute(&request(101)).failure(),
        (
            400,
            String::from("invalid_request"),
            String::from("inputs has more elements than its limit of 100")
        )
    );
    let both = json!({"script": script, "inputs": [1], "input": 1});
    assert_eq!(server().execute(&both).failure().2, "The request has both `input` and `inputs`");
    let server = Server::start(&[QUICK[0], ("MAINBOX_MAX_INPUTS", "2")]);
    assert_eq!(server.execute(&request(2)).status, 200);
    assert_eq!(server.execute(&request(3)).status, 400);
    assert_eq!(server.get("/about").json()["limits"]["max_inputs"], json!(2));
}

#[test]
fn a_lone_request_gets_its_turn_beside_a_hundred_inputs() {
    let server = Server::start(&[QUICK[0], ("MAINBOX_CONCURRENCY", "1")]);
    let script = "import time\ndef main(x):\n    time.sleep(0.1)\n    return x";
    let inputs: Vec<u32> = (0..100).collect();
    let batch = json!({"script": script, "inputs": inputs});
    std::thread::scope(|scope| {
        let batch = scope.spawn(|| server.execute(&batch));
        server.wait_for_metric("mainbox_items_total 3");
        let mut waits: Vec<Duration> = (0..9)
            .map(|_| {
                let began = Instant::now();
                let answer = server.run("def main(): return 'alone'");
                assert_eq!(answer.body, r#"{"result":"alone","stdout":""}"#);
                began.elapsed()
            })
            .collect();
        waits.sort();
        // One input that runs, and one that waited before: a fifth of a second, and the time of the workers.
        assert!(waits[4] < Duration::from_millis(500), "{waits:?}");
        let answer = batch.join().unwrap().json();
        let results = answer["results"].as_array().unwrap();
        assert!(results.iter().enumerate().all(|(index, one)| one["result"] == json!(index)));
        assert_eq!(results.len(), 100);
    });
}

#[test]
fn several_inputs_run_at_once_as_far_as_scripts_may() {
    if one_at_a_time() {
        return common::not_run("one script runs at a time here");
    }
    let server = Server::start(&[QUICK[0], ("MAINBOX_CONCURRENCY", "4")]);
    let script = "import time\ndef main(x):\n    time.sleep(0.5)\n    return x";
    let began = Instant::now();
    let answer = server.execute(&json!({"script": script, "inputs": [0, 1, 2, 3, 4, 5, 6, 7]}));
    let took = began.elapsed();
    assert_eq!(answer.status, 200);
    assert!((1000..3000).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn without_a_queue_requests_get_their_turns_beside_many_inputs() {
    let server = Server::start(&[QUICK[0], ("MAINBOX_CONCURRENCY", "1"), ("MAINBOX_QUEUE", "0")]);
    let script = "import time\ndef main(x):\n    time.sleep(0.1)\n    return x";
    let inputs: Vec<u32> = (0..20).collect();
    let request = json!({"script": script, "inputs": inputs});
    std::thread::scope(|scope| {
        let batch = scope.spawn(|| server.execute(&request).json());
        server.wait_for_metric("mainbox_items_total 3");
        for _ in 0..3 {
            assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
        }
        let results = batch.join().unwrap()["results"].clone();
        let expected: Vec<Value> =
            inputs.iter().map(|x| json!({"result": x, "stdout": ""})).collect();
        assert_eq!(results, json!(expected));
    });
}

#[test]
fn inputs_wait_for_each_other_longer_than_a_request_may_wait() {
    let settings = &[QUICK[0], ("MAINBOX_CONCURRENCY", "1"), ("MAINBOX_QUEUE_SECONDS", "1")];
    let server = Server::start(settings);
    let script = "import time\ndef main(x):\n    time.sleep(1.5)\n    return x";
    let answer = server.execute(&json!({"script": script, "inputs": [0, 1, 2]}));
    let expected = [0, 1, 2].map(|x| json!({"result": x, "stdout": ""}));
    assert_eq!(answer.json(), json!({"results": expected}));
}

#[test]
fn a_fifth_request_with_many_inputs_is_busy() {
    let server = Server::start(&[QUICK[0], ("MAINBOX_CONCURRENCY", "1")]);
    let request =
        json!({"script": "import time\ndef main(x): time.sleep(5)", "inputs": [0, 1, 2, 3]});
    let running: Vec<_> = (0..4).map(|_| server.begin("", &request)).collect();
    // Three wait for their first turn, and the first one for its second input.
    server.wait_for_metric("mainbox_waiting 3");
    let (status, kind, error) = server.execute(&request).failure();
    assert_eq!((status, kind.as_str()), (503, "busy"));
    assert_eq!(error, "Too many requests with several inputs are running");
    drop(running);
    server.wait_for_metric("mainbox_running 0");
    let request = json!({"script": "def main(x): return x", "inputs": [1]});
    assert_eq!(server.execute(&request).status, 200);
}

#[test]
fn each_input_counts_for_the_rate() {
    let server = Server::start(&[QUICK[0], ("MAINBOX_RATE", "3/h")]);
    let request = json!({"script": "def main(x): return x", "inputs": [0, 1, 2, 3]});
    let results = server.execute(&request).json()["results"].clone();
    for (index, result) in results.as_array().unwrap().iter().enumerate() {
        if index < 3 {
            assert_eq!(*result, json!({"result": index, "stdout": ""}));
        } else {
            assert_eq!(result["kind"], json!("rate_limited"));
        }
    }
    assert_eq!(server.execute(&request).failure().1, "rate_limited");
}

#[test]
fn all_answers_together_are_bounded() {
    let settings = &[
        QUICK[0],
        ("MAINBOX_MAX_RESULT_BYTES", "100000"),
        ("MAINBOX_MAX_STDOUT_BYTES", "0"),
        ("MAINBOX_MAX_FILES_BYTES", "0"),
        ("MAINBOX_CONCURRENCY", "1"),
    ];
    let server = Server::start(settings);
    let script = "def main(x): return 'x' * x";
    let request = json!({"script": script, "inputs": [60_000, 60_000, 1000, 90_000]});
    let results = server.execute(&request).json()["results"].clone();
    let kinds: Vec<&str> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["kind"].as_str().unwrap_or("ok"))
        .collect();
    assert_eq!(kinds, ["ok", "result_too_large", "ok", "result_too_large"]);
    assert_eq!(
        results[1]["error"],
        json!("The result does not fit: those of all inputs may have 100000 bytes together")
    );
    server.wait_for_metric("mainbox_executions_total{kind=\"result_too_large\"} 2");
}

#[test]
fn a_live_response_has_each_result_as_soon_as_it_is_there() {
    let script = indoc! {r#"
        import time
        def main(x):
            print("out", x)
            time.sleep(x)
            return 1 / x
    "#};
    let request = json!({"script": script, "inputs": [0.4, 0]});
    let headers = "accept: application/x-ndjson\r\nconnection: close\r\n";
    let answer = read_to_end(server().begin(headers, &request));
    let lines: Vec<Value> = answer
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let alone = server().execute(&request).json();
    let events: Vec<_> = lines
        .iter()
        .map(|line| (line["event"].as_str().unwrap(), line["index"].as_u64()))
        .collect();
    let order = if one_at_a_time() || events[0].1 == Some(0) { [0, 1] } else { [1, 0] };
    assert_eq!(events, [("item", Some(order[0])), ("item", Some(order[1])), ("result", None)]);
    for line in &lines[..2] {
        let index = line["index"].as_u64().unwrap() as usize;
        let status = if index == 0 { 200 } else { 400 };
        assert_eq!(
            (line["status"].as_u64(), &line["stdout"]),
            (Some(status), &alone["results"][index]["stdout"])
        );
        assert_eq!(line.get("kind"), alone["results"][index].get("kind"));
        assert!(line["timings"]["run_ms"].is_f64());
    }
    assert_eq!((&lines[2]["results"], &lines[2]["status"]), (&alone["results"], &json!(200)));
}

#[test]
fn a_client_that_leaves_ends_all_inputs() {
    let server = Server::start(&[QUICK[0], ("MAINBOX_CONCURRENCY", "1")]);
    let script = "import time\ndef main(x): time.sleep(5)";
    let client = server.begin("", &json!({"script": script, "inputs": vec![0; 50]}));
    server.wait_for_metric("mainbox_running 1");
    drop(client);
    server.wait_for_metric("mainbox_running 0");
    server.wait_for_metric("mainbox_executions_total{kind=\"left\"} 1");
    server.wait_for_metric("mainbox_items_total 0");
    assert_eq!(server.run("def main(): return 1").status, 200);
}

#[test]
fn a_request_with_inputs_is_logged_once() {
    let server = Server::start(QUICK);
    let script = "def main(x): return 1 / x";
    server.execute(&json!({"script": script, "inputs": [1, 0, 2]}));
    let line: Value = serde_json::from_str(&server.log_line("POST /execute", 1)).unwrap();
    assert_eq!((&line["kind"], &line["httpRequest"]["status"]), (&json!("ok"), &json!(200)));
    server.wait_for_metric("mainbox_executions_total{kind=\"ok\"} 2");
    server.wait_for_metric("mainbox_executions_total{kind=\"exception\"} 1");
    server.wait_for_metric("mainbox_items_total 3");
    assert_eq!(server.log().matches("POST /execute").count(), 1);
}
