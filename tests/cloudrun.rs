//! The Cloud Run image in Docker, also under load. `make cloudrun` builds it and runs these tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Answer, load_until_refused, output, request};
use indoc::indoc;
use serde_json::{Value, json};

/// A container of the image, removed when this value is dropped.
struct Container {
    id: String,
    url: String,
}

impl Container {
    /// Starts a container with these flags of `docker run`, and waits until it is healthy.
    fn start(flags: &[&str]) -> Container {
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--publish", "127.0.0.1:0:8080"]).args(flags).arg("mainbox");
        let id = stdout_of(&mut run);
        let address = docker(&["port", &id, "8080/tcp"]);
        let container = Container { id, url: format!("http://{address}") };
        let started = Instant::now();
        while !request("GET", &format!("{}/health", container.url), None, b"")
            .is_ok_and(|response| response.status == 200)
        {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{}",
                docker(&["logs", &container.id])
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        container
    }

    fn run(&self, script: &str) -> Result<Answer, String> {
        let body = json!({ "script": script }).to_string();
        let url = format!("{}/execute", self.url);
        request("POST", &url, Some("application/json"), body.as_bytes())
    }

    fn inspect(&self, field: &str) -> String {
        docker(&["inspect", "--format", &format!("{{{{{field}}}}}"), &self.id])
    }

    /// The memory that the engine reports for the container, MiB.
    fn memory_mib(&self) -> f64 {
        let usage = docker(&["stats", "--no-stream", "--format", "{{.MemUsage}}", &self.id]);
        let (used, _) = usage.split_once(" / ").unwrap();
        used.strip_suffix("MiB").unwrap_or_else(|| panic!("{usage}")).parse().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.id]);
    }
}

fn docker(arguments: &[&str]) -> String {
    stdout_of(Command::new("docker").args(arguments))
}

fn stdout_of(command: &mut Command) -> String {
    let (code, text, error) = output(command);
    assert_eq!(code, Some(0), "{command:?}: {error}");
    text.trim().to_owned()
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn two_thousand_requests_on_one_cpu_get_a_result_or_busy() {
    let container =
        Container::start(&["--cpus", "1", "--memory", "512m", "--env", "MAINBOX_QUEUE=32"]);
    let left = AtomicU32::new(2000);
    let counts = Mutex::new([0_u32; 2]);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                while left
                    .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let script = indoc! {r#"
                        import pandas as pd
                        def main(): return int(pd.Series(range(100)).sum())
                    "#};
                    let response = container.run(script).unwrap();
                    let busy = response.status == 503;
                    if busy {
                        std::thread::sleep(Duration::from_millis(100));
                        assert_eq!(response.failure().1, "busy");
                        // From the queue and the time of recent runs.
                        let retry: u64 = response.header("retry-after").parse().unwrap();
                        assert!((1..=30).contains(&retry), "{retry}");
                    } else {
                        assert_eq!(response.body, r#"{"result":4950,"stdout":""}"#);
                    }
                    counts.lock().unwrap()[usize::from(busy)] += 1;
                }
            });
        }
    });
    let [answered, busy] = *counts.lock().unwrap();
    assert_eq!(answered + busy, 2000);
    assert!(answered > 100, "{answered} answered, {busy} busy");
    let memory = container.memory_mib();
    assert!(memory < 300.0, "{memory} MiB after the load");
    assert_eq!(container.inspect(".State.OOMKilled"), "false");
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn sigterm_under_load_answers_every_request_and_exits_0() {
    let container = Container::start(&["--cpus", "1", "--env", "MAINBOX_QUEUE=1000"]);
    // Not through the engine's proxy, which accepts connections longer than the container.
    let address = format!("{}:8080", container.inspect(".NetworkSettings.IPAddress"));
    let counts = load_until_refused(&address, 64, || {
        std::thread::sleep(Duration::from_secs(2));
        let began = Instant::now();
        docker(&["stop", "--time", "20", &container.id]);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
    assert_eq!(counts.iter().map(|(_, lost)| lost).sum::<u32>(), 0, "{counts:?}");
    assert!(counts.iter().all(|(answered, _)| *answered > 0), "{counts:?}");
    assert_eq!(container.inspect(".State.ExitCode"), "0");
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn the_image_serves_mcp_over_standard_input() {
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "run_python", "arguments": {"script": "import pandas as pd\nprint(pd.Series([41, 43]).mean())"}},
    });
    let mut container = Command::new("docker")
        .args(["run", "--interactive", "--rm", "--network", "none", "mainbox", "mcp"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(container.stdin.take().unwrap(), "{call}").unwrap();
    let answer = container.wait_with_output().unwrap();
    assert_eq!(answer.status.code(), Some(0));
    let message: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(message["result"]["content"], json!([{"type": "text", "text": "42.0\n"}]));
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn memory_and_fork_bombs_do_not_affect_other_requests() {
    let container = Container::start(&["--memory", "512m", "--env", "MAINBOX_POLICY=off"]);
    let memory = indoc! {r#"
        def main():
            kept = []
            while True:
                kept.append(bytearray(1 << 20))
    "#};
    let fork = indoc! {r#"
        import os
        def main():
            refused = 0
            while refused < 1000:
                try:
                    os.fork()
                except OSError:
                    refused += 1
            return refused
    "#};
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let response = container.run(memory).unwrap();
                    assert_eq!(
                        (response.status, response.failure().1.as_str()),
                        (400, "memory_limit"),
                        "{}",
                        response.body
                    );
                });
                scope.spawn(|| {
                    let response = container.run(fork).unwrap();
                    assert_eq!(response.body, r#"{"result":1000,"stdout":""}"#);
                });
                let response = container.run("def main(): return 'unhurt'").unwrap();
                assert_eq!(response.body, r#"{"result":"unhurt","stdout":""}"#);
            }
        });
    }
    assert_eq!(container.inspect(".State.Status"), "running");
    assert_eq!(container.inspect(".RestartCount"), "0");
}

/// Uses all memory that RLIMIT_AS allows, then maps more over the read-only data of the loaded libraries, which the limit
/// does not count.
const MAPS_OVER_LIBRARIES: &str = indoc! {r#"
    import ctypes, mmap, numpy, pandas
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

    class Segment(ctypes.Structure):
        _fields_ = [("type", ctypes.c_uint32), ("flags", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64) for name in ("offset", "address", "physical", "in_file", "size", "alignment")
        ]

    class Library(ctypes.Structure):
        _fields_ = [
            ("base", ctypes.c_uint64), ("name", ctypes.c_char_p),
            ("segments", ctypes.POINTER(Segment)), ("count", ctypes.c_uint16),
        ]

    VISIT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Library), ctypes.c_size_t, ctypes.c_void_p)

    def main():
        found = []
        def visit(library, size, data):
            library = library.contents
            if b"site-packages" in (library.name or b""):
                for segment in library.segments[:library.count]:
                    if segment.type == 1 and not segment.flags & 2:
                        start = (library.base + segment.address + 4095) & ~4095
                        found.append((start, (library.base + segment.address + segment.size & ~4095) - start))
            return 0
        libc.dl_iterate_phdr(VISIT(visit), None)
        blocks = []
        size = 1 << 20
        while size >= 4096:
            try:
                block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except (OSError, MemoryError):
                size //= 2
                continue
            for page in range(0, size, 4096):
                block[page] = 1
            blocks.append(block)
        for start, length in found:
            if length > 0 and libc.mmap(start, length, 3, 0x32, -1, 0) == start:
                ctypes.memset(start, 1, length)
        while True:
            pass
"#};

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn four_scripts_that_use_all_memory_they_can_fit_into_a_container_of_the_documented_size() {
    // MAINBOX_CONCURRENCY x (MAINBOX_MEMORY_MB + MAINBOX_SCRATCH_MB + 100) plus 300 MB, in MiB.
    let memory = format!("{}m", 4 * (256 + 64 + 100) + 300);
    let since = stdout_of(Command::new("date").arg("+%s"));
    let container = Container::start(&[
        "--memory",
        &memory,
        "--memory-swap",
        &memory,
        "--env",
        "MAINBOX_CONCURRENCY=4",
        "--env",
        "MAINBOX_TIMEOUT_SECONDS=8",
    ]);
    for _ in 0..3 {
        let answers: Vec<(u16, String, String)> = std::thread::scope(|scope| {
            let ends: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| container.run(MAPS_OVER_LIBRARIES).unwrap().failure()))
                .collect();
            ends.into_iter().map(|end| end.join().unwrap()).collect()
        });
        for (status, kind, error) in answers {
            // Some run out of time before they have mapped enough over libraries.
            let ended = ["memory_limit", "timeout"].contains(&kind.as_str());
            assert!(status == 400 && ended, "{kind}: {error}");
        }
    }
    let mut events = Command::new("docker");
    events.args(["events", "--since", &since, "--until", "0s", "--format", "{{.Action}}"]);
    events.args(["--filter", &format!("container={}", container.id)]);
    let events = stdout_of(&mut events);
    assert!(events.contains("start") && !events.contains("oom"), "{events}");
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn a_container_without_a_capability_that_own_uids_need_serves_with_the_uid_of_the_service() {
    let script =
        "import os\ndef main():\n    open('outputs/a', 'w').close()\n    return os.getuid()";
    let uid = |flags: &[&str]| -> u64 {
        let answer = Container::start(flags).run(script).unwrap().json();
        assert_eq!(answer["files"], json!({ "a": "" }), "{flags:?}: {answer}");
        answer["result"].as_u64().unwrap()
    };
    assert_ne!(uid(&[]), 0);
    for capability in ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL"] {
        assert_eq!(uid(&["--cap-drop", capability]), 0, "{capability}");
    }
    assert_eq!(uid(&["--cap-drop", "ALL", "--cap-add", "SETUID", "--cap-add", "SETGID"]), 0);
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn the_image_reports_its_health_to_the_engine() {
    let container = Container::start(&[]);
    let started = Instant::now();
    while container.inspect(".State.Health.Status") != "healthy" {
        assert!(
            started.elapsed() < Duration::from_secs(40),
            "{}",
            container.inspect(".State.Health")
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    let about = request("GET", &format!("{}/about", container.url), None, b"").unwrap().json();
    assert_eq!(about["isolation"]["tier"], "seccomp");
    assert!(about["packages"]["pandas"].is_string() && about["packages"]["numpy"].is_string());
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn the_image_is_small_and_contains_only_the_interpreter_and_mainbox() {
    let bytes: u64 =
        docker(&["image", "inspect", "--format", "{{.Size}}", "mainbox"]).parse().unwrap();
    assert!(bytes < 310 * 1_000_000, "{bytes} bytes");
    let find = indoc! {r#"
        import os
        def is_program(path):
            return os.access(path, os.X_OK) and not os.path.islink(path) and os.stat(path).st_mode & 0o111
        files = (os.path.join(folder, name) for folder, _, names in os.walk('/usr') for name in names if '.so' not in name)
        print(sorted(filter(is_program, files)))
    "#};
    let programs =
        docker(&["run", "--rm", "--entrypoint", "/usr/local/bin/python3", "mainbox", "-c", find]);
    assert_eq!(programs, "['/usr/local/bin/mainbox', '/usr/local/bin/python3.13']");
}

#[test]
#[ignore = "needs Docker and the image: make cloudrun"]
fn a_build_argument_adds_packages() {
    let build = [
        "build",
        "--quiet",
        "--file",
        "Dockerfile.cloudrun",
        "--build-arg",
        "EXTRA=requirements-extra.txt",
        "--tag",
        "mainbox-extra",
        ".",
    ];
    let directory = env!("CARGO_MANIFEST_DIR");
    stdout_of(Command::new("docker").args(build).current_dir(directory));
    let script = indoc! {r#"
        import PIL.Image, pydantic, scipy.optimize, seaborn, sklearn
        import pandas as pd
        def main():
            seaborn.lineplot(pd.Series([1, 4, 9])).figure.suptitle("面積 면적")
            return round(scipy.optimize.brentq(lambda x: x * x - 4, 0, 9), 6)
    "#};
    let mut run = Command::new("docker");
    run.args(["run", "--rm", "--interactive", "--read-only", "--tmpfs", "/tmp"])
        .args(["--env", "MAINBOX_PRELOAD=numpy,pandas,matplotlib.pyplot,scipy"])
        .args(["mainbox-extra", "run", "-"]);
    run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = run.spawn().unwrap();
    process.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    // A module that could not be preloaded would be named on stderr.
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let body: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&body["result"], &body["stdout"]), (&2.0.into(), &"".into()), "{body}");
    // A letter that no font has would be named on the standard error of the script.
    assert_eq!(body["stderr"], serde_json::Value::Null);
    let plot = body["files"]["figure-1.png"]["base64"].as_str().unwrap();
    assert!(plot.starts_with("iVBORw0KGgo") && plot.len() > 5000, "{body}");
}
