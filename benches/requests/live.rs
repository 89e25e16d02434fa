//! Live output, and many inputs in one request.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use crate::server::Server;
use crate::{CONNECTIONS, ROUNDS, TRIVIAL, median};

const INPUTS: usize = 100;
/// Prints the time, and runs on.
const PRINTS: &str = "import time\ndef main():\n    print(time.time())\n    time.sleep(0.05)";
const STREAMS: usize = 100;

/// The time from the first print of a script to the first event at the client, p50.
pub fn first_event(server: &Server) -> Duration {
    let mut client = server.client();
    median((0..STREAMS).map(|_| {
        std::thread::sleep(Duration::from_millis(15));
        let event = client.first_event(PRINTS);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let printed = event.trim_end().parse().unwrap();
        now.saturating_sub(Duration::from_secs_f64(printed))
    }))
}

/// The times of a request with 100 trivial inputs, and of as many requests from [`CONNECTIONS`] callers. The two take turns,
/// so that a busy machine slows both.
pub fn inputs_and_requests(server: &Server) -> (Duration, Duration) {
    let script = TRIVIAL.replace("main()", "main(x)");
    let inputs: Vec<usize> = (0..INPUTS).collect();
    let body = json!({"script": script, "inputs": inputs}).to_string();
    let (mut together, mut alone) = (vec![], vec![]);
    for _ in 0..2 * ROUNDS {
        together.push(server.client().post("application/json", body.as_bytes()));
        alone.push(requests(server, &script));
    }
    (median(together.into_iter()), median(alone.into_iter()))
}

fn requests(server: &Server, script: &str) -> Duration {
    let sent = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = server.client();
                loop {
                    let input = sent.fetch_add(1, Ordering::Relaxed);
                    if input >= INPUTS {
                        break;
                    }
                    let body = json!({"script": script, "input": input}).to_string();
                    client.post("application/json", body.as_bytes());
                }
            });
        }
    });
    started.elapsed()
}
