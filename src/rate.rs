//! How often somebody may have scripts run: `MAINBOX_RATE`, for each API key, or for each address where there are none.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Callers that are told apart; all others together are one more. Bounds the memory that addresses take.
const MOST_CALLERS: usize = 10_000;
/// How often those are forgotten at the most that have not called for so long that it makes no difference.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// So many requests in such a time. As many at once are within it too.
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
    /// Everybody else.
    Others,
}

/// Counts.
pub struct RateLimit {
    callers: DefaultKeyedRateLimiter<Caller>,
    clock: DefaultClock,
    forgot: Mutex<Instant>,
}

impl RateLimit {
    /// A limit that nobody has used yet.
    pub fn new(rate: Rate) -> RateLimit {
        RateLimit {
            callers: RateLimiter::keyed(rate.0),
            clock: DefaultClock::default(),
            forgot: Mutex::new(Instant::now()),
        }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// How long until the next one may come.
    pub fn count(&self, caller: Caller) -> Result<(), Duration> {
        let caller = if self.has_room() { caller } else { Caller::Others };
        let counted = self.callers.check_key(&caller);
        counted.map_err(|early| early.wait_time_from(self.clock.now()))
    }

    fn has_room(&self) -> bool {
        if self.callers.len() < MOST_CALLERS {
            return true;
        }
        let mut forgot = self.forgot.lock().unwrap_or_else(PoisonError::into_inner);
        if forgot.elapsed() > FORGET_INTERVAL {
            self.callers.retain_recent();
            *forgot = Instant::now();
        }
        self.callers.len() < MOST_CALLERS
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
        for caller in [Caller::Key(0), Caller::Key(1), address(1), Caller::Others] {
            assert_eq!([limit.count(caller), limit.count(caller)], [Ok(()), Ok(())]);
            let wait = limit.count(caller).unwrap_err();
            assert_eq!(wait.as_secs_f64().round(), 1800.0);
        }
    }

    #[test]
    fn callers_without_number_are_counted_in_bounded_memory() {
        let limit = RateLimit::new(Rate::read("1/h").unwrap());
        let counted =
            (0..2 * MOST_CALLERS as u32).filter(|number| limit.count(address(*number)).is_ok());
        // The one more is the first of all others.
        assert_eq!(counted.count(), MOST_CALLERS + 1);
        assert_eq!(limit.callers.len(), MOST_CALLERS + 1);
    }
}
