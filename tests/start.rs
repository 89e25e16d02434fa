//! The start of the service: settings as flags, the addresses to listen on, the interpreter, and what the log shows of
//! workers that are not ready yet.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{OwnPython, Server, mainbox, output, script};
use indoc::{formatdoc, indoc};
use serde_json::{Value, json};

/// Returns whether a server on `port` accepts connections to `address`.
fn accepts(address: impl Into<IpAddr>, port: u16) -> bool {
    TcpStream::connect((address.into(), port)).is_ok()
}

/// Returns whether this host has IPv6.
fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

// Flags.

#[test]
fn a_flag_sets_a_setting_and_overrides_its_variable() {
    let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .unwrap();
    let taken = (taken.local_addr().unwrap().port().to_string(), taken);
    let mut command = mainbox(&[
        ("PORT", &taken.0),
        ("MAINBOX_PRELOAD", "no_such_module"),
        ("MAINBOX_TIMEOUT_SECONDS", "9"),
        ("MAINBOX_MEMORY_MB", "100"),
    ]);
    command.args(["--port", "0", "--preload", "", "--timeout-seconds=2.5", "--policy", "strict"]);
    let server = Server::direct(&mut command);
    assert_ne!(server.port().to_string(), taken.0);
    let about = server.get("/about").json();
    assert_eq!(about["limits"]["timeout_seconds"], 2.5);
    assert_eq!(about["limits"]["memory_mb"], 100);
    assert_eq!(about["policy"], "strict");
    assert_eq!(server.run("def main(): return 1").json()["result"], 1);
    assert!(!server.log().contains("no_such_module"), "{}", server.log());
}

#[test]
fn a_command_takes_settings_as_flags_on_either_side() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    let port = server.port().to_string();
    let healthy = (Some(0), String::from("{\"status\":\"healthy\"}\n"), String::new());
    for arguments in [["--port", &port, "health"], ["health", "--port", &port]] {
        assert_eq!(output(mainbox(&[("PORT", "1")]).args(arguments)), healthy, "{arguments:?}");
    }
}

#[test]
fn a_bad_flag_value_exits_with_2_and_one_sentence_that_names_the_flag() {
    for (arguments, error) in [
        (&["--port", "70000"][..], "--port must be a whole number from 0 to 65535, not `70000`"),
        (&["--port", ""], "--port must be a whole number from 0 to 65535, not ``"),
        (
            &["--timeout-seconds", "-1"],
            "--timeout-seconds must be a number of seconds above 0 and at most 300, not `-1`",
        ),
        (&["--host", "nowhere"], "--host must be an IP address or `localhost`, not `nowhere`"),
        (&["--log", "loud"], "--log must be `error`, `warn`, `info` or `debug`, not `loud`"),
        (
            &["doctor", "--queue", "many"],
            "--queue must be a whole number from 0 to 10000, not `many`",
        ),
        (
            // The message does not repeat the key.
            &["--api-keys", "first-0123456789"],
            "--api-keys must be @ and the path of a file, since every process of the host can read the command line",
        ),
    ] {
        let expected = (Some(2), String::new(), format!("mainbox: {error}\n"));
        assert_eq!(output(mainbox(&[]).args(arguments)), expected, "{arguments:?}");
    }
    let (code, _, error) = output(mainbox(&[]).arg("--frobnicate"));
    assert_eq!(code, Some(2));
    assert!(error.contains("--frobnicate"), "{error}");
}

#[test]
fn a_bad_variable_is_named_as_the_variable() {
    let error = "mainbox: PORT must be a whole number from 0 to 65535, not `http`\n";
    let expected = (Some(2), String::new(), String::from(error));
    assert_eq!(output(&mut mainbox(&[("PORT", "http")])), expected);
}

// Addresses.

#[test]
fn the_default_listens_on_every_address_of_both_families() {
    let server = Server::direct(&mut mainbox(&[("MAINBOX_PRELOAD", "")]));
    assert!(accepts(Ipv4Addr::LOCALHOST, server.port()));
    assert!(accepts(Ipv4Addr::new(127, 0, 0, 2), server.port()));
    if has_ipv6() {
        let url = format!("http://[::1]:{}/", server.port());
        let index = common::request("GET", &url, None, b"").unwrap();
        assert_eq!((index.status, &index.json()["name"]), (200, &json!("mainbox")));
    }
}

#[test]
fn a_host_limits_the_service_to_that_address() {
    for host in ["127.0.0.1", "localhost"] {
        let server =
            Server::direct(&mut mainbox(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_HOST", host)]));
        server.log_line(&format!("\"address\":\"127.0.0.1:{}\"", server.port()), 1);
        assert!(accepts(Ipv4Addr::LOCALHOST, server.port()));
        assert!(!accepts(Ipv4Addr::new(127, 0, 0, 2), server.port()));
        assert!(!accepts(Ipv6Addr::LOCALHOST, server.port()));
    }
    if has_ipv6() {
        let settings = [("MAINBOX_PRELOAD", ""), ("MAINBOX_HOST", "::1")];
        let server = Server::direct(&mut mainbox(&settings));
        assert!(accepts(Ipv6Addr::LOCALHOST, server.port()));
        assert!(!accepts(Ipv4Addr::LOCALHOST, server.port()));
        let port = server.port().to_string();
        let (_, status, error) = output(mainbox(&settings).args(["health", "--port", &port]));
        assert!(status.starts_with("{\"status\":"), "{status}{error}");
    }
}

// The time of the start.

#[test]
fn a_start_that_takes_too_long_ends_with_one_sentence() {
    let slow = OwnPython::slow(30);
    let mut command = mainbox(&[
        ("MAINBOX_PRELOAD", "slow"),
        ("MAINBOX_PYTHON", slow.python.as_str()),
        ("MAINBOX_START_SECONDS", "1"),
    ]);
    let (code, _, log) = output(&mut command);
    let sentence = "mainbox: no worker could be started: the import of slow took longer than MAINBOX_START_SECONDS, which is 1";
    assert_eq!((code, log.lines().last()), (Some(1), Some(sentence)), "{log}");
}

#[test]
fn a_slow_start_names_the_module_that_is_being_imported() {
    let slow = OwnPython::slow(11);
    let server =
        Server::start(&[("MAINBOX_PRELOAD", "json,slow"), ("MAINBOX_PYTHON", &slow.python)]);
    let line: Value = serde_json::from_str(&server.log_line("still importing", 1)).unwrap();
    assert_eq!(
        (&line["message"], &line["severity"], &line["module"], &line["seconds"]),
        (
            &json!("the interpreter is still importing"),
            &json!("WARNING"),
            &json!("slow"),
            &json!(10)
        )
    );
}

// The log.

#[test]
fn the_debug_log_shows_what_a_worker_wrote_to_stderr_before_it_was_ready() {
    const MESSAGE: &str = "a worker wrote to stderr before it was ready";
    // A module with an audit hook, as monitoring agents install. A worker makes the directory `outputs`.
    let python = OwnPython::with(&[(
        "agent.py",
        indoc! {r#"
            import os, sys
            zygote = os.getpid()
            def hook(event, arguments):
                if event == "os.mkdir" and os.getpid() != zygote:
                    os.write(2, b"agent: mkdir\n")
            sys.addaudithook(hook)
        "#},
    )]);
    let settings = [("MAINBOX_PYTHON", python.python.as_str()), ("MAINBOX_PRELOAD", "agent")];
    let server = Server::start(&[&settings[..], &[("MAINBOX_LOG", "debug")]].concat());
    let line: Value = serde_json::from_str(&server.log_line(MESSAGE, 1)).unwrap();
    assert_eq!(
        (&line["message"], &line["severity"], &line["stderr"]),
        (&json!(MESSAGE), &json!("DEBUG"), &json!("agent: mkdir\n"))
    );
    assert!(line["worker"].is_u64(), "{line}");
    drop(server);
    let server = Server::start(&settings);
    assert_eq!(server.run("def main(): return 1").status, 200);
    assert!(!server.log().contains(MESSAGE), "{}", server.log());
}

#[test]
fn the_compiled_harness_is_kept_for_the_next_start() {
    let home = std::env::temp_dir().join(format!("mainbox-test-home-{}", std::process::id()));
    fs::create_dir(&home).unwrap();
    let directory = home.join("mainbox");
    // Waits for what the last start has written.
    let start = |expected: &dyn Fn(&[u8]) -> bool| {
        let server = Server::start(&[("XDG_CACHE_HOME", home.to_str().unwrap())]);
        assert_eq!(server.run("def main(): return 1").json()["result"], 1);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let files = fs::read_dir(&directory).into_iter().flatten().flatten();
            let files: Vec<_> = files.map(|file| file.path()).collect();
            if let [file] = &files[..]
                && expected(&fs::read(file).unwrap())
            {
                return file.clone();
            }
            assert!(std::time::Instant::now() < end, "{files:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    let file = start(&|code| code.len() > 100_000);
    let written = |file: &Path| file.metadata().unwrap().modified().unwrap();
    let first = written(&file);
    start(&|code| code.len() > 100_000);
    assert_eq!(written(&file), first, "the second start compiled again");
    // Anything else is compiled anew and replaced.
    let code = fs::read(&file).unwrap();
    for wrong in [&b""[..], b"nonsense", &code[..code.len() / 2], &[&[0; 8], &code[8..]].concat()] {
        fs::write(&file, wrong).unwrap();
        assert_eq!(start(&|code| code.len() > 100_000 && code != wrong), file);
    }
    fs::remove_dir_all(&home).unwrap();
}

#[test]
fn a_zygote_moves_its_memory_once_and_its_spares_are_replaced() {
    let server = Server::start(&[("MAINBOX_LOG", "debug")]);
    let message = "the zygote has moved its memory";
    // The bare zygote, and the one that has imported pandas.
    server.log_line(message, 2);
    let moved = server.log();
    let bytes = moved.lines().filter(|line| line.contains(message)).map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["severity"], "DEBUG");
        line["bytes"].as_u64().unwrap()
    });
    let bytes: Vec<_> = bytes.collect();
    assert!(bytes.iter().all(|bytes| *bytes > 1 << 20), "{bytes:?}");
    assert!(bytes.iter().any(|bytes| *bytes > 30 << 20), "{bytes:?}");
    let script = "import pandas as pd, statistics\ndef main(): return int(pd.Series([1, 2]).sum())";
    assert_eq!(server.run(script).json()["result"], 3);
    assert!(!server.log().contains("WARN"), "{}", server.log());
}

#[test]
fn the_log_level_of_a_command_can_be_changed() {
    // Only what a script names is preloaded for it.
    let path = script("level", "import json # not no_such_module\ndef main(): return 1");
    let run = |level: &[&str]| {
        let mut command = mainbox(&[("MAINBOX_PRELOAD", "no_such_module,json")]);
        output(command.args(["run", &path]).args(level))
    };
    let body = "{\"result\":1,\"stdout\":\"\"}\n";
    let (code, printed, log) = run(&[]);
    assert_eq!((code, printed.as_str()), (Some(0), body));
    assert!(log.contains("cannot import a module of MAINBOX_PRELOAD"), "{log}");
    assert_eq!(run(&["--log", "error"]), (Some(0), String::from(body), String::new()));
    fs::remove_file(path).unwrap();
}

// The interpreter.

/// A temporary directory, removed when this value is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("mainbox-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes an executable shell script and the directories around it.
fn write_program(path: &Path, commands: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{commands}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_default_interpreter_is_python3_on_path_and_not_one_of_the_current_directory() {
    let folder = Folder::new("default-python");
    let [planted, found] = ["planted", "found"].map(|name| folder.0.join(name));
    let venv = folder.0.join("work/.venv/bin/python3");
    let real = std::env::var("MAINBOX_PYTHON").unwrap_or(String::from("python3"));
    for (program, marker) in [(&venv, &planted), (&folder.0.join("bin/python3"), &found)] {
        let commands = formatdoc! {r#"
            : > '{marker}'
            PATH='{path}' exec '{real}' "$@"
        "#, marker = marker.display(), path = std::env::var("PATH").unwrap()};
        write_program(program, &commands);
    }
    assert!(Command::new(&venv).args(["-c", "pass"]).status().unwrap().success());
    assert!(planted.exists(), "the planted program would leave its file");
    fs::remove_file(&planted).unwrap();

    let path = format!("{}:{}", folder.0.join("bin").display(), std::env::var("PATH").unwrap());
    let mut doctor = mainbox(&[("MAINBOX_PRELOAD", ""), ("PATH", &path)]);
    doctor.arg("doctor").env_remove("MAINBOX_PYTHON").current_dir(folder.0.join("work"));
    let (code, text, error) = output(&mut doctor);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{text}");
    assert!(found.exists(), "python3 on PATH did not run: {text}");
    assert!(!planted.exists(), "an interpreter of the current directory ran: {text}");
}

// The end of the service.

#[test]
fn the_service_ends_with_its_standard_input_if_it_shall() {
    let (theirs, ours) = std::io::pipe().unwrap();
    let mut command = mainbox(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_END_WITH_STDIN", "on")]);
    let mut server = Server::direct(command.stdin(theirs));
    assert_eq!(server.run("def main(): return 1").json()["result"], 1);
    // The command holds the end that the service reads, and not the other.
    drop((command, ours));
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn the_service_outlives_its_standard_input_by_default() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    assert_eq!(server.run("def main(): return 1").json()["result"], 1);
}

// A virtual environment.

#[test]
fn mainbox_in_a_virtual_environment_uses_its_interpreter_without_path() {
    let environment = OwnPython::with(&[]);
    let binary = Path::new(&environment.python).with_file_name("mainbox");
    fs::copy(common::binary(), &binary).unwrap();
    let script = script("executable", "import sys\ndef main(): return sys.executable");
    let mut command = Command::new(&binary);
    command.args(["run", &script]).env_clear().env("MAINBOX_PRELOAD", "");
    let (code, text, error) = output(&mut command);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{text}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["result"], environment.python);
}
