//! The yardsticks: the same work without mainbox, measured in the same run.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use indoc::{formatdoc, indoc};

use super::server::pss_of_tree;
use super::{GROUPBY, median};

const STARTS: usize = 10;

/// The interpreter that the server uses.
pub fn python() -> Command {
    Command::new(std::env::var("MAINBOX_PYTHON").unwrap_or(String::from("python3")))
}

/// The time that Python takes to start and exit with these arguments.
pub fn start(arguments: &[&str]) -> Duration {
    median((0..STARTS).map(|_| {
        let started = Instant::now();
        assert!(python().args(arguments).status().unwrap().success());
        started.elapsed()
    }))
}

/// The time of the groupby in an interpreter that has run it before.
pub fn groupby_when_warm() -> Duration {
    let script = formatdoc! {r#"
        {GROUPBY}
        import statistics, time
        times = []
        for _ in range(60):
            began = time.perf_counter()
            main()
            times.append(time.perf_counter() - began)
        print(statistics.median(times[10:]))
    "#};
    let output = python().args(["-c", &script]).output().unwrap();
    let seconds = String::from_utf8(output.stdout).unwrap();
    Duration::from_secs_f64(seconds.trim().parse().unwrap())
}

/// Processes per second that a process with `module` imported can fork and reap, on two cores. A service that forks a
/// process for each request cannot be faster.
pub fn forks_a_second(module: &str) -> f64 {
    let script = formatdoc! {r#"
        import gc, os, time
        import {module}
        gc.freeze(); gc.disable()
        count, end = 0, time.perf_counter() + 2
        while time.perf_counter() < end:
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            count += 1
        print(count / 2)
    "#};
    let processes: Vec<_> = (0..2)
        .map(|_| python().args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let rates = processes.into_iter().map(|process| {
        let output = process.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<f64>().unwrap()
    });
    rates.sum()
}

/// How long a statement takes in an interpreter, milliseconds. Its output goes to a pipe.
pub fn milliseconds_of(statement: &str) -> f64 {
    let script = formatdoc! {r#"
        import json, random, sys, time
        began = time.perf_counter()
        {statement}
        sys.stdout.flush()
        print((time.perf_counter() - began) * 1000, file=sys.stderr)
    "#};
    let output = python().args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stderr).unwrap().trim().parse().unwrap()
}

/// Proportional set size of one interpreter that has imported pandas, bytes.
pub fn memory_with_pandas() -> u64 {
    let mut process = python()
        .args([
            "-c",
            indoc! {r#"
                import pandas
                print(flush=True)
                input()
            "#},
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let bytes = pss_of_tree(process.id());
    process.stdin.take().unwrap().write_all(b"\n").unwrap();
    process.wait().unwrap();
    bytes
}

/// Throughput of a pipe between two threads, MB/s.
pub fn pipe_mb_a_second() -> f64 {
    const BYTES: usize = 256 << 20;
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let chunk = vec![0; 64 << 10];
            (0..BYTES / chunk.len()).for_each(|_| writer.write_all(&chunk).unwrap());
        });
        let mut chunk = vec![0; 64 << 10];
        while reader.read(&mut chunk).unwrap() > 0 {}
    });
    BYTES as f64 / 1e6 / started.elapsed().as_secs_f64()
}
