//! The HTTP front: start, configuration errors, connections, slow and hostile clients, the log and the end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    OwnPython, Server, children, free_port, load_until_refused, mainbox, not_run, output, python,
    read_to_end, scratch_roots, script, server, status_kib,
};
use indoc::indoc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const QUICK: &[(&str, &str)] = &[("MAINBOX_PRELOAD", "")];

#[test]
fn invalid_configuration_ends_the_start_with_one_sentence_and_code_2() {
    for (name, value, error) in [
        (
            "MAINBOX_TIMEOUT",
            "3",
            "mainbox: MAINBOX_TIMEOUT is not a setting of mainbox; `mainbox --help` lists them all\n",
        ),
        (
            "MAINBOX_QUEUE",
            "x",
            "mainbox: MAINBOX_QUEUE must be a whole number from 0 to 10000, not `x`\n",
        ),
        ("PORT", "99999", "mainbox: PORT must be a whole number from 0 to 65535, not `99999`\n"),
    ] {
        assert_eq!(
            output(&mut mainbox(&[(name, value)])),
            (Some(2), String::new(), error.to_owned())
        );
    }
}

#[test]
fn an_invalid_value_of_any_setting_ends_the_start() {
    for variable in mainbox::config::settings::SETTINGS {
        let (code, printed, error) = output(&mut mainbox(&[(variable.name, "?")]));
        assert_eq!((code, printed.as_str()), (Some(2), ""), "{}: {error}", variable.name);
        assert!(error.starts_with("mainbox: ") && error.contains(variable.name), "{error}");
        assert_eq!(error.matches('\n').count(), 1, "{error}");
    }
}

#[test]
fn the_error_names_a_missing_interpreter() {
    let (code, _, error) = output(&mut mainbox(&[("MAINBOX_PYTHON", "/nowhere/python3")]));
    assert_eq!(code, Some(2));
    assert_eq!(
        error,
        "mainbox: no Python found at /nowhere/python3; set MAINBOX_PYTHON to CPython 3.11 or newer\n"
    );
}

#[test]
fn an_interpreter_that_is_not_python_ends_the_start() {
    let path = script("not-python", "def main(): return 1");
    for arguments in [&[][..], &["run", &path], &["doctor"]] {
        let mut command = mainbox(&[("MAINBOX_PYTHON", "/bin/true"), ("MAINBOX_PRELOAD", "")]);
        let (code, _, error) = output(command.args(arguments));
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(error.contains("the zygote died before it was ready"), "{arguments:?}: {error}");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_error_names_a_port_in_use() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command = mainbox(&[("MAINBOX_PRELOAD", "")]);
    let (code, _, error) = output(command.env("PORT", port.to_string()));
    assert_eq!(code, Some(1));
    // The address is [::], or 0.0.0.0 on a host without IPv6.
    assert!(error.starts_with("mainbox: cannot bind "), "{error}");
    assert!(error.contains(&format!(":{port}: Address already in use")), "{error}");
}

#[test]
fn the_log_names_a_missing_preload_module_and_the_service_runs_without_it() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "json,no_such_package")]);
    assert!(server.log_line("no_such_package", 1).contains("serving without it"));
    assert_eq!(server.run("def main(): return 1").status, 200);
    assert_eq!(server.get("/about").json()["packages"], json!({"json": "2.0.9"}));
}

#[test]
fn one_port_serves_kept_alive_http_1_and_http_2() {
    let server = Server::start(QUICK);
    let mut stream = server.connect();
    let request = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 400];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    let mut stream = server.connect();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        .unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "an HTTP/2 SETTINGS frame: {frame:?}");
}

#[test]
fn preloaded_packages_have_a_home_during_their_import_and_a_failed_import_leaves_no_module() {
    let homely = indoc! {r#"
        import os, pathlib, tempfile
        pathlib.Path.home().joinpath('cache/fonts').mkdir(parents=True)
        pathlib.Path.home().joinpath('cache/fonts/list').write_text('all')
        TEMPORARY = tempfile.mkdtemp()
        WHERE = os.environ['HOME']
    "#};
    let python = OwnPython::with(&[
        ("homely.py", homely),
        ("half/__init__.py", "from half import first, second\n"),
        ("half/first.py", ""),
        ("whole/__init__.py", "LOADED = []\n"),
        ("half/second.py", "raise RuntimeError('not today')"),
        ("homely-1.2.dist-info/METADATA", ""),
    ]);
    let server = Server::start(&[
        ("MAINBOX_PYTHON", &python.python),
        ("MAINBOX_PRELOAD", "homely,whole,half,whole.missing"),
    ]);
    let script = indoc! {r#"
        import homely, os, sys, tempfile

        def main():
            return [
                os.path.exists(homely.TEMPORARY),
                os.path.exists(homely.WHERE + '/cache'),
                tempfile.gettempdir() == os.getcwd(),
                sorted(name for name in sys.modules if name.startswith(('half', 'whole'))),
                'homely' in sys.modules,
            ]
    "#};
    let answer = server.run(script);
    assert_eq!(
        answer.json()["result"],
        json!([false, false, true, ["whole"], true]),
        "{}",
        answer.body
    );
    let half = server.run("import half\ndef main(): pass");
    assert_eq!(half.failure().2, "RuntimeError: not today");
    assert_eq!(server.get("/about").json()["installed"], json!({"homely": "1.2"}));
}

#[test]
fn a_script_without_heavy_imports_runs_while_the_heavy_ones_load() {
    let slow = OwnPython::slow(5);
    let began = Instant::now();
    let settings = [("MAINBOX_PRELOAD", "slow"), ("MAINBOX_PYTHON", slow.python.as_str())];
    let server = Server::start_unready(&settings);
    let answer = server.run("import json, math\ndef main(): return math.floor(json.loads('1.5'))");
    assert_eq!(answer.body, r#"{"result":1,"stdout":""}"#);
    assert_eq!(server.get("/health").json(), json!({"status": "starting"}));
    let answer = server.run("import slow\ndef main(): return slow.__name__");
    assert_eq!(answer.body, r#"{"result":"slow","stdout":""}"#);
    assert!(began.elapsed() > Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(server.get("/health").json(), json!({"status": "healthy"}));
    // A script can hide its imports. It then runs too, and only takes longer.
    let answer = server.run("def main(): return __import__('sl' + 'ow').__name__");
    assert_eq!(answer.body, r#"{"result":"slow","stdout":""}"#);
}

#[test]
fn a_preload_module_that_exits_or_fails_loudly_is_named_and_the_service_runs_without_it() {
    let python = OwnPython::with(&[
        ("exits.py", "import sys\nsys.exit('no license')\n"),
        ("loud.py", "raise ImportError('x' * 70_000)\n"),
        ("stops.py", "class Stop(BaseException): pass\nraise Stop('\\udcff')\n"),
        (
            "threaded.py",
            "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n",
        ),
    ]);
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", "exits,loud,stops,threaded"),
        ("MAINBOX_PYTHON", python.python.as_str()),
    ]);
    for (module, error) in
        [("exits", "SystemExit: no license"), ("loud", "characters left out"), ("stops", "Stop: ?")]
    {
        let line = server.log_line(&format!(r#""module":"{module}""#), 1);
        assert!(line.contains(error) && line.len() < 3000, "{line}");
    }
    let line = server.log_line("left threads running", 1);
    assert!(line.contains(r#""module":"threaded""#), "{line}");
    assert_eq!(server.get("/about").json()["packages"], json!({"threaded": ""}));
    assert_eq!(server.run("def main(): return 1").status, 200);
}

/// Workers are not forked by Python, which would call them.
#[test]
fn functions_that_a_preload_module_registers_for_forks_are_called_in_each_worker() {
    let python = OwnPython::with(&[
        (
            "cleared.py",
            "import os\ncalls = []\nos.register_at_fork(after_in_child=lambda: calls.append('child'))\n",
        ),
        (
            "around.py",
            "import os\ncalls = []\nfor when in ('before', 'after_in_parent', 'after_in_child'):\n    os.register_at_fork(**{when: lambda when=when: calls.append(when)})\n",
        ),
    ]);
    let script = indoc! {r#"
        import sys, threading
        def main():
            names = [name for name in ("around", "cleared") if name in sys.modules]
            calls = {name: sys.modules[name].calls[-2:] for name in names}
            return [calls, threading.main_thread().native_id == threading.get_native_id()]
    "#};
    for (preload, calls) in [
        ("cleared", json!({"cleared": ["child"]})),
        ("cleared,around", json!({"around": ["before", "after_in_child"], "cleared": ["child"]})),
    ] {
        let server = Server::start(&[
            ("MAINBOX_PRELOAD", preload),
            ("MAINBOX_PYTHON", python.python.as_str()),
        ]);
        for _ in 0..3 {
            assert_eq!(server.run(script).json()["result"], json!([calls, true]));
        }
    }
}

#[test]
fn a_function_for_forks_that_fails_is_logged_and_the_worker_serves() {
    let module = "import os, socket\nos.register_at_fork(after_in_child=socket.socket)\n";
    let python = OwnPython::with(&[("fails.py", module)]);
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", "fails"),
        ("MAINBOX_PYTHON", python.python.as_str()),
        ("MAINBOX_LOG", "debug"),
    ]);
    assert_eq!(server.run("import fails\ndef main(): return 1").json()["result"], json!(1));
    let line = server.log_line("a worker wrote to stderr before it was ready", 1);
    assert!(line.contains("PermissionError"), "{line}");
}

/// The module `threading` does not know it. CPython lets a thread that waits for the interpreter have it, so a worker would
/// wait for a thread that it does not have.
#[test]
fn workers_of_a_zygote_with_threads_that_python_does_not_list_serve() {
    let module =
        "import _thread, time\nfor _ in range(3): _thread.start_new_thread(time.sleep, (99,))\n";
    let python = OwnPython::with(&[("hidden.py", module)]);
    let server =
        Server::start(&[("MAINBOX_PRELOAD", "hidden"), ("MAINBOX_PYTHON", python.python.as_str())]);
    let script = "import hidden, threading\ndef main(): return threading.active_count()";
    for _ in 0..8 {
        assert_eq!(server.run(script).json()["result"], json!(1));
    }
}

#[test]
fn forty_preload_modules_that_fail_loudly_are_all_named() {
    let names: Vec<String> = (0..40).map(|number| format!("loud_{number}")).collect();
    let files: Vec<String> = names.iter().map(|name| format!("{name}.py")).collect();
    let files: Vec<_> =
        files.iter().map(|file| (file.as_str(), "raise ImportError('x' * 70_000)")).collect();
    let python = OwnPython::with(&files);
    let preload = names.join(",");
    let server =
        Server::start(&[("MAINBOX_PRELOAD", &preload), ("MAINBOX_PYTHON", &python.python)]);
    server.log_line("cannot import a module of MAINBOX_PRELOAD", 40);
}

#[test]
fn a_worker_that_fails_after_its_lockdown_names_the_step_in_the_log() {
    let breaks = indoc! {r#"
        import math, os

        def broken(*_, **__):
            raise RuntimeError("broken in the child")

        os.register_at_fork(after_in_child=lambda: setattr(math, "sqrt", broken))
    "#};
    let python = OwnPython::with(&[("breaks.py", breaks)]);
    let settings = [("MAINBOX_PRELOAD", "breaks"), ("MAINBOX_PYTHON", python.python.as_str())];
    let server = Server::start_unready(&settings);
    let line = server.log_line("step warm_up of its start failed", 1);
    assert!(line.contains("RuntimeError: broken in the child"), "{line}");
}

#[test]
fn a_request_that_waits_for_a_slow_import_keeps_no_permit_from_one_that_needs_none() {
    let slow = OwnPython::slow(6);
    let server = Server::start_unready(&[
        ("MAINBOX_PRELOAD", "slow"),
        ("MAINBOX_PYTHON", slow.python.as_str()),
        ("MAINBOX_CONCURRENCY", "1"),
    ]);
    let waiting = server.begin(
        "connection: close\r\n",
        &json!({"script": "import slow\ndef main(): return 'slow'"}),
    );
    server.wait_for_metric("mainbox_waiting 1");
    assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    assert_eq!(server.get("/health").json(), json!({"status": "starting"}));
    assert!(read_to_end(waiting).ends_with(r#"{"result":"slow","stdout":""}"#));
}

#[test]
fn a_signal_ends_the_server_after_the_running_requests_with_code_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut server = Server::start(QUICK);
        let script = indoc! {r#"
            import time
            def main():
                time.sleep(1)
                return 'drained'
        "#};
        let stream = server.begin("", &json!({ "script": script }));
        server.wait_until_running(1);
        kill(Pid::from_raw(server.pid()), signal).unwrap();
        assert!(read_to_end(stream).ends_with(r#"{"result":"drained","stdout":""}"#));
        assert_eq!(server.wait(), Some(0));
    }
}

#[test]
fn a_request_whose_client_disconnected_is_canceled() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_CONCURRENCY", "1"),
        ("MAINBOX_TIMEOUT_SECONDS", "60"),
    ]);
    let stream = server.begin("", &json!({"script": "import time\ndef main(): time.sleep(60)"}));
    server.wait_until_running(1);
    drop(stream);
    let started = Instant::now();
    assert_eq!(server.run("def main(): return 'next'").status, 200);
    assert!(started.elapsed() < Duration::from_secs(30), "the only worker was not freed");
}

#[test]
fn a_dead_zygote_is_replaced_and_its_running_request_fails() {
    let server = Server::start(QUICK);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run("import time\ndef main(): time.sleep(5)"));
        server.wait_until_running(1);
        for zygote in children(server.pid()) {
            kill(Pid::from_raw(zygote), Signal::SIGKILL).unwrap();
        }
        let answer = running.join().unwrap();
        assert_eq!(
            answer.failure(),
            (
                500,
                String::from("internal"),
                String::from("The worker was lost; this is not the script's fault")
            )
        );
    });
    assert_eq!(server.run("def main(): return 'again'").body, r#"{"result":"again","stdout":""}"#);
}

#[test]
fn the_server_leaves_no_file_and_no_process() {
    let mut server = Server::start(QUICK);
    assert_eq!(server.run("open('file', 'w').write('x')\ndef main(): return 1").status, 200);
    let processes = children(server.pid());
    assert!(!processes.is_empty());
    let scratch = scratch_roots(server.pid());
    assert_eq!(scratch.len(), 1, "{scratch:?}");
    kill(Pid::from_raw(server.pid()), Signal::SIGTERM).unwrap();
    assert_eq!(server.wait(), Some(0));
    assert!(!scratch[0].exists());
    let gone = |process: &i32| kill(Pid::from_raw(*process), None).is_err();
    let started = Instant::now();
    while !processes.iter().all(gone) {
        assert!(started.elapsed() < Duration::from_secs(20), "a zygote outlived its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An archive beside the packages. It is removed with this value.
struct Archive(PathBuf);

impl Archive {
    /// `None` if this user cannot write beside the packages.
    fn beside_packages(name: &str) -> Option<Archive> {
        let python = std::path::absolute(python()).unwrap();
        let lib = python.parent().and_then(Path::parent)?.join("lib");
        let archive = Archive(lib.join(format!("{name}-{}.archive", std::process::id())));
        std::fs::write(&archive.0, "").ok()?;
        Some(archive)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn imports_from_an_archive_are_the_same_as_from_files() {
    let Some(archive) = Archive::beside_packages("good") else {
        return not_run("this user cannot write beside the packages");
    };
    std::fs::remove_file(&archive.0).unwrap();
    let made = output(mainbox(&[]).args(["archive", archive.path()]));
    assert_eq!(made, (Some(0), String::new(), String::new()));
    let script = indoc! {r#"
        import sys, inspect, pandas as pd, numpy as np
        from importlib.resources import files

        def main():
            print(pd.DataFrame({'a': [1, 2]}).groupby('a').size().to_dict())
            return [
                pd.__file__,
                pd.__spec__.origin,
                pd.DataFrame.__module__,
                len(inspect.getsource(pd.isna)),
                files('pandas').joinpath('__init__.py').is_file(),
                [type(finder).__name__ for finder in sys.meta_path],
                sorted(name for name in sys.modules if 'mainbox' in name),
                float(np.mean([1, 2])),
            ]
    "#};
    let from_files = Server::start(&[]).run(script);
    let from_archive = Server::start(&[("MAINBOX_ARCHIVE", archive.path())]).run(script);
    assert_eq!((from_files.status, from_archive.status), (200, 200), "{}", from_archive.body);
    assert_eq!(from_archive.json(), from_files.json());
}

#[test]
fn an_archive_of_another_python_ends_the_start_with_a_sentence() {
    let Some(archive) = Archive::beside_packages("old") else {
        return not_run("this user cannot write beside the packages");
    };
    std::fs::write(&archive.0, [&b"old\n"[..], &[0; 60]].concat()).unwrap();
    let (code, _, log) = output(&mut mainbox(&[("MAINBOX_ARCHIVE", archive.path())]));
    let sentence =
        "MAINBOX_ARCHIVE is from another version of Python; write it again with `mainbox archive`";
    assert!(code == Some(1) && log.contains(sentence), "{code:?} {log}");
}

#[test]
fn a_body_over_the_limit_gets_413() {
    let body = json!({"script": "def main(x): return 1", "input": "x".repeat(9 << 20)});
    let answer = server().execute(&body);
    assert_eq!(
        answer.failure(),
        (
            413,
            String::from("payload_too_large"),
            String::from("The body is larger than its limit of 8388608 bytes")
        )
    );
}

#[test]
fn chunked_bodies_are_read_up_to_the_limit() {
    let mut stream = server().connect();
    let head = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = r#"{"script":"def main(): return 5"}"#;
    let (first, second) = body.split_at(10);
    for part in [
        head.to_owned(),
        format!("{:x}\r\n{first}\r\n", first.len()),
        format!("{:x}\r\n{second}\r\n0\r\n\r\n", second.len()),
    ] {
        stream.write_all(part.as_bytes()).unwrap();
    }
    assert!(read_to_end(stream).ends_with(r#"{"result":5,"stdout":""}"#));

    let mut stream = server().connect();
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0;
    while sent < (64 << 20) && stream.write_all(chunk.as_bytes()).is_ok() {
        sent += 0x10000;
    }
    assert!(sent < (64 << 20), "the server read 64 MB");
    assert_eq!(server().run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
}

#[test]
fn a_compressed_body_gets_415_and_the_accepted_encoding() {
    for (encoding, status) in [("gzip", 415), ("GZIP, identity", 415), ("identity", 200)] {
        let mut stream = server().connect();
        let body = r#"{"script":"def main(): return 1"}"#;
        let request = format!(
            "POST /execute HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let answer = read_to_end(stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{encoding}: {answer}");
        let named = answer.contains("\r\naccept-encoding: identity\r\n");
        assert_eq!(named, status == 415, "{answer}");
        let error = "Content-Encoding must be identity: the body must not be compressed";
        assert_eq!(answer.contains(error), status == 415, "{answer}");
    }
}

#[test]
fn a_body_that_arrives_too_slowly_gets_408() {
    let mut stream = server().connect();
    let head = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    let answer = read_to_end(stream);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.contains("The body arrived too slowly: 1 byte in 20 seconds"), "{answer}");
    assert_eq!(server().run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
}

// Slow, hostile and many clients.

#[test]
fn a_client_that_leaves_is_logged_with_499_and_what_ran() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "1")]);
    let sleep = json!({"script": "import time\ndef main(): time.sleep(9)"});
    let running = server.begin("x-request-id: running\r\n", &sleep);
    server.wait_until_running(1);
    let waiting = server.begin("x-request-id: waiting\r\n", &sleep);
    server.wait_for_metric("mainbox_waiting 1");
    let line = |id: &str| -> serde_json::Value {
        let line = server.log_line(&format!(r#""request_id":"{id}""#), 1);
        serde_json::from_str(&line).unwrap()
    };
    drop(waiting);
    let waiting = line("waiting");
    assert_eq!(
        (&waiting["httpRequest"]["status"], &waiting["kind"], waiting.get("run_ms")),
        (&json!(499), &json!("left"), None)
    );
    std::thread::sleep(Duration::from_millis(200));
    drop(running);
    let running = line("running");
    assert_eq!(
        (&running["httpRequest"]["status"], &running["message"]),
        (&json!(499), &json!("POST /execute left"))
    );
    let run = running["run_ms"].as_f64().unwrap();
    assert!(run > 0.0 && run < 9000.0 && running["queue_ms"].is_f64(), "{running}");
}

#[test]
fn a_slow_head_ends_the_connection_and_an_idle_connection_stays() {
    let idle = server().connect();
    let mut slow = server().connect();
    let started = Instant::now();
    slow.write_all(b"POST /execute HTTP/1.1\r\nhost: x\r\nx-slow: ").unwrap();
    assert_eq!(read_to_end(slow), "");
    let took = started.elapsed().as_secs();
    assert!((9..30).contains(&took), "{took} s");
    std::thread::sleep(Duration::from_secs(3));
    let mut idle = idle;
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    assert!(read_to_end(idle).starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn a_client_that_does_not_read_its_response_is_disconnected() {
    let server =
        Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_MAX_RESULT_BYTES", "55000000")]);
    let mut stream = server.begin("", &json!({"script": "def main(): return 'x' * 50_000_000"}));
    // The server waits for 20 seconds, and the script runs before that.
    std::thread::sleep(Duration::from_secs(25));
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(length) = stream.read(&mut buffer)
        && length > 0
    {
        taken += length;
    }
    assert!(
        taken < 50_000_000,
        "the client got everything although it read nothing for 25 seconds"
    );
}

/// What a client of HTTP/2 sends first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Raises the descriptor limit of this process, for more than a thousand clients.
fn allow_many_connections() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
}

/// Returns a frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head.as_slice(), payload].concat()
}

/// Returns the head of a request to run a script, for a frame of HTTP/2.
fn http2_head(accept: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/execute"),
        (":authority", "x"),
        ("content-type", "application/json"),
        ("accept", accept),
    ];
    let mut head = vec![];
    for (name, value) in fields {
        head.extend([0, name.len() as u8]);
        head.extend(name.bytes());
        head.push(value.len() as u8);
        head.extend(value.bytes());
    }
    head
}

#[test]
fn a_head_has_a_limit_of_bytes_and_of_fields() {
    for (fields, status) in [
        ("x-long: ".to_owned() + &"x".repeat(20_000) + "\r\n", "200 OK"),
        (
            "x-long: ".to_owned() + &"x".repeat(40_000) + "\r\n",
            "431 Request Header Fields Too Large",
        ),
        ("x-many: 1\r\n".repeat(60), "200 OK"),
        ("x-many: 1\r\n".repeat(70), "431 Request Header Fields Too Large"),
    ] {
        let mut stream = server().connect();
        let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{fields}connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let answer = read_to_end(stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
}

#[test]
fn a_thousand_connections_with_unfinished_requests_take_little_memory() {
    allow_many_connections();
    let head = format!("POST /execute HTTP/1.1\r\nhost: x\r\nx-long: {}", "x".repeat(300_000));
    let mut open =
        [HTTP2_PREFACE, &frame(4, 0, 0, &[]), &frame(1, 4, 1, &http2_head("*/*"))].concat();
    open.extend(frame(0, 0, 1, &[b' '; 16_000]));
    for begin in [head.as_bytes(), &open] {
        let server = Server::start(QUICK);
        let before = status_kib(server.pid(), "VmRSS");
        let clients: Vec<TcpStream> = (0..990)
            .map(|_| {
                let mut client = server.connect();
                // Fails once the server has refused the head.
                let _ = client.write_all(begin);
                client
            })
            .collect();
        // The last ones are read when this one is.
        assert_eq!(server.get("/livez").status, 200);
        std::thread::sleep(Duration::from_millis(500));
        let grown = status_kib(server.pid(), "VmRSS").saturating_sub(before);
        assert!(grown < 64 << 10, "{grown} KiB for {} connections", clients.len());
    }
}

#[test]
fn an_idle_http_2_connection_makes_room_although_its_client_does_not_answer() {
    allow_many_connections();
    let server = Server::start(QUICK);
    let preface = [HTTP2_PREFACE, &frame(4, 0, 0, &[])].concat();
    let idle: Vec<TcpStream> = (0..1010)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(&preface).unwrap();
            client
        })
        .collect();
    let started = Instant::now();
    assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    // Without an answer to its pings, the server would end it after 50 seconds.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    drop(idle);
}

#[test]
fn an_http_2_client_without_a_window_for_its_response_is_disconnected() {
    const INITIAL_WINDOW_SIZE: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let server = Server::start(QUICK);
    let body = json!({"script": "def main(): return 'x' * 100_000"}).to_string();
    let disconnected = |accept: &str| {
        let mut stream = server.connect();
        stream.write_all(HTTP2_PREFACE).unwrap();
        stream.write_all(&frame(4, 0, 0, &INITIAL_WINDOW_SIZE)).unwrap();
        stream.write_all(&frame(1, 4, 1, &http2_head(accept))).unwrap();
        stream.write_all(&frame(0, 1, 1, body.as_bytes())).unwrap();
        let started = Instant::now();
        stream.set_read_timeout(Some(Duration::from_secs(50))).unwrap();
        let (mut received, mut buffer) = (0, [0; 4096]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => received += length,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("not disconnected: {error}"),
            }
        }
        let took = started.elapsed();
        // 20 seconds, and one for a hundred kilobytes.
        assert!(took > Duration::from_secs(20), "{took:?}");
        assert!((50..2000).contains(&received), "{received}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| disconnected("*/*"));
        scope.spawn(|| disconnected("text/event-stream"));
    });
    server.wait_for_metric("mainbox_streams 0");
}

#[test]
fn an_http_2_client_that_resets_a_live_response_ends_its_script() {
    let server = Server::start(QUICK);
    let body = json!({"script": "import time\ndef main(): time.sleep(9)"}).to_string();
    let mut client = server.connect();
    client.write_all(HTTP2_PREFACE).unwrap();
    client.write_all(&frame(4, 0, 0, &[])).unwrap();
    client.write_all(&frame(1, 4, 1, &http2_head("text/event-stream"))).unwrap();
    client.write_all(&frame(0, 1, 1, body.as_bytes())).unwrap();
    server.wait_for_metric("mainbox_streams 1");
    let began = Instant::now();
    // RST_STREAM, because it is cancelled.
    client.write_all(&frame(3, 0, 1, &[0, 0, 0, 8])).unwrap();
    server.wait_for_metric("mainbox_streams 0");
    server.wait_for_metric("mainbox_running 0");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn output_for_http_2_clients_that_read_nothing_is_within_the_memory_for_responses() {
    const INITIAL_WINDOW_SIZE: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let settings = &[QUICK[0], ("MAINBOX_QUEUE", "1000"), ("MAINBOX_QUEUE_SECONDS", "300")];
    let server = Server::start(settings);
    // As JSON, each of these characters has six bytes.
    let script = indoc! {r#"
        import sys
        def main():
            sys.stdout.write("\x01" * 32000)
            sys.stderr.write("\x01" * 32000)
    "#};
    let body = json!({"script": script}).to_string();
    let before = status_kib(server.pid(), "VmRSS");
    let clients: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(HTTP2_PREFACE).unwrap();
            client.write_all(&frame(4, 0, 0, &INITIAL_WINDOW_SIZE)).unwrap();
            for stream in (1..33).step_by(2) {
                client.write_all(&frame(1, 4, stream, &http2_head("text/event-stream"))).unwrap();
                client.write_all(&frame(0, 1, stream, body.as_bytes())).unwrap();
            }
            client
        })
        .collect();
    server.wait_for_metric("mainbox_streams 160");
    server.wait_for_metric("mainbox_running 0");
    // Those of one caller: 16 MB. All of it would be 61 MB.
    let grown = status_kib(server.pid(), "VmRSS").saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB for {} connections", clients.len());
}

#[test]
fn an_idle_connection_makes_room_when_all_places_are_taken() {
    allow_many_connections();
    let server = Server::start(QUICK);
    let idle: Vec<TcpStream> = (0..1100).map(|_| server.connect()).collect();
    let started = Instant::now();
    for _ in 0..3 {
        assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{}/fd", server.pid())) else {
        return not_run("only root may count the descriptors of the server");
    };
    let descriptors = descriptors.count();
    assert!(descriptors < 1100, "{descriptors} descriptors for {} clients", idle.len());
}

#[test]
fn errors_that_are_not_read_hold_little_memory_however_long_the_requests_were() {
    let server = Server::start(QUICK);
    let before = status_kib(server.pid(), "VmRSS");
    let body = format!("{{\"{}\":1}}", "a".repeat(7 << 20));
    let head = format!(
        "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let held: Vec<TcpStream> = (1..=10)
        .map(|count| {
            let mut stream = server.connect();
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body.as_bytes()).unwrap();
            server.wait_for_metric(&format!(
                "mainbox_executions_total{{kind=\"invalid_request\"}} {count}"
            ));
            stream
        })
        .collect();
    let grown = status_kib(server.pid(), "VmRSS").saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB for {} errors", held.len());
}

/// Connects from this address of loopback, which makes the client another caller.
fn connect_from(server: &Server, last: u8) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], server.port())).into()).unwrap();
    socket.into()
}

/// Sends a body of 7 MB but for its last byte.
fn send_most_of_a_body(mut stream: TcpStream) -> TcpStream {
    let head = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 7340033\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    // Fails if the server refuses the request meanwhile.
    let _ = stream.write_all(&vec![b' '; 7 << 20]);
    stream
}

/// Ends the bodies, and counts the requests that were refused.
fn refused(streams: Vec<TcpStream>) -> usize {
    let mut refused = 0;
    for mut stream in streams {
        let _ = stream.write_all(b"x");
        let answer = read_to_end(stream);
        if answer.starts_with("HTTP/1.1 503 ") {
            assert!(answer.contains("retry-after: 1"), "{answer}");
            assert!(answer.contains("The service holds too many requests in memory"), "{answer}");
            refused += 1;
        } else {
            assert!(answer.contains("\"kind\":\"invalid_request\""), "{answer}");
        }
    }
    refused
}

#[test]
fn all_bodies_together_are_limited() {
    let server = Server::start(QUICK);
    let streams: Vec<TcpStream> =
        (2..14).map(|last| send_most_of_a_body(connect_from(&server, last))).collect();
    assert_eq!(server.run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
    // 64 MB hold nine bodies of 7 MB. Two that arrive at the same time may refuse each other.
    let refused = refused(streams);
    assert!((3..6).contains(&refused), "{refused} of 12 refused");
}

#[test]
fn a_caller_can_hold_a_quarter_of_the_memory_for_bodies() {
    let server = Server::start(QUICK);
    let streams: Vec<TcpStream> =
        (0..9).map(|_| send_most_of_a_body(connect_from(&server, 2))).collect();
    let other = send_most_of_a_body(connect_from(&server, 3));
    assert_eq!((refused(streams), refused(vec![other])), (7, 0));
}

#[test]
fn sigterm_under_load_loses_no_request_and_refuses_new_connections() {
    let mut server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_QUEUE", "1000")]);
    let address = format!("127.0.0.1:{}", server.port());
    let counts = load_until_refused(&address, 16, || {
        std::thread::sleep(Duration::from_secs(1));
        kill(Pid::from_raw(server.pid()), Signal::SIGTERM).unwrap();
    });
    assert_eq!(server.wait(), Some(0));
    let lost: u32 = counts.iter().map(|(_, lost)| lost).sum();
    assert_eq!(lost, 0, "{counts:?}");
    assert!(counts.iter().all(|(answered, _)| *answered > 0), "{counts:?}");
}

// The log.

#[test]
fn every_request_is_one_line_for_cloud_logging_without_its_content() {
    let mut command = mainbox(QUICK);
    // As on Cloud Run, where a proxy adds the address of the client.
    let server = Server::direct(command.env("GOOGLE_CLOUD_PROJECT", "box").env("K_SERVICE", "box"));
    while server.get("/health").status != 200 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let script = indoc! {r#"
        def main(x):
            print('sesame-printed')
            raise ValueError('sesame-raised')
    "#};
    let body = json!({"script": script, "input": "sesame-input"}).to_string();
    for (count, trace) in (1..).zip([
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "X-Cloud-Trace-Context: 0af7651916cd43dd8448eb211c80319c/13235353014750950193;o=1",
    ]) {
        let mut stream = server.connect();
        write!(stream, "POST /execute HTTP/1.1\r\nhost: x\r\n{trace}\r\nuser-agent: test\r\nx-forwarded-for: 1.2.3.4, 203.0.113.7\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let answer = read_to_end(stream);
        assert!(answer.contains("sesame-raised"), "{answer}");
        let length = answer.split_once("\r\n\r\n").unwrap().1.len();
        let line = server.log_line("POST /execute", count);
        let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
        for varying in
            ["timestamp", "request_id", "cpu_ms", "run_ms", "queue_ms", "peak_memory_bytes"]
        {
            assert!(!line.as_object_mut().unwrap().remove(varying).unwrap().is_null());
        }
        let latency = line["httpRequest"].as_object_mut().unwrap().remove("latency").unwrap();
        assert!(latency.as_str().unwrap().ends_with('s'));
        assert_eq!(
            line,
            json!({
                "severity": "INFO", "message": "POST /execute exception", "kind": "exception",
                "logging.googleapis.com/trace": "projects/box/traces/0af7651916cd43dd8448eb211c80319c",
                "logging.googleapis.com/spanId": "b7ad6b7169203331",
                "httpRequest": {"requestMethod": "POST", "requestUrl": "/execute", "status": 400,
                    "responseSize": length, "userAgent": "test", "remoteIp": "203.0.113.7"},
            })
        );
    }
    assert!(!server.log().contains("sesame"), "{}", server.log());
}

#[test]
fn a_log_that_is_not_read_delays_no_request_and_its_lost_lines_are_counted() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let port = free_port();
    let mut command = mainbox(QUICK);
    command.env("PORT", port.to_string()).stdout(Stdio::null()).stderr(writer);
    let mut process = command.spawn().unwrap();
    drop(command);
    let url = format!("http://127.0.0.1:{port}");
    let get = |path: &str| common::request("GET", &format!("{url}{path}"), None, b"");
    while get("/health").is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // More lines than the queue and the pipe hold.
    for _ in 0..2000 {
        assert_eq!(get("/openapi.yaml").unwrap().status, 200);
    }
    let metrics = get("/metrics").unwrap().body;
    let lost = metrics.lines().find_map(|line| line.strip_prefix("mainbox_log_lines_lost_total "));
    assert!(lost.unwrap().parse::<u64>().unwrap() > 100, "{metrics}");
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    let mut log = String::new();
    std::io::Read::read_to_string(&mut reader, &mut log).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
    let reports = log.lines().filter(|line| line.contains("log lines were lost")).count();
    assert_eq!(reports, 1, "{log}");
}

#[test]
fn a_closed_log_fails_no_request() {
    let (reader, writer) = std::io::pipe().unwrap();
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let mut command = mainbox(QUICK);
    command.env("PORT", port.to_string()).stdout(Stdio::null()).stderr(writer);
    let mut process = command.spawn().unwrap();
    drop((command, reader));
    let url = format!("http://127.0.0.1:{port}/execute");
    let ask = || common::request("POST", &url, Some("text/x-python"), b"def main(): return 1");
    let started = Instant::now();
    while ask().is_err() {
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", process.try_wait());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask().unwrap().body, r#"{"result":1,"stdout":""}"#);
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

#[test]
fn the_log_on_a_terminal_is_plain_text() {
    let mainbox = mainbox(QUICK);
    // `script` gives the server a terminal. The server ends when that is gone.
    let program = mainbox.get_program().to_str().unwrap();
    let mut terminal = Command::new("script");
    terminal.args(["-qec", program, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    terminal.envs(mainbox.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut process = terminal.spawn().unwrap();
    let mut text = String::new();
    for line in BufReader::new(process.stdout.take().unwrap()).lines() {
        text += &(line.unwrap() + "\n");
        if text.contains("serving address=") {
            break;
        }
    }
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    process.wait().unwrap();
    assert!(text.contains("INFO") && text.contains("serving address="), "{text}");
    assert!(!text.contains('{'), "{text}");
}
