//! The metrics, and the dashboard that shows them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::{Server, children, declared_tier};
use indoc::indoc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// Returns every sample by its name and labels.
fn samples(server: &Server) -> BTreeMap<String, f64> {
    let response = server.get("/metrics");
    assert_eq!(response.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    response
        .body
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Waits until a sample has this value.
#[track_caller]
fn becomes(server: &Server, name: &str, value: f64) {
    let started = Instant::now();
    loop {
        let samples = samples(server);
        if samples.get(name) == Some(&value) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{name}: {samples:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn executions_are_counted_by_outcome() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    for script in [
        indoc! {r#"
            import time
            def main(): time.sleep(0.03)
        "#},
        "def main(): return 1",
        "def main(): return bytearray(5_000_000)[0]",
        "def main(): raise ValueError",
        "x = 1",
    ] {
        server.run(script);
    }
    server.post("text/plain", b"");
    let samples = samples(&server);
    let counted = |name: &str| samples[&format!("mainbox_{name}")];
    for (kind, count) in
        [("ok", 3.0), ("exception", 1.0), ("missing_main", 1.0), ("unsupported_media_type", 1.0)]
    {
        assert_eq!(counted(&format!("executions_total{{kind=\"{kind}\"}}")), count, "{kind}");
    }
    // Requests whose script did not run are not observed.
    for name in ["queue_seconds", "run_seconds", "peak_memory_bytes"] {
        assert_eq!(counted(&format!("{name}_count")), 5.0, "{name}");
        assert_eq!(counted(&format!("{name}_bucket{{le=\"+Inf\"}}")), 5.0, "{name}");
    }
    assert!(counted("run_seconds_bucket{le=\"0.025\"}") <= 4.0);
    assert!((0.03..5.0).contains(&counted("run_seconds_sum")));
    assert!(counted("cpu_seconds_total") > 0.0);
    assert!((5e6..5e7).contains(&counted("peak_memory_bytes_sum")));
    let (version, tier) = (env!("CARGO_PKG_VERSION"), declared_tier());
    let build = format!("build_info{{version=\"{version}\",isolation=\"{tier}\"}}");
    assert_eq!(counted(&build), 1.0);
}

#[test]
fn running_waiting_and_spare_counts_are_reported() {
    let server = Server::start(&[
        ("MAINBOX_PRELOAD", "json"),
        ("MAINBOX_CONCURRENCY", "2"),
        ("MAINBOX_QUEUE", "5"),
    ]);
    for zygote in ["bare", "preloaded"] {
        becomes(&server, &format!("mainbox_spares{{zygote=\"{zygote}\"}}"), 2.0);
        becomes(&server, &format!("mainbox_zygote_restarts_total{{zygote=\"{zygote}\"}}"), 0.0);
    }
    let sleep = json!({"script": indoc! {r#"
        import time
        def main(): time.sleep(9)
    "#}});
    let requests: Vec<_> = (0..5).map(|_| server.begin("", &sleep)).collect();
    becomes(&server, "mainbox_running", 2.0);
    becomes(&server, "mainbox_waiting", 3.0);
    drop(requests);
    becomes(&server, "mainbox_running", 0.0);
    becomes(&server, "mainbox_waiting", 0.0);
    becomes(&server, "mainbox_executions_total{kind=\"left\"}", 5.0);
}

#[test]
fn zygote_restarts_are_counted() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    // A worker that is starting when its zygote dies may count as a failed lockdown.
    server.wait_until_running(0);
    let zygotes = children(server.pid());
    assert_eq!(zygotes.len(), 1);
    kill(Pid::from_raw(zygotes[0]), Signal::SIGKILL).unwrap();
    becomes(&server, "mainbox_zygote_restarts_total{zygote=\"bare\"}", 1.0);
    becomes(&server, "mainbox_lockdown_failures_total", 0.0);
}

#[test]
fn metrics_require_a_key_if_keys_are_configured() {
    let server =
        Server::start(&[("MAINBOX_PRELOAD", ""), ("MAINBOX_API_KEYS", "0123456789abcdef")]);
    assert_eq!(server.get("/metrics").status, 401);
}

#[test]
fn the_dashboard_uses_only_existing_metrics() {
    let server = Server::start(&[("MAINBOX_PRELOAD", "")]);
    server.run("def main(): return 1");
    let existing: BTreeSet<String> = samples(&server)
        .keys()
        .map(|sample| sample.split('{').next().unwrap().to_owned())
        .collect();
    let dashboard = std::fs::read_to_string("docs/grafana.json").unwrap();
    let _: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let is_part = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let used: BTreeSet<String> = dashboard
        .match_indices("mainbox_")
        .map(|(place, _)| {
            dashboard[place..].chars().take_while(|letter| is_part(*letter)).collect()
        })
        .collect();
    assert!(used.is_subset(&existing), "{used:?} {existing:?}");
    assert_eq!(used.len(), 11, "{used:?}");
}
