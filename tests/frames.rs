//! Hostile frames: a script can write to the channel of its worker. Each test expects one clear failure, and that the
//! supervisor reserves no memory for a length that a worker only claims.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Server, lacks, not_run, server, status_kib};
use indoc::{formatdoc, indoc};

const BROKE: &str = "The script broke the worker process before it could send the result";

/// Runs a script that writes `bytes`, a Python expression, to the channel and then executes `after`. Expects a failure.
#[track_caller]
fn sends(bytes: &str, after: &str, status: u16, kind: &str, error: &str) {
    let script = formatdoc! {r#"
        import os, struct, time
        def frame(kind, payload): return kind + struct.pack('<I', len(payload)) + payload
        def main():
            data = {bytes}
            while data:
                data = data[os.write(3, data):]
            {after}
    "#};
    let response = server().run(&script);
    let expected = (status, kind.to_owned(), error.to_owned());
    assert_eq!(response.failure(), expected, "{bytes}: {}", response.body);
    assert_eq!(server().run("def main(): return 1").body, r#"{"result":1,"stdout":""}"#);
}

#[test]
fn garbage_on_the_channel_is_a_crash() {
    sends("b'\\xff' * 100", "time.sleep(9)", 400, "crashed", BROKE);
    sends("b'GET / HTTP/1.1\\r\\n\\r\\n'", "time.sleep(9)", 400, "crashed", BROKE);
    sends("os.urandom(3) + b'\\xff\\xff' + os.urandom(100_000)", "return 1", 400, "crashed", BROKE);
}

#[test]
fn invalid_output_files_are_a_crash() {
    let file = |name: &str, content: &str| {
        format!("frame(b'D', struct.pack('<H', len({name})) + {name} + {content})")
    };
    for bytes in [
        file("b'../up'", "b'x'"),
        file("b'/etc/passwd'", "b'x'"),
        file("b'\\xff'", "b'x'"),
        file("b'x'", "bytes((4 << 20) + 1)"),
        file("b'x'", "b''") + " * 2",
        format!("b''.join({} for n in range(101))", file("b'%d' % n", "b''")),
        format!("{} + {}", file("b'a'", "bytes(4 << 20)"), file("b'b'", "b'1'")),
        String::from("frame(b'D', b'')"),
        String::from("frame(b'D', b'\\xff\\xffx')"),
    ] {
        sends(&bytes, "time.sleep(9)", 400, "crashed", BROKE);
    }
}

#[test]
fn an_incomplete_frame_is_explained_by_the_end_of_the_process() {
    let ended = "The script ended its process with status 0 before main returned";
    sends("b'V'", "os._exit(0)", 400, "exit", ended);
    sends("frame(b'V', b'[1, 2]')[:-1]", "os._exit(0)", 400, "exit", ended);
    sends("frame(b'V', b'[1, 2]')[:-1]", "os.close(3); time.sleep(9)", 400, "crashed", BROKE);
}

#[test]
fn the_next_bytes_complete_an_incomplete_frame() {
    // The worker's own frame follows. Its header of five bytes completes the claimed seven, and the result is not JSON.
    let error = "The result is not valid JSON";
    sends("b'V\\x07\\0\\0\\0[1'", "return 5", 400, "not_json", error);
}

#[test]
fn a_huge_length_is_a_crash_before_its_payload_arrives() {
    for length in ["0xffffffff", "0x7fffffff", "(1 << 22) + 1"] {
        sends(
            &format!("b'V' + struct.pack('<I', {length})"),
            "time.sleep(9)",
            400,
            "crashed",
            BROKE,
        );
    }
}

#[test]
fn an_invalid_result_is_not_json() {
    let error = "The result is not valid JSON";
    for payload in ["b''", "b'[1,'", "b'1 2'", "b'NaN'", "b'\"\\xff\"'", "b'\\0'", "b'{\"a\":1,}'"]
    {
        sends(&format!("frame(b'V', {payload})"), "time.sleep(9)", 400, "not_json", error);
    }
    let deep = "The result is nested deeper than 100 levels";
    sends("frame(b'V', b'[' * 1_000_000)", "time.sleep(9)", 400, "not_json", deep);
}

#[test]
fn frames_of_other_types_are_a_crash() {
    for kind in ["R", "L", "S", "I", "v", "\\0"] {
        sends(&format!("frame(b'{kind}', b'{{}}')"), "time.sleep(9)", 400, "crashed", BROKE);
    }
    let internal = r#"frame(b'F', b'{"kind": "internal", "error": "x"}')"#;
    sends(internal, "time.sleep(9)", 400, "crashed", BROKE);
}

#[test]
fn the_first_of_many_results_is_returned() {
    let script = indoc! {r#"
        import os
        def main():
            os.write(3, b'V\x01\0\0\x001' * 1000)
            return 2
    "#};
    assert_eq!(server().run(script).body, r#"{"result":1,"stdout":""}"#);
    assert_eq!(server().run("def main(): return 3").body, r#"{"result":3,"stdout":""}"#);
}

#[test]
fn frames_after_the_result_are_ignored() {
    if lacks("threads") {
        return not_run("scripts cannot start threads here");
    }
    let script = indoc! {r#"
        import os, threading, time
        def late():
            time.sleep(0.0005)
            while True:
                os.write(3, b'V\x01\0\0\x009')
        def main():
            threading.Thread(target=late, daemon=True).start()
            return 'x' * 1000
    "#};
    for _ in 0..20 {
        let body = server().run(script).body;
        // The forged frame may come first. It is the script's own result all the same.
        assert!(
            body.ends_with(r#"x","stdout":""}"#) || body.starts_with(r#"{"result":9,"#),
            "{body}"
        );
        assert_eq!(server().run("def main(): return 3").body, r#"{"result":3,"stdout":""}"#);
    }
}

#[test]
fn no_memory_is_reserved_for_a_claimed_length() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", ""),
        ("MAINBOX_CONCURRENCY", "32"),
        ("MAINBOX_TIMEOUT_SECONDS", "2"),
        ("MAINBOX_MAX_RESULT_BYTES", "67108864"),
        ("MAINBOX_MAX_STDOUT_BYTES", "0"),
        ("MAINBOX_MAX_FILES_BYTES", "0"),
    ]);
    let peak = || status_kib(server.pid(), "VmHWM") / 1024;
    let before = peak();
    let script = indoc! {r#"
        import os, struct, time
        def main():
            os.write(3, b'V' + struct.pack('<I', 64 << 20) + b'[')
            time.sleep(9)
    "#};
    std::thread::scope(|scope| {
        let claims: Vec<_> =
            (0..32).map(|_| scope.spawn(|| server.run(script).failure().1)).collect();
        assert!(claims.into_iter().all(|claim| claim.join().unwrap() == "timeout"));
    });
    let after = peak();
    assert!(after < before + 16, "{before} MB, then {after} MB for 2048 MB that were claimed");
}
