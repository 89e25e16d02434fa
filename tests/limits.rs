//! Every limit, its kind and its message. Each test starts a server with the limits that it needs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Answer, Server, children, lacks, not_run, settled_children, status};
use indoc::indoc;
use serde_json::json;

/// A script that runs until it is ended.
const ENDLESS: &str = indoc! {r#"
    def main():
        while True:
            pass
"#};

/// Starts a server with small limits.
fn small() -> Server {
    Server::start(&[
        ("MAINBOX_PRELOAD", "numpy"),
        ("MAINBOX_TIMEOUT_SECONDS", "0.7"),
        ("MAINBOX_MEMORY_MB", "64"),
        ("MAINBOX_MAX_STDOUT_BYTES", "1000"),
        ("MAINBOX_MAX_RESULT_BYTES", "2000"),
        ("MAINBOX_MAX_SCRIPT_BYTES", "400"),
        ("MAINBOX_SCRATCH_MB", "1"),
        ("MAINBOX_CONCURRENCY", "4"),
    ])
}

#[track_caller]
fn has_failed(response: &Answer, kind: &str, error: &str) {
    assert_eq!(response.failure(), (400, kind.to_owned(), error.to_owned()), "{}", response.body);
}

#[test]
fn wall_time_is_limited_whatever_the_script_does() {
    let server = small();
    for script in [
        indoc! {r#"
            def main():
                print('before')
                while True:
                    pass
        "#},
        indoc! {r#"
            import time
            def main():
                print('before')
                time.sleep(60)
        "#},
        indoc! {r#"
            import os, signal
            def main():
                print('before')
                os.kill(os.getpid(), signal.SIGSTOP)
        "#},
        indoc! {r#"
            def main():
                print('before')
                sum(range(10**12))
        "#},
        indoc! {r#"
            import signal
            def main():
                print('before')
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
                while True:
                    pass
        "#},
        indoc! {r#"
            import threading
            def main():
                print('before')
                threading.Thread(target=threading.Event().wait).start()
        "#},
        indoc! {r#"
            print('before')
            while True:
                pass
            def main(): pass
        "#},
        indoc! {r#"
            import time
            def main():
                print('before')
                try:
                    time.sleep(60)
                finally:
                    time.sleep(60)
        "#},
    ] {
        if script.contains("threading") && lacks("threads") {
            continue;
        }
        let started = Instant::now();
        let response = server.run(script);
        let took = started.elapsed();
        has_failed(&response, "timeout", "The script ran longer than its limit of 0.7 seconds");
        assert_eq!(response.json()["stdout"], "before\n", "{script}");
        assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn a_request_can_lower_its_limits_but_not_raise_them() {
    let server = small();
    let with = |limits, script: &str| server.execute(&json!({"script": script, "limits": limits}));
    has_failed(
        &with(json!({"timeout_seconds": 0.2}), ENDLESS),
        "timeout",
        "The script ran longer than its limit of 0.2 seconds",
    );
    has_failed(
        &with(json!({"timeout_seconds": 100}), ENDLESS),
        "timeout",
        "The script ran longer than its limit of 0.7 seconds",
    );
    let allocate = "def main(): return len(bytearray(40_000_000))";
    assert_eq!(with(json!({}), allocate).status, 200);
    assert_eq!(with(json!({"memory_mb": 20}), allocate).failure().1, "memory_limit");
    assert_eq!(
        with(json!({"memory_mb": 4000}), "def main(): bytearray(90_000_000)").failure().1,
        "memory_limit"
    );
}

#[test]
fn cpu_time_is_limited() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_TIMEOUT_SECONDS", "5")]);
    // The CPU limit is one second above the wall time limit, so the script lowers it to reach it first.
    let response = server.run(indoc! {r#"
        import resource
        def main():
            print('before')
            resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
            while True:
                pass
    "#});
    has_failed(
        &response,
        "timeout",
        "The script used more than its limit of 6 seconds of CPU time",
    );
    assert_eq!(response.json()["stdout"], "before\n");
    let response = server.run(indoc! {r#"
        import resource
        def main(): return resource.getrlimit(resource.RLIMIT_CPU)
    "#});
    assert_eq!(response.json()["result"], json!([6, 7]));
    let response = server.execute(&json!({
        "script": indoc! {r#"
            import resource
            def main(): return resource.getrlimit(resource.RLIMIT_CPU)
        "#},
        "limits": {"timeout_seconds": 1.5},
    }));
    assert_eq!(response.json()["result"], json!([3, 4]));
}

#[test]
fn memory_is_limited_however_it_is_allocated() {
    let server = small();
    for script in [
        indoc! {r#"
            def main():
                print('before')
                x = []
                while True:
                    x.append('x' * 100_000)
        "#},
        indoc! {r#"
            def main():
                print('before')
                return bytearray(1 << 40)
        "#},
        indoc! {r#"
            import mmap
            def main():
                print('before')
                try:
                    return [mmap.mmap(-1, 10 << 20) for _ in range(20)]
                except OSError as error:
                    raise MemoryError from error
        "#},
        indoc! {r#"
            import numpy as np
            def main():
                print('before')
                return np.ones(100_000_000)
        "#},
        indoc! {r#"
            def main():
                print('before')
                raise MemoryError
        "#},
    ] {
        let response = server.run(script);
        has_failed(
            &response,
            "memory_limit",
            "The script needed more memory than its limit of 64 MB",
        );
        assert_eq!(response.json()["stdout"], "before\n", "{script}");
    }
    // The limit is on top of what numpy has mapped.
    assert_eq!(
        server.run("def main(): return len(bytearray(50_000_000))").json()["result"],
        50_000_000
    );
}

#[test]
fn a_killed_worker_is_reported_as_memory_limit() {
    let server = small();
    // The kernel's OOM killer sends SIGKILL. A script can send it to itself only.
    let response = server.run(indoc! {r#"
        import os, signal
        def main():
            print('before')
            os.kill(os.getpid(), signal.SIGKILL)
    "#});
    has_failed(&response, "memory_limit", "The script needed more memory than its limit of 64 MB");
    assert_eq!(response.json()["stdout"], "before\n");
}

#[test]
fn output_over_the_limit_is_cut_and_the_script_continues() {
    let server = small();
    let response = server.run(indoc! {r#"
        import sys
        def main():
            for _ in range(10_000):
                print('x' * 79)
            print('y' * 999, file=sys.stderr)
            return 'done'
    "#});
    let body = response.json();
    assert_eq!((response.status, &body["result"]), (200, &json!("done")));
    assert_eq!(body["stdout"].as_str().unwrap().len(), 1000);
    assert_eq!(body["stderr"].as_str().unwrap().len(), 1000);
    assert_eq!(body["truncated"], json!(["stdout"]));
    let response = server.run(indoc! {r#"
        import os
        def main():
            os.write(2, b'z' * 60_000)
            os.write(1, b'z' * 1000)
    "#});
    assert_eq!(response.json()["truncated"], json!(["stderr"]));
}

#[test]
fn endless_output_ends_with_the_timeout() {
    let server = small();
    let response = server.run(indoc! {r#"
        import os
        def main():
            while True:
                os.write(1, b'z' * 65536)
    "#});
    has_failed(&response, "timeout", "The script ran longer than its limit of 0.7 seconds");
    assert_eq!(response.json()["stdout"].as_str().unwrap().len(), 1000);
}

#[test]
fn the_result_is_limited() {
    let server = small();
    assert_eq!(server.run("def main(): return 'x' * 1998").status, 200);
    has_failed(
        &server.run("def main(): return 'x' * 1999"),
        "result_too_large",
        "The result has 2001 bytes; the limit is 2000",
    );
    has_failed(
        &server.run(indoc! {r#"
            import os, struct
            def main():
                os.write(3, b'V' + struct.pack('<I', 2001) + b'1' * 2001)
        "#}),
        "result_too_large",
        "The result is larger than its limit of 2000 bytes",
    );
}

#[test]
fn long_errors_and_tracebacks_are_cut() {
    let server = small();
    let response = server.run("def main(): raise ValueError('x' * 1_000_000)");
    let body = response.json();
    assert!(body["error"].as_str().unwrap().len() < 5_000);
    assert!(body["traceback"].as_str().unwrap().len() < 40_000);
    let response = server.run(indoc! {r#"
        def f(): f()
        def main(): f()
    "#});
    assert_eq!(response.failure().2, "RecursionError: maximum recursion depth exceeded");
    assert!(response.body.len() < 10_000);
}

#[test]
fn a_script_over_its_limit_gets_413() {
    let response = small().run(&format!("def main(): return 1 #{}", "x".repeat(400)));
    assert_eq!(
        response.failure(),
        (
            413,
            String::from("payload_too_large"),
            String::from("The script has 422 bytes; the limit is 400")
        )
    );
}

#[test]
fn threads_that_python_does_not_know_are_limited_too() {
    if lacks("threads") {
        return not_run("workers have no threads here");
    }
    let script = indoc! {r#"
        import ctypes, errno, time
        libc = ctypes.CDLL(None)
        def main():
            small, thread = ctypes.create_string_buffer(256), ctypes.c_ulong()
            libc.pthread_attr_init(small)
            libc.pthread_attr_setstacksize(small, ctypes.c_size_t(65536))
            pause, count = ctypes.cast(libc.pause, ctypes.c_void_p), 0
            while (code := libc.pthread_create(ctypes.byref(thread), small, pause, None)) == 0:
                count += 1
                if count == 200:
                    time.sleep(5)
            return [count, errno.errorcode[code]]
    "#};
    let response = Server::start(&[("MAINBOX_PRELOAD", "")]).run(script);
    if lacks("own uid") && common::declared_tier() == "seccomp" {
        let expected = "The script was stopped because it had more than 64 threads";
        assert_eq!(response.failure(), (400, String::from("crashed"), String::from(expected)));
    } else {
        assert_eq!(response.json()["result"], json!([63, "EAGAIN"]));
    }
}

#[test]
fn threads_descriptors_and_file_sizes_are_limited() {
    let server = small();
    let threads = indoc! {r#"
        import threading
        def main():
            event = threading.Event()
            count = 0
            try:
                while True:
                    threading.Thread(target=event.wait, daemon=True).start()
                    count += 1
            except RuntimeError as error:
                return [count < 64, str(error)]
    "#};
    assert_eq!(server.run(threads).json()["result"], json!([true, "can't start new thread"]));
    let descriptors = indoc! {r#"
        import os
        def main():
            files = []
            try:
                while True:
                    files.append(open('/dev/null'))
            except OSError as error:
                return [len(files) < 128, error.strerror]
    "#};
    assert_eq!(server.run(descriptors).json()["result"], json!([true, "Too many open files"]));
    let bytes = indoc! {r#"
        def main():
            with open('big', 'wb') as file:
                try:
                    while True:
                        file.write(b'x' * 65536); file.flush()
                except OSError as error:
                    return [file.tell() <= 1 << 20, error.strerror]
    "#};
    let response = server.run(bytes).json();
    assert_eq!(response["result"][0], true, "{response}");
}

#[test]
fn a_full_queue_gets_busy_and_a_retry_time() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_CONCURRENCY", "1"),
        ("MAINBOX_QUEUE", "1"),
    ]);
    let sleep = indoc! {r#"
        import time
        def main(): time.sleep(2)
    "#};
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.run(sleep));
        server.wait_for_metric("mainbox_running 1");
        let second = scope.spawn(|| server.run(sleep));
        server.wait_for_metric("mainbox_waiting 1");
        let third = server.run(sleep);
        assert_eq!(
            third.failure(),
            (503, String::from("busy"), String::from("All workers are busy and the queue is full"))
        );
        assert_eq!(third.header("retry-after"), "1");
        assert_eq!((first.join().unwrap().status, second.join().unwrap().status), (200, 200));
    });
}

#[test]
fn a_response_that_escaping_makes_larger_than_the_memory_of_its_caller_is_too_large() {
    let server =
        Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_MAX_STDOUT_BYTES", "16777216")]);
    // Each of these characters takes six bytes in JSON. A caller has the size of the largest response without
    // escaping, of the second and third time that MCP sends a result, and 1 KiB for each input.
    let response = server.run("def main(): print(end='\\1' * (1 << 24))");
    has_failed(&response, "result_too_large", "The response is larger than 51831808 bytes");
    let response = server.run("def main(): print(end='\\1' * (1 << 22))").json();
    assert_eq!(response["stdout"].as_str().map(str::len), Some(1 << 22));
}

#[test]
fn sixteen_busy_loops_on_two_workers_end_with_timeout_or_busy_in_time() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_CONCURRENCY", "2"),
        ("MAINBOX_TIMEOUT_SECONDS", "1"),
        ("MAINBOX_QUEUE_SECONDS", "2"),
    ]);
    let began = Instant::now();
    let ends: Vec<_> = std::thread::scope(|scope| {
        let run = || (server.run(ENDLESS), began.elapsed());
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(run)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let kinds: Vec<String> = ends.iter().map(|(response, _)| response.failure().1).collect();
    let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
    assert!(count("timeout") >= 2 && count("busy") >= 2, "{kinds:?}");
    assert_eq!(count("timeout") + count("busy"), 16, "{kinds:?}");
    let latest = ends.iter().map(|(_, end)| *end).max().unwrap();
    assert!(latest < Duration::from_secs(4 + 6), "{latest:?}");
    // A request that gets its permit in the last moment may find no worker ready.
    let waited = "All workers were busy for 2 s";
    let busy: Vec<&Answer> = ends
        .iter()
        .map(|(response, _)| response)
        .filter(|response| response.status == 503)
        .collect();
    assert!(busy.iter().any(|response| response.failure().2 == waited));
    for response in busy {
        let error = response.failure().2;
        assert!([waited, "No worker was ready in time"].contains(&error.as_str()), "{error}");
        let retry_after: u64 = response.header("retry-after").parse().unwrap();
        assert!((1..=8).contains(&retry_after), "{retry_after}");
    }
}

/// The kernel reports no memory for a process whose main thread has ended.
#[test]
fn a_script_that_ends_its_main_thread_is_still_watched() {
    if lacks("threads") {
        return not_run("workers have no threads here");
    }
    let server = common::server();
    let script = indoc! {r#"
        import ctypes, os, threading, time

        def work():
            kept = bytearray(200 << 20)
            for page in range(0, len(kept), 4096):
                kept[page] = 1
            try:
                for number in range(200):
                    with open(f"file-{number}", "wb") as file:
                        file.write(bytes(1 << 20))
            except OSError:
                pass  # the kernel limits the scratch directory in the tier namespaces
            time.sleep(60)

        def main():
            threading.Thread(target=work).start()
            ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
    "#};
    let answer = server.execute(&json!({"script": script, "limits": {"timeout_seconds": 3}}));
    let (status, kind, error) = answer.failure();
    assert_eq!(status, 400);
    assert!(["scratch_limit", "timeout"].contains(&kind.as_str()), "{kind}: {error}");
    let peak: u64 = answer.header("mainbox-peak-memory").parse().unwrap();
    assert!(peak > 150 << 20 || lacks("peak"), "{peak}");
}

#[test]
fn a_script_with_many_threads_uses_one_cpu_on_average() {
    if lacks("threads") {
        return not_run("workers have no threads here");
    }
    let server = common::server();
    let script = indoc! {r#"
        import hashlib, threading, time

        def main():
            began, end = time.monotonic(), time.monotonic() + 1.5
            def work():
                while time.monotonic() < end:
                    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 20_000)
            threads = [threading.Thread(target=work) for _ in range(31)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return [time.process_time(), time.monotonic() - began]
    "#};
    let answer = server.run(script);
    let used = answer.json()["result"][0].as_f64().unwrap();
    let wall = answer.json()["result"][1].as_f64().unwrap();
    // Beyond its share, a script may use 100 ms at once and what two CPUs do between two looks.
    assert!(used < wall + 0.4, "{used} s of CPU time in {wall} s");
}

/// The kernel counts the threads of a uid, also across containers.
#[test]
fn the_workers_of_two_services_have_different_uids() {
    if lacks("own uid") {
        return not_run("the service cannot give its workers uids");
    }
    let uids = || -> Vec<u32> {
        let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "2")]);
        server.wait_for_metric("mainbox_spares{zygote=\"bare\"} 2");
        let workers = settled_children(children(server.pid())[0], 2);
        let uid = |worker| status(worker, "Uid").split_whitespace().next().unwrap().parse();
        workers.into_iter().map(|worker| uid(worker).unwrap()).collect()
    };
    let (first, second) = (uids(), uids());
    assert!(first.iter().all(|uid| !second.contains(uid)), "{first:?} {second:?}");
    assert!(first.iter().chain(&second).all(|uid| *uid >= 10_000), "{first:?} {second:?}");
}

#[test]
fn idle_time_leaves_one_spare_and_a_request_restores_the_others() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_CONCURRENCY", "3"),
        ("MAINBOX_REST_SECONDS", "1"),
    ]);
    let zygote = children(server.pid())[0];
    let spares_become = |count| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while children(zygote).len() != count {
            assert!(Instant::now() < deadline, "{} spares", children(zygote).len());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    spares_become(1);
    assert_eq!(server.run("def main(): return 1").status, 200);
    spares_become(3);
    spares_become(1);
}

#[test]
fn the_strict_policy_refuses_introspection() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_POLICY", "strict")]);
    for (script, error) in [
        (
            indoc! {r#"
                import os
                def main(): return 1
            "#},
            "Dangerous import detected: os",
        ),
        (
            indoc! {r#"
                from sys import path
                def main(): return 1
            "#},
            "Dangerous import detected: sys",
        ),
        (
            indoc! {r#"
                def main():
                    import ctypes.util
                    return 1
            "#},
            "Dangerous import detected: ctypes",
        ),
        (
            indoc! {r#"
                import socket
                def main(): return 1
            "#},
            "Dangerous import detected: socket",
        ),
        (
            indoc! {r#"
                import importlib
                def main(): return 1
            "#},
            "Dangerous import detected: importlib",
        ),
        ("def main(): return eval('1')", "Dangerous builtin detected: eval"),
        ("def main(): return exec", "Dangerous builtin detected: exec"),
        ("def main(): return compile('1', '', 'eval')", "Dangerous builtin detected: compile"),
        ("def main(): return __import__('os')", "Dangerous builtin detected: __import__"),
        ("def main(): print(1)", "The main() function must contain a return statement"),
    ] {
        has_failed(&server.run(script), "forbidden", error);
    }
    assert_eq!(
        server
            .run(indoc! {r#"
                import json
                def main(): return json.loads('[1]')
            "#})
            .json()["result"],
        json!([1])
    );
}

#[test]
fn the_sandbox_refuses_programs_when_the_policy_is_off() {
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_POLICY", "off")]);
    let response = server.run(indoc! {r#"
        import subprocess
        def main(): return subprocess.run(['true']).returncode
    "#});
    has_failed(
        &response,
        "exception",
        "PermissionError: [Errno 1] starting other programs is not available in the sandbox",
    );
    has_failed(
        &server.run("def main() return 1"),
        "syntax_error",
        "Syntax error on line 1: expected ':': def main() return 1",
    );
    has_failed(
        &server.run("x = 1"),
        "missing_main",
        "Script must contain a main() function; with `entry` set to `script`, it needs none",
    );
}

#[test]
fn files_too_large_for_the_scratch_directory_are_refused() {
    let small = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_SCRATCH_MB", "1")]);
    let response = small.execute(
        &json!({"script": "def main(): return 1", "files": {"a": "x".repeat(1 << 20), "b": "y"}}),
    );
    let error = "The files need 1052672 bytes; the scratch directory has 1048576";
    assert_eq!(response.failure(), (413, String::from("payload_too_large"), String::from(error)));
}
