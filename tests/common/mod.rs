//! Starts the real binary and talks to it as a client does.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test file includes this module and uses a part of it"
)]

pub mod offender;
mod shared;
mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use ureq::http::HeaderName;

pub use world::{declared_tier, is_root, lacks, not_run, one_at_a_time, patience};

/// How long a server may take to become healthy on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The environment variables of a script, in order.
pub const ENVIRONMENT: [&str; 9] = [
    "HOME",
    "JOBLIB_MULTIPROCESSING",
    "LANG",
    "LOGNAME",
    "MPLBACKEND",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
];

/// A server. It ends with this value if this value started it.
pub struct Server {
    pub url: String,
    front: Front,
    process: Option<Child>,
    pid: i32,
    log: Log,
    /// How long the thread that reads the log pauses after each line, milliseconds.
    log_pause_ms: Arc<AtomicU64>,
}

/// Where a server's log is.
enum Log {
    /// In this process, which reads the server's output.
    Memory(Arc<Mutex<String>>),
    /// In a file, because several processes use the server.
    File(PathBuf),
}

impl Log {
    fn new() -> Log {
        Log::Memory(Arc::default())
    }
}

/// Returns the port, if this line of a log says that the server serves.
fn serving_port(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line["address"].as_str()?.rsplit(':').next()?.to_owned())
}

/// How a server is reached.
enum Front {
    Http,
    /// Through AWS' emulator of Lambda's interface to runtimes, which takes one event at a time.
    Lambda {
        one_event: Mutex<()>,
        api_port: u16,
        folder: Option<PathBuf>,
    },
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Returns status, kind and error of a failure.
    pub fn failure(&self) -> (u16, String, String) {
        let json = self.json();
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("kind"), text("error"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Server {
    /// Starts a server with these settings on top of the defaults and waits until it is healthy.
    pub fn start(settings: &[(&str, &str)]) -> Server {
        Server::start_unready(settings).healthy()
    }

    fn healthy(self) -> Server {
        self.wait_until_healthy();
        self
    }

    pub fn wait_until_healthy(&self) {
        let started = Instant::now();
        while self.get("/health").status != 200 {
            assert!(started.elapsed() < patience(START_TIMEOUT), "not healthy: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a server and waits until it listens.
    pub fn start_unready(settings: &[(&str, &str)]) -> Server {
        Server::spawn(&mut mainbox(settings))
    }

    /// Starts the command behind the emulator of Lambda if WORLD_FRONT says so, and directly otherwise.
    fn spawn(command: &mut Command) -> Server {
        match std::env::var("WORLD_FRONT").as_deref() {
            Ok("lambda") => Server::emulated(command),
            _ => Server::direct(command),
        }
    }

    /// Starts the command directly, without regard to WORLD_FRONT.
    pub fn direct(command: &mut Command) -> Server {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let output = process.stderr.take().unwrap();
        let mut server = Server {
            url: String::new(),
            front: Front::Http,
            process: None,
            pid: 0,
            log: Log::new(),
            log_pause_ms: Arc::default(),
        };
        let port = server.follow(process, output, serving_port);
        server.url = format!("http://127.0.0.1:{port}");
        server
    }

    /// Starts a function behind the emulator that WORLD_EMULATOR names. It has the environment of `command` and the
    /// bootstrap that WORLD_BOOTSTRAP names, or one beside the binary of `command`.
    pub fn emulated(command: &mut Command) -> Server {
        let emulator = std::env::var("WORLD_EMULATOR").expect("WORLD_EMULATOR names the emulator");
        let (bootstrap, folder) = match std::env::var("WORLD_BOOTSTRAP") {
            Ok(bootstrap) => (PathBuf::from(bootstrap), None),
            Err(_) => {
                let folder = function_folder(command);
                (folder.join("bootstrap"), Some(folder))
            }
        };
        let (port, api_port) = (free_port(), free_port());
        let (output, both) = std::io::pipe().unwrap();
        let mut emulated = Command::new(emulator);
        emulated
            .args(["--runtime-interface-emulator-address", &format!("127.0.0.1:{port}")])
            .args(["--runtime-api-address", &format!("127.0.0.1:{api_port}")])
            .arg(bootstrap)
            .env_clear()
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(both.try_clone().unwrap())
            .stderr(both);
        for name in ["PATH", "LD_LIBRARY_PATH", "MAINBOX_PYTHON"] {
            if let Ok(value) = std::env::var(name) {
                emulated.env(name, value);
            }
        }
        if let Some(folder) = &folder {
            emulated.env("TMPDIR", folder.join("tmp"));
        }
        let process = emulated.spawn().unwrap();
        let mut server = Server {
            url: format!("http://127.0.0.1:{port}"),
            front: Front::Lambda { one_event: Mutex::default(), api_port, folder },
            process: None,
            pid: 0,
            log: Log::new(),
            log_pause_ms: Arc::default(),
        };
        server.follow(process, output, |line| line.contains("exec '").then(String::new));
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Collects the output of `process` and waits for the line in which `serving` finds something.
    fn follow(
        &mut self,
        process: Child,
        output: impl Read + Send + 'static,
        serving: impl Fn(&str) -> Option<String> + Send + 'static,
    ) -> String {
        let mut lines = BufReader::new(output).lines();
        self.pid = process.id() as i32;
        self.process = Some(process);
        let (sender, receiver) = mpsc::channel();
        let log = Arc::<Mutex<String>>::default();
        self.log = Log::Memory(Arc::clone(&log));
        let pause = Arc::clone(&self.log_pause_ms);
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                if let Some(found) = serving(&line) {
                    let _ = sender.send(found);
                }
                *log.lock().unwrap() += &(line + "\n");
                std::thread::sleep(Duration::from_millis(pause.load(Ordering::Relaxed)));
            }
        });
        receiver
            .recv_timeout(patience(START_TIMEOUT))
            .unwrap_or_else(|_| panic!("the server does not serve: {}", self.log()))
    }

    /// Returns the port of Lambda's interface to runtimes, which a script must not reach.
    pub fn runtime_api_port(&self) -> u16 {
        match self.front {
            Front::Lambda { api_port, .. } => api_port,
            Front::Http => panic!("no Lambda"),
        }
    }

    /// Returns the function's directory for temporary files.
    pub fn temporary(&self) -> PathBuf {
        match &self.front {
            Front::Lambda { folder: Some(folder), .. } => folder.join("tmp"),
            _ => std::env::temp_dir(),
        }
    }

    /// Sends an event to the emulator. Returns the status and the response of the function.
    pub fn invoke(&self, event: &[u8]) -> (u16, String) {
        let Front::Lambda { one_event, .. } = &self.front else { panic!("no Lambda") };
        let _lock = one_event.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let answer = self.send("POST", "/2015-03-31/functions/function/invocations", None, event);
        (answer.status, answer.body)
    }

    /// Returns what the server has logged so far.
    pub fn log(&self) -> String {
        match &self.log {
            Log::Memory(log) => log.lock().unwrap().clone(),
            Log::File(path) => std::fs::read_to_string(path).unwrap(),
        }
    }

    /// Waits for the `count`th line of the log that contains `text`. Another thread reads the log, so it may be late.
    #[track_caller]
    pub fn log_line(&self, text: &str, count: usize) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            if let Some(line) = log.lines().filter(|line| line.contains(text)).nth(count - 1) {
                return line.to_owned();
            }
            assert!(
                started.elapsed() < patience(Duration::from_secs(10)),
                "no {count} x {text} in {log}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Pauses after each line of the log from now on.
    pub fn read_log_slowly(&self, pause: Duration) {
        self.log_pause_ms.store(pause.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end of the server. Returns its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.process.as_mut().unwrap().wait().unwrap().code()
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Opens a connection whose reads have a timeout.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(patience(Duration::from_secs(30)))).unwrap();
        stream
    }

    /// Waits until /metrics contains this line.
    #[track_caller]
    pub fn wait_for_metric(&self, line: &str) {
        let started = Instant::now();
        loop {
            let metrics = self.get("/metrics").body;
            if metrics.lines().any(|found| found == line) {
                return;
            }
            assert!(
                started.elapsed() < patience(Duration::from_secs(20)),
                "never {line}: {metrics}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `count` scripts run. A request counts as running from its permit on, so this also waits for its
    /// worker: the pool holds a spare for each worker that no running request took.
    #[track_caller]
    pub fn wait_until_running(&self, count: u64) {
        let workers = self.get("/about").json()["limits"]["concurrency"].as_u64().unwrap();
        let started = Instant::now();
        loop {
            let metrics = self.get("/metrics").body;
            let sum = |name: &str| -> u64 {
                let samples = metrics.lines().filter(|line| line.starts_with(name));
                samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
            };
            let running = sum("mainbox_running ");
            if running == count && running + sum("mainbox_spares{") >= workers {
                // Nothing tells from outside when the worker has read the request, which it does at once.
                std::thread::sleep(Duration::from_millis(50));
                return;
            }
            assert!(
                started.elapsed() < patience(Duration::from_secs(20)),
                "never {count} running: {metrics}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a request over a new connection, with more `headers`. Does not read the response.
    pub fn begin(&self, headers: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let head = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        let mut stream = self.connect();
        write!(stream, "{head}{headers}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None, b"")
    }

    /// Runs a script.
    pub fn run(&self, script: &str) -> Answer {
        self.execute(&serde_json::json!({ "script": script }))
    }

    pub fn execute(&self, body: &Value) -> Answer {
        self.post("application/json", body.to_string().as_bytes())
    }

    pub fn post(&self, content_type: &str, body: &[u8]) -> Answer {
        self.request("POST", "/execute", Some(content_type), body)
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Answer {
        match self.front {
            Front::Http => self.send(method, path, content_type, body),
            Front::Lambda { .. } => {
                let (status, answer) = self.invoke(&event(method, path, content_type, body));
                unwrapped(status, &answer)
            }
        }
    }

    fn send(&self, method: &str, path: &str, content_type: Option<&str>, body: &[u8]) -> Answer {
        request(method, &format!("{}{path}", self.url), content_type, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}; log: {}", self.log()))
    }
}

/// Sends a request and reads its response.
pub fn request(
    method: &str,
    url: &str,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<Answer, String> {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let response = agent().run(request.body(body).unwrap()).map_err(|error| error.to_string())?;
    let (parts, mut body) = response.into_parts();
    let body =
        body.with_config().limit(64 << 20).read_to_string().map_err(|error| error.to_string())?;
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

/// Starts `clients` clients. Each sends one script after the other over a kept-alive connection, until nothing listens
/// at `address` any more; `meanwhile` must end the server. Returns for each client how many requests got a response and
/// how many did not.
pub fn load_until_refused(
    address: &str,
    clients: usize,
    meanwhile: impl FnOnce(),
) -> Vec<(u32, u32)> {
    const ANSWER: &str = r#"{"result":"whole","stdout":""}"#;
    let body = r#"{"script":"def main(): return 'whole'"}"#;
    let request = format!(
        "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let client = || {
        let (mut answered, mut lost) = (0, 0);
        while let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(patience(Duration::from_secs(20)))).unwrap();
            loop {
                let mut answer = String::new();
                let mut buffer = [0; 1024];
                let sent = stream.write_all(request.as_bytes());
                while sent.is_ok() && !answer.ends_with(ANSWER) {
                    match stream.read(&mut buffer) {
                        Ok(length) if length > 0 => {
                            answer += std::str::from_utf8(&buffer[..length]).unwrap();
                        }
                        _ => break,
                    }
                }
                if !answer.ends_with(ANSWER) {
                    lost += 1;
                    break;
                }
                answered += 1;
                if answer.contains("connection: close") {
                    break;
                }
            }
        }
        (answered, lost)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        meanwhile();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(process.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = process.wait();
        }
        if let Front::Lambda { folder: Some(folder), .. } = &self.front {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Returns the event that a function URL makes of a request.
fn event(method: &str, path: &str, content_type: Option<&str>, body: &[u8]) -> Vec<u8> {
    let headers: serde_json::Map<_, _> = content_type
        .map(|value| (String::from("content-type"), value.into()))
        .into_iter()
        .collect();
    let http = serde_json::json!({"method": method, "path": path});
    serde_json::json!({
        "version": "2.0", "rawPath": path, "headers": headers,
        "requestContext": {"stage": "$default", "http": http},
        "body": BASE64_STANDARD.encode(body), "isBase64Encoded": true,
    })
    .to_string()
    .into_bytes()
}

/// Returns the response that a function put into its result.
fn unwrapped(status: u16, answer: &str) -> Answer {
    let wrapped: Value = serde_json::from_str(answer).unwrap_or_default();
    // The emulator passes the response on with 502 if the runtime ends after it, as it must after a script that changed the
    // limits or the priority of the service.
    assert!([200, 502].contains(&status), "{status} {answer}");
    assert_eq!(wrapped["isBase64Encoded"], false, "{answer}");
    let headers = wrapped["headers"].as_object().unwrap().iter();
    Answer {
        status: wrapped["statusCode"].as_u64().unwrap() as u16,
        headers: headers
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), value.as_str().unwrap().parse().unwrap())
            })
            .collect(),
        body: wrapped["body"].as_str().unwrap().to_owned(),
    }
}

/// Makes the directory of a function, with bootstrap and binary.
fn function_folder(command: &Command) -> PathBuf {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name =
        format!("mainbox-function-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(folder.join("tmp")).unwrap();
    let bootstrap = concat!(env!("CARGO_MANIFEST_DIR"), "/bootstrap");
    std::fs::copy(bootstrap, folder.join("bootstrap")).unwrap();
    std::os::unix::fs::symlink(command.get_program(), folder.join("mainbox")).unwrap();
    folder
}

/// Returns a port that nothing listens on.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// An interpreter with additional modules.
pub struct OwnPython {
    pub python: String,
    folder: PathBuf,
}

impl OwnPython {
    /// Makes one whose module `slow` takes this long to import.
    pub fn slow(seconds: u32) -> OwnPython {
        OwnPython::with(&[("slow.py", &format!("import time\ntime.sleep({seconds})\n"))])
    }

    /// Makes one with these files. The paths are relative to the directory of the packages.
    pub fn with(files: &[(&str, &str)]) -> OwnPython {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("mainbox-python-{}-{number}", std::process::id()));
        let mut venv = Command::new(python());
        venv.args(["-m", "venv", "--without-pip"]).arg(&folder);
        assert_eq!(output(&mut venv).0, Some(0));
        let python = folder.join("bin/python3").to_string_lossy().into_owned();
        let find = "import site; print(site.getsitepackages()[0], end='')";
        let packages = PathBuf::from(output(Command::new(&python).args(["-c", find])).1);
        for (path, content) in files {
            let path = packages.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        OwnPython { python, folder }
    }
}

impl Drop for OwnPython {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn agent() -> ureq::Agent {
    static AGENT: OnceLock<ureq::Agent> = OnceLock::new();
    AGENT
        .get_or_init(|| {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .allow_non_standard_methods(true)
                // A server with many connections closes idle ones, and a closed one would fail the next request.
                .max_idle_connections(0)
                .timeout_global(Some(patience(Duration::from_secs(120))))
                .build()
                .into()
        })
        .clone()
}

/// Returns the path of the binary that is tested.
pub fn binary() -> PathBuf {
    let binary = std::env::var_os("WORLD_BINARY");
    binary.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mainbox")), PathBuf::from)
}

/// Returns the interpreter that the tests use: MAINBOX_PYTHON, or the one with the packages of requirements.txt.
pub fn python() -> String {
    let packages = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/python3");
    std::env::var("MAINBOX_PYTHON").unwrap_or_else(|_| {
        String::from(if std::path::Path::new(packages).exists() { packages } else { "python3" })
    })
}

/// Returns a command that runs the binary with these settings on top of the defaults and on a free port. It inherits no
/// setting but MAINBOX_PYTHON.
pub fn mainbox(settings: &[(&str, &str)]) -> Command {
    let mut command = bare_mainbox();
    // A server with less isolation than expected must not start.
    command.env("MAINBOX_FLOOR", declared_tier());
    // A slower machine needs more time for the same script.
    let limit = patience(Duration::from_secs(10)).as_secs().to_string();
    command.env("MAINBOX_TIMEOUT_SECONDS", limit);
    command.env("PORT", "0").envs(settings.iter().copied()).stdin(Stdio::null());
    command
}

/// Returns a command that runs the binary with the interpreter of the tests and no other setting.
fn bare_mainbox() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAINBOX_")) {
        command.env_remove(name);
    }
    // An image has its interpreter where mainbox finds it.
    if python() != "python3" {
        command.env("MAINBOX_PYTHON", python());
    }
    command
}

/// Runs a command. Returns its exit code, standard output and standard error.
pub fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Returns the server with default settings that the tests of a file share; under nextest, all tests.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| shared("default", &[]))
}

/// Returns the shared server without a policy, for hostile scripts.
pub fn hostile_server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        shared("hostile", &[("MAINBOX_POLICY", "off"), ("MAINBOX_TIMEOUT_SECONDS", "20")])
    })
}

fn shared(name: &str, settings: &'static [(&str, &str)]) -> Server {
    match world::run_folder() {
        Some(folder) if std::env::var_os("WORLD_FRONT").is_none() => {
            shared::server(&folder, name, settings)
        }
        _ => start_with_this_process(settings),
    }
}

/// Returns a field of /proc/PID/status, or an empty text when the process is gone.
pub fn status(process: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_default().trim().to_owned()
}

/// Returns a size from /proc/PID/status in KiB.
#[track_caller]
pub fn status_kib(process: i32, field: &str) -> u64 {
    status(process, field).trim_end_matches(" kB").parse().unwrap()
}

/// Returns the scratch roots of a server, whose names contain its pid.
pub fn scratch_roots(server: i32) -> Vec<PathBuf> {
    let prefix = format!("mainbox-{server}-");
    std::fs::read_dir(std::env::temp_dir())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Returns the children of a process; an empty list when the process is gone.
pub fn children(process: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    threads
        .flatten()
        .flat_map(|thread| {
            let list = std::fs::read_to_string(thread.path().join("children"));
            list.unwrap_or_default()
                .split_whitespace()
                .map(|child| child.parse().unwrap())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// Returns the children of a zygote once there are so many and they stay the same: those that are being started, replaced or
/// reaped are not what a test means by workers.
pub fn settled_children(zygote: i32, count: usize) -> Vec<i32> {
    let started = Instant::now();
    let mut before = vec![];
    loop {
        let now = children(zygote);
        if now.len() == count && now == before {
            return now;
        }
        assert!(started.elapsed() < patience(Duration::from_secs(20)), "{now:?}");
        before = now;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Starts a server that the kernel ends with this process, because a static is never dropped. PR_SET_PDEATHSIG refers
/// to the thread that starts the server, so that thread lives as long as the process.
fn start_with_this_process(settings: &'static [(&str, &str)]) -> Server {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut command = mainbox(settings);
        // SAFETY: prctl is async-signal-safe and takes integers only here.
        #[allow(unsafe_code, reason = "the standard library has no way to ask for this")]
        unsafe {
            command.pre_exec(|| {
                // A container that refuses prctl ends with this process.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let _ = sender.send(Server::spawn(&mut command).healthy());
        loop {
            std::thread::park();
        }
    });
    receiver.recv_timeout(patience(START_TIMEOUT * 2)).expect("the server of this file must start")
}

/// Reads everything until the other side closes.
pub fn read_to_end(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// Returns whether a process is a zygote. Other children of the server probe the host.
pub fn is_python(process: i32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    name.starts_with("python")
}

/// Writes a script to a new file. Returns the path.
pub fn script(name: &str, source: &str) -> String {
    let path = std::env::temp_dir().join(format!("mainbox-test-{}-{name}.py", std::process::id()));
    std::fs::write(&path, source).unwrap();
    path.to_string_lossy().into_owned()
}
