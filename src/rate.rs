//! How often somebody may have scripts run: `MAINBOX_RATE`, for each API key, or for each address where there are none.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Callers that are told apart, which bounds the memory that addresses take. Newcomers share beyond that.
const MOST_CALLERS: usize = 10_000;
/// Among so many, each of which is one more caller.
const SHARED: u64 = 1000;
/// How often room is looked for at the most.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// So many requests in such a time: a bucket that holds as many, and is filled again evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Quota);

impl Rate {
    /// Reads `60/min`: a number from 1 to a million, and `s`, `min` or `h`.
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

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Whoever has the API key of this number.
    Key(usize),
    /// Whoever calls from there.
    Address(IpAddr),
    /// Whoever calls from nobody knows where, or came when there was no room: those of one number together.
    Others(u64),
}

/// Counts.
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
    /// A limit that nobody has used yet.
    pub fn new(rate: Rate) -> RateLimit {
        let callers = Callers { buckets: HashMap::new(), forgot: Instant::now() };
        RateLimit { rate, clock: DefaultClock::default(), callers: Mutex::new(callers) }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// How long until the next one may come.
    pub fn count(&self, caller: Caller) -> Result<(), Duration> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let Rate(quota) = self.rate;
        let caller = callers.place(caller, quota.burst_size_replenished_in());
        let now = Instant::now();
        let new = || Bucket { limiter: RateLimiter::direct(quota), used: now };
        let bucket = callers.buckets.entry(caller).or_insert_with(new);
        bucket.used = now;
        let counted = bucket.limiter.check();
        counted.map_err(|early| early.wait_time_from(self.clock.now()))
    }
}

impl Callers {
    /// As whom a caller is counted. One that has not called for `full`, the time in which a bucket fills, is forgotten
    /// when there is no room: it would be as if it had never called.
    fn place(&mut self, caller: Caller, full: Duration) -> Caller {
        if self.buckets.len() < MOST_CALLERS || self.buckets.contains_key(&caller) {
            return caller;
        }
        if self.forgot.elapsed() > FORGET_INTERVAL {
            self.buckets.retain(|_, bucket| bucket.used.elapsed() < full);
            self.forgot = Instant::now();
        }
        if self.buckets.len() < MOST_CALLERS {
            return caller;
        }
        let mut hasher = DefaultHasher::new();
        caller.hash(&mut hasher);
        Caller::Others(hasher.finish() % SHARED)
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
    fn each_caller_has_the_rate_for_itself() {
        let limit = RateLimit::new(Rate::read("2/h").unwrap());
        for caller in [Caller::Key(0), Caller::Key(1), address(1), Caller::Others(0)] {
            assert_eq!([limit.count(caller), limit.count(caller)], [Ok(()), Ok(())]);
            let wait = limit.count(caller).unwrap_err();
            assert_eq!(wait.as_secs_f64().round(), 1800.0);
        }
    }

    #[test]
    fn callers_without_number_take_bounded_memory_and_nobodys_place() {
        let limit = RateLimit::new(Rate::read("1/h").unwrap());
        let most = MOST_CALLERS as u32;
        assert!((0..most).all(|number| limit.count(address(number)).is_ok()));
        let newcomers = (most..10 * most).filter(|number| limit.count(address(*number)).is_ok());
        assert_eq!(newcomers.count(), SHARED as usize);
        assert!((0..most).all(|number| limit.count(address(number)).is_err()));
        assert_eq!(limit.callers.lock().unwrap().buckets.len(), MOST_CALLERS + SHARED as usize);
    }

    #[test]
    fn who_has_not_called_for_long_makes_room() {
        let limit = RateLimit::new(Rate::read("1/s").unwrap());
        assert!((0..MOST_CALLERS as u32).all(|number| limit.count(address(number)).is_ok()));
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(limit.count(Caller::Key(0)), Ok(()));
        assert_eq!(limit.callers.lock().unwrap().buckets.len(), 1);
    }
}
