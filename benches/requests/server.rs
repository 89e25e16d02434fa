//! The release server, and a client that keeps its connection open.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The server, stopped when this value is dropped.
pub struct Server {
    process: Child,
    started: Instant,
    address: String,
}

impl Server {
    /// Starts a server with these settings and waits until it listens.
    pub fn start(settings: &[(&str, &str)]) -> Server {
        let binary = std::env::var("WORLD_BINARY");
        Server::start_of(binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_mainbox")), settings)
    }

    fn start_of(binary: &str, settings: &[(&str, &str)]) -> Server {
        let started = Instant::now();
        let mut process = Command::new(binary)
            .env("PORT", "0")
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().unwrap().unwrap();
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = line["address"].as_str() {
                // The address is `[::]` or `0.0.0.0`, and the port.
                break format!("127.0.0.1:{}", address.rsplit(':').next().unwrap());
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Server { process, started, address }
    }

    /// Starts a server and waits until it is healthy.
    pub fn healthy(settings: &[(&str, &str)]) -> Server {
        Server::start(settings).until_healthy()
    }

    /// The same with another binary.
    pub fn healthy_of(binary: &str, settings: &[(&str, &str)]) -> Server {
        Server::start_of(binary, settings).until_healthy()
    }

    fn until_healthy(self) -> Server {
        let health = b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        loop {
            let mut stream = TcpStream::connect(&self.address).unwrap();
            stream.write_all(health).unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).unwrap();
            if response.contains("\"healthy\"") {
                return self;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Time since the process was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn client(&self) -> Client {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, response: vec![0; 1 << 20] }
    }

    /// The isolation tier that the server reports.
    pub fn isolation(&self) -> String {
        let mut client = self.client();
        client.stream.write_all(b"GET /about HTTP/1.1\r\nhost: bench\r\n\r\n").unwrap();
        let about: Value = serde_json::from_slice(&client.read().1).unwrap();
        about["isolation"]["tier"].as_str().unwrap().to_owned()
    }

    /// Proportional set size of the process and its descendants, bytes.
    pub fn memory_bytes(&self) -> u64 {
        pss_of_tree(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let process = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// Proportional set size of a process and its descendants, bytes; 0 if the kernel does not report it.
pub fn pss_of_tree(process: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
    let own = rollup.ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    own.unwrap_or(0) * 1024 + children(process).into_iter().map(pss_of_tree).sum::<u64>()
}

/// The children of a process.
pub fn children(process: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    let children = threads.flatten().flat_map(|thread| {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        list.split_whitespace().map(|child| child.parse().unwrap()).collect::<Vec<u32>>()
    });
    children.collect()
}

/// A client with a connection that is kept open.
pub struct Client {
    stream: TcpStream,
    response: Vec<u8>,
}

impl Client {
    /// Sends a script and reads the response, which must be a 200. Returns the latency.
    pub fn run(&mut self, script: &str) -> Duration {
        self.post("text/x-python", script.as_bytes())
    }

    /// Sends a body and reads the response, which must be a 200. Returns the latency.
    pub fn post(&mut self, media: &str, body: &[u8]) -> Duration {
        self.send("/execute", &format!("content-type: {media}\r\n"), body)
    }

    /// Has the tool of MCP run a script, as a client of the newest revision does. Returns the latency.
    pub fn call_tool(&mut self, script: &str) -> Duration {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let call = json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "run_python", "arguments": {"script": script}, "_meta": meta},
        });
        let headers = "content-type: application/json\r\nmcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: run_python\r\n";
        self.send("/mcp", headers, call.to_string().as_bytes())
    }

    /// Sends a script for a live response on a new connection. Returns the text of the first event as soon as it comes.
    pub fn first_event(&mut self, script: &str) -> String {
        let head = format!(
            "POST /execute HTTP/1.1\r\nhost: bench\r\naccept: application/x-ndjson\r\nconnection: close\r\ncontent-type: text/x-python\r\ncontent-length: {}\r\n\r\n",
            script.len()
        );
        let mut stream = TcpStream::connect(self.stream.peer_addr().unwrap()).unwrap();
        stream.write_all(&[head.as_bytes(), script.as_bytes()].concat()).unwrap();
        let mut lines = BufReader::new(stream).lines();
        let event = lines.find_map(|line| {
            let event: Value = serde_json::from_str(&line.unwrap()).ok()?;
            Some(event["text"].as_str()?.to_owned())
        });
        event.unwrap()
    }

    fn send(&mut self, path: &str, headers: &str, body: &[u8]) -> Duration {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        let started = Instant::now();
        self.stream.write_all(&request).unwrap();
        let (head, body) = self.read();
        let took = started.elapsed();
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}{shown}");
        took
    }

    fn read(&mut self) -> (String, Vec<u8>) {
        let mut whole = Vec::new();
        loop {
            let length = self.stream.read(&mut self.response).unwrap();
            assert!(length > 0, "the server closed the connection");
            whole.extend_from_slice(&self.response[..length]);
            let Some(end) = whole.windows(4).position(|window| window == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8(whole[..end + 4].to_vec()).unwrap();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            whole.reserve(length);
            while whole.len() < end + 4 + length {
                let read = self.stream.read(&mut self.response).unwrap();
                whole.extend_from_slice(&self.response[..read]);
            }
            return (head, whole.split_off(end + 4));
        }
    }
}
