//! Workers of a fake zygote.

use std::collections::BTreeMap;

use super::*;
use crate::api::request::ExecuteRequest;
use crate::config::choices::Platform;
use crate::executor::fake_zygote::{self, Fork, IDLE};

fn config() -> Config {
    Config::from_variables(&BTreeMap::new(), Platform::Elsewhere).unwrap()
}

async fn start(fork: Fork) -> Result<Worker, StartError> {
    let (zygote, sandbox) = (fake_zygote::start(fork), Sandbox::without_isolation());
    Worker::start(1, &zygote, &sandbox, &config(), false).await
}

async fn start_error(fork: Fork) -> String {
    start(fork).await.map(drop).unwrap_err().to_string()
}

async fn run(script: &'static str) -> Execution {
    let request = ExecuteRequest::from_python(b"def main(): pass", 100).unwrap();
    let config = config();
    let job = Job { timeout: Duration::from_secs(5), ..Job::new(request, &config) };
    let worker = start(Fork::Shell(script)).await.unwrap();
    let run = worker.run(&job, &config, Duration::ZERO, true, &|| 1.0).await;
    run.unwrap().0
}

#[tokio::test]
async fn a_worker_is_known_by_the_process_that_said_that_it_is_ready() {
    let worker = start(IDLE).await.unwrap();
    let pid = worker.pid();
    assert!(worker.is_alive() && pid.as_raw() > 0 && pid != nix::unistd::getpid());
    worker.end().await;
    assert!(procfs::memory(pid).is_none());
}

#[tokio::test]
async fn a_failed_lock_down_names_its_step() {
    let failed = Fork::Shell("printf 'E\\005\\000\\000\\000\\014\\001\\000\\000\\000' >&0");
    assert_eq!(
        start_error(failed).await,
        "step no_new_privs of its start failed: Operation not permitted (os error 1)"
    );
    let not_ready = Fork::Shell(
        "printf 'L\\051\\000\\000\\000{\"step\":\"warm_up\",\"error\":\"OSError: no\"} ' >&0",
    );
    assert_eq!(start_error(not_ready).await, "step warm_up of its start failed: OSError: no");
    for malformed in [
        "printf 'E\\005\\000\\000\\000\\077\\001\\000\\000\\000' >&0",
        "printf 'E\\001\\000\\000\\000\\001' >&0",
        "printf 'L\\001\\000\\000\\000{' >&0",
    ] {
        let error = start_error(Fork::Shell(malformed)).await;
        assert_eq!(error, "a worker died before it was ready");
    }
}

#[tokio::test]
async fn a_worker_that_does_not_start_has_an_error_of_its_own() {
    assert_eq!(start_error(Fork::Dies).await, "a worker died before it was ready");
    assert_eq!(
        start_error(Fork::Fails(libc::EAGAIN)).await,
        "fork of a worker: Resource temporarily unavailable (os error 11)"
    );
}

#[tokio::test]
async fn the_death_of_a_zygote_is_no_failure_of_the_workers_that_die_with_it() {
    let failed = "printf 'L\\002\\000\\000\\000{}' >&0";
    for fork in [Fork::Dies, Fork::Shell(failed)] {
        let (zygote, sandbox) = (fake_zygote::start(fork), Sandbox::without_isolation());
        let config = config();
        // The worker's end is noticed first.
        let died = async {
            tokio::time::sleep(CAUSE_GRACE / 2).await;
            zygote.disconnect();
        };
        let start = Worker::start(1, &zygote, &sandbox, &config, false);
        let (started, ()) = tokio::join!(start, died);
        assert_eq!(started.map(drop).unwrap_err().to_string(), "the zygote died");
    }
}

#[tokio::test]
async fn a_value_frame_is_the_result() {
    let execution = run(
        "printf 'R\\000\\000\\000\\000' >&0; head -c 1 >/dev/null; printf 'V\\002\\000\\000\\00042' >&0; exec sleep 60",
    )
    .await;
    assert_eq!(execution.outcome.unwrap().result.get(), "42");
}

#[tokio::test]
async fn an_exit_without_an_answer_is_explained_by_its_status() {
    let execution = run("printf 'R\\000\\000\\000\\000' >&0; head -c 1 >/dev/null; exit 3").await;
    let failure = execution.outcome.unwrap_err();
    assert_eq!(
        (failure.kind, failure.error.as_str()),
        (Kind::Exit, "The script ended its process with status 3 before main returned")
    );
    // As the zygote reports it, less what the worker had used before the request.
    assert!(execution.cpu > Duration::from_secs(4), "{:?}", execution.cpu);
}

#[tokio::test]
async fn the_jail_of_a_worker_is_given_back_only_once_it_is_reaped() {
    for (fork, stays) in [(IDLE, false), (Fork::NeverReaped, true)] {
        let (zygote, sandbox) = (fake_zygote::start(fork), Sandbox::without_isolation());
        let worker = Worker::start(1, &zygote, &sandbox, &config(), false).await.unwrap();
        let scratch = worker.scratch();
        assert!(scratch.is_dir());
        drop(worker);
        tokio::time::sleep(REAP_TIMEOUT * 3).await;
        assert_eq!(scratch.is_dir(), stays);
        // As when the zygote dies, and its workers with it.
        zygote.disconnect();
        tokio::time::sleep(REAP_TIMEOUT).await;
        assert!(!scratch.is_dir());
    }
}
