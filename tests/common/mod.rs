//! Starts the real binary and talks to it as a user would.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes it whole and uses its own part"
)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a server may take until it is healthy, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A server, ended with this value.
pub struct Server {
    pub url: String,
    process: Option<Child>,
    log: Arc<Mutex<String>>,
}

/// An answer, whole.
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

    /// Status, kind and error of a failure.
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
    /// A server with the given settings on top of the defaults, healthy.
    pub fn start(settings: &[(&str, &str)]) -> Server {
        Server::start_unready(settings).healthy()
    }

    fn healthy(self) -> Server {
        let started = Instant::now();
        while self.get("/health").status != 200 {
            assert!(started.elapsed() < START_TIMEOUT, "not healthy: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    /// A server that listens.
    pub fn start_unready(settings: &[(&str, &str)]) -> Server {
        Server::spawn(&mut mainbox(settings))
    }

    fn spawn(command: &mut Command) -> Server {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, receiver) = mpsc::channel();
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                if let Some((_, address)) = line.split_once("address=0.0.0.0:") {
                    let _ = sender.send(address.trim().to_owned());
                }
                *writer.lock().unwrap() += &(line + "\n");
            }
        });
        let port = receiver
            .recv_timeout(START_TIMEOUT)
            .unwrap_or_else(|_| panic!("the server does not serve: {}", log.lock().unwrap()));
        Server { url: format!("http://127.0.0.1:{port}"), process: Some(process), log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> i32 {
        self.process.as_ref().unwrap().id() as i32
    }

    pub fn wait(&mut self) -> Option<i32> {
        self.process.as_mut().unwrap().wait().unwrap().code()
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// A bare connection, with a limit on how long anything may take.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
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
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = agent()
            .run(request.body(body).unwrap())
            .unwrap_or_else(|error| panic!("{method} {path}: {error}; log: {}", self.log()));
        let (parts, mut body) = response.into_parts();
        let body = body.with_config().limit(64 << 20).read_to_string().unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
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
    }
}

fn agent() -> ureq::Agent {
    static AGENT: OnceLock<ureq::Agent> = OnceLock::new();
    AGENT
        .get_or_init(|| {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .allow_non_standard_methods(true)
                .timeout_global(Some(Duration::from_secs(120)))
                .build()
                .into()
        })
        .clone()
}

/// The binary with settings on top of the defaults and a port of its own; settings of the surroundings do not count.
pub fn mainbox(settings: &[(&str, &str)]) -> Command {
    let binary = std::env::var("WORLD_BINARY");
    let mut command = Command::new(binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_mainbox")));
    for (name, _) in std::env::vars() {
        if name.starts_with("MAINBOX_") && name != "MAINBOX_PYTHON" {
            command.env_remove(name);
        }
    }
    // Never below what the world declares.
    command.env("MAINBOX_FLOOR", declared_tier());
    command.env("PORT", "0").envs(settings.iter().copied()).stdin(Stdio::null());
    command
}

/// What a command printed and how it ended.
pub fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The server with default settings that the tests of a file share.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| start_with_this_process(&[]))
}

/// One without a policy, for scripts that mean harm.
pub fn hostile_server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        start_with_this_process(&[("MAINBOX_POLICY", "off"), ("MAINBOX_TIMEOUT_SECONDS", "20")])
    })
}

/// The tier that the world which runs the suite declares; on the host, as root, the strongest.
pub fn declared_tier() -> String {
    std::env::var("WORLD_TIER").unwrap_or(String::from("namespaces"))
}

/// Whether this world is declared to lack something.
pub fn lacks(what: &str) -> bool {
    std::env::var("WORLD_LACKS").unwrap_or_default().split(',').any(|lack| lack == what)
}

/// A static is never dropped, so the kernel is asked to end the server: when the thread that started it ends, which
/// therefore must live as long as the process.
fn start_with_this_process(settings: &'static [(&str, &str)]) -> Server {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut command = mainbox(settings);
        // SAFETY: prctl is async-signal-safe and takes integers only here.
        #[allow(unsafe_code, reason = "the standard library has no way to ask for this")]
        unsafe {
            command.pre_exec(|| {
                // Where prctl is refused, we are in a container, which ends with us.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let _ = sender.send(Server::spawn(&mut command).healthy());
        loop {
            std::thread::park();
        }
    });
    receiver.recv_timeout(START_TIMEOUT * 2).expect("the server of this file starts")
}

/// Reads everything until the other side closes.
pub fn read_to_end(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}
