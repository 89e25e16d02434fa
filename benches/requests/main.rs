//! `make bench`: latency and throughput of the real release server, beside yardsticks measured in the same run.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure has nothing to say")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WARM_UP: usize = 20;
const ROUNDS: usize = 5;
const REQUESTS: usize = 60;
const CONNECTIONS: usize = 8;
const LOAD: Duration = Duration::from_secs(3);

/// What is asked of the server, and the yardstick that it is held against.
struct Case {
    name: &'static str,
    script: &'static str,
    yardstick: &'static str,
}

const BARE: &str = "python3 -I -c pass";
const PANDAS: &str = "python3 -c 'import pandas'";

const CASES: [Case; 3] = [
    Case { name: "trivial", script: "def main(): return 1", yardstick: BARE },
    Case {
        name: "numpy",
        script: "import numpy as np\ndef main(): return [np.mean([1, 2, 3, 4, 5]), np.std([1, 2, 3, 4, 5])]",
        yardstick: PANDAS,
    },
    Case {
        name: "pandas",
        script: "import pandas as pd\ndef main(): return int(pd.DataFrame({'a': [1, 2, 3]})['a'].sum())",
        yardstick: PANDAS,
    },
];

fn main() {
    let bare = median(starts(&["-I", "-c", "pass"]));
    let pandas = median(starts(&["-c", "import pandas"]));
    let server = Server::start();
    println!("yardsticks: {BARE} {bare:.1?}, {PANDAS} {pandas:.1?}\n");
    println!("| script | p50 | p99 | beside its yardstick | requests/s at {CONNECTIONS} |");
    println!("|---|---|---|---|---|");
    for case in CASES {
        let mut times = server.latencies(case.script);
        times.sort();
        let p50 = times[times.len() / 2];
        let p99 = times[times.len() * 99 / 100];
        let yardstick = if case.yardstick == BARE { bare } else { pandas };
        println!(
            "| {} | {p50:.2?} | {p99:.2?} | 1/{:.0} of {} | {:.0} |",
            case.name,
            yardstick.as_secs_f64() / p50.as_secs_f64(),
            case.yardstick,
            server.throughput(case.script)
        );
    }
}

/// How long Python takes to start and end with these arguments, a few times.
fn starts(arguments: &[&str]) -> Vec<Duration> {
    let python = std::env::var("MAINBOX_PYTHON").unwrap_or(String::from(".venv/bin/python3"));
    (0..2 * ROUNDS)
        .map(|_| {
            let started = Instant::now();
            assert!(Command::new(&python).args(arguments).status().unwrap().success());
            started.elapsed()
        })
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The server, ended with this value.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Server {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mainbox"))
            .env("PORT", "0")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, port)) = line.split_once("address=0.0.0.0:") {
                break port.trim().to_owned();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Server { process, address: format!("127.0.0.1:{port}") }
    }

    /// Each request waits for a moment before it is sent, as callers do: the spare has been forked by then.
    fn latencies(&self, script: &str) -> Vec<Duration> {
        let mut client = Client::connect(&self.address, script);
        for _ in 0..WARM_UP {
            client.request();
        }
        (0..ROUNDS * REQUESTS)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(15));
                client.request()
            })
            .collect()
    }

    /// Requests answered in a second, with so many callers that wait for nothing.
    fn throughput(&self, script: &str) -> f64 {
        let started = Instant::now();
        let answered: usize = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = Client::connect(&self.address, script);
                        let mut answered = 0;
                        while started.elapsed() < LOAD {
                            client.request();
                            answered += 1;
                        }
                        answered
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).sum()
        });
        answered as f64 / started.elapsed().as_secs_f64()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let process = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// A connection that is kept alive and always sends the same request.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    fn connect(address: &str, script: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let head = "POST /execute HTTP/1.1\r\nhost: bench\r\ncontent-type: text/x-python\r\n";
        let request =
            format!("{head}content-length: {}\r\n\r\n{script}", script.len()).into_bytes();
        Client { stream, request, answer: vec![0; 4096] }
    }

    /// Sends the request and reads its answer, which is short and must be a 200.
    fn request(&mut self) -> Duration {
        let started = Instant::now();
        self.stream.write_all(&self.request).unwrap();
        let mut length = 0;
        while !self.answer[..length].ends_with(b"}") {
            length += self.stream.read(&mut self.answer[length..]).unwrap();
        }
        let took = started.elapsed();
        let answer = String::from_utf8_lossy(&self.answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        took
    }
}
