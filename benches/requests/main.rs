//! `make bench`: latency, throughput, cold start and memory of the release server, next to yardsticks that are measured in
//! the same run. Machines differ, so only the ratios can be compared.
//!
//! `cargo bench --bench requests` measures, prints the table, and writes `docs/benchmarks.md` with its figure. After `--`:
//! `compare` compares with the last stored run and stores nothing; `print WORLD` measures in another environment and
//! prints the run as JSON; `render` writes the document from the stored runs; `cpu [BINARY [RATIO]]` measures the CPU
//! time of a request, and that of another binary in turns; more than the ratio is a failure.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure should stop")]
#![allow(unreachable_pub, reason = "the modules of a benchmark are its own")]

mod cpu;
mod live;
mod peers;
mod report;
mod server;
mod yardstick;

use std::time::{Duration, Instant};

use indoc::indoc;

use report::{Row, Run};
use serde_json::json;
use server::Server;

const WARM_UP: usize = 20;
const ROUNDS: usize = 5;
const REQUESTS: usize = 60;
const CONNECTIONS: usize = 8;
const LOAD: Duration = Duration::from_secs(3);

const TRIVIAL: &str = "def main(): return 1";
const FLOATS: &str = indoc! {r#"
    import random
    def main(): return [random.random() for _ in range(200_000)]
"#};
const FLOATS_IN_PYTHON: &str = "json.dumps([random.random() for _ in range(200_000)])";
const LINES: &str = indoc! {r#"
    def main():
        for number in range(500_000): print(number)
"#};
const LINES_IN_PYTHON: &str = "for number in range(500_000): print(number)";
const NUMPY: &str = indoc! {r#"
    import numpy as np
    def main(): return [np.mean([1, 2, 3, 4, 5]), np.std([1, 2, 3, 4, 5])]
"#};
const PANDAS: &str = indoc! {r#"
    import pandas as pd
    def main(): return int(pd.DataFrame({'a': [1, 2, 3]})['a'].sum())
"#};
const GROUPBY: &str = indoc! {r#"
    import pandas as pd
    def main():
        frame = pd.DataFrame({'key': [n % 100 for n in range(10_000)], 'value': range(10_000)})
        return frame.groupby('key')['value'].sum().to_dict()
"#};

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {
            let mut run = measure("host");
            run.peers = peers::measure();
            print!("{}\n{}", run.table(), run.peer_table());
            run.store();
            report::render();
        }
        ["compare"] => report::compare(&Run::stored("host"), &measure("host")),
        ["print", world] => println!("{}", serde_json::to_string_pretty(&measure(world)).unwrap()),
        ["render"] => report::render(),
        ["cpu"] => drop(cpu::compare(None)),
        ["cpu", base] => drop(cpu::compare(Some(base))),
        ["cpu", base, most] => {
            let (ratio, most) = (cpu::compare(Some(base)), most.parse().unwrap());
            assert!(ratio <= most, "{ratio:.2} x the CPU time of {base} is more than {most} x");
        }
        _ => {
            panic!(
                "expected no argument, `compare`, `print WORLD`, `render` or `cpu [BINARY [RATIO]]`, got {arguments:?}"
            )
        }
    }
}

fn measure(world: &str) -> Run {
    let bare = yardstick::start(&["-I", "-c", "pass"]);
    let pandas = yardstick::start(&["-c", "import pandas"]);
    let groupby = yardstick::groupby_when_warm();
    let [bare_ms, pandas_ms, groupby_ms] = [bare, pandas, groupby].map(milliseconds);
    let mut rows = vec![];
    let server = Server::healthy(&[]);
    let mut latencies = vec![];

    let cases = [
        ("trivial", TRIVIAL, 1.0, "python3 -I -c pass", bare_ms, 1.0 / 14.0),
        ("numpy mean and std", NUMPY, 1.3, "python3 -I -c pass", bare_ms, 1.0 / 11.0),
        ("pandas sum of 3 rows", PANDAS, 2.0, "python3 -c 'import pandas'", pandas_ms, 1.0 / 280.0),
        (
            "pandas groupby of 10,000 rows",
            GROUPBY,
            2.7 * groupby_ms,
            "the same in a warm interpreter",
            groupby_ms,
            f64::INFINITY,
        ),
    ];
    for (name, script, target_ms, yardstick, yardstick_ms, ratio) in cases {
        let times = server_latencies(&server, script);
        let [p50, p99] = [50, 99].map(|percent| times[times.len() * percent / 100]);
        let met = p50 <= target_ms && p50 / yardstick_ms <= ratio;
        rows.push(
            Row::new(&format!("{name}, p50"), p50, "ms", yardstick, yardstick_ms)
                .target(&target(target_ms, "ms", ratio), met),
        );
        rows.push(
            Row::new(&format!("{name}, p99"), p99, "ms", "its own p50", p50)
                .target("at most 4 x its p50", p99 <= 4.0 * p50),
        );
        latencies.push((name.to_owned(), times));
    }
    let (tool_ms, execute_ms) = tool_and_execute(&server);
    rows.push(
        Row::new(
            "trivial as a call of MCP, p50",
            tool_ms,
            "ms",
            "the same at /execute",
            execute_ms,
        )
        .target("at most 0.15 ms more", tool_ms <= execute_ms + 0.15),
    );
    let event_ms = milliseconds(live::first_event(&server));
    rows.push(
        Row::new(
            "print to first event of a live response, p50",
            event_ms,
            "ms",
            "python3 -I -c pass",
            bare_ms,
        )
        .target("at most 5 ms", event_ms <= 5.0),
    );
    let (together, alone) = live::inputs_and_requests(&server);
    let (together_ms, alone_ms) = (milliseconds(together), milliseconds(alone));
    rows.push(
        Row::new(
            "100 trivial inputs in one request",
            together_ms,
            "ms",
            "100 requests, 8 clients",
            alone_ms,
        )
        .target("at most 0.8 x", together_ms <= 0.8 * alone_ms),
    );
    for (name, script, module, ratio) in
        [("trivial", TRIVIAL, "sys", 0.15), ("pandas", PANDAS, "pandas", 0.45)]
    {
        let forks = yardstick::forks_a_second(module);
        let rate = throughput(&server, script);
        rows.push(
            Row::new(
                &format!("{name}, requests per second, {CONNECTIONS} clients"),
                rate,
                "/s",
                "a loop that forks, exits and reaps",
                forks,
            )
            .target(&format!("at least {ratio} x"), rate >= ratio * forks),
        );
    }
    let memory = yardstick::memory_with_pandas() as f64 / 1e6;
    let idle = server.memory_bytes() as f64 / 1e6;
    drop(server);
    // Unknown under gVisor, and in a container without the capability to read the memory of workers.
    if idle > 0.0 {
        rows.push(
            Row::new("idle memory, all processes", idle, "MB", "one python3 with pandas", memory)
                .target("at most 140 MB", idle <= 140.0),
        );
        let each = memory_of_each_worker();
        rows.push(
            Row::new(
                "each additional pandas worker",
                each,
                "MB",
                "one python3 with pandas",
                memory,
            )
            .target("at most 12 MB", each <= 12.0),
        );
    }
    let plots = milliseconds(yardstick::start(&["-c", "import pandas, matplotlib.pyplot"]));
    let both = "python3 -c 'import pandas, matplotlib.pyplot'";
    let without_plots: &[_] = &[("MAINBOX_PRELOAD", "numpy,pandas")];
    let default: &[_] = &[];
    for (name, script, settings, yardstick, yardstick_ms, ratio) in [
        ("trivial response", TRIVIAL, default, "python3 -I -c pass", bare_ms, 3.5),
        ("pandas response", PANDAS, default, both, plots, 0.7),
        (
            "pandas response, MAINBOX_PRELOAD=numpy,pandas",
            PANDAS,
            without_plots,
            "python3 -c 'import pandas'",
            pandas_ms,
            0.7,
        ),
    ] {
        let first = milliseconds(median((0..ROUNDS).map(|_| {
            let server = Server::start(settings);
            server.client().run(script);
            server.age()
        })));
        rows.push(
            Row::new(&format!("start to first {name}"), first, "ms", yardstick, yardstick_ms)
                .target(&format!("at most {ratio} x"), first <= ratio * yardstick_ms),
        );
    }
    let pipe = yardstick::pipe_mb_a_second();
    let server = Server::healthy(&[]);
    for megabytes in [1, 4] {
        let bytes = megabytes * 1_000_000;
        let result = format!("def main(): return 'x' * {bytes}");
        let input = json!({"script": "def main(x): return len(x)", "input": "x".repeat(bytes)});
        let input = input.to_string();
        let mut client = server.client();
        let result = median((0..4 * ROUNDS).map(|_| client.run(&result)));
        let input =
            median((0..4 * ROUNDS).map(|_| client.post("application/json", input.as_bytes())));
        for (name, took) in [("result", result), ("input", input)] {
            let rate = megabytes as f64 / took.as_secs_f64();
            let name = format!("{name} of {megabytes} MB");
            let row = Row::new(&name, rate, "MB/s", "bytes through a pipe", pipe);
            rows.push(match name.as_str() {
                "result of 4 MB" => row.target("at least 600 MB/s", rate >= 600.0),
                _ => row,
            });
        }
    }
    for (name, script, yardstick, statement) in [
        ("result of 200,000 floats", FLOATS, "json.dumps() of them", FLOATS_IN_PYTHON),
        ("500,000 printed lines", LINES, "the same in python3", LINES_IN_PYTHON),
    ] {
        let mut client = server.client();
        let took = milliseconds(median((0..ROUNDS).map(|_| client.run(script))));
        rows.push(Row::new(name, took, "ms", yardstick, yardstick::milliseconds_of(statement)));
    }
    let (world, isolation) = (world.to_owned(), server.isolation());
    Run { world, isolation, cpus: cpus(), rows, latencies, peers: vec![] }
}

fn target(milliseconds: f64, unit: &str, ratio: f64) -> String {
    if ratio < 1.0 {
        format!("at most {milliseconds:.1} {unit} and 1/{:.0}", 1.0 / ratio)
    } else {
        format!("at most {milliseconds:.1} {unit}")
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Latencies in milliseconds, sorted. A pause precedes every request, as with real callers.
fn server_latencies(server: &Server, script: &str) -> Vec<f64> {
    let mut client = server.client();
    for _ in 0..WARM_UP {
        client.run(script);
    }
    let mut times: Vec<f64> = (0..ROUNDS * REQUESTS)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(15));
            milliseconds(client.run(script))
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The median latencies of the trivial script through MCP and at `/execute`, milliseconds. The two take turns, so that a
/// busy machine slows both.
fn tool_and_execute(server: &Server) -> (f64, f64) {
    let (mut tool, mut execute) = (vec![], vec![]);
    let mut client = server.client();
    for _ in 0..ROUNDS * REQUESTS {
        for (times, is_tool) in [(&mut tool, true), (&mut execute, false)] {
            std::thread::sleep(Duration::from_millis(15));
            times.push(if is_tool { client.call_tool(TRIVIAL) } else { client.run(TRIVIAL) });
        }
    }
    let [tool, execute] = [tool, execute].map(|times| milliseconds(median(times.into_iter())));
    (tool, execute)
}

/// Requests per second with [`CONNECTIONS`] callers that never pause.
fn throughput(server: &Server, script: &str) -> f64 {
    let started = Instant::now();
    let answered: usize = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = server.client();
                    let mut answered = 0;
                    while started.elapsed() < LOAD {
                        client.run(script);
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

/// The growth of all processes together for each further pandas script that runs at the same time, MB.
fn memory_of_each_worker() -> f64 {
    let server = Server::healthy(&[("MAINBOX_CONCURRENCY", "8")]);
    let script = indoc! {r#"
        import time
        import pandas as pd
        def main():
            frame = pd.DataFrame({'a': range(1000)})
            time.sleep(1.5)
            return int(frame.a.sum())
    "#};
    let with = |count: usize| {
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| server.client().run(script));
            }
            std::thread::sleep(Duration::from_secs(1));
            server.memory_bytes()
        })
    };
    (with(8).saturating_sub(with(2))) as f64 / 6.0 / 1e6
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times[times.len() / 2]
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
