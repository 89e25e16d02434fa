//! The pace of a client: how fast a request body must arrive and a response must be read. A client that sends or reads a
//! byte now and then would otherwise hold memory forever.

use std::time::Duration;

use tokio::time::Instant;

/// A grace period and the lowest average speed after it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a client may do nothing at first.
    pub grace: Duration,
    /// The lowest average speed after that, bytes per second.
    pub min_bytes_per_second: u64,
}

/// The pace of every client. Slow mobile networks reach it.
pub const CLIENT: Pace = Pace { grace: Duration::from_secs(20), min_bytes_per_second: 64 * 1024 };

impl Pace {
    /// When a client that begins now must have sent or read something.
    pub fn begin(&self) -> Instant {
        Instant::now() + self.grace
    }

    /// When a client must have sent or read more, if that was `due` before it did so with `bytes`. Fast bytes buy no more
    /// than the grace: a client that sends all but the last one at once must send that one too.
    pub fn after(&self, due: Instant, bytes: u64) -> Instant {
        let time = Duration::from_secs_f64(bytes as f64 / self.min_bytes_per_second as f64);
        (due + time).min(self.begin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_at_the_lowest_speed_keeps_its_grace_and_a_slower_one_loses_it() {
        let pace = Pace { grace: Duration::from_secs(20), min_bytes_per_second: 1000 };
        for (bytes, seconds) in [(1000, None), (900, Some(191)), (1, Some(20))] {
            let (began, mut due) = (Instant::now(), pace.begin());
            let mut ended = None;
            for _ in 0..1000 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if Instant::now() > due {
                    ended = Some(began.elapsed().as_secs());
                    break;
                }
                due = pace.after(due, bytes);
            }
            let is_near = |(seconds, ended): (u64, u64)| ended.abs_diff(seconds) <= 1;
            assert!(seconds.zip(ended).map_or(seconds == ended, is_near), "{bytes} {ended:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fast_bytes_buy_no_more_than_the_grace() {
        let due = CLIENT.after(CLIENT.begin(), 8 << 20);
        assert_eq!(due, Instant::now() + Duration::from_secs(20));
    }
}
