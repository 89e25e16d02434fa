//! One server for a whole nextest run.
//!
//! nextest runs each test in a process of its own, so a server in a static would start once per test. The first process
//! that needs the server starts it below a keeper, a shell in a process group of its own, and leaves the URL in the
//! directory of the run. The keeper ends the server when the runner is gone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::world::lock;
use super::{Front, Log, START_TIMEOUT, Server, mainbox, patience, serving_port};

/// Arguments: the pid of the runner, the path of the log, the path of the pid file, the server's command.
/// The server holds neither the pipes of nextest nor its process group, which nextest kills after a timeout.
const KEEPER: &str = r#"
runner=$1 log=$2 pid=$3
shift 3
"$@" 2>"$log" &
server=$!
echo "$server" >"$pid.new" && mv "$pid.new" "$pid"
while kill -0 "$runner" 2>/dev/null && kill -0 "$server" 2>/dev/null; do sleep 1; done
kill "$server" 2>/dev/null
wait
"#;

/// Returns the server called `name`. Starts it if no process of this run did so before.
pub(super) fn server(folder: &Path, name: &str, settings: &[(&str, &str)]) -> Server {
    let path = |ending: &str| folder.join(format!("{name}.{ending}"));
    let _lock = lock(&path("lock"));
    let started = path("started");
    if !path("ready").exists() {
        // A start that failed fails again: waiting for it in each test would take hours.
        assert!(
            !started.exists(),
            "the shared server did not start: {}",
            std::fs::read_to_string(path("log")).unwrap_or_default()
        );
        std::fs::write(&started, "").unwrap();
        start(&mainbox(settings), &path("log"), &path("pid"));
    }
    let server = attach(&path("log"), &path("pid")).healthy();
    std::fs::write(path("ready"), "").unwrap();
    server
}

#[allow(clippy::zombie_processes, reason = "the keeper outlives this process")]
fn start(command: &Command, log: &Path, pid: &Path) {
    use std::os::unix::process::CommandExt;
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER, "keeper"]);
    keeper.arg(std::os::unix::process::parent_id().to_string()).arg(log).arg(pid);
    keeper.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => keeper.env(name, value),
            None => keeper.env_remove(name),
        };
    }
    let keeper = keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    keeper.process_group(0).spawn().unwrap();
}

/// Waits until the server's log tells its port.
fn attach(log: &Path, pid: &Path) -> Server {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let pid = std::fs::read_to_string(pid).ok().and_then(|pid| pid.trim().parse().ok());
        if let (Some(pid), Some(port)) = (pid, text.lines().find_map(serving_port)) {
            return Server {
                url: format!("http://127.0.0.1:{port}"),
                front: Front::Http,
                process: None,
                pid,
                log: Log::File(log.to_owned()),
                log_pause_ms: Default::default(),
            };
        }
        assert!(
            began.elapsed() < patience(START_TIMEOUT),
            "the shared server does not serve: {text}"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
