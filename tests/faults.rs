//! Faults, each while 16 requests are in flight and eight of them run: who is not touched is answered, who is gets one
//! clear answer, and the service is healthy again, or says why it is not.
//!
//! What needs root is ignored unless asked for; `make soak` does that.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Server, children, output, read_to_end};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const IN_FLIGHT: usize = 16;
const RUNNING: usize = 8;
const SETTINGS: &[(&str, &str)] =
    &[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "8"), ("MAINBOX_TIMEOUT_SECONDS", "4")];
/// When eight run and eight wait; each runs for three times as long.
const ALL_SENT: Duration = Duration::from_millis(500);
/// A second, and what a busy machine adds.
const HEALTHY_AGAIN: Duration = Duration::from_secs(4);

/// So that the answer ends where the connection does.
const CLOSE: &str = "connection: close\r\n";
const RIGHT: &str = "right";
const LOST: &str = "internal: The worker was lost; this is not the script's fault";
const CANNOT_START: &str = "internal: Workers cannot be started; the service's log says why";
const KILLED: &str = "memory_limit: The script needed more memory than its limit of 256 MB";
const TIMEOUT: &str = "timeout: The script ran longer than its limit of 4 seconds";

/// Sends 16 requests, has `fault` happen while half of them run, and counts the answers: those that are the request's own
/// as `right`, others by kind and error.
fn answers(server: &Server, fault: impl FnOnce()) -> BTreeMap<String, usize> {
    let request = |number: usize| {
        let script =
            "import time\ndef main(x):\n    time.sleep(1.5)\n    print('out', x)\n    return x";
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
        std::thread::sleep(ALL_SENT);
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

/// The spares, once there are as many as there are to be, and the worker of the self-test is gone.
fn spares(server: &Server) -> Vec<i32> {
    let started = Instant::now();
    let mut before = vec![];
    loop {
        let spares = children(zygote(server));
        if spares.len() == RUNNING && spares == before {
            return spares;
        }
        assert!(started.elapsed() < HEALTHY_AGAIN, "{spares:?}");
        before = spares;
        std::thread::sleep(Duration::from_millis(100));
    }
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
fn a_zygote_that_is_killed_takes_only_its_workers_with_it() {
    let server = Server::start(SETTINGS);
    let given = answers(&server, || send(Signal::SIGKILL, zygote(&server)));
    assert_eq!(given, counted(&[(LOST, 8), (RIGHT, 8)]));
    is_healthy_again(&server);
}

#[test]
fn a_zygote_that_is_stopped_is_replaced() {
    let server = Server::start(SETTINGS);
    let given = answers(&server, || {
        send(Signal::SIGSTOP, zygote(&server));
        std::thread::sleep(Duration::from_millis(500));
        is_healthy_again(&server);
    });
    assert_eq!(given, counted(&[(LOST, 8), (RIGHT, 8)]));
}

#[test]
fn a_zygote_that_is_stopped_for_a_moment_is_kept() {
    let server = Server::start(SETTINGS);
    let first = zygote(&server);
    let given = answers(&server, || {
        send(Signal::SIGSTOP, first);
        std::thread::sleep(Duration::from_millis(50));
        send(Signal::SIGCONT, first);
    });
    assert_eq!(given, counted(&[(RIGHT, 16)]));
    assert_eq!(zygote(&server), first);
}

#[test]
fn a_zygote_whose_socket_is_closed_is_replaced() {
    let server = Server::start(SETTINGS);
    let given = answers(&server, || {
        let close = "import ctypes, os, socket, sys\nprocess = os.pidfd_open(int(sys.argv[1]))\ncontrol = ctypes.CDLL(None).syscall(438, process, 3, 0)\nsocket.socket(fileno=control).shutdown(socket.SHUT_RDWR)";
        let zygote = zygote(&server).to_string();
        let closed = output(Command::new("python3").args(["-c", close, &zygote]));
        assert_eq!(closed, (Some(0), String::new(), String::new()));
    });
    assert_eq!(given, counted(&[(LOST, 8), (RIGHT, 8)]));
    is_healthy_again(&server);
}

#[test]
fn a_worker_that_is_killed_spoils_its_own_answer_only() {
    let server = Server::start(SETTINGS);
    let given = answers(&server, || send(Signal::SIGKILL, children(zygote(&server))[0]));
    assert_eq!(given, counted(&[(KILLED, 1), (RIGHT, 15)]));
    is_healthy_again(&server);
}

#[test]
fn a_worker_that_is_stopped_runs_into_its_own_timeout() {
    let server = Server::start(SETTINGS);
    let given = answers(&server, || send(Signal::SIGSTOP, children(zygote(&server))[0]));
    assert_eq!(given, counted(&[(RIGHT, 15), (TIMEOUT, 1)]));
    is_healthy_again(&server);
}

#[test]
fn spares_that_are_killed_cost_nobody_anything() {
    let server = Server::start(SETTINGS);
    for spare in spares(&server) {
        send(Signal::SIGKILL, spare);
    }
    assert_eq!(answers(&server, || {}), counted(&[(RIGHT, 16)]));
}

#[test]
fn a_spare_that_is_stopped_costs_one_request_a_timeout() {
    let server = Server::start(SETTINGS);
    send(Signal::SIGSTOP, spares(&server)[0]);
    assert_eq!(answers(&server, || {}), counted(&[(RIGHT, 15), (TIMEOUT, 1)]));
    is_healthy_again(&server);
}

/// Without descriptors no worker can be started, so what waits for one is answered; what runs is not touched.
#[test]
fn without_descriptors_the_service_says_so_and_comes_back() {
    let server = Server::start(SETTINGS);
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

/// A real interpreter, of hard links, in a place where it can be taken away.
struct Interpreter {
    folder: PathBuf,
}

impl Interpreter {
    fn make() -> Interpreter {
        let print = "import sys; print(sys.base_prefix, sys.version_info.minor, sep='\\n', end='')";
        let python = std::env::var("MAINBOX_PYTHON").unwrap_or(String::from(".venv/bin/python3"));
        let (_, found, _) = output(Command::new(python).args(["-I", "-c", print]));
        let (prefix, minor) = found.split_once('\n').unwrap();
        let folder =
            std::path::absolute(format!("target/interpreter-{}", std::process::id())).unwrap();
        for part in ["bin", "lib"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        let link = format!(
            "cp -a '{prefix}/bin/python3.{minor}' bin/python3 && cp -a '{prefix}'/lib/libpython* lib/ 2>/dev/null; cp -a '{prefix}/lib/python3.{minor}' lib/ && rm -rf lib/python3.{minor}/site-packages lib/python3.{minor}/test"
        );
        let copied = Command::new("sh").args(["-c", &link]).current_dir(&folder).status().unwrap();
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
fn without_its_interpreter_the_service_serves_on_until_it_needs_it() {
    let interpreter = Interpreter::make();
    let program = interpreter.program();
    let mut settings = SETTINGS.to_vec();
    settings.push(("MAINBOX_PYTHON", program.to_str().unwrap()));
    let server = Server::start(&settings);
    let away = program.with_extension("away");
    let given = answers(&server, || std::fs::rename(&program, &away).unwrap());
    assert_eq!(given, counted(&[(RIGHT, 16)]));
    send(Signal::SIGKILL, zygote(&server));
    says_why_it_is_not_healthy(&server);
    server.log_line("No such file or directory", 1);
    std::fs::rename(&away, &program).unwrap();
    is_healthy_again(&server);
}

/// A client that is gone looks the same, and is more often what it is.
#[test]
fn a_client_that_closes_its_half_has_left_and_others_are_answered() {
    let server = Server::start(SETTINGS);
    let stream = server.begin(CLOSE, &json!({"script": "import time\ndef main(): time.sleep(3)"}));
    let given = answers(&server, || stream.shutdown(Shutdown::Write).unwrap());
    assert_eq!(given, counted(&[(RIGHT, 16)]));
    assert_eq!(read_to_end(stream), "");
}

#[test]
fn a_thousand_idle_connections_and_a_slow_one_hold_nobody_up() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    let server = Server::start(SETTINGS);
    let mut slow = server.connect();
    slow.write_all(b"POST /execute HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{").unwrap();
    let idle: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    assert_eq!(answers(&server, || {}), counted(&[(RIGHT, 16)]));
    assert_eq!(idle.len(), 1000);
}

/// Processes that a zygote may have below it, as a cgroup counts them; gone with this value.
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
fn when_no_process_can_be_forked_the_service_says_so_and_comes_back() {
    let server = Server::start(SETTINGS);
    spares(&server);
    let limit = ProcessLimit::on(zygote(&server));
    let given = answers(&server, || limit.set("1"));
    assert_eq!(given, counted(&[(CANNOT_START, 8), (RIGHT, 8)]));
    says_why_it_is_not_healthy(&server);
    server.log_line("fork of a worker: Resource temporarily unavailable", 1);
    limit.set("max");
    is_healthy_again(&server);
}

/// A file system of its own, as small as it gets.
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
fn a_full_disk_is_nothing_to_scripts_that_have_a_scratch_directory_of_their_own() {
    let disk = SmallDisk::mount();
    let mut settings = SETTINGS.to_vec();
    settings.push(("TMPDIR", disk.0.to_str().unwrap()));
    let server = Server::start(&settings);
    assert_eq!(answers(&server, || disk.fill()), counted(&[(RIGHT, 16)]));
    let writes = "def main(): return open('file', 'w').write('x' * 1_000_000)";
    assert_eq!(server.run(writes).body, r#"{"result":1000000,"stdout":""}"#);
    drop(server);
}

/// Setting the clock would disturb everything else on this machine. Deadlines are measured by a clock that nobody sets,
/// so it is enough that no other is read but for the timestamps of lines, and for the deadline that AWS Lambda gives as
/// wall time.
#[test]
fn the_wall_clock_decides_nothing() {
    fn sources(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }
    let reads_wall_clock = |file: &std::path::PathBuf| {
        let source = std::fs::read_to_string(file).unwrap();
        ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME"].iter().any(|name| source.contains(name))
    };
    let files = sources("src".as_ref()).into_iter().filter(reads_wall_clock);
    let mut readers: Vec<String> = files.map(|file| file.display().to_string()).collect();
    readers.sort();
    assert_eq!(
        readers,
        ["src/front/lambda/mod.rs", "src/telemetry/emf.rs", "src/telemetry/log.rs"]
    );
}
