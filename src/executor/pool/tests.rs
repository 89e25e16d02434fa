//! A pool with a fake zygote.

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::config::choices::{Platform, Tier};
use crate::executor::fake_zygote::{self, Fork, HICCUP, IDLE, SILENT};

/// A pool of at most two spares, with a fake zygote.
fn pool(fork: Fork) -> (Arc<Pool>, tokio::task::JoinHandle<()>, Arc<Zygote>) {
    let pool = pool_in(Sandbox::without_isolation());
    let (using, zygote) = begin_use(&pool, fork);
    (pool, using, zygote)
}

fn pool_in(sandbox: Sandbox) -> Arc<Pool> {
    let config = Config::from_variables(&BTreeMap::new(), Platform::Elsewhere).unwrap();
    let metrics = Metrics::new("none");
    Pool::new(Arc::new(config), Arc::new(sandbox), Arc::new(metrics), vec![], 2)
}

fn begin_use(pool: &Arc<Pool>, fork: Fork) -> (tokio::task::JoinHandle<()>, Arc<Zygote>) {
    let zygote = fake_zygote::start(fork);
    let (user, used) = (Arc::clone(pool), Arc::clone(&zygote));
    (tokio::spawn(async move { user.use_zygote(used).await }), zygote)
}

async fn has_spares(pool: &Pool, count: usize) {
    let waited = async {
        while pool.spares().len() != count || pool.starting.load(Ordering::Acquire) != 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap();
}

#[tokio::test]
async fn taken_spares_are_replaced_up_to_the_maximum() {
    let (pool, _using, _zygote) = pool(IDLE);
    has_spares(&pool, 2).await;
    let taken = [pool.take().await.unwrap(), pool.take().await.unwrap()];
    pool.refill(false);
    has_spares(&pool, 2).await;
    drop(taken);
}

#[tokio::test]
async fn a_spare_that_died_is_not_handed_out() {
    let (pool, _using, _zygote) = pool(IDLE);
    pool.proved().await.unwrap();
    has_spares(&pool, 2).await;
    let dead = pool.spares()[0].pid();
    kill(dead, Signal::SIGKILL).unwrap();
    while pool.spares()[0].is_alive() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let taken = pool.take().await.unwrap();
    assert!(taken.is_alive() && taken.pid() != dead);
}

#[tokio::test]
async fn the_pool_fails_after_three_workers_in_a_row_that_do_not_start() {
    let (pool, _using, _zygote) = pool(Fork::Fails(libc::EAGAIN));
    let refused = pool.take().await.err().unwrap();
    assert_eq!(refused.error, "Workers cannot be started; the log of the service says why");
    assert!(pool.is_failing() && pool.spares().is_empty());
    assert!(pool.self_test_results().await.is_none());
    assert_eq!(
        pool.never_starts().await,
        "cannot start worker 2: fork of a worker: Resource temporarily unavailable (os error 11)"
    );
}

#[tokio::test]
async fn a_retired_pool_has_no_spares_until_it_is_renewed() {
    let (pool, _using, _zygote) = pool(IDLE);
    has_spares(&pool, 2).await;
    pool.retire().await;
    pool.refill(true);
    has_spares(&pool, 0).await;
    pool.renew();
    has_spares(&pool, 2).await;
}

#[tokio::test]
async fn the_death_of_a_ready_zygote_is_noticed() {
    let (pool, using, zygote) = pool(IDLE);
    has_spares(&pool, 2).await;
    zygote.kill();
    // The fake zygote is a thread, so its socket is closed here.
    drop(pool.take().await);
    zygote.disconnect();
    using.await.unwrap();
    pool.lost_zygote().await;
    assert!(zygote.is_gone() && !pool.is_failing());
}

#[tokio::test]
async fn a_self_test_that_does_not_run_is_tried_again() {
    let (pool, _using, _zygote) = pool(HICCUP);
    assert_eq!(pool.proved().await, Ok(()));
    // The worker of the first attempt has made it.
    std::fs::remove_dir(format!("/tmp/mainbox-hiccup-{}", std::process::id())).unwrap();
}

#[tokio::test]
async fn no_worker_is_taken_from_a_new_zygote_before_its_self_test() {
    let (pool, using, zygote) = pool(IDLE);
    pool.take().await.unwrap();
    pool.refill(false);
    // None is starting, which would be counted as a worker of the new zygote.
    has_spares(&pool, 2).await;
    zygote.disconnect();
    using.await.unwrap();
    assert!(matches!(pool.proof(), Proof::Pending) && pool.spares().is_empty());
    // The workers of the new zygote are ready and do not answer.
    let (_using, _zygote) = begin_use(&pool, SILENT);
    has_spares(&pool, 1).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), pool.take()).await.is_err());
}

#[tokio::test]
async fn a_sandbox_that_allowed_something_stays_broken() {
    let mut sandbox = Sandbox::without_isolation();
    // The fake worker reports no attempt, and one that is not reported counts as allowed.
    sandbox.tier = Some(Tier::Rlimits);
    let pool = pool_in(sandbox);
    let (using, zygote) = begin_use(&pool, IDLE);
    let refused = pool.take().await.err().unwrap();
    assert_eq!(refused.error, "The sandbox did not pass its self-test");
    zygote.disconnect();
    using.await.unwrap();
    let refused = pool.take().await.err().unwrap();
    assert_eq!(refused.error, "The sandbox did not pass its self-test");
    // Nor does a self-test that does not run and then passes change that.
    pool.set_proof(Proof::not_run("no"));
    pool.set_proof(Proof::of(vec![]));
    assert!(matches!(pool.proof(), Proof::Broken(_)));
}
