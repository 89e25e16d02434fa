//! The commands of mainbox: what they print, where, and with which exit code they end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Server, children, is_python, mainbox, output, scratch_roots, script};
use indoc::indoc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const QUICK: &[(&str, &str)] = &[("MAINBOX_PRELOAD", "")];

#[test]
fn run_prints_the_response_body_and_exits_0() {
    let path = script(
        "ok",
        indoc! {r#"
            def main(x=None):
                print('hi')
                return {'x': x}
        "#},
    );
    assert_eq!(
        output(mainbox(QUICK).args(["run", &path])),
        (Some(0), String::from("{\"result\":{\"x\":null},\"stdout\":\"hi\\n\"}\n"), String::new())
    );
    assert_eq!(
        output(mainbox(QUICK).args(["run", &path, "--input", "[1, 2.50]"])).1,
        "{\"result\":{\"x\":[1,2.5]},\"stdout\":\"hi\\n\"}\n"
    );
    std::fs::remove_file(path).unwrap();
}

#[test]
fn run_reads_standard_input_and_exits_1_on_failure() {
    let mut process = mainbox(QUICK)
        .args(["run", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(b"def main(): raise ValueError('no')").unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let body: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(body["kind"], "exception");
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let path = script(
        "long",
        indoc! {r#"
            import time
            def main(): time.sleep(9)
        "#},
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut process =
            mainbox(QUICK).args(["run", &path]).stderr(Stdio::piped()).spawn().unwrap();
        let pid = process.id() as i32;
        let started = Instant::now();
        while !children(pid).into_iter().any(is_python) {
            assert!(started.elapsed() < Duration::from_secs(10), "the zygote does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        kill(Pid::from_raw(pid), signal).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(1));
        assert!(scratch_roots(pid).is_empty());
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn run_starts_only_the_zygote_that_the_script_needs() {
    // `requests` is installed but not preloaded.
    for module in ["time", "pandas", "requests"] {
        let path =
            script("one", &format!("import {module}\ndef main(): __import__('time').sleep(9)"));
        let mut process = mainbox(&[]).args(["run", &path]).stderr(Stdio::null()).spawn().unwrap();
        let zygotes = || -> Vec<i32> {
            children(process.id() as i32).into_iter().filter(|pid| is_python(*pid)).collect()
        };
        let started = Instant::now();
        while !zygotes().iter().any(|zygote| !children(*zygote).is_empty()) {
            assert!(started.elapsed() < Duration::from_secs(60), "no worker of {module} starts");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(zygotes().len(), 1, "{module}");
        kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
        process.wait().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn run_preloads_only_the_modules_that_the_script_names() {
    let main = "import sys\ndef main(): return ['mat' 'plotlib' in sys.modules, 'pan' 'das' in sys.modules]";
    for (named, result) in [("pandas", "[false,true]"), ("matplotlib", "[true,false]")] {
        let path = script("named", &format!("# {named}\n{main}"));
        let expected = format!("{{\"result\":{result},\"stdout\":\"\"}}\n");
        assert_eq!(output(mainbox(&[]).args(["run", &path])), (Some(0), expected, String::new()));
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn run_preloads_what_a_module_beside_the_script_names() {
    let folder = Folder::make("beside");
    let helper = folder.path("helper.py");
    std::fs::write(&helper, "import pandas").unwrap();
    let path = script("beside", "import sys\ndef main(): return 'pan' 'das' in sys.modules");
    let printed = output(mainbox(&[]).args(["run", &path, "--file", &helper]));
    let expected = String::from("{\"result\":true,\"stdout\":\"\"}\n");
    assert_eq!(printed, (Some(0), expected, String::new()));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn run_reports_invalid_arguments() {
    let (code, _, error) = output(mainbox(QUICK).args(["run", "/nowhere.py"]));
    assert_eq!(code, Some(2));
    assert_eq!(error, "mainbox: cannot read /nowhere.py: No such file or directory (os error 2)\n");
    let path = script("input", "def main(x): return x");
    let (code, _, error) = output(mainbox(QUICK).args(["run", &path, "--input", "{"]));
    assert_eq!(code, Some(2));
    assert_eq!(
        error,
        "mainbox: --input is not valid JSON: EOF while parsing an object at line 1 column 1\n"
    );
    std::fs::remove_file(path).unwrap();
    assert_eq!(output(mainbox(QUICK).arg("frobnicate")).0, Some(2));
}

#[test]
fn help_and_version_exit_0() {
    let version = format!("mainbox {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(output(mainbox(QUICK).arg("--version")), (Some(0), version, String::new()));
    let (code, help, _) = output(mainbox(QUICK).arg("--help"));
    assert_eq!(code, Some(0));
    for word in ["run", "doctor", "--version"] {
        assert!(help.contains(word), "{help}");
    }
}

#[test]
fn the_doctor_reports_that_every_promise_holds() {
    let (code, text, _) = output(mainbox(QUICK).arg("doctor"));
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "host       Linux",
        "python     3.",
        "isolation  ",
        "  ok   open a network socket: refused",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("  BAD  "), "{text}");
}

#[test]
fn the_health_command_reports_the_health_of_the_service() {
    let server = Server::start(QUICK);
    let port = server.port().to_string();
    let ask = |port: &str| output(mainbox(&[]).env("PORT", port).arg("health"));
    assert_eq!(ask(&port), (Some(0), String::from("{\"status\":\"healthy\"}\n"), String::new()));
    drop(server);
    let (code, text, error) = ask(&port);
    assert_eq!((code, text.as_str()), (Some(1), ""));
    let expected = format!(
        "mainbox: the service on port {port} does not answer: Connection refused (os error 111)\n"
    );
    assert_eq!(error, expected);
}

/// A temporary directory, removed when this value is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("mainbox-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Folder(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn run_copies_files_in_and_writes_the_outputs() {
    let folder = Folder::make("files");
    let source = indoc! {r#"
        import os
        def main():
            os.mkdir('outputs/deep')
            open('outputs/deep/b', 'wb').write(open('a.bin', 'rb').read() * 2)
            return sorted(os.listdir('.'))
    "#};
    let (script, input) = (folder.path("job.py"), folder.path("a.bin"));
    std::fs::write(&script, source).unwrap();
    std::fs::write(&input, b"\xff\0").unwrap();
    let run = |outputs: &str| {
        output(mainbox(QUICK).args(["run", &script, "--file", &input, "--outputs", outputs]))
    };
    let body = "{\"result\":[\"a.bin\",\"outputs\"],\"stdout\":\"\",\"files\":{\"deep/b\":{\"base64\":\"/wD/AA==\"}}}\n";
    let outputs = folder.path("new/outputs");
    assert_eq!(run(&outputs), (Some(0), String::from(body), String::new()));
    assert_eq!(std::fs::read(folder.path("new/outputs/deep/b")).unwrap(), b"\xff\0\xff\0");
    let error = format!("mainbox: --outputs: {outputs}: the directory is not empty\n");
    assert_eq!(run(&outputs), (Some(2), String::new(), error));
    let twice = output(mainbox(QUICK).args(["run", &script, "--file", &input, "--file", &input]));
    let error = "mainbox: --file: duplicate file name `a.bin`, or one used as both a file and a directory\n";
    assert_eq!(twice, (Some(2), String::new(), String::from(error)));
}

#[test]
fn run_prints_a_line_for_each_input() {
    let folder = Folder::make("inputs");
    let (script, inputs) = (folder.path("job.py"), folder.path("inputs.jsonl"));
    let source = indoc! {r#"
        def main(x):
            open("outputs/x.txt", "w").write(str(x))
            return 1 / x
    "#};
    std::fs::write(&script, source).unwrap();
    std::fs::write(&inputs, "1\n2\n\n4\n").unwrap();
    let result = |x: f64, file: u32| {
        format!("{{\"result\":{x:?},\"stdout\":\"\",\"files\":{{\"x.txt\":\"{file}\"}}}}\n")
    };
    let expected = format!("{}{}{}", result(1.0, 1), result(0.5, 2), result(0.25, 4));
    let outputs = folder.path("out");
    let mut run = mainbox(QUICK);
    run.args(["run", &script, "--inputs", &inputs, "--outputs", &outputs]);
    assert_eq!(output(&mut run), (Some(0), expected, String::new()));
    for (number, content) in [(0, "1"), (1, "2"), (2, "4")] {
        let file = folder.path(&format!("out/{number}/x.txt"));
        assert_eq!(std::fs::read_to_string(file).unwrap(), content);
    }
    std::fs::write(&inputs, "1\n0\n").unwrap();
    let (code, printed, _) = output(mainbox(QUICK).args(["run", &script, "--inputs", &inputs]));
    assert_eq!((code, printed.lines().count()), (Some(1), 2));
    std::fs::write(&inputs, "1\n{\n").unwrap();
    let (code, printed, error) = output(mainbox(QUICK).args(["run", &script, "--inputs", &inputs]));
    assert_eq!((code, printed.as_str()), (Some(2), ""));
    assert!(error.starts_with("mainbox: --inputs: line 2 is not valid JSON: "), "{error}");
    let both = output(mainbox(QUICK).args(["run", &script, "--inputs", &inputs, "--input", "1"]));
    assert_eq!(both.0, Some(2));
    let twice = output(mainbox(QUICK).args(["run", "-", "--inputs", "-"]));
    let error =
        "mainbox: only one of the script, --stdin and --inputs can be `-`, standard input\n";
    assert_eq!((twice.0, twice.2.as_str()), (Some(2), error));
}

/// Runs a script in a terminal, with standard output redirected to a file. Returns what the terminal showed, with times,
/// and the response body.
fn in_a_terminal(folder: &Folder, source: &str) -> (Vec<(Duration, String)>, String) {
    let (job, body) = (folder.path("job.py"), folder.path("body"));
    std::fs::write(&job, source).unwrap();
    let binary = mainbox(&[]).get_program().to_string_lossy().into_owned();
    // script(1) runs it in a terminal.
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &format!("{binary} run {job} >{body}"), "/dev/null"]);
    for (name, _) in std::env::vars() {
        if name.starts_with("MAINBOX_") && name != "MAINBOX_PYTHON" {
            terminal.env_remove(name);
        }
    }
    terminal.env("MAINBOX_PRELOAD", "").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut terminal = terminal.spawn().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let began = Instant::now();
    let (mut pieces, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = screen.read(&mut buffer) {
        let piece = String::from_utf8_lossy(&buffer[..length]).into_owned();
        pieces.push((began.elapsed(), piece));
    }
    assert!(terminal.wait().unwrap().success());
    (pieces, std::fs::read_to_string(body).unwrap())
}

#[test]
fn a_terminal_shows_the_output_as_it_comes_and_a_spinner() {
    let folder = Folder::make("terminal");
    let source = indoc! {r#"
        import time
        def main():
            print('first')
            time.sleep(2.5)
            print('half', end='')
            return 1
    "#};
    let (pieces, body) = in_a_terminal(&folder, source);
    assert_eq!(body, "{\"result\":1,\"stdout\":\"first\\nhalf\"}\n");
    let (last, _) = pieces.last().unwrap();
    let (first, _) = pieces.iter().find(|(_, piece)| piece.contains("first")).unwrap();
    assert!(*last - *first > Duration::from_secs(1), "{pieces:?}");
    let screen: String = pieces.into_iter().map(|(_, piece)| piece).collect();
    // On a slow machine, a spinner comes first.
    let (_, after) = screen.split_once("first\r\n\r\u{1b}[K").unwrap();
    assert!(after.contains(" 2 s"), "{screen:?}");
    assert!(screen.ends_with("\r\u{1b}[Khalf\r\n"), "{screen:?}");
}

#[test]
fn a_script_cannot_control_the_terminal() {
    let folder = Folder::make("hostile");
    let source = indoc! {r#"
        import sys
        SAY = '\x1b]0;owned\x07\x9b31m\x7f'
        def main():
            print(SAY)
            print(SAY, file=sys.stderr)
            return SAY
    "#};
    let (pieces, body) = in_a_terminal(&folder, source);
    let screen: String = pieces.into_iter().map(|(_, piece)| piece).collect();
    assert!(screen.contains("\u{241b}]0;owned\u{2407}\u{fffd}31m\u{2421}"), "{screen:?}");
    for text in [screen, body] {
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{7f}']), "{text:?}");
    }
}

#[test]
fn without_a_terminal_nothing_is_written_to_standard_error() {
    let folder = Folder::make("quiet");
    let job = folder.path("slow.py");
    std::fs::write(
        &job,
        indoc! {r#"
            import time
            def main(): print('x'); time.sleep(1.2)
        "#},
    )
    .unwrap();
    let ran = output(mainbox(QUICK).args(["run", &job]));
    assert_eq!(
        ran,
        (Some(0), String::from("{\"result\":null,\"stdout\":\"x\\n\"}\n"), String::new())
    );
}

#[test]
fn completions_and_the_manual_ignore_settings_and_list_everything() {
    let nonsense = &[("MAINBOX_NONSENSE", "1"), ("MAINBOX_PYTHON", "/nowhere")];
    let commands = ["run", "doctor", "archive", "health", "completions", "man"];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, text, error) = output(mainbox(nonsense).args(["completions", shell]));
        assert_eq!((code, error.as_str()), (Some(0), ""));
        assert!(commands.iter().all(|command| text.contains(command)), "{shell}");
        assert!(text.contains("outputs"), "{shell}");
    }
    let (code, manual, error) = output(mainbox(nonsense).arg("man"));
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(manual.contains(".TH mainbox 1"), "{manual}");
    let plain = manual.replace('\\', "");
    for name in commands {
        assert!(plain.contains(&format!("mainbox {name}")), "{name}");
    }
    for variable in mainbox::config::settings::SETTINGS {
        assert!(plain.contains(variable.name), "{}", variable.name);
    }
}
