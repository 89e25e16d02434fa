//! CPU time of a request: `make bench-cpu BASE=other/mainbox`. It tells changes apart that wall time on a shared machine
//! cannot, since it does not count what others do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::server::Server;
use crate::{CONNECTIONS, PANDAS, TRIVIAL};

/// How often the binaries take turns, and for how long each.
const TURNS: usize = 9;
const TURN: Duration = Duration::from_secs(1);

/// Measures this binary and, if given, another one, in turns. Prints the medians. Returns the largest ratio, which is 1
/// without another binary.
pub fn compare(base: Option<&str>) -> f64 {
    let mut largest: f64 = 1.0;
    let ours = Server::healthy(&[]);
    let base = base.map(|binary| Server::healthy_of(binary, &[]));
    for (name, script) in [("trivial", TRIVIAL), ("pandas", PANDAS)] {
        let (mut here, mut there) = (vec![], vec![]);
        for _ in 0..TURNS {
            here.push(milliseconds_a_request(&ours, script));
            there.extend(base.as_ref().map(|base| milliseconds_a_request(base, script)));
        }
        let here = median(here);
        print!("{name}: {here:.2} ms of CPU a request");
        if !there.is_empty() {
            let there = median(there);
            print!(", base {there:.2} ms, ratio {:.2}", here / there);
            largest = largest.max(here / there);
        }
        println!();
    }
    largest
}

fn milliseconds_a_request(server: &Server, script: &str) -> f64 {
    let before = times(server.pid());
    let answered = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = server.client();
                while started.elapsed() < TURN {
                    client.run(script);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let after = times(server.pid());
    // Workers come and go; what remains is the supervisor and the zygotes.
    let spent: f64 =
        after.iter().filter_map(|(process, time)| Some(time - before.get(process)?)).sum();
    spent / answered.into_inner() as f64
}

/// The CPU time of a process and its descendants, each with that of its children that it has reaped, milliseconds.
fn times(process: u32) -> BTreeMap<u32, f64> {
    let mut times = BTreeMap::from([(process, own(process) + reaped(process))]);
    for child in crate::server::children(process) {
        times.extend(self::times(child));
    }
    times
}

fn own(process: u32) -> f64 {
    let threads =
        std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let times = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e6
}

fn reaped(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // cutime and cstime, in ticks of 10 ms.
    let ticks =
        |field: usize| fields.get(field).and_then(|ticks| ticks.parse().ok()).unwrap_or(0.0);
    (ticks(13) + ticks(14)) * 10.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
