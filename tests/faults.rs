//! Faults while 16 requests are in flight and eight of them run. A request that the fault does not touch gets its result,
//! one that it touches gets one clear error, and the service is healthy again or says why it is not.
//!
//! The tests that need root are ignored by default; `make soak` runs them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Server, children, declared_tier, is_root, not_run, one_at_a_time, output, python, read_to_end,
    settled_children, status,
};
use indoc::indoc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const IN_FLIGHT: usize = 16;
const RUNNING: usize = 8;
const SETTINGS: &[(&str, &str)] =
    &[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "8"), ("MAINBOX_TIMEOUT_SECONDS", "4")];
/// Long enough for a busy machine. A healthy service needs a second.
const HEALTHY_AGAIN: Duration = Duration::from_secs(20);

/// The response then ends with the connection.
const CLOSE: &str = "connection: close\r\n";
const RIGHT: &str = "right";
const LOST: &str = "internal: The worker was lost; this is not the script's fault";
const CANNOT_START: &str = "internal: Workers cannot be started; the log of the service says why";
const KILLED: &str = "memory_limit: The script needed more memory than its limit of 256 MB";
const TIMEOUT: &str = "timeout: The script ran longer than its limit of 4 seconds";

/// Starts a server that runs eight scripts at the same time, if that is possible here. Its spares are those that it keeps.
fn started(settings: &[(&str, &str)]) -> Option<Server> {
    if one_at_a_time() {
        not_run("workers are not separated here, so one script runs at a time");
        return None;
    }
    let server = Server::start(&[settings, &[("MAINBOX_LOG", "debug")]].concat());
    server.log_line("the spares share the moved memory", 1);
    Some(server)
}

/// Sends 16 requests and calls `fault` while half of them run. Counts the responses: correct results as `right`, errors
/// by kind and message.
fn answers(server: &Server, fault: impl FnOnce()) -> BTreeMap<String, usize> {
    let request = |number: usize| {
        // Eight of them run when the last of the eight starts, also on a busy machine.
        let script = indoc! {r#"
            import time
            def main(x):
                time.sleep(3)
                print('out', x)
                return x
        "#};
        let stream = server.begin(CLOSE, &json!({"script": script, "input": number}));
        let answer = read_to_end(stream);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if body == format!(r#"{{"result":{number},"stdout":"out {number}\n"}}"#) {
            return String::from(RIGHT);
        }
        let failure: Value = serde_json::from_str(body).unwrap_or_default();
        format!("{}: {}", failure["kind"].as_str().unwrap(), failure["error"].as_str().unwrap())
    };
    let mut counted = BTreeMap::new();
    std::thread::scope(|scope| {
        let requests: Vec<_> =
            (0..IN_FLIGHT).map(|number| scope.spawn(move || request(number))).collect();
        server.wait_until_running(RUNNING as u64);
        fault();
        for request in requests {
            *counted.entry(request.join().unwrap()).or_default() += 1;
        }
    });
    counted
}

fn counted(rows: &[(&str, usize)]) -> BTreeMap<String, usize> {
    rows.iter().map(|(answer, count)| (String::from(*answer), *count)).collect()
}

/// Returns the spares as soon as all have started and the worker of the self-test has ended.
fn spares(server: &Server) -> Vec<i32> {
    server.wait_for_metric(&format!("mainbox_spares{{zygote=\"bare\"}} {RUNNING}"));
    settled_children(zygote(server), RUNNING)
}

fn zygote(server: &Server) -> i32 {
    children(server.pid())[0]
}

fn send(signal: Signal, process: i32) {
    kill(Pid::from_raw(process), signal).unwrap();
}

/// Waits until the service is healthy, and runs a script there.
#[track_caller]
fn is_healthy_again(server: &Server) {
    let started = Instant::now();
    while server.get("/health").status != 200 {
        assert!(started.elapsed() < HEALTHY_AGAIN, "{}", server.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.run("def main(): return 'again'").body, r#"{"result":"again","stdout":""}"#);
}

/// Waits until the service says that it is not healthy, and why.
#[track_caller]
fn says_why_it_is_not_healthy(server: &Server) {
    let started = Instant::now();
    let why = r#"{"error":"workers cannot be started; the log says why","status":"unhealthy"}"#;
    loop {
        let health = server.get("/health");
        if (health.status, health.body.as_str()) == (503, why) {
            return;
        }
        assert!(started.elapsed() < HEALTHY_AGAIN, "{}", health.body);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn killing_the_zygote_fails_only_the_requests_of_its_workers() {
    let Some(server) = started(SETTINGS) else { return };
    let given = answers(&server, || send(Signal::SIGKILL, zygote(&server)));
    assert_eq!(given, counted(&[(LOST, 8), (RIGHT, 8)]));
    is_healthy_again(&server);
}

#[test]
fn killing_the_zygote_ends_live_responses_with_an_error() {
    let Some(server) = started(SETTINGS) else { return };
    let script = "import time\ndef main(x):\n    print('begun')\n    time.sleep(3)\n    return x";
    let live = "accept: text/event-stream\r\nconnection: close\r\n";
    let alone = server.begin(live, &json!({"script": script, "input": 0}));
    let several = server.begin(live, &json!({"script": script, "inputs": [1, 2]}));
    server.wait_until_running(3);
    send(Signal::SIGKILL, zygote(&server));
    let alone = read_to_end(alone);
    assert!(alone.contains("event: stdout\ndata: {\"text\":\"begun\\n\"}"), "{alone}");
    let (_, last) = alone.split_once("event: error\ndata: ").unwrap();
    let (error, _) = last.split_once("\n\n").unwrap();
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!((&error["kind"], &error["status"]), (&json!("internal"), &json!(500)));
    assert_eq!(error["stdout"], json!("begun\n"));
    let several = read_to_end(several);
    let (_, last) = several.split_once("event: result\ndata: ").unwrap();
    assert_eq!(last.matches("\"kind\":\"internal\"").count(), 2, "{last}");
    assert!(last.contains("\"status\":200"), "{last}");
    is_healthy_again(&server);
    let answer = server.execute(&json!({"script": "def main(x): return x", "inputs": [1, 2]}));
    assert_eq!(answer.status, 200);
}

#[test]
fn a_stopped_zygote_is_replaced() {
    let Some(server) = started(SETTINGS) else { return };
    let given = answers(&server, || {
        send(Signal::SIGSTOP, zygote(&server));
        server.log_line("a zygote was stopped and not continued; killing it", 1);
        is_healthy_again(&server);
    });
    assert_eq!(given, counted(&[(LOST, 8), (RIGHT, 8)]));
}

#[test]
fn a_zygote_that_is_stopped_and_continued_is_kept() {
    let Some(server) = started(SETTINGS) else { return };
    let first = zygote(&server);
    let given = answers(&server, || {
        send(Signal::SIGSTOP, first);
        while !status(first, "State").starts_with('T') {
            std::thread::yield_now();
        }
        send(Signal::SIGCONT, first);
    });
    assert_eq!(given, counted(&[(RIGHT, 16)]));
    assert_eq!(zygote(&server), first);
}

#[test]
fn a_zygote_whose_socket_is_closed_is_replaced() {
    if !is_root() && declared_tier() != "namespaces" {
        return not_run("only root can reach the socket of a zygote here");
    }
    let Some(server) = started(SETTINGS) else { return };
    let given = answers(&server, || {
        // System call 438 is pidfd_getfd, and descriptor 3 of a zygote is its socket.
        let close = indoc! {r#"
            import ctypes, os, socket, sys
            process = os.pidfd_open(int(sys.argv[1]))
            control = ctypes.CDLL(None).syscall(438, process, 3, 0)
            socket.socket(fileno=control).shutdown(socket.SHUT_RDWR)
        "#};
        let zygote = zygote(&server).to_string();
        let closed = output(Command::new(python()).args(["-c", close, &zygote]));
        assert_eq!(closed, (Some(0), String::new(), String::new()));
    });
    assert_eq!(given, counted(&[(LOST, 8), (RIGHT, 8)]));
    is_healthy_again(&server);
}

#[test]
fn killing_a_worker_fails_only_its_own_request() {
    let Some(server) = started(SETTINGS) else { return };
    // The worker of the self-test must be gone, so that the first child runs a request.
    spares(&server);
    let given = answers(&server, || send(Signal::SIGKILL, children(zygote(&server))[0]));
    assert_eq!(given, counted(&[(KILLED, 1), (RIGHT, 15)]));
    is_healthy_again(&server);
}

#[test]
fn a_stopped_worker_fails_its_own_request_with_a_timeout() {
    let Some(server) = started(SETTINGS) else { return };
    // The worker of the self-test must be gone, so that the first child runs a request.
    spares(&server);
    let given = answers(&server, || send(Signal::SIGSTOP, children(zygote(&server))[0]));
    assert_eq!(given, counted(&[(RIGHT, 15), (TIMEOUT, 1)]));
    is_healthy_again(&server);
}

#[test]
fn killing_spares_fails_no_request() {
    let Some(server) = started(SETTINGS) else { return };
    let killed = spares(&server);
    for spare in &killed {
        send(Signal::SIGKILL, *spare);
    }
    // A request that takes a spare before it is dead fails, as any script that is killed.
    let started = Instant::now();
    let is_dead = |state: String| state.is_empty() || state.starts_with('Z');
    while !killed.iter().all(|spare| is_dead(status(*spare, "State"))) {
        assert!(started.elapsed() < HEALTHY_AGAIN, "{killed:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(answers(&server, || {}), counted(&[(RIGHT, 16)]));
}

#[test]
fn a_stopped_spare_fails_one_request_with_a_timeout() {
    let Some(server) = started(SETTINGS) else { return };
    send(Signal::SIGSTOP, spares(&server)[0]);
    assert_eq!(answers(&server, || {}), counted(&[(RIGHT, 15), (TIMEOUT, 1)]));
    is_healthy_again(&server);
}

/// Without descriptors no worker can start, so waiting requests fail. Running requests are not affected.
#[test]
fn without_descriptors_waiting_requests_fail_and_the_service_recovers() {
    if declared_tier() != "namespaces" {
        // The service then refuses to run another script.
        return not_run("removing the leftovers of a script needs descriptors here");
    }
    let Some(server) = started(SETTINGS) else { return };
    spares(&server);
    let limit = |most: &str| {
        let pid = server.pid().to_string();
        let set =
            output(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={most}:")]));
        assert_eq!(set, (Some(0), String::new(), String::new()));
    };
    let given = answers(&server, || limit("3"));
    assert_eq!(given, counted(&[(CANNOT_START, 8), (RIGHT, 8)]));
    limit("1000");
    is_healthy_again(&server);
}

/// A copy of the interpreter that can be moved away. It is removed with this value.
struct Interpreter {
    folder: PathBuf,
}

impl Interpreter {
    fn make() -> Interpreter {
        let print = "import sys; print(sys.base_prefix, sys.version_info.minor, sep='\\n', end='')";
        let (_, found, _) = output(Command::new(python()).args(["-I", "-c", print]));
        let (prefix, minor) = found.split_once('\n').unwrap();
        let folder =
            std::path::absolute(format!("target/interpreter-{}", std::process::id())).unwrap();
        for part in ["bin", "lib"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        let copy = format!(
            "cp -a '{prefix}/bin/python3.{minor}' bin/python3 && \
             {{ cp -a '{prefix}'/lib/libpython* lib/ 2>/dev/null; \
             cp -a '{prefix}/lib/python3.{minor}' lib/ && \
             rm -rf lib/python3.{minor}/site-packages lib/python3.{minor}/test; }}"
        );
        let copied = Command::new("sh").args(["-c", &copy]).current_dir(&folder).status().unwrap();
        assert!(copied.success());
        Interpreter { folder }
    }

    fn program(&self) -> PathBuf {
        self.folder.join("bin/python3")
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn without_its_interpreter_the_service_fails_only_when_it_needs_a_new_zygote() {
    let interpreter = Interpreter::make();
    let program = interpreter.program();
    let mut settings = SETTINGS.to_vec();
    settings.push(("MAINBOX_PYTHON", program.to_str().unwrap()));
    let Some(server) = started(&settings) else { return };
    let away = program.with_extension("away");
    let given = answers(&server, || std::fs::rename(&program, &away).unwrap());
    assert_eq!(given, counted(&[(RIGHT, 16)]));
    send(Signal::SIGKILL, zygote(&server));
    says_why_it_is_not_healthy(&server);
    server.log_line("No such file or directory", 1);
    std::fs::rename(&away, &program).unwrap();
    is_healthy_again(&server);
}

/// A client that closes only its sending half cannot be told from one that disconnected.
#[test]
fn closing_the_sending_half_cancels_only_the_own_request() {
    let Some(server) = started(SETTINGS) else { return };
    let stream = server.begin(CLOSE, &json!({"script": "import time\ndef main(): time.sleep(3)"}));
    server.wait_until_running(1);
    let given = answers(&server, || stream.shutdown(Shutdown::Write).unwrap());
    assert_eq!(given, counted(&[(RIGHT, 16)]));
    assert_eq!(read_to_end(stream), "");
}

#[test]
fn idle_and_slow_connections_delay_no_request() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    let Some(server) = started(SETTINGS) else { return };
    let mut slow = server.connect();
    slow.write_all(b"POST /execute HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{").unwrap();
    let idle: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    assert_eq!(answers(&server, || {}), counted(&[(RIGHT, 16)]));
    assert_eq!(idle.len(), 1000);
}

/// A cgroup that limits the processes of a zygote. It is removed with this value.
struct ProcessLimit(PathBuf);

impl ProcessLimit {
    fn on(zygote: i32) -> ProcessLimit {
        let version_1 = PathBuf::from("/sys/fs/cgroup/pids");
        let root = if version_1.is_dir() { version_1 } else { PathBuf::from("/sys/fs/cgroup") };
        let group = ProcessLimit(root.join(format!("mainbox-faults-{}", std::process::id())));
        std::fs::create_dir(&group.0).unwrap();
        std::fs::write(group.0.join("cgroup.procs"), zygote.to_string()).unwrap();
        group
    }

    fn set(&self, most: &str) {
        std::fs::write(self.0.join("pids.max"), most).unwrap();
    }
}

impl Drop for ProcessLimit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root and cgroups: make soak"]
fn without_processes_waiting_requests_fail_and_the_service_recovers() {
    if !is_root() {
        return not_run("needs root");
    }
    let Some(server) = started(SETTINGS) else { return };
    spares(&server);
    let limit = ProcessLimit::on(zygote(&server));
    let given = answers(&server, || limit.set("1"));
    assert_eq!(given, counted(&[(CANNOT_START, 8), (RIGHT, 8)]));
    says_why_it_is_not_healthy(&server);
    server.log_line("fork of a worker: Resource temporarily unavailable", 1);
    limit.set("max");
    is_healthy_again(&server);
}

/// A small file system. It is unmounted with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount() -> SmallDisk {
        let place = std::env::temp_dir().join(format!("mainbox-disk-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=256k,mode=1777", "none"];
        let mounted = output(Command::new("mount").args(options).arg(&place));
        assert_eq!(mounted, (Some(0), String::new(), String::new()));
        SmallDisk(place)
    }

    fn fill(&self) {
        let rest = std::fs::write(self.0.join("rest"), vec![0; 1 << 20]);
        assert_eq!(rest.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root: make soak"]
fn a_full_disk_does_not_affect_mounted_scratch_directories() {
    if !is_root() {
        return not_run("needs root");
    }
    let disk = SmallDisk::mount();
    let mut settings = SETTINGS.to_vec();
    settings.push(("TMPDIR", disk.0.to_str().unwrap()));
    let Some(server) = started(&settings) else { return };
    assert_eq!(answers(&server, || disk.fill()), counted(&[(RIGHT, 16)]));
    let writes = "def main(): return open('file', 'w').write('x' * 1_000_000)";
    assert_eq!(server.run(writes).body, r#"{"result":1000000,"stdout":""}"#);
    drop(server);
}

/// A test cannot set the clock of the machine, so this one reads the sources: only log lines and the deadline of AWS
/// Lambda, which is wall time, may use the wall clock.
#[test]
fn no_timeout_depends_on_the_wall_clock() {
    fn sources(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }
    let reads_wall_clock = |file: &std::path::PathBuf| {
        let source = std::fs::read_to_string(file).unwrap();
        ["SystemTime", "UNIX_EPOCH", "::CLOCK_REALTIME"].iter().any(|name| source.contains(name))
    };
    let files = sources("src".as_ref()).into_iter().filter(reads_wall_clock);
    let mut readers: Vec<String> = files.map(|file| file.display().to_string()).collect();
    readers.sort();
    assert_eq!(
        readers,
        [
            "src/front/lambda/log.rs",
            "src/front/lambda/mod.rs",
            "src/telemetry/emf.rs",
            "src/telemetry/log.rs"
        ]
    );
}
