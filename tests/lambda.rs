//! AWS Lambda: the function behind AWS' emulator of the runtime API (`make lambda` installs it and runs these tests), and
//! behind a small runtime API of this file for what the emulator cannot do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use common::{OwnPython, Server, children, declared_tier, mainbox, output, status, status_kib};
use indoc::{formatdoc, indoc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn function(settings: &[(&str, &str)]) -> Server {
    Server::emulated(&mut mainbox(settings))
}

/// Runs a script that is sent as a bare event.
fn run(function: &Server, script: &str) -> (u16, Value) {
    let (status, body) = function.invoke(json!({ "script": script }).to_string().as_bytes());
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn ok(result: impl Into<Value>) -> (u16, Value) {
    (200, json!({"result": result.into(), "stdout": ""}))
}

/// The processes below the emulator.
struct Tree {
    supervisor: i32,
    zygote: i32,
    workers: Vec<i32>,
}

impl Tree {
    fn of(function: &Server) -> Tree {
        Tree::below(children(function.pid())[0])
    }

    fn below(supervisor: i32) -> Tree {
        // If there are two, the preloaded one is larger.
        let zygotes = children(supervisor).into_iter();
        let mut zygote = zygotes.max_by_key(|zygote| status_kib(*zygote, "VmRSS")).unwrap();
        // In a pid namespace, the zygote is the only child of the process in between.
        let mut workers = children(zygote);
        if let ([only], true) =
            (&workers[..], workers.len() == 1 && !children(workers[0]).is_empty())
        {
            zygote = *only;
            workers = children(zygote);
        }
        Tree { supervisor, zygote, workers }
    }

    fn all(&self) -> Vec<i32> {
        [&[self.supervisor, self.zygote], &self.workers[..]].concat()
    }

    fn signal(&self, signal: Signal) {
        for process in self.all() {
            kill(Pid::from_raw(process), signal).unwrap();
        }
    }
}

/// Counts the open descriptors of a process. In the tier `rlimits` the process is not readable.
fn descriptors(process: i32) -> Option<usize> {
    let list = std::fs::read_dir(format!("/proc/{process}/fd"));
    assert_eq!(list.is_err(), declared_tier() == "rlimits");
    Some(list.ok()?.count())
}

fn events() -> PathBuf {
    let beside = std::env::var_os("WORLD_EVENTS").map(PathBuf::from);
    beside.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/events").into())
}

fn entries(folder: impl AsRef<Path>) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Waits until the log has `count` JSON lines with this message, and returns them.
fn logged(function: &Server, message: &str, count: usize) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let lines: Vec<Value> = function
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line["message"] == message)
            .collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{}", function.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

// Events.

#[test]
#[ignore = "needs the emulator: make lambda"]
fn every_event_file_gets_its_response() {
    let invalid = |error: &str| json!({"error": error, "kind": "invalid_request", "stdout": ""});
    let unknown = "The event must be a request to a function URL, a request to API Gateway in payload format 2.0, or a bare request: missing field `http` at line 20 column 3";
    let wrapped = [
        ("api-gateway-v2", 200, json!({"result": 10_f64.powi(30), "stdout": ""})),
        (
            "broken-base64",
            400,
            invalid("The body of the request is not valid base64: Invalid symbol 32, offset 3."),
        ),
        (
            "broken-body",
            400,
            invalid("The body is not valid JSON: EOF while parsing a value at line 1 column 11"),
        ),
        (
            "broken-path",
            400,
            invalid("The path of the request is not valid: invalid uri character"),
        ),
        ("function-url", 200, json!({"result": 10, "stdout": "adding\n"})),
        ("function-url-base64", 200, json!({"result": "Grüße", "stdout": ""})),
        ("function-url-health", 200, json!({"status": "healthy"})),
        ("other-api-gateway-v1", 400, invalid(unknown)),
    ];
    let failing = json!({"error": "ValueError: no", "kind": "exception", "stdout": "", "line": 2,
        "traceback": "Traceback (most recent call last):\n  File \"script.py\", line 2, in main\n    raise ValueError('no')\nValueError: no\n"});
    let bare = [
        ("bare", json!({"result": {"doubled": [1, 2, 1, 2]}, "stdout": ""})),
        ("bare-failing", failing),
        (
            "broken-bare",
            invalid(
                "The request is not valid: unknown field `sript`, expected one of `script`, `input`, `inputs`, `stdin`, `entry`, `files`, `collect`, `limits` at line 2 column 9",
            ),
        ),
        (
            "other-sqs",
            invalid(
                "The request is not valid: unknown field `Records`, expected one of `script`, `input`, `inputs`, `stdin`, `entry`, `files`, `collect`, `limits` at line 2 column 11",
            ),
        ),
    ];
    let function = function(&[]);
    let mut tried = BTreeSet::new();
    let mut invoke = |name: &str| {
        let path = events().join(format!("{name}.json"));
        tried.insert(path.clone());
        let (status, body) = function.invoke(&std::fs::read(path).unwrap());
        assert_eq!(status, 200, "{name}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    for (name, status, body) in wrapped {
        let response = invoke(name);
        assert_eq!((name, &response["statusCode"]), (name, &json!(status)), "{response}");
        assert_eq!(response["isBase64Encoded"], false);
        assert_eq!(response["headers"]["content-type"], "application/json");
        let text = response["body"].as_str().unwrap();
        assert_eq!((name, serde_json::from_str::<Value>(text).unwrap()), (name, body));
    }
    for (name, body) in bare {
        assert_eq!((name, invoke(name)), (name, body));
    }
    assert_eq!(tried, entries(events()));
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn an_event_that_is_not_json_is_an_error_and_the_runtime_continues() {
    let function = function(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    let supervisor = Tree::of(&function).supervisor;
    let (_, response) = function.invoke(b"nonsense");
    let response: Value = serde_json::from_str(&response).unwrap();
    assert_eq!(
        response["errorMessage"],
        "failed to deserialize the incoming data into the function's payload type: expected ident at line 1 column 2\n"
    );
    assert_eq!(run(&function, "def main(): return 2"), ok(2));
    assert_eq!(Tree::of(&function).supervisor, supervisor);
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_response_over_6_mb_is_refused_before_it_reaches_lambda() {
    let function = function(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_METRICS", "emf")]);
    // Encoded as JSON twice, each of these quotation marks takes four bytes.
    let script = "def main(): return '\"' * 1_900_000";
    let body = json!({"script": script}).to_string();
    let event = json!({
        "version": "2.0", "rawPath": "/execute", "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": "POST"}}, "body": body,
    });
    let (status, response) = function.invoke(event.to_string().as_bytes());
    let response: Value = serde_json::from_str(&response).unwrap();
    assert_eq!((status, &response["statusCode"]), (200, &json!(400)));
    let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["kind"], "result_too_large");
    let error = body["error"].as_str().unwrap();
    assert!(error.ends_with(" bytes as wrapped for AWS Lambda; the limit is 6291456"), "{error}");
    let line: Value =
        serde_json::from_str(&function.log_line(r#""message":"request""#, 1)).unwrap();
    assert_eq!((&line["status"], &line["kind"]), (&json!(400), &json!("result_too_large")));
    function.log_line(r#""Outcome":"result_too_large""#, 1);
    assert_eq!(run(&function, script).1["result"].as_str().map(str::len), Some(1_900_000));
}

/// Has the tool of MCP run a script, through a function URL. Returns the status and the message.
fn call_tool(function: &Server, script: &str) -> (u64, Value) {
    let call = json!({
        "jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"name": "run_python", "arguments": {"script": script}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }},
    });
    let event = json!({
        "version": "2.0", "rawPath": "/mcp", "requestContext": {"http": {"method": "POST"}},
        "headers": {
            "content-type": "application/json", "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call", "mcp-name": "run_python",
        },
        "body": call.to_string(),
    });
    let (status, response) = function.invoke(event.to_string().as_bytes());
    assert_eq!(status, 200);
    let response: Value = serde_json::from_str(&response).unwrap();
    let message = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    (response["statusCode"].as_u64().unwrap(), message)
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_function_is_an_mcp_server_and_a_result_that_is_too_large_stays_in_its_form() {
    let function = function(&[("MAINBOX_PRELOAD", "")]);
    let (status, message) = call_tool(&function, "print(6 * 7)");
    assert_eq!((status, &message["id"]), (200, &json!(7)));
    assert_eq!(message["result"]["content"], json!([{"type": "text", "text": "42\n"}]));
    let (status, message) = call_tool(&function, "def main(): return '\"' * 1_900_000");
    assert_eq!((status, &message["id"]), (200, &json!(7)));
    let result = &message["result"];
    assert_eq!(
        (&result["isError"], &result["structuredContent"]["kind"]),
        (&json!(true), &json!("result_too_large"))
    );
    assert_eq!(call_tool(&function, "print(1)").0, 200);
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_script_is_ended_before_the_deadline_of_lambda() {
    let mut command = mainbox(&[("MAINBOX_PRELOAD", "")]);
    let function = Server::emulated(command.env("AWS_LAMBDA_FUNCTION_TIMEOUT", "3"));
    let (status, response) = run(
        &function,
        indoc! {r#"
            import time
            def main():
                print('on')
                time.sleep(9)
        "#},
    );
    assert_eq!(
        (status, response),
        (
            200,
            json!({"error": "The platform's deadline came before the script's limit of 10 seconds", "kind": "timeout", "stdout": "on\n"})
        )
    );
    assert_eq!(run(&function, "def main(): return 2"), ok(2));
}

// Many invocations in one environment.

#[test]
#[ignore = "needs the emulator: make lambda"]
fn two_hundred_invocations_do_not_grow_the_environment() {
    let function = function(&[]);
    let script = indoc! {r#"
        import os
        import pandas as pd
        def main():
            try:
                os.makedirs('/tmp/left/deep')
            except OSError:
                pass
            print('x' * 10_000)
            return int(pd.DataFrame({'a': range(1000)}).a.sum())
    "#};
    let count = || {
        let tree = Tree::of(&function);
        (tree.all().len(), descriptors(tree.supervisor), entries(function.temporary()))
    };
    let memory = || {
        let tree = Tree::of(&function);
        (status_kib(tree.supervisor, "VmRSS"), status_kib(tree.zygote, "VmRSS"))
    };
    let mut early = None;
    for number in 0..200 {
        let (status, response) = run(&function, script);
        assert_eq!((status, &response["result"]), (200, &json!(499_500)));
        if number == 20 {
            early = Some((count(), memory()));
        }
    }
    let (counted, before) = early.unwrap();
    assert_eq!(count(), counted);
    let after = memory();
    assert!(after.0 < before.0 + 1024, "supervisor: {before:?} KiB, then {after:?}");
    assert!(after.1 < before.1 + 1024, "zygote: {before:?} KiB, then {after:?}");
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_spare_survives_a_freeze_and_nothing_runs_between_invocations() {
    let function = function(&[]);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    // Outside of AWS Lambda, where the tier is another one, the spare is replaced once the zygote has moved its memory.
    let mut tree = Tree::of(&function);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let later = Tree::of(&function);
        if later.workers == tree.workers {
            break;
        }
        tree = later;
    }
    let [spare] = tree.workers[..] else { panic!("{:?}", tree.workers) };
    let own_id: i64 = status(spare, "NSpid").split_whitespace().last().unwrap().parse().unwrap();
    let switches = || -> u64 {
        let count = |process, kind| status(process, kind).parse::<u64>().unwrap();
        tree.all()
            .into_iter()
            .map(|process| {
                count(process, "voluntary_ctxt_switches")
                    + count(process, "nonvoluntary_ctxt_switches")
            })
            .sum()
    };

    std::thread::sleep(Duration::from_millis(200));
    let before = switches();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(), before, "something ran between two invocations");

    tree.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(12));
    tree.signal(Signal::SIGCONT);
    let script = indoc! {r#"
        import os
        import pandas as pd
        def main(): return [os.getpid(), int(pd.Series([1, 2]).sum())]
    "#};
    assert_eq!(run(&function, script), ok(json!([own_id, 3])));
    let queue = logged(&function, "request", 2)[1]["queue_ms"].as_f64().unwrap();
    assert!(queue < 100.0, "waited {queue} ms for a worker that was there");
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_killed_zygote_fails_its_request_and_a_new_runtime_serves_the_next() {
    let function = function(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    let before = Tree::of(&function);
    let (_, response) = std::thread::scope(|scope| {
        let lost = scope.spawn(|| {
            run(
                &function,
                indoc! {r#"
                    import time
                    def main(): time.sleep(5)
                "#},
            )
        });
        std::thread::sleep(Duration::from_secs(1));
        kill(Pid::from_raw(before.zygote), Signal::SIGKILL).unwrap();
        lost.join().unwrap()
    });
    assert_eq!(
        response,
        json!({"error": "The worker was lost; this is not the script's fault", "kind": "internal", "stdout": ""})
    );
    assert_eq!(run(&function, "def main(): return 2"), ok(2));
    assert_ne!(Tree::of(&function).supervisor, before.supervisor);
    function.log_line("mainbox: this environment ends: the zygote died", 1);
}

/// In the tier `rlimits` a script can change the limits and the priority of its parent, from which later workers inherit
/// them.
#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_script_that_changes_the_limits_of_the_zygote_poisons_no_later_request() {
    let function = function(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_POLICY", "off")]);
    let look = indoc! {r#"
        import os, resource
        def main():
            limits = [resource.getrlimit(name)[0] for name in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE)]
            try:
                priority = os.getpriority(os.PRIO_PROCESS, 0)
            except PermissionError:  # the filter of the other tiers
                priority = None
            return [limits, priority, len(os.sched_getaffinity(0))]
    "#};
    let (status, unchanged) = run(&function, look);
    assert!(status == 200 && unchanged["result"].is_array(), "{unchanged}");
    for act in [
        "libc.prlimit(os.getppid(), 9, (ctypes.c_ulong * 2)(180 << 20, 180 << 20), None)",
        "libc.setpriority(0, os.getppid(), 10)",
        "os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
    ] {
        let before = Tree::of(&function);
        let script = formatdoc! {r#"
            import ctypes, os
            def main():
                libc = ctypes.CDLL(None)
                try:
                    return ({act}) in (0, None)
                except PermissionError:
                    return False
        "#};
        let (_, response) = run(&function, &script);
        // The memory limit of the zygote itself would show here.
        let (_, after) =
            run(&function, &look.replace("    limits", "    bytes(100 << 20)\n    limits"));
        assert_eq!(after, unchanged, "{act}");
        if response["result"] == true {
            assert_ne!(Tree::of(&function).supervisor, before.supervisor, "{act}");
            function.log_line("a script changed the limits or the priority of the service", 1);
        } else {
            assert_eq!(response, json!({"result": false, "stdout": ""}), "{act}");
        }
    }
    assert!(declared_tier() != "rlimits" || function.log().contains("a script changed the limits"));
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_stopped_zygote_ends_the_runtime() {
    let function = function(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    let before = Tree::of(&function);
    kill(Pid::from_raw(before.zygote), Signal::SIGSTOP).unwrap();
    assert_eq!(run(&function, "def main(): return 2").1, ok(2).1);
    assert_eq!(run(&function, "def main(): return 3"), ok(3));
    assert_ne!(Tree::of(&function).supervisor, before.supervisor);
    function.log_line("mainbox: this environment ends: the zygote died", 1);
}

// Secrets and logs.

#[test]
#[ignore = "needs the emulator: make lambda"]
fn credentials_are_removed_before_the_supervisor_starts() {
    let dropped = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_LAMBDA_METADATA_API",
        "AWS_LAMBDA_METADATA_TOKEN",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let mut command = mainbox(&[("MAINBOX_PRELOAD", "")]);
    command.envs(dropped.map(|name| (name, "sesame"))).env("KEPT", "sesame");
    let function = Server::emulated(&mut command);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    let environment = std::fs::read(format!("/proc/{}/environ", Tree::of(&function).supervisor));
    assert_eq!(environment.is_err(), declared_tier() == "rlimits");
    let Ok(environment) = environment else { return };
    let environment = String::from_utf8(environment).unwrap();
    let sesame: Vec<&str> =
        environment.split('\0').filter(|variable| variable.ends_with("=sesame")).collect();
    assert_eq!(sesame, ["KEPT=sesame"]);
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn the_log_has_one_json_line_per_request_without_its_content() {
    let mut command = mainbox(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_METRICS", "emf")]);
    let function = Server::emulated(command.env("AWS_LAMBDA_LOG_LEVEL", "TRACE"));
    let secret = json!({
        "script": indoc! {r#"
            def main(x):
                print('sesame-printed')
                raise ValueError('sesame-raised' + x)
        "#},
        "input": "sesame-input",
    });
    let (_, response) = function.invoke(secret.to_string().as_bytes());
    assert!(response.contains("sesame-raisedsesame-input"), "{response}");
    assert_eq!(run(&function, "def main(): return 'sesame-result'"), ok("sesame-result"));
    let lines = logged(&function, "request", 2);
    assert_eq!(lines.len(), 2);
    for (line, (status, kind)) in lines.iter().zip([(400, "exception"), (200, "ok")]) {
        let names: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(
            names,
            [
                "cpu_ms",
                "kind",
                "level",
                "message",
                "peak_memory_bytes",
                "queue_ms",
                "requestId",
                "run_ms",
                "status",
                "timestamp"
            ]
        );
        assert_eq!((&line["status"], &line["kind"]), (&json!(status), &json!(kind)));
        assert_eq!(line["requestId"].as_str().unwrap().len(), 36);
    }
    let log = function.log();
    assert!(!log.contains("sesame"), "{log}");
    let metrics: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["_aws"].is_object())
        .collect();
    let outcomes: Vec<&Value> = metrics.iter().map(|line| &line["Outcome"]).collect();
    assert_eq!(outcomes, ["exception", "ok"]);
    assert_eq!(metrics[0]["FunctionName"], "test_function");
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn the_log_follows_the_level_of_lambda() {
    let mut command = mainbox(&[("MAINBOX_PRELOAD", "")]);
    let function = Server::emulated(command.env("AWS_LAMBDA_LOG_LEVEL", "WARN"));
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    assert!(!function.log().contains("\"level\":\"INFO\""), "{}", function.log());
}

// The runtime API has no authentication.

/// Scripts that try to fetch the next event, or to send a response in place of the runtime.
fn attacks(port: u16, id: &str) -> Vec<String> {
    let api = format!("http://127.0.0.1:{port}/2018-06-01/runtime/invocation");
    let reach = [
        format!("urllib.request.urlopen('{api}/next', timeout=2).read().decode()"),
        format!(
            "urllib.request.urlopen('{api}/{id}/response', data=b'\"forged\"', timeout=2).read().decode()"
        ),
        format!("socket.create_connection(('127.0.0.1', {port}), timeout=2) and 'connected'"),
        format!("ctypes.CDLL(None).socket(2, 1, 0) >= 0 and 'socket {port}' or 1 / 0"),
        String::from("os.fork() and 'forked'"),
        String::from("os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 60'], {}) and 'spawned'"),
    ];
    reach
        .iter()
        .map(|attempt| {
            formatdoc! {r#"
                import ctypes, os, socket, urllib.request
                def main():
                    try:
                        return {attempt}
                    except BaseException as error:
                        return 'refused'
            "#}
        })
        .collect()
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_script_cannot_fetch_events_or_send_responses() {
    let function = function(&[("MAINBOX_POLICY", "off"), ("MAINBOX_PRELOAD", "")]);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    let id = logged(&function, "request", 1)[0]["requestId"].as_str().unwrap().to_owned();
    for attack in attacks(function.runtime_api_port(), &id) {
        assert_eq!(run(&function, &attack), ok("refused"), "{attack}");
        assert_eq!(run(&function, "def main(): return 'mine'"), ok("mine"));
    }
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_process_outside_the_sandbox_can_fetch_events_and_forge_responses() {
    // Proves that the scripts above would succeed without the sandbox.
    let function = function(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(run(&function, "def main(): return 1"), ok(1));
    let api =
        format!("http://127.0.0.1:{}/2018-06-01/runtime/invocation", function.runtime_api_port());
    let theft = formatdoc! {r#"
        import time, urllib.request
        event = urllib.request.urlopen('{api}/next')
        id = event.headers['Lambda-Runtime-Aws-Request-Id']
        print(event.read().decode())
        urllib.request.urlopen('{api}/' + id + '/response', data=b'"forged"')
    "#};
    let script = indoc! {r#"
        import time
        def main(): time.sleep(3)  # the victim
    "#};
    std::thread::scope(|scope| {
        let victim = scope.spawn(|| run(&function, script));
        std::thread::sleep(Duration::from_secs(1));
        let mut attacker = std::process::Command::new("python3");
        let (code, stolen, error) = output(attacker.args(["-c", &theft]));
        assert_eq!(code, Some(0), "{error}");
        assert!(stolen.contains("# the victim"), "{stolen}");
        assert_eq!(victim.join().unwrap(), (200, json!("forged")));
    });
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn leftovers_of_a_script_do_not_reach_the_next_invocation() {
    let function = function(&[("MAINBOX_POLICY", "off"), ("MAINBOX_PRELOAD", "")]);
    // In the tier `rlimits` a script can make directories, links and IPC objects, and kill processes of its own uid.
    let leave = indoc! {r#"
        import ctypes, os
        def main():
            libc = ctypes.CDLL(None)
            done = []
            for name, act in {
                'directory': lambda: os.makedirs('/tmp/left/deep'),
                'link': lambda: os.symlink('/etc', '/tmp/link'),
                'memory': lambda: libc.shmget(7, 4096, 0o1666),
                'queue': lambda: libc.msgget(7, 0o1666),
            }.items():
                try:
                    done.append([name, act() != -1])
                except BaseException as error:
                    done.append([name, False])
            return done
    "#};
    let look = indoc! {r#"
        import ctypes, os
        def main():
            libc = ctypes.CDLL(None)
            return [
                os.path.lexists('/tmp/left'),
                os.path.lexists('/tmp/link'),
                libc.shmget(7, 4096, 0) != -1,
                libc.msgget(7, 0) != -1,
            ]
    "#};
    let killer = formatdoc! {r#"
        {leave}
        inner = main
        def main():
            import signal
            inner()
            parent = os.getppid()
            for process in range(parent, max(1, parent - 3), -1):
                if process > 1:
                    try:
                        os.kill(process, signal.SIGKILL)
                    except OSError:
                        pass
            import time
            time.sleep(2)
            return 'killed'
    "#};
    let nothing = ok(json!([false, false, false, false]));
    for _ in 0..2 {
        assert_eq!(run(&function, leave).0, 200);
        assert_eq!(run(&function, look), nothing);
        let (status, response) = run(&function, &killer);
        if declared_tier() == "rlimits" {
            // It killed the processes of its own uid, which fails its request and ends the environment.
            assert_eq!(status, 502, "{response}");
        } else {
            assert_eq!((status, response), ok("killed"));
        }
        assert_eq!(run(&function, look), nothing);
        assert_eq!(run(&function, "def main(): return 'next'"), ok("next"));
    }
}

/// A function whose URL streams. Returns the response of an HTTP event: the prelude, and the body after it. The emulator
/// sends both in one piece.
fn streamed(function: &Server, event: &Value) -> (Value, String) {
    let (status, answer) = function.invoke(event.to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    let (prelude, body) = answer.split_once("\0\0\0\0\0\0\0\0").unwrap();
    (serde_json::from_str(prelude).unwrap(), body.to_owned())
}

/// The event of a request to run a script that accepts this media type.
fn script_event(script: &str, accept: &str) -> Value {
    json!({
        "version": "2.0",
        "rawPath": "/execute",
        "headers": {"content-type": "text/x-python", "accept": accept},
        "requestContext": {"stage": "$default", "http": {"method": "POST", "path": "/execute"}},
        "body": script,
        "isBase64Encoded": false,
    })
}

const STREAMING: (&str, &str) = ("MAINBOX_INVOKE_MODE", "RESPONSE_STREAM");

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_streaming_function_answers_every_form_of_request() {
    let function = function(&[STREAMING]);
    let script = "def main():\n    print('out')\n    return 1";
    let (prelude, body) = streamed(&function, &script_event(script, "text/event-stream"));
    assert_eq!((&prelude["statusCode"], &prelude["cookies"]), (&json!(200), &json!([])));
    assert_eq!(prelude["headers"]["content-type"], json!("text/event-stream"));
    assert!(
        body.starts_with("event: stdout\ndata: {\"text\":\"out\\n\"}\n\nevent: result\n"),
        "{body}"
    );
    let (prelude, body) = streamed(&function, &script_event(script, "*/*"));
    assert_eq!(prelude["headers"]["content-type"], json!("application/json"));
    assert_eq!(body, r#"{"result":1,"stdout":"out\n"}"#);
    let (prelude, body) = streamed(&function, &script_event("def main(", "text/event-stream"));
    assert_eq!(prelude["statusCode"], json!(200));
    assert!(body.starts_with("event: error\ndata: {\"error\":\"Syntax error"), "{body}");
    let (prelude, body) = streamed(&function, &script_event(" ", "text/event-stream"));
    assert_eq!(prelude["statusCode"], json!(400));
    assert_eq!(body, r#"{"error":"The script is empty","kind":"invalid_request","stdout":""}"#);
    // A bare event gets the body alone, as from a function that does not stream.
    assert_eq!(run(&function, "def main(): return 2"), ok(2));
    let lines = logged(&function, "request", 5);
    let kinds: Vec<&Value> = lines.iter().map(|line| &line["kind"]).collect();
    assert_eq!(json!(kinds), json!(["ok", "ok", "syntax_error", "invalid_request", "ok"]));
    assert!(lines.iter().all(|line| line["requestId"].is_string()));
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn a_function_that_does_not_stream_answers_live_requests_whole() {
    let function = function(&[]);
    let event = script_event(
        "import sys\ndef main():\n    sys.stdout.write('out\\n')\n    return 1",
        "text/event-stream",
    );
    let (status, answer) = function.invoke(event.to_string().as_bytes());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["statusCode"]), (200, &json!(200)));
    let body = answer["body"].as_str().unwrap();
    assert!(
        body.starts_with("event: stdout\ndata: {\"text\":\"out\\n\"}\n\nevent: result\n"),
        "{body}"
    );
    assert_eq!(logged(&function, "request", 1)[0]["kind"], json!("ok"));
}

#[test]
#[ignore = "needs the emulator: make lambda"]
fn many_inputs_run_one_after_the_other() {
    let function = function(&[]);
    let script = "import time\ndef main(x):\n    time.sleep(0.2)\n    return time.time()";
    let event = json!({"script": script, "inputs": [1, 2, 3]});
    let (status, body) = function.invoke(event.to_string().as_bytes());
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let times: Vec<f64> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["result"].as_f64().unwrap())
        .collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] > 0.2), "{times:?}");
    assert_eq!(run(&function, "def main(): return 2"), ok(2));
}

// What the emulator cannot do.

/// A runtime API: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.
struct RuntimeApi {
    address: String,
    calls: mpsc::Receiver<Call>,
}

/// A call of the runtime that waits for a response.
struct Call {
    path: String,
    body: String,
    /// The pieces of a body without a length, and when they came.
    chunks: Vec<(Instant, String)>,
    came: Instant,
    stream: TcpStream,
}

/// When a runtime API answers a response that is streamed to it.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// After its last byte, as that of AWS does.
    AtTheEnd,
    /// Before its first byte, as nothing forbids.
    AtOnce,
}

impl RuntimeApi {
    fn start() -> RuntimeApi {
        RuntimeApi::that_answers(Answers::AtTheEnd)
    }

    fn that_answers(answers: Answers) -> RuntimeApi {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, calls) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let sender = sender.clone();
                std::thread::spawn(move || read_calls(&stream.unwrap(), answers, &sender));
            }
        });
        RuntimeApi { address, calls }
    }

    /// Starts the binary as a runtime of this API.
    fn runtime(&self, settings: &[(&str, &str)]) -> Runtime {
        let mut command = mainbox(settings);
        command
            .env("AWS_LAMBDA_RUNTIME_API", &self.address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "box")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769");
        Runtime(command.spawn().unwrap())
    }

    /// Waits for the next call.
    fn call(&self) -> Call {
        self.calls.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    /// Waits for the next call, which must be to `path`.
    #[track_caller]
    fn expect(&self, path: &str) -> Call {
        let call = self.call();
        assert_eq!(call.path, format!("/2018-06-01/runtime/{path}"));
        call
    }
}

impl Call {
    fn respond(mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        write!(self.stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
            .unwrap();
    }

    fn respond_with_event(self, event: &str) {
        let deadline = SystemTime::now() + Duration::from_secs(30);
        let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let headers = format!(
            "Lambda-Runtime-Aws-Request-Id: 1\r\nLambda-Runtime-Deadline-Ms: {deadline}\r\nLambda-Runtime-Invoked-Function-Arn: box\r\n"
        );
        self.respond("200 OK", &headers, event);
    }
}

fn read_calls(stream: &TcpStream, answers: Answers, sender: &mpsc::Sender<Call>) {
    let mut reader = BufReader::new(stream);
    let accept = |mut stream: &TcpStream| {
        stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").unwrap();
    };
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => head.push(line.trim().to_ascii_lowercase()),
            }
        }
        let mut chunks = Vec::new();
        let mut body = Vec::new();
        let streamed = head.iter().any(|line| line == "transfer-encoding: chunked");
        if streamed {
            if answers == Answers::AtOnce {
                accept(stream);
            }
            loop {
                let chunk = read_chunk(&mut reader);
                body.extend_from_slice(&chunk);
                chunks.push((Instant::now(), String::from_utf8(chunk).unwrap()));
                if chunks.last().unwrap().1.is_empty() {
                    break;
                }
            }
        } else {
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
            body.resize(length.map_or(0, |length| length.parse().unwrap()), 0);
            reader.read_exact(&mut body).unwrap();
        }
        let path = head[0].split(' ').nth(1).unwrap().to_owned();
        let body = String::from_utf8(body).unwrap();
        let came = Instant::now();
        sender
            .send(Call { path, body, chunks, came, stream: stream.try_clone().unwrap() })
            .unwrap();
        if streamed && answers == Answers::AtTheEnd {
            accept(stream);
        }
    }
}

/// The next chunk of a body; empty at its end, with the trailers.
fn read_chunk(reader: &mut impl BufRead) -> Vec<u8> {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
    let mut chunk = vec![0; length];
    reader.read_exact(&mut chunk).unwrap();
    let mut end = String::new();
    while end != "\r\n" {
        end.clear();
        reader.read_line(&mut end).unwrap();
    }
    chunk
}

/// A runtime, stopped when this value is dropped.
struct Runtime(Child);

impl Runtime {
    fn tree(&self) -> Tree {
        Tree::below(self.0.id() as i32)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn a_stream_comes_in_pieces_and_the_next_event_is_fetched_after_the_last() {
    let api = RuntimeApi::that_answers(Answers::AtOnce);
    let runtime = api.runtime(&[STREAMING, ("MAINBOX_PRELOAD", "")]);
    let script = "import time\ndef main():\n    print('first')\n    time.sleep(1)\n    print('second')\n    time.sleep(1)";
    let event = script_event(script, "application/x-ndjson");
    api.expect("invocation/next").respond_with_event(&event.to_string());
    // The next event is fetched on another connection, so the API may read that call first.
    let mut calls = [api.call(), api.call()];
    calls.sort_by(|a, b| a.path.cmp(&b.path));
    let [call, next] = calls;
    assert_eq!(
        [&call.path, &next.path],
        ["/2018-06-01/runtime/invocation/1/response", "/2018-06-01/runtime/invocation/next"]
    );
    let at = |text: &str| {
        let found = call.chunks.iter().find(|(_, chunk)| chunk.contains(text));
        found.unwrap_or_else(|| panic!("no {text} in {:?}", call.chunks)).0
    };
    assert!(call.body.starts_with("{\"statusCode\":200,"), "{}", call.body);
    assert!(call.body.ends_with("}\n"), "{}", call.body);
    let between = at("second") - at("first");
    assert!((800..3000).contains(&between.as_millis()), "{between:?}");
    let after = at("\"event\":\"result\"") - at("second");
    assert!((800..3000).contains(&after.as_millis()), "{after:?}");
    // The script is silent for a second before its end.
    let next = next.came - at("second");
    assert!(next.as_millis() >= 800, "{next:?}");
    // The worker of the request is gone, and the next one is ready. Only where workers are not separated does the runtime
    // wait for a killed worker to be reaped.
    let deadline = Instant::now() + Duration::from_secs(5);
    while runtime.tree().workers.len() != 1 {
        assert!(Instant::now() < deadline, "{:?}", runtime.tree().workers);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The emulator refuses them.
#[test]
fn a_streaming_function_returns_results_over_6_mb() {
    let api = RuntimeApi::start();
    let settings = &[STREAMING, ("MAINBOX_PRELOAD", ""), ("MAINBOX_MAX_RESULT_BYTES", "20000000")];
    let _runtime = api.runtime(settings);
    let event = script_event("def main(): return 'x' * 10_000_000", "*/*");
    api.expect("invocation/next").respond_with_event(&event.to_string());
    let call = api.expect("invocation/1/response");
    let (prelude, body) = call.body.split_once("\0\0\0\0\0\0\0\0").unwrap();
    assert!(prelude.starts_with("{\"statusCode\":200,"), "{prelude}");
    assert_eq!(body.len(), 10_000_000 + r#"{"result":"","stdout":""}"#.len());
    api.expect("invocation/next");
}

#[test]
fn a_snapshot_has_a_zygote_without_workers_and_workers_start_after_the_restore() {
    let api = RuntimeApi::start();
    let runtime = api.runtime(&[("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")]);
    let restore = api.expect("restore/next");
    let snapshot = runtime.tree();
    assert_eq!(snapshot.workers, [0; 0], "a worker in a snapshot would exist in every copy");
    assert!(status_kib(snapshot.zygote, "VmRSS") > 40 * 1024, "pandas is not in the snapshot");
    restore.respond("200 OK", "", "");
    let next = api.expect("invocation/next");
    let restored = runtime.tree();
    assert_eq!(restored.zygote, snapshot.zygote);
    assert!(!restored.workers.is_empty());
    next.respond_with_event(
        r#"{"script": "import pandas as pd\ndef main(): return int(pd.Series([1, 2]).sum())"}"#,
    );
    let response = api.expect("invocation/1/response");
    assert_eq!(response.body, r#"{"result":3,"stdout":""}"#);
    response.respond("202 Accepted", "", "");
    api.expect("invocation/next");
}

#[test]
fn a_slow_initialization_continues_while_the_first_request_waits() {
    let slow = OwnPython::slow(10);
    let api = RuntimeApi::start();
    let began = Instant::now();
    let _runtime = api.runtime(&[("MAINBOX_PRELOAD", "slow"), ("MAINBOX_PYTHON", &slow.python)]);
    let next = api.expect("invocation/next");
    let waited = began.elapsed();
    assert!((7.0..9.5).contains(&waited.as_secs_f64()), "{waited:?}");
    next.respond_with_event(r#"{"script": "import slow\ndef main(): return 'at last'"}"#);
    let response = api.expect("invocation/1/response");
    assert_eq!(response.body, r#"{"result":"at last","stdout":""}"#);
    assert!(began.elapsed() > Duration::from_secs(10));
    response.respond("202 Accepted", "", "");
    api.expect("invocation/next");
}

#[test]
fn an_incomplete_lambda_environment_is_refused_with_the_missing_name() {
    let mut command = mainbox(&[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")]);
    command.env_remove("AWS_LAMBDA_FUNCTION_NAME");
    let error = "mainbox: AWS_LAMBDA_RUNTIME_API is set, but AWS_LAMBDA_FUNCTION_NAME is not\n";
    assert_eq!(output(&mut command), (Some(2), String::new(), String::from(error)));
}
