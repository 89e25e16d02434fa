//! The pace of a client: how fast a request body must arrive and a response must be read. A client that sends or reads a
//! byte now and then would otherwise hold memory forever.

use std::time::Duration;

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
    /// How long `bytes` bytes may take.
    pub fn time_for(&self, bytes: u64) -> Duration {
        self.grace + Duration::from_secs_f64(bytes as f64 / self.min_bytes_per_second as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_grace_and_the_time_for_its_bytes() {
        assert_eq!(CLIENT.time_for(0), Duration::from_secs(20));
        assert_eq!(CLIENT.time_for(8 << 20), Duration::from_secs(20 + 128));
        assert_eq!(CLIENT.time_for(32 * 1024), Duration::from_millis(20_500));
    }
}
