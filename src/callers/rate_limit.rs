//! The rate limit: how many scripts each caller may run. A caller is an API key, or a client address if there are no keys.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// The largest number of callers that are counted separately. It bounds the memory that addresses take; further callers
/// share buckets.
const MAX_CALLERS: usize = 10_000;
/// The number of shared buckets for further callers.
const SHARED_BUCKETS: u64 = 1000;
/// The shortest time between two searches for callers that can be forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// A number of requests per period, as a token bucket: it holds that many tokens and refills evenly over the period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Quota);

impl Rate {
    /// Reads a rate such as `60/min`: a number from 1 to 1,000,000 and the period `s`, `min` or `h`.
    pub fn read(text: &str) -> Option<Rate> {
        let (number, period) = text.split_once('/')?;
        let digits_only = number.bytes().all(|byte| byte.is_ascii_digit());
        let number: NonZeroU32 = number.parse().ok().filter(|_| digits_only)?;
        let quota = match period {
            "s" => Quota::per_second(number),
            "min" => Quota::per_minute(number),
            "h" => Quota::per_hour(number),
            _ => return None,
        };
        (number.get() <= 1_000_000).then_some(Rate(quota))
    }
}

/// The caller that a request is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The holder of the API key with this index.
    Key(usize),
    /// The client at this address; for IPv6 its /64 network.
    Address(IpAddr),
    /// The shared bucket with this index, for callers without an address or beyond the 10,000 that are counted separately.
    Shared(u64),
}

/// Counts the requests of every caller.
pub struct RateLimit {
    rate: Rate,
    clock: DefaultClock,
    callers: Mutex<Callers>,
}

struct Callers {
    buckets: HashMap<Caller, Bucket>,
    forgot: Instant,
}

struct Bucket {
    limiter: DefaultDirectRateLimiter,
    used: Instant,
}

impl RateLimit {
    /// A limit with full buckets.
    pub fn new(rate: Rate) -> RateLimit {
        let callers = Callers { buckets: HashMap::new(), forgot: Instant::now() };
        RateLimit { rate, clock: DefaultClock::default(), callers: Mutex::new(callers) }
    }

    /// Takes a token for one request of `caller`.
    ///
    /// # Errors
    /// The time until the next token, when the bucket is empty.
    pub fn count(&self, caller: Caller) -> Result<(), Duration> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let Rate(quota) = self.rate;
        let caller = callers.bucket_owner(caller, quota.burst_size_replenished_in());
        let now = Instant::now();
        let new = || Bucket { limiter: RateLimiter::direct(quota), used: now };
        let bucket = callers.buckets.entry(caller).or_insert_with(new);
        bucket.used = now;
        let counted = bucket.limiter.check();
        counted.map_err(|early| early.wait_time_from(self.clock.now()))
    }
}

impl Callers {
    /// The caller whose bucket counts. When the table is full, callers whose last request is older than `refill_time`
    /// are forgotten first: their buckets are full again, so forgetting them changes nothing.
    fn bucket_owner(&mut self, caller: Caller, refill_time: Duration) -> Caller {
        if self.buckets.len() < MAX_CALLERS || self.buckets.contains_key(&caller) {
            return caller;
        }
        if self.forgot.elapsed() > FORGET_INTERVAL {
            self.buckets.retain(|_, bucket| bucket.used.elapsed() < refill_time);
            self.forgot = Instant::now();
        }
        if self.buckets.len() < MAX_CALLERS {
            return caller;
        }
        let mut hasher = DefaultHasher::new();
        caller.hash(&mut hasher);
        Caller::Shared(hasher.finish() % SHARED_BUCKETS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Caller {
        Caller::Address(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn rates_are_a_number_and_a_period() {
        assert_eq!(
            Rate::read("60/min"),
            Some(Rate(Quota::per_minute(NonZeroU32::new(60).unwrap())))
        );
        assert!(Rate::read("1/s").is_some() && Rate::read("1000000/h").is_some());
        for text in [
            "",
            "60",
            "60/",
            "/min",
            "0/s",
            "-1/s",
            "+1/s",
            "1.5/s",
            "1000001/s",
            "60/minute",
            "60 / min",
        ] {
            assert_eq!(Rate::read(text), None, "{text}");
        }
    }

    #[test]
    fn every_caller_has_a_bucket_of_its_own() {
        let limit = RateLimit::new(Rate::read("2/h").unwrap());
        for caller in [Caller::Key(0), Caller::Key(1), address(1), Caller::Shared(0)] {
            assert_eq!([limit.count(caller), limit.count(caller)], [Ok(()), Ok(())]);
            let wait = limit.count(caller).unwrap_err();
            assert_eq!(wait.as_secs_f64().round(), 1800.0);
        }
    }

    #[test]
    fn any_number_of_callers_takes_bounded_memory_and_spares_known_callers() {
        let limit = RateLimit::new(Rate::read("1/h").unwrap());
        let most = MAX_CALLERS as u32;
        assert!((0..most).all(|number| limit.count(address(number)).is_ok()));
        let newcomers = (most..10 * most).filter(|number| limit.count(address(*number)).is_ok());
        assert_eq!(newcomers.count(), SHARED_BUCKETS as usize);
        assert!((0..most).all(|number| limit.count(address(number)).is_err()));
        assert_eq!(
            limit.callers.lock().unwrap().buckets.len(),
            MAX_CALLERS + SHARED_BUCKETS as usize
        );
    }

    #[test]
    fn a_caller_that_was_silent_for_long_is_forgotten_first() {
        let limit = RateLimit::new(Rate::read("1/s").unwrap());
        assert!((0..MAX_CALLERS as u32).all(|number| limit.count(address(number)).is_ok()));
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(limit.count(Caller::Key(0)), Ok(()));
        assert_eq!(limit.callers.lock().unwrap().buckets.len(), 1);
    }
}
