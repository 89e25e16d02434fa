//! A pool with a fake zygote.

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::config::choices::Platform;
use crate::executor::fake_zygote::{self, Fork, IDLE};

/// A pool of at most two spares, with a fake zygote.
fn pool(fork: Fork) -> (Arc<Pool>, tokio::task::JoinHandle<()>, Arc<Zygote>) {
    let config = Config::from_variables(&BTreeMap::new(), Platform::Elsewhere).unwrap();
    let (sandbox, metrics) = (Sandbox::without_isolation(), Metrics::new("none"));
    let pool = Pool::new(Arc::new(config), Arc::new(sandbox), Arc::new(metrics), vec![], 2);
    let zygote = fake_zygote::start(fork);
    let (user, used) = (Arc::clone(&pool), Arc::clone(&zygote));
    let using = tokio::spawn(async move { user.use_zygote(used).await });
    (pool, using, zygote)
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
    assert!(pool.take().await.is_none());
    assert!(pool.is_failing() && pool.spares().is_empty());
    assert!(pool.self_test_results().await.is_none());
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
