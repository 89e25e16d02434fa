//! The rate limit: how many scripts each caller may run. A caller is an API key, or a client address if there are no keys.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The largest number of callers that are counted separately. It bounds the memory that addresses take; further callers
/// share buckets.
const MAX_CALLERS: usize = 10_000;
/// The number of shared buckets for further callers.
const SHARED_BUCKETS: u64 = 1000;
/// The shortest time between two searches for callers that can be forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// A number of requests per period, as a token bucket: it holds that many tokens and refills evenly over the period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The tokens of a full bucket.
    tokens: u32,
    /// The time in which one token is refilled.
    interval: Duration,
}

impl Rate {
    /// Reads a rate such as `60/min`: a number from 1 to 1,000,000 and the period `s`, `min` or `h`.
    pub fn read(text: &str) -> Option<Rate> {
        let (number, period) = text.split_once('/')?;
        let digits_only = number.bytes().all(|byte| byte.is_ascii_digit());
        let tokens = number.parse().ok().filter(|tokens| (1..=1_000_000).contains(tokens))?;
        let period = match period {
            "s" => Duration::from_secs(1),
            "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        digits_only.then(|| Rate { tokens, interval: period / tokens })
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
    callers: Mutex<Callers>,
}

/// A token that a request has taken, by the caller whose bucket it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(Caller);

struct Callers {
    buckets: HashMap<Caller, Bucket>,
    forgot: Instant,
}

/// A bucket, as the one time that says how many tokens it holds. The idea is the generic cell rate algorithm of ATM
/// (ITU-T I.371).
struct Bucket {
    /// When the bucket is full again: one interval from now for every token that is missing.
    full_at: Instant,
}

impl RateLimit {
    /// A limit with full buckets.
    pub fn new(rate: Rate) -> RateLimit {
        let callers = Callers { buckets: HashMap::new(), forgot: Instant::now() };
        RateLimit { rate, callers: Mutex::new(callers) }
    }

    /// Takes a token for one request of `caller`.
    ///
    /// # Errors
    /// The time until the next token, when the bucket is empty.
    pub fn take(&self, caller: Caller) -> Result<Token, Duration> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = callers.bucket_owner(caller);
        let now = Instant::now();
        let bucket = callers.buckets.entry(caller).or_insert(Bucket { full_at: now });
        bucket.take(self.rate, now).map(|()| Token(caller))
    }

    /// Gives back the token of a request that was refused for another reason.
    pub fn give_back(&self, Token(caller): Token) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = callers.buckets.get_mut(&caller) {
            bucket.full_at -= self.rate.interval;
        }
    }
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + rate.interval;
        let early = (full_at - now).saturating_sub(rate.interval * rate.tokens);
        if !early.is_zero() {
            return Err(early);
        }
        self.full_at = full_at;
        Ok(())
    }
}

impl Callers {
    /// The caller whose bucket counts. When the table is full, callers with full buckets are forgotten first: forgetting
    /// them changes nothing.
    fn bucket_owner(&mut self, caller: Caller) -> Caller {
        if self.buckets.len() < MAX_CALLERS || self.buckets.contains_key(&caller) {
            return caller;
        }
        if self.forgot.elapsed() > FORGET_INTERVAL {
            let now = Instant::now();
            self.buckets.retain(|_, bucket| bucket.full_at > now);
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
            Some(Rate { tokens: 60, interval: Duration::from_secs(1) })
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
            assert_eq!([limit.take(caller), limit.take(caller)], [Ok(Token(caller)); 2]);
            let wait = limit.take(caller).unwrap_err();
            assert_eq!(wait.as_secs_f64().round(), 1800.0);
        }
    }

    #[test]
    fn a_bucket_refills_evenly_and_holds_no_more_than_its_tokens() {
        for (number, period, seconds) in [(3, "s", 1), (7, "min", 60), (999_999, "h", 3600)] {
            let rate = Rate::read(&format!("{number}/{period}")).unwrap();
            let start = Instant::now();
            let mut bucket = Bucket { full_at: start };
            assert!((0..number).all(|_| bucket.take(rate, start).is_ok()));
            assert_eq!(bucket.take(rate, start), Err(rate.interval));
            let later = start + rate.interval * 2;
            assert_eq!([bucket.take(rate, later), bucket.take(rate, later)], [Ok(()), Ok(())]);
            assert_eq!(bucket.take(rate, later), Err(rate.interval));
            let much_later = later + Duration::from_secs(10 * seconds);
            assert!((0..number).all(|_| bucket.take(rate, much_later).is_ok()));
            assert_eq!(bucket.take(rate, much_later), Err(rate.interval));
        }
    }

    #[test]
    fn a_token_that_is_given_back_can_be_taken_once_more() {
        let limit = RateLimit::new(Rate::read("2/h").unwrap());
        let [token, _] = [(); 2].map(|()| limit.take(Caller::Key(0)).unwrap());
        assert!(limit.take(Caller::Key(0)).is_err());
        limit.give_back(token);
        assert_eq!(limit.take(Caller::Key(0)), Ok(token));
        assert!(limit.take(Caller::Key(0)).is_err());
    }

    #[test]
    fn any_number_of_callers_takes_bounded_memory_and_spares_known_callers() {
        let limit = RateLimit::new(Rate::read("1/h").unwrap());
        let most = MAX_CALLERS as u32;
        assert!((0..most).all(|number| limit.take(address(number)).is_ok()));
        let newcomers = (most..10 * most).filter(|number| limit.take(address(*number)).is_ok());
        assert_eq!(newcomers.count(), SHARED_BUCKETS as usize);
        assert!((0..most).all(|number| limit.take(address(number)).is_err()));
        assert_eq!(
            limit.callers.lock().unwrap().buckets.len(),
            MAX_CALLERS + SHARED_BUCKETS as usize
        );
    }

    #[test]
    fn a_caller_that_was_silent_for_long_is_forgotten_first() {
        let limit = RateLimit::new(Rate::read("1/s").unwrap());
        assert!((0..MAX_CALLERS as u32).all(|number| limit.take(address(number)).is_ok()));
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(limit.take(Caller::Key(0)), Ok(Token(Caller::Key(0))));
        assert_eq!(limit.callers.lock().unwrap().buckets.len(), 1);
    }
}
