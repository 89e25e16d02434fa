//! The contract of POST /execute and the other endpoints, tested on a server with default settings.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Answer, lacks, not_run, patience, server};
use indoc::indoc;
use serde_json::{Value, json};

/// Runs `script` and expects a 200 with exactly this body.
#[track_caller]
fn returns(script: &str, body: &str) {
    let response = server().run(script);
    assert_eq!((response.status, response.body.as_str()), (200, body));
}

/// Runs `script` and expects a failure of this kind with exactly this sentence.
#[track_caller]
fn fails_with(script: &str, kind: &str, error: &str) -> Answer {
    let response = server().run(script);
    assert_eq!(response.failure(), (400, kind.to_owned(), error.to_owned()), "{}", response.body);
    response
}

/// Expects that a request was refused, and that the next one succeeds.
#[track_caller]
fn is_refused(response: &Answer, status: u16, kind: &str, error: &str) {
    assert_eq!(
        response.failure(),
        (status, kind.to_owned(), error.to_owned()),
        "{}",
        response.body
    );
    assert_eq!(response.json()["stdout"], "");
    returns("def main(): return 1", r#"{"result":1,"stdout":""}"#);
}

#[test]
fn a_dictionary_keeps_its_order() {
    returns(
        r#"def main(): return {"message": "Hello from the cloud!", "status": "success"}"#,
        r#"{"result":{"message":"Hello from the cloud!","status":"success"},"stdout":""}"#,
    );
}

#[test]
fn a_script_can_import_pandas_and_print() {
    returns(
        indoc! {r#"
            import pandas as pd
            def main():
                df = pd.DataFrame({"a": [1, 2, 3]})
                print("DataFrame created")
                return {"sum": df["a"].sum(), "shape": df.shape}
        "#},
        "{\"result\":{\"sum\":6,\"shape\":[3,1]},\"stdout\":\"DataFrame created\\n\"}",
    );
}

#[test]
fn pandas_and_numpy_summaries_are_json() {
    returns(
        indoc! {r#"
            import numpy as np
            import pandas as pd
            def main():
                df = pd.DataFrame({"a": [1, 2, 3], "b": [1.5, 2.5, 3.5]})
                return [
                    df.sum().to_dict(),
                    df.mean().to_dict(),
                    np.mean([1, 2, 3, 4]),
                    np.std([1, 2, 3, 4]),
                    df.to_dict("records"),
                ]
        "#},
        concat!(
            r#"{"result":[{"a":6.0,"b":7.5},{"a":2.0,"b":2.5},2.5,1.118033988749895,"#,
            r#"[{"a":1,"b":1.5},{"a":2,"b":2.5},{"a":3,"b":3.5}]],"stdout":""}"#
        ),
    );
}

#[test]
fn os_and_requests_can_be_imported() {
    let response = server().run(indoc! {r#"
        import os, requests, json, csv, re, statistics, zoneinfo, xml.etree.ElementTree
        def main():
            zone = zoneinfo.ZoneInfo('Europe/Paris')
            return [os.name, os.cpu_count() >= 1, requests.__name__, str(zone)]
    "#});
    assert_eq!(response.json()["result"], json!(["posix", true, "requests", "Europe/Paris"]));
}

#[test]
fn main_can_import_modules_while_it_runs() {
    let script = indoc! {r#"
        import importlib
        def main():
            import statistics
            import email.message, html.parser, textwrap, queue, ipaddress, hashlib, difflib
            import pandas as pd
            import numpy as np
            frame = pd.DataFrame({"a": [1.0, 2.0, 4.0], "t": pd.date_range("2024-01-01", periods=3, tz="Europe/Paris")})
            try:
                import no_such_module
            except ModuleNotFoundError as error:
                missing = str(error)
            return [
                statistics.median([1, 2, 9]),
                str(importlib.import_module("decimal").Decimal("1.5") + 1),
                frame["a"].describe()["max"],
                frame[["a"]].to_json(),
                np.round(np.linalg.svd(np.eye(2))[1].sum(), 6),
                frame["t"].dt.tz_convert("Asia/Tokyo").iloc[0].isoformat(),
                frame.groupby("a").size().to_list(),
                hashlib.sha256(b"").hexdigest()[:6],
                missing,
            ]
    "#};
    let expected = json!([
        2,
        "2.5",
        4.0,
        "{\"a\":{\"0\":1.0,\"1\":2.0,\"2\":4.0}}",
        2.0,
        "2024-01-01T08:00:00+09:00",
        [1, 1, 1],
        "e3b0c4",
        "No module named 'no_such_module'"
    ]);
    let response = server().run(script);
    assert_eq!(response.json()["result"], expected, "{}", response.body);
}

#[test]
fn input_is_passed_to_main_and_null_is_an_input() {
    let run = |body: Value| server().execute(&body).json()["result"].clone();
    let script = "def main(*given): return list(given)";
    assert_eq!(run(json!({"script": script})), json!([]));
    assert_eq!(run(json!({"script": script, "input": null})), json!([null]));
    assert_eq!(run(json!({"script": script, "input": {"a": [1]}})), json!([{"a": [1]}]));
}

#[test]
fn integers_of_any_size_are_not_rounded() {
    let body = r#"{"script":"def main(n): return [n, 2**100, n + 1]","input":900719925474099312345678901234567890}"#;
    assert_eq!(
        server().post("application/json", body.as_bytes()).body,
        r#"{"result":[900719925474099312345678901234567890,1267650600228229401496703205376,900719925474099312345678901234567891],"stdout":""}"#
    );
}

#[test]
fn an_async_main_is_awaited() {
    returns(
        indoc! {r#"
            import asyncio
            async def main():
                await asyncio.sleep(0.001)
                return 'awaited'
        "#},
        r#"{"result":"awaited","stdout":""}"#,
    );
}

#[test]
fn a_bare_script_is_accepted_as_a_body() {
    let response =
        server().post("text/x-python; charset=utf-8", "def main(): return 'é'".as_bytes());
    assert_eq!(response.body, r#"{"result":"é","stdout":""}"#);
}

#[test]
fn the_module_is_named_script_and_the_main_guard_does_not_run() {
    returns(
        indoc! {r#"
            import dataclasses, pickle, sys
            @dataclasses.dataclass
            class Point:
                x: int
            def main():
                return [__name__, sys.modules["script"].Point is Point, pickle.loads(pickle.dumps(Point(3))).x, Point(4)]
            if __name__ == "__main__":
                print(main())
        "#},
        r#"{"result":["script",true,3,{"x":4}],"stdout":""}"#,
    );
}

#[test]
fn headers_report_the_cost_and_the_isolation_of_an_execution() {
    let response = server().run("def main(): return len(b'x' * 60_000_000)");
    let names: Vec<&str> = response
        .header("server-timing")
        .split(", ")
        .map(|part| part.split(";dur=").next().unwrap())
        .collect();
    assert_eq!(names, ["queue", "run", "cpu"]);
    let peak: u64 = response.header("mainbox-peak-memory").parse().unwrap();
    // gVisor does not report the peak.
    assert!((55_000_000..90_000_000).contains(&peak) || lacks("peak"), "{peak}");
    let tier = server().get("/about").json()["isolation"]["tier"].clone();
    assert_eq!(tier, response.header("mainbox-isolation"));
    assert_eq!(response.header("content-type"), "application/json");
}

#[test]
fn about_reports_versions_limits_and_layers() {
    let about = server().get("/about").json();
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert!(about["python"].as_str().unwrap().starts_with("3."));
    assert!(about["packages"]["pandas"].is_string() && about["packages"]["numpy"].is_string());
    assert_eq!(about["limits"]["timeout_seconds"], patience(Duration::from_secs(10)).as_secs_f64());
    assert_eq!(about["limits"]["memory_mb"], 256);
    assert!(about["isolation"]["layers"].as_array().unwrap().len() > 3);
}

#[test]
fn the_index_lists_the_endpoints() {
    let index = server().get("/").json();
    let endpoints: Vec<&str> =
        index["endpoints"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        endpoints,
        [
            "GET /about",
            "GET /health",
            "GET /livez",
            "GET /metrics",
            "GET /openapi.json",
            "GET /openapi.yaml",
            "GET /readyz",
            "POST /execute",
            "POST /mcp"
        ]
    );
    assert_eq!(server().get("/health").body, r#"{"status":"healthy"}"#);
    assert_eq!(server().get("/readyz").body, r#"{"status":"healthy"}"#);
    assert_eq!(server().get("/livez").body, r#"{"status":"alive"}"#);
}

#[test]
fn a_byte_order_mark_is_ignored_without_a_module_for_it() {
    let script = "\u{feff}import sys\ndef main(): return 'encodings.utf_8_sig' in sys.modules";
    assert_eq!(server().run(script).body, r#"{"result":false,"stdout":""}"#);
}

// Failures of a script.

#[test]
fn a_script_without_main_is_missing_main() {
    let error =
        "Script must contain a main() function; with `entry` set to `script`, it needs none";
    for script in [
        "print(1)",
        "class main: pass",
        "main = 5",
        indoc! {r#"
            class A:
                def main(self): return 1
        "#},
        indoc! {r#"
            def f():
                def main(): return 1
        "#},
    ] {
        fails_with(script, "missing_main", error);
    }
    returns("main = lambda: 7", r#"{"result":7,"stdout":""}"#);
}

#[test]
fn a_syntax_error_names_its_line_and_text() {
    let response = fails_with(
        indoc! {r#"
            x = 1
            def main(:
                return 1
        "#},
        "syntax_error",
        "Syntax error on line 2: invalid syntax: def main(:",
    );
    assert_eq!(response.json()["line"], 2);
    for script in ["(".repeat(5000), String::from("def main(): return 1\n\tx"), "-".repeat(90_000)]
    {
        let response = server().run(&script);
        assert_eq!(response.failure().1, "syntax_error", "{}", response.body);
    }
}

#[test]
fn the_standard_policy_refuses_imports_and_calls_that_cannot_work() {
    for (line, error) in [
        ("import subprocess", "Dangerous import detected: subprocess"),
        ("from multiprocessing.pool import Pool", "Dangerous import detected: multiprocessing"),
        ("import json, pty", "Dangerous import detected: pty"),
        ("import os; os.system('ls')", "Dangerous call detected: os.system"),
        ("import os as o; o.popen('ls')", "Dangerous call detected: os.popen"),
        ("from os import fork", "Dangerous call detected: os.fork"),
        ("import os; os.execv('a', [])", "Dangerous call detected: os.execv"),
        ("import os; os.spawnlp", "Dangerous call detected: os.spawnlp"),
        ("import os; os.posix_spawn", "Dangerous call detected: os.posix_spawn"),
    ] {
        let response = fails_with(&format!("\n{line}\ndef main(): return 1"), "forbidden", error);
        assert_eq!(response.json()["line"], 2);
    }
}

#[test]
fn a_traceback_contains_only_frames_of_the_script() {
    let response = fails_with(
        indoc! {r#"
            import json
            def inner(text):
                return json.loads(text)
            def main():
                print('before')
                return inner('{')
        "#},
        "exception",
        "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    );
    let body = response.json();
    assert_eq!(body["line"], 3);
    assert_eq!(body["stdout"], "before\n");
    // Which part of a line Python underlines differs between its versions.
    let traceback: Vec<&str> = body["traceback"]
        .as_str()
        .unwrap()
        .lines()
        .filter(|line| !line.trim().trim_matches(['^', '~']).is_empty())
        .collect();
    assert_eq!(
        traceback,
        [
            "Traceback (most recent call last):",
            "  File \"script.py\", line 6, in main",
            "    return inner('{')",
            "  File \"script.py\", line 3, in inner",
            "    return json.loads(text)",
            "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ]
    );
}

#[test]
fn causes_and_exception_groups_contain_only_frames_of_the_script() {
    for script in [
        indoc! {r#"
            def main():
                try:
                    import json; json.loads('{')
                except ValueError as error:
                    raise KeyError('x') from error
        "#},
        indoc! {r#"
            def main():
                raise ExceptionGroup('several', [ValueError(1), OSError(2)])
        "#},
        indoc! {r#"
            import pandas as pd
            def main():
                return pd.DataFrame({'a': [1]})['b']
        "#},
        indoc! {r#"
            def main():
                from json import nothing
        "#},
    ] {
        let traceback = server().run(script).json()["traceback"].as_str().unwrap().to_owned();
        assert!(traceback.contains("File \"script.py\""), "{traceback}");
        assert!(!traceback.contains("mainbox_harness"), "{traceback}");
        assert_eq!(
            traceback.matches("  File ").count(),
            traceback.matches("  File \"script.py\"").count()
        );
    }
}

#[test]
fn sys_exit_and_os_exit_are_reported_as_exit() {
    let response = fails_with(
        indoc! {r#"
            import sys
            def main():
                print('bye')
                sys.exit(2)
        "#},
        "exit",
        "The script called sys.exit(2) before main returned",
    );
    assert_eq!(response.json()["stdout"], "bye\n");
    let response = fails_with(
        indoc! {r#"
            import os
            def main():
                print('bye', end='')
                os._exit(3)
        "#},
        "exit",
        "The script ended its process with status 3 before main returned",
    );
    assert_eq!(response.json()["stdout"], "bye");
}

#[test]
fn a_keyboard_interrupt_is_reported_as_an_exception() {
    fails_with("def main(): raise KeyboardInterrupt", "exception", "KeyboardInterrupt");
}

#[test]
fn an_exception_whose_str_fails_is_reported() {
    fails_with(
        indoc! {r#"
            class Odd(Exception):
                def __str__(self): raise self
            def main(): raise Odd
        "#},
        "exception",
        "script.Odd: <exception str() failed>",
    );
}

#[test]
fn a_segfault_is_reported_as_crashed_with_the_output_before_it() {
    let response = fails_with(
        indoc! {r#"
            import ctypes
            def main():
                print('before')
                ctypes.string_at(0)
        "#},
        "crashed",
        "The script crashed: SIGSEGV; recursion was deeper than the stack, or memory was used wrongly",
    );
    assert_eq!(response.json()["stdout"], "before\n");
}

#[test]
fn a_script_that_breaks_its_own_process_does_not_affect_the_next_request() {
    for (script, kind) in [
        (
            indoc! {r#"
                import os
                def main():
                    os.closerange(0, 256)
                    return 1
            "#},
            "crashed",
        ),
        (
            indoc! {r#"
                import sys
                def main():
                    sys.stdout = None
                    sys.stderr = 5
                    return 1
            "#},
            "",
        ),
        (
            indoc! {r#"
                import json
                def main():
                    json.dumps = json.loads = json.JSONEncoder = None
                    return 1
            "#},
            "",
        ),
        (
            indoc! {r#"
                import sys
                def main():
                    sys.modules.clear()
                    return 1
            "#},
            "",
        ),
        (
            indoc! {r#"
                import builtins
                def main():
                    del builtins.len, builtins.isinstance
                    return 1
            "#},
            "crashed",
        ),
        (
            indoc! {r#"
                import os
                def main():
                    os.write(3, b'garbage that is no frame')
                    return 1
            "#},
            "crashed",
        ),
        (
            indoc! {r#"
                import os
                def main():
                    os.write(3, b'V\xff\xff\xff\xff')
                    return 1
            "#},
            "crashed",
        ),
        (
            indoc! {r#"
                import os
                def main():
                    os.write(3, b'V\x03\x00\x00\x00{,}')
                    return 1
            "#},
            "not_json",
        ),
        (
            indoc! {r#"
                import os
                def main():
                    os.write(3, b'R\x00\x00\x00\x00')
                    return 1
            "#},
            "crashed",
        ),
    ] {
        let response = server().run(script);
        if kind.is_empty() {
            assert_eq!(response.body, r#"{"result":1,"stdout":""}"#, "{script}");
        } else {
            assert_eq!(response.failure().1, kind, "{script}: {}", response.body);
        }
        returns("def main(): return 'next'", r#"{"result":"next","stdout":""}"#);
    }
}

#[test]
fn refused_network_access_is_explained() {
    for script in [
        indoc! {r#"
            import socket
            def main(): socket.create_connection(('127.0.0.1', 80))
        "#},
        indoc! {r#"
            import socket
            def main(): socket.socket()
        "#},
        indoc! {r#"
            import requests
            def main(): requests.get('http://example.com')
        "#},
        indoc! {r#"
            import urllib.request
            def main(): urllib.request.urlopen('http://example.com')
        "#},
    ] {
        let (status, kind, error) = server().run(script).failure();
        assert_eq!((status, kind.as_str()), (400, "exception"));
        assert!(error.contains("network access is not available in the sandbox"), "{error}");
    }
}

// Output.

#[test]
fn stdout_contains_everything_printed_once_and_in_order() {
    returns(
        indoc! {r#"
            import ctypes, os, sys
            print("at import")
            def main():
                os.write(1, b"os.write\n")
                sys.stdout.buffer.write(b"buffer\n")
                print("no newline", end="")
                sys.__stdout__.write("|")
                ctypes.CDLL(None).puts(b"C")
                return None
        "#},
        r#"{"result":null,"stdout":"at import\nos.write\nbuffer\nno newline|C\n"}"#,
    );
}

#[test]
fn what_was_printed_is_there_however_a_script_ends() {
    for (end, kind) in [
        ("ctypes.string_at(0)", "crashed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory_limit"),
        ("os._exit(3)", "exit"),
        ("1 / 0", "exception"),
        ("os.close(3)", "crashed"),
        ("time.sleep(60)", "timeout"),
    ] {
        let script = format!(
            "import ctypes, os, signal, sys, time\n\
             def main():\n    print('one')\n    os.write(1, b'two\\n')\n    print('three', end='')\n    {end}"
        );
        let body = json!({"script": script, "limits": {"timeout_seconds": 1}});
        let answer = server().execute(&body).json();
        assert_eq!(
            (&answer["kind"], &answer["stdout"]),
            (&json!(kind), &json!("one\ntwo\nthree")),
            "{end}"
        );
    }
}

#[test]
fn a_long_output_is_whole_and_in_order_whatever_writes_it() {
    let script = indoc! {r#"
        import os
        def main():
            for number in range(30000):
                print(number)
                if number % 1000 == 0:
                    os.write(1, b"raw\n")
            print("x" * 100_000)
            print("end", flush=True)
    "#};
    let answer = server().run(script).json();
    let lines = |number| {
        if number % 1000 == 0 { format!("{number}\nraw\n") } else { format!("{number}\n") }
    };
    let expected: String =
        (0..30000).map(lines).chain(["x".repeat(100_000), "\nend\n".into()]).collect();
    assert!(
        answer["stdout"] == expected.as_str(),
        "{} bytes",
        answer["stdout"].as_str().unwrap().len()
    );
}

#[test]
fn threads_are_waited_for_and_their_output_is_returned() {
    let joined = indoc! {r#"
        import threading
        def main():
            print('before')
            thread = threading.Thread(target=lambda: print('in a thread'))
            thread.start(); thread.join()
            print('after')
            return 1
    "#};
    let late = indoc! {r#"
        import threading, time
        def late():
            time.sleep(0.05)
            print('late')
        def main():
            threading.Thread(target=late).start()
            return 1
    "#};
    if lacks("threads") {
        for script in [joined, late] {
            let (status, kind, error) = server().run(script).failure();
            assert_eq!((status, kind.as_str()), (400, "exception"));
            assert!(error.contains("thread"), "{error}");
        }
    } else {
        returns(joined, r#"{"result":1,"stdout":"before\nin a thread\nafter\n"}"#);
        returns(late, r#"{"result":1,"stdout":"late\n"}"#);
    }
}

#[test]
fn a_thread_that_never_ends_costs_neither_the_result_nor_the_time() {
    if lacks("threads") {
        return not_run("workers have no threads here");
    }
    for script in [
        indoc! {r#"
            import threading
            def main():
                threading.Thread(target=threading.Event().wait).start()
                return 1
        "#},
        indoc! {r#"
            import concurrent.futures, time
            pool = concurrent.futures.ThreadPoolExecutor(2)
            def main():
                pool.submit(time.sleep, 60)
                return pool.submit(int, 1).result()
        "#},
    ] {
        let began = Instant::now();
        returns(script, r#"{"result":1,"stdout":""}"#);
        assert!(began.elapsed() < patience(Duration::from_secs(4)), "{:?}", began.elapsed());
    }
    let idle = indoc! {r#"
        import concurrent.futures
        pool = concurrent.futures.ThreadPoolExecutor(2)
        def main(): return sum(pool.map(int, "12"))
    "#};
    returns(idle, r#"{"result":3,"stdout":""}"#);
}

/// Where workers have no threads, the work runs inline.
#[test]
fn a_thread_pool_gives_the_same_answer_everywhere() {
    let script = indoc! {r#"
        import asyncio, concurrent.futures
        def square(n): return n * n
        async def main():
            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                squares = list(pool.map(square, range(4)))
                last = pool.submit(square, 5).result()
            loop = asyncio.get_running_loop()
            return [squares, last, await asyncio.to_thread(square, 6), await loop.run_in_executor(None, square, 7)]
    "#};
    returns(script, r#"{"result":[[0,1,4,9],25,36,49],"stdout":""}"#);
}

#[test]
fn a_script_ends_as_a_program_does() {
    let script = indoc! {r#"
        import atexit, logging, logging.handlers, sys
        atexit.register(print, 'at exit')
        handler = logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout))
        logging.getLogger().addHandler(handler)
        def main():
            logging.warning('kept in memory')
            return 1
    "#};
    returns(script, r#"{"result":1,"stdout":"at exit\nkept in memory\n"}"#);
}

#[test]
fn stdin_is_what_the_script_reads() {
    let run = |script: &str, stdin: &str| {
        server().execute(&json!({"script": script, "stdin": stdin})).json()["result"].clone()
    };
    let lines = "import sys\ndef main(): return [input(), sys.stdin.readline(), sys.stdin.read()]";
    assert_eq!(run(lines, "a\r\né\nrest"), json!(["a", "é\n", "rest"]));
    let bytes = "import os\ndef main(): return [os.read(0, 9).decode(), os.read(0, 9).decode()]";
    assert_eq!(run(bytes, "abc"), json!(["abc", ""]));
    let long = "import sys\ndef main(): return len(sys.stdin.read())";
    assert_eq!(run(long, &"x".repeat(100_000)), 100_000);
    let none = "def main(): input()";
    fails_with(
        none,
        "exception",
        "EOFError: EOF when reading a line; the standard input of this script has ended; input() reads the `stdin` of the request",
    );
}

#[test]
fn a_script_can_be_run_as_a_program() {
    let program = "import sys\nprint(__name__, sys.stdin.read())\nif __name__ == '__main__':\n    print('program')";
    let body = json!({"script": program, "stdin": "in", "entry": "script"});
    assert_eq!(
        server().execute(&body).body,
        r#"{"result":null,"stdout":"__main__ in\nprogram\n"}"#
    );
    let answer = server().request(
        "POST",
        "/execute?entry=script&stdin=a+b",
        Some("text/x-python"),
        program.as_bytes(),
    );
    assert_eq!(answer.body, r#"{"result":null,"stdout":"__main__ a b\nprogram\n"}"#);
}

#[test]
fn the_module_of_the_script_is_found_by_its_names() {
    let script = indoc! {r#"
        import inspect, os, pickle, sys, unittest

        class Case(unittest.TestCase):
            def test(self):
                self.assertEqual(1, 1)

        def main():
            program = unittest.main(exit=False, argv=["script"], verbosity=0)
            return [
                __name__,
                sys.modules["__main__"] is sys.modules["script"],
                pickle.loads(pickle.dumps(Case)) is Case,
                program.result.testsRun,
                os.path.basename(__file__),
                open(__file__).read() == inspect.getsource(sys.modules[__name__]),
            ]
    "#};
    let result = server().run(script).json()["result"].clone();
    assert_eq!(result, json!(["script", true, true, 1, "script.py", true]));
}

#[test]
fn modules_among_the_files_are_imported_and_hide_no_library() {
    let body = json!({
        "script": "from helper import f\nimport package.inner, json, numpy\ndef main(): return [f(), package.inner.X, json.dumps(1), numpy.add(1, 1)]",
        "files": {
            "helper.py": "def f(): return 'helped'",
            "package/__init__.py": "",
            "package/inner.py": "from helper import f\nX = f().upper()",
            "json.py": "raise SystemExit",
            "numpy/__init__.py": "raise SystemExit",
        },
    });
    assert_eq!(server().execute(&body).body, r#"{"result":["helped","HELPED","1",2],"stdout":""}"#);
}

#[test]
fn a_byte_order_mark_is_ignored_and_lines_are_those_of_python() {
    returns("\u{feff}def main(): return 1", r#"{"result":1,"stdout":""}"#);
    let body = "\u{feff}def main(): return 2".as_bytes();
    let answer = server().request("POST", "/execute", Some("text/x-python"), body);
    assert_eq!(answer.body, r#"{"result":2,"stdout":""}"#);
    let script = "text = '\u{2028}\u{85}\u{1c}'\x0c\ndef main():\n    raise ValueError('here')";
    let answer = server().run(script).json();
    assert!(answer["traceback"].as_str().unwrap().contains("    raise ValueError('here')\n"));
    assert_eq!(answer["line"], 3);
}

#[test]
fn code_that_is_not_only_python_is_explained() {
    fails_with(
        "```python\ndef main(): return 1\n```",
        "syntax_error",
        "The script is in a code fence (```); send the code without it",
    );
    fails_with(
        "!pip install numpy\ndef main(): return 1",
        "syntax_error",
        "Syntax error on line 1: `!pip install numpy` is a command of a notebook, not Python; leave it out",
    );
    fails_with(
        "def main():\n    %matplotlib inline",
        "syntax_error",
        "Syntax error on line 2: `%matplotlib inline` is a command of a notebook, not Python; leave it out",
    );
}

#[test]
fn deep_recursion_is_reported_within_seconds() {
    let script = indoc! {r#"
        import sys
        def f(n): return f(n + 1)
        def main():
            sys.setrecursionlimit(200_000)
            f(0)
    "#};
    let began = Instant::now();
    let (status, kind, error) = server().run(script).failure();
    assert!(began.elapsed() < patience(Duration::from_secs(4)), "{:?}", began.elapsed());
    assert_eq!(status, 400);
    assert!(["exception", "memory_limit"].contains(&kind.as_str()), "{kind}: {error}");
}

#[test]
fn stdout_is_byte_exact_and_separate_from_stderr() {
    let response = server().run(indoc! {r#"
        import os, sys
        def main():
            print('  é\r\n\t ')
            os.write(1, b'\xff\x00')
            print('problem', file=sys.stderr)
    "#});
    let body = response.json();
    assert_eq!(body["stdout"], "  é\r\n\t \n\u{fffd}\0");
    assert_eq!(body["stderr"], "problem\n");
    assert_eq!(body["result"], Value::Null);
}

// Invalid requests.

#[test]
fn invalid_bodies_are_explained() {
    for (body, error) in [
        ("", "The body is not valid JSON: EOF while parsing a value at line 1 column 0"),
        ("{", "The body is not valid JSON: EOF while parsing an object at line 1 column 1"),
        ("[\"def main(): return 1\"]", "The body must be a JSON object"),
        ("3", "The body must be a JSON object"),
        ("{}", "The request is not valid: missing field `script` at line 1 column 2"),
        ("{\"script\": 3}", "script must be a string"),
        ("{\"script\": null}", "script must be a string"),
        (
            "{\"script\": \"a\", \"files\": []}",
            "files must be an object that maps file names to contents",
        ),
        (
            "{\"script\": \"a\", \"files\": {\"b\": 3}}",
            "files: `b`: invalid type: integer `3`, expected a string or {\"base64\": ...} as the content of a file",
        ),
        ("{\"script\": \"\"}", "The script is empty"),
        ("{\"script\": \" \\n\"}", "The script is empty"),
        (
            "{\"script\": \"a\", \"script\": \"b\"}",
            "The request is not valid: duplicate field `script` at line 1 column 24",
        ),
        (
            "{\"script\": \"a\", \"lang\": \"py\"}",
            "The request is not valid: unknown field `lang`, expected one of `script`, `input`, `inputs`, `stdin`, `entry`, `files`, `collect`, `limits` at line 1 column 22",
        ),
        ("{\"script\": \"a\\u0000b\"}", "The script contains a NUL character"),
        ("{\"script\": \"\\ud800\"}", "script: unexpected end of hex escape"),
        ("{\"script\": \"a\", \"limits\": [null, null]}", "limits must be an object"),
        (
            "{\"script\": \"a\", \"limits\": {\"time\": 1}}",
            "limits: unknown field `time`, expected `timeout_seconds` or `memory_mb`",
        ),
        (
            "{\"script\": \"a\", \"limits\": {\"timeout_seconds\": 0}}",
            "limits.timeout_seconds must be a number above 0",
        ),
        (
            "{\"script\": \"a\", \"limits\": {\"timeout_seconds\": \"1\"}}",
            "limits.timeout_seconds must be a number above 0",
        ),
        (
            "{\"script\": \"a\", \"limits\": {\"memory_mb\": 1.5}}",
            "limits.memory_mb must be a whole number of at least 1",
        ),
        (
            "{\"script\": \"a\", \"limits\": {\"memory_mb\": 0}}",
            "limits.memory_mb must be a whole number of at least 1",
        ),
        (
            "{\"script\": \"a\"} x",
            "The body is not valid JSON: trailing characters at line 1 column 17",
        ),
    ] {
        is_refused(
            &server().post("application/json", body.as_bytes()),
            400,
            "invalid_request",
            error,
        );
    }
    let deep =
        format!("{{\"script\": \"a\", \"input\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    is_refused(
        &server().post("application/json", deep.as_bytes()),
        400,
        "invalid_request",
        "The body is nested deeper than 100 levels",
    );
    let invalid = server().post("application/json", b"{\"script\": \"\xff\"}");
    assert_eq!((invalid.status, invalid.failure().1.as_str()), (400, "invalid_request"));
    let invalid = server().post("text/x-python", b"\xff");
    assert_eq!((invalid.status, invalid.failure().1.as_str()), (400, "invalid_request"));
}

#[test]
fn a_script_over_the_size_limit_gets_413() {
    let script = format!("def main(): return 1 #{}", "x".repeat(102_400));
    is_refused(
        &server().run(&script),
        413,
        "payload_too_large",
        &format!("The script has {} bytes; the limit is 102400", script.len()),
    );
}

#[test]
fn limits_above_those_of_the_service_have_no_effect() {
    for limits in [
        json!({"timeout_seconds": 301, "memory_mb": 1_u64 << 50}),
        json!({"timeout_seconds": 1e300}),
        json!({"timeout_seconds": null, "memory_mb": null}),
    ] {
        let body = json!({"script": "def main(): return 1", "limits": limits});
        assert_eq!(server().execute(&body).body, r#"{"result":1,"stdout":""}"#, "{limits}");
    }
}

#[test]
fn an_error_quotes_little_of_a_long_request() {
    let body = format!("{{\"script\": \"a\", \"{}\": 1}}", "x".repeat(1 << 20));
    let (_, _, error) = server().post("application/json", body.as_bytes()).failure();
    assert!(error.starts_with("The request is not valid: unknown field `xxx"), "{error}");
    assert!(error.contains(" characters left out ...]"), "{error}");
    assert!(
        error.contains(
            "`script`, `input`, `inputs`, `stdin`, `entry`, `files`, `collect`, `limits` at line 1"
        ),
        "{error}"
    );
    assert!(error.len() < 300, "{error}");
    let (_, _, error) = server().get(&format!("/{}", "y".repeat(5000))).failure();
    assert!(error.starts_with("The endpoint /yyy") && error.len() < 300, "{error}");
}

#[test]
fn other_content_types_get_415() {
    for content_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
        is_refused(
            &server().post(content_type, br#"{"script":"def main(): return 1"}"#),
            415,
            "unsupported_media_type",
            "Content-Type must be application/json, or text/x-python for a bare script",
        );
    }
}

#[test]
fn unknown_paths_get_404_and_wrong_methods_get_405() {
    is_refused(&server().get("/nothing"), 404, "not_found", "The endpoint /nothing does not exist");
    let response = server().get("/execute");
    is_refused(&response, 405, "method_not_allowed", "This endpoint accepts POST only");
    assert_eq!(response.header("allow"), "POST");
    let response = server().request("DELETE", "/health", None, b"");
    is_refused(&response, 405, "method_not_allowed", "This endpoint accepts GET, HEAD only");
    assert_eq!(response.header("allow"), "GET, HEAD");
}

// Concurrent requests.

#[test]
fn a_hundred_concurrent_requests_get_their_own_results() {
    let script = indoc! {r#"
        import random
        def main(x):
            print('stdout of', x)
            return {'x': x, 'random': random.random()}
    "#};
    // Only fifty at once, so that the queue has room for the requests of the other tests.
    let results: Vec<(u64, Value)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..50u64)
            .map(|client| {
                scope.spawn(move || {
                    [client, client + 50].map(|x| {
                        let response = server().execute(&json!({"script": script, "input": x}));
                        (x, response.json())
                    })
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    for (x, response) in &results {
        assert_eq!(response["result"]["x"], json!(x), "{response}");
        assert_eq!(response["stdout"], format!("stdout of {x}\n"));
    }
    let mut random: Vec<String> =
        results.iter().map(|(_, response)| response["result"]["random"].to_string()).collect();
    random.sort();
    random.dedup();
    assert_eq!(random.len(), 100);
}

#[test]
fn randomness_differs_between_requests() {
    let script = indoc! {r#"
        import random, secrets, uuid
        import numpy as np
        def main():
            return [
                random.random(),
                float(np.random.rand()),
                float(np.random.default_rng().random()),
                str(uuid.uuid4()),
                secrets.token_hex(8),
            ]
    "#};
    let draws: Vec<Value> = (0..4).map(|_| server().run(script).json()["result"].clone()).collect();
    for kind in 0..5 {
        let mut seen: Vec<String> = draws.iter().map(|draw| draw[kind].to_string()).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 4, "{draws:?}");
    }
}

#[test]
fn the_environment_is_clean_and_the_scratch_directory_is_private() {
    let script = indoc! {r#"
        import os, tempfile, pathlib
        def main():
            pathlib.Path('note').write_text('mine')
            handle, name = tempfile.mkstemp()
            return [
                sorted(os.environ),
                os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR'],
                os.listdir('.') != [],
                os.path.dirname(name) == os.getcwd(),
                os.path.exists('other'),
            ]
    "#};
    let expected = json!([common::ENVIRONMENT, true, true, true, false]);
    if lacks("files") {
        let elsewhere = "def main(): open('/tmp/note', 'w')";
        let (_, kind, error) = server().run(elsewhere).failure();
        assert_eq!(kind, "exception");
        assert!(error.contains("opening files is not available in this sandbox"), "{error}");
        let script = indoc! {r#"
            import os
            def main(): return sorted(os.environ)
        "#};
        assert_eq!(server().run(script).json()["result"], expected[0]);
        return;
    }
    let response = server().run(script);
    assert_eq!(response.json()["result"], expected, "{}", response.body);
}
