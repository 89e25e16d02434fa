//! One server handles many requests, a third of them hostile or broken. Each response must belong to its request, and
//! nothing may be left at the end. `make soak` runs it with SOAK requests (default 10,000) in at most SOAK_SECONDS
//! (default 1,800).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::offender::Offender;
use common::{OwnPython, Server, children, scratch_roots, status, status_kib};
use indoc::indoc;
use serde_json::{Value, json};

const CLIENTS: usize = 8;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The resources that a server uses.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    processes: usize,
    zombies: usize,
    scratch: usize,
    ipc: usize,
}

impl Holdings {
    fn of(server: &Server) -> Holdings {
        let zygotes = children(server.pid());
        let below = zygotes.iter().flat_map(|zygote| children(*zygote));
        let all: Vec<i32> = zygotes.iter().copied().chain(below).collect();
        let is_zombie = |process: &&i32| status(**process, "State").starts_with('Z');
        let entries = scratch_roots(server.pid()).iter().map(|root| entries_below(root)).sum();
        let ipc = ["shm", "sem", "msg"].map(|kind| {
            std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap().lines().count()
        });
        Holdings {
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count(),
            processes: all.len(),
            zombies: all.iter().filter(is_zombie).count(),
            scratch: entries,
            ipc: ipc.iter().sum(),
        }
    }

    /// Waits until the spares are ready and the used workers are gone, or for 20 seconds.
    fn settled(server: &Server, like: Option<&Holdings>) -> Holdings {
        let started = Instant::now();
        loop {
            let now = Holdings::of(server);
            std::thread::sleep(Duration::from_millis(300));
            let same = now == Holdings::of(server) && now.zombies == 0;
            if (same && like.is_none_or(|like| *like == now))
                || started.elapsed() > Duration::from_secs(20)
            {
                return now;
            }
        }
    }
}

fn entries_below(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| 1 + entries_below(&entry.path())).sum()
}

/// Sends request number `number`. Returns its kind, and what is wrong with its response, if anything.
fn send(server: &Server, offenders: &[Offender], number: u64) -> (&'static str, Option<String>) {
    if !number.is_multiple_of(3) {
        return ("good", good(server, number));
    }
    let hostile = number / 3;
    let refused = |script: &str, limits: Value, kind: &str| {
        let answer = server.execute(&json!({"script": script, "limits": limits}));
        (answer.failure().1 != kind).then(|| format!("not {kind}: {}", answer.body))
    };
    match hostile % 10 {
        0 => {
            let offender = &offenders[(hostile / 10) as usize % offenders.len()];
            ("offender", offence(server, offender))
        }
        1 => ("syntax error", refused("def main(:", json!({}), "syntax_error")),
        2 => ("huge output", flood(server, number)),
        3 => {
            let spin = "def main():\n    while True: pass";
            ("timeout", refused(spin, json!({"timeout_seconds": 0.1}), "timeout"))
        }
        4 => ("hang-up", hang_up(server)),
        5 => {
            let garbage = "import os\ndef main(): os.write(3, b'\\xff' * 99); return 1";
            ("hostile frame", refused(garbage, json!({}), "crashed"))
        }
        6 => {
            let bomb = "def main(): return len([bytes(1 << 20) for n in range(10_000)])";
            ("memory", refused(bomb, json!({"memory_mb": 32}), "memory_limit"))
        }
        7 => ("litter", refused(LITTER, json!({}), "exit")),
        8 => {
            let answer = server.run("import slow\ndef main(): return slow.__name__");
            let right = r#"{"result":"slow","stdout":""}"#;
            ("slow import", (answer.body != right).then_some(answer.body))
        }
        _ => ("exit", refused("import os\ndef main(): os._exit(3)", json!({}), "exit")),
    }
}

/// Leaves as many files as it can make in a tenth of a second, in and outside its directory.
const LITTER: &str = indoc! {r#"
    import os, time
    def main():
        end, number = time.monotonic() + 0.1, 0
        while time.monotonic() < end:
            number += 1
            for place in ('.', '/tmp', '/dev/shm'):
                try:
                    os.mkdir(f'{place}/litter-{os.getpid()}-{number}')
                except OSError:
                    pass
        os._exit(0)
"#};

fn good(server: &Server, number: u64) -> Option<String> {
    let script = indoc! {r#"
        def main(x):
            print('request', x['number'])
            open('file', 'x').write('mine')
            return {'twice': 2 * x['number'], 'text': x['text'][::-1]}
    "#};
    let input = json!({"number": number, "text": format!("{number} äöü")});
    let answer = server.execute(&json!({"script": script, "input": input}));
    let text: String = format!("{number} äöü").chars().rev().collect();
    let right = json!({"result": {"twice": 2 * number, "text": text}, "stdout": format!("request {number}\n")});
    (answer.status != 200 || answer.json() != right).then_some(answer.body)
}

fn offence(server: &Server, offender: &Offender) -> Option<String> {
    let answer = server.run(&offender.script(server.port()));
    let killed = answer.failure().2 == "The script crashed: SIGSYS";
    let offence = answer.json()["result"]["offence"].as_str().unwrap_or_default().to_owned();
    (!killed && !offence.starts_with("refused: "))
        .then(|| format!("{}: {}", offender.name, answer.body))
}

fn flood(server: &Server, number: u64) -> Option<String> {
    let script = indoc! {r#"
        def main(x):
            for _ in range(200):
                print('y' * 10_000)
            return x
    "#};
    let answer = server.execute(&json!({"script": script, "input": number}));
    let body = answer.json();
    let right = body["result"] == number
        && body["truncated"] == json!(["stdout"])
        && body["stdout"].as_str().map(str::len) == Some(1 << 20);
    (!right).then(|| answer.body[..answer.body.len().min(200)].to_owned())
}

/// Disconnects before the response.
fn hang_up(server: &Server) -> Option<String> {
    let _stream = server.begin("", &json!({"script": "import time\ndef main(): time.sleep(5)"}));
    std::thread::sleep(Duration::from_millis(10));
    None
}

#[test]
#[ignore = "takes minutes: make soak"]
fn every_response_is_right_and_nothing_is_left() {
    let (requests, seconds) = (setting("SOAK", 10_000), setting("SOAK_SECONDS", 1_800));
    let offenders = Offender::all();
    // With a policy, most offenders would not get as far as the kernel.
    let slow = OwnPython::slow(5);
    let server = Server::start_unready(&[
        ("MAINBOX_PRELOAD", "slow"),
        ("MAINBOX_PYTHON", slow.python.as_str()),
        ("MAINBOX_CONCURRENCY", "4"),
        ("MAINBOX_POLICY", "off"),
    ]);
    // Ten lines a second, of more than a hundred.
    server.read_log_slowly(Duration::from_millis(100));
    let round = |from: u64, until: u64, end: Instant| {
        let next = AtomicU64::new(from);
        let wrong = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while Instant::now() < end {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= until {
                            break;
                        }
                        let (kind, fault) = send(&server, &offenders, number);
                        if let Some(fault) = fault {
                            wrong.lock().unwrap().push(format!("{number}, {kind}: {fault}"));
                        }
                    }
                });
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "{} wrong, such as {}", wrong.len(), wrong[0]);
        next.load(Ordering::Relaxed).min(until)
    };
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds);
    // Afterwards, connections, caches, arenas and the queue of the log, 1,024 lines, no longer grow.
    let first = (requests / 10).max(2_000);
    round(0, first, end);
    server.wait_until_healthy();
    let before = Holdings::settled(&server, None);
    let resident_before = status_kib(server.pid(), "VmRSS");
    let done = round(first, requests, end);
    let took = started.elapsed();
    let after = Holdings::settled(&server, Some(&before));
    let resident_after = status_kib(server.pid(), "VmRSS");
    println!(
        "{done} requests in {:.0} s, {:.0} a second; {before:?}, then {after:?}; supervisor {resident_before} KiB, then {resident_after} KiB",
        took.as_secs_f64(),
        done as f64 / took.as_secs_f64()
    );
    assert_eq!(after, before);
    let lost = server.get("/metrics").body;
    let lost = lost.lines().find_map(|line| line.strip_prefix("mainbox_log_lines_lost_total "));
    let lost: u64 = lost.unwrap().parse().unwrap();
    println!("{lost} lines of the log were lost to its slow reader");
    assert!(lost > 0, "the reader of the log was not slow");
    // The heap varies by a megabyte with how requests overlap. 2 MiB is 200 bytes for each of 10,000 requests.
    assert!(resident_after < resident_before + 2048, "the supervisor grows");
    assert!(done >= requests / 2, "only {done} of {requests} in {seconds} s");
}

#[test]
#[ignore = "takes half a minute: make soak"]
fn timeouts_are_exact() {
    const LIMIT: Duration = Duration::from_millis(200);
    const EACH: usize = 125;
    let server = Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_CONCURRENCY", "4")]);
    let scripts = ["def main():\n    while True: pass", "import time\ndef main(): time.sleep(9)"];
    let body = |script: &str| json!({"script": script, "limits": {"timeout_seconds": 0.2}});
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut over, starved) = std::thread::scope(|scope| {
        // How late the machine wakes a thread that only sleeps.
        let starved = scope.spawn(|| {
            let mut worst = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(Duration::from_millis(20));
                worst = worst.max(began.elapsed().saturating_sub(Duration::from_millis(20)));
            }
            worst
        });
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let (server, body) = (&server, body(scripts[caller % 2]));
                scope.spawn(move || {
                    (0..EACH)
                        .map(|_| {
                            let answer = server.execute(&body);
                            assert_eq!(answer.failure().1, "timeout", "{}", answer.body);
                            let timing = answer.header("server-timing").to_owned();
                            let run = timing.split_once("run;dur=").unwrap().1;
                            let run = run.split(',').next().unwrap().parse::<f64>().unwrap();
                            Duration::from_secs_f64(run / 1e3).saturating_sub(LIMIT)
                        })
                        .collect::<Vec<Duration>>()
                })
            })
            .collect();
        let over: Vec<Duration> =
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        (over, starved.join().unwrap())
    });
    over.sort();
    let at = |percent: usize| over[(over.len() - 1) * percent / 100];
    println!(
        "{} timeouts of 200 ms: {:?} over at the median, {:?} at p99, {:?} at most; a sleeping thread was {starved:?} late at most",
        over.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(at(100) < Duration::from_millis(250) + starved, "a run outlived its limit");
}
